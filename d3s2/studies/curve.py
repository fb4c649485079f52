"""How far each training set gets with more and more training: the curves that chapter 04 shows.

    python -m d3s2.studies.curve --work runs/ablation

Each point is a training of its own with the schedule of chapter 04 stretched to its length, so that
every point is a finished training, and the small sets are trained as long as all the data. Sets,
seeds and noise are those of `ablation`: every seed has draws and paintings of its own, and in the
same `--work` folder nothing that `ablation` painted or trained is made twice. An interrupted call
goes on where it was; what is finished is written after each length. `--show` measures nothing and
prints what is there.
"""

from __future__ import annotations

import argparse
import csv
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from d3s2.core import machine
from d3s2.core.errors import D3S2Error, exit_code
from d3s2.core.files import read_json, write_csv, write_json
from d3s2.core.long_work import Steps
from d3s2.methods.comparison import Contest
from d3s2.runs import config
from d3s2.selection import budget_size
from d3s2.studies.ablation import ARMS, open_arms
from d3s2.training.job import TrainingJob
from d3s2.training.side_by_side import train_all

REFERENCE = Path(__file__).parent / "reference" / "full_curve.csv"
COMMAND = "python -m d3s2.studies.curve"
LENGTHS = (1500, 3000, 6000, 12000)
FULL = "full"
SETS = ("random", "balanced", "d3s2", FULL)
HEADER = ("set", "iterations", "seed", "miou", "seconds", "split")

Curves = Mapping[str, Mapping[int, Mapping[int, float]]]
"""{set: {iterations: {seed: mIoU in percent}}}."""


@dataclass(frozen=True)
class Points:
    """Which trainings are made: every set with every seed at every length."""

    sets: Sequence[str] = SETS
    seeds: Sequence[int] = (0, 1, 2)
    lengths: Sequence[int] = LENGTHS


def measure_curve(
    work: Path, out: Path, points: Points, settings: config.Settings, judge: str = "val"
) -> None:
    """Train what is missing; write `out` (one line a training, see `HEADER`) and how it was made.

    Raises D3S2Error for an `out` that was measured in another way.
    """
    contest = open_arms(settings, work, judge)
    images = len(contest.shared.train)
    size = budget_size(settings.budget, images)
    facts = {
        "images": images,
        "small": size,
        "batch_size": settings.batch_size,
        "split": judge,
        "machine": f"{_processor()}, one core a training",
    }
    rows = _earlier(out, facts)
    total = len(points.sets) * len(points.seeds) * len(points.lengths)
    with Steps("trainings", total) as steps:
        for length in sorted(points.lengths):
            places = [(name, length, seed) for seed in points.seeds for name in points.sets]
            jobs = [curve_job(contest, *place, size) for place in places]
            results = train_all(jobs, settings.jobs, reuse=work / "training")
            for place, result in zip(places, results, strict=True):
                rows[place] = [*place, round(result.miou, 3), round(result.seconds), judge]
            _write(out, rows, facts)
            steps.add(len(jobs))


def curve_job(contest: Contest, name: str, length: int, seed: int, size: int) -> TrainingJob:
    """The training of one set, of a given length: an arm of `ablation` with `size` masks, or all
    real images.
    """
    work = contest.shared.work / "training" / contest.template.val_split
    if name == FULL:
        ids = tuple(sorted(contest.shared.train.ids))
        job = replace(contest.template, train_ids=ids, seed=seed)
    else:
        job = contest.job(ARMS[name], seed, contest.folder(ARMS[name], size, seed))
    place = work / f"{name}-{size}-{seed}-for-{length}"
    return replace(job, name=f"{name} {seed}, {length}", iterations=length, work_dir=str(place))


def _earlier(out: Path, facts: Mapping[str, object]) -> dict[tuple[str, int, int], list[object]]:
    """The rows of a measurement before, of the same data in the same way. Raises D3S2Error for
    another.
    """
    if not out.is_file():
        return {}
    before = {"split": "val", "small": facts["small"]} | read_json(out.with_suffix(".json"))
    # Another machine gives other seconds, not another score.
    other = [
        name for name, value in facts.items() if name != "machine" and before.get(name) != value
    ]
    if other:
        raise D3S2Error(
            f"{out} was measured with {other[0]} {before.get(other[0])}, now it is "
            f"{facts[other[0]]}: give another file with --out, or delete this one to begin anew."
        )
    return {
        (row["set"], int(row["iterations"]), int(row["seed"])): [row[name] for name in HEADER]
        for row in _rows(out)
    }


def _rows(path: Path) -> list[dict[str, str]]:
    """The lines of a file; one from before small sets had curves holds the full data alone."""
    with open(path, newline="", encoding="utf-8") as stream:
        return [{"set": FULL, "split": "val"} | row for row in csv.DictReader(stream)]


def _write(
    out: Path, rows: Mapping[tuple[str, int, int], list[object]], facts: Mapping[str, object]
) -> None:
    names = [name for name in SETS if any(place[0] == name for place in rows)]
    places = sorted(rows, key=lambda place: (names.index(place[0]), *place[1:]))
    lengths = sorted({length for _, length, _ in places})
    seeds = sorted({seed for *_, seed in places})
    command = f"{COMMAND} --sets {' '.join(names)} --lengths {' '.join(map(str, lengths))}"
    command += f" --seeds {' '.join(map(str, seeds))}"
    if facts["split"] != "val":
        command += f" --split {facts['split']}"
    write_csv(out, [HEADER, *(rows[place] for place in places)])
    write_json(out.with_suffix(".json"), {"command": command, **facts})


def _processor() -> str:
    """The processor's name where the system tells it (Linux), else its architecture."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def read_curves(path: Path = REFERENCE) -> tuple[Curves, dict[str, object]]:
    """(every set's mIoU by length and seed, how it was measured). Raises D3S2Error when the file is
    missing.
    """
    if not path.is_file():
        raise D3S2Error(f"{path} is missing: measure it with `{COMMAND}`.")
    curves: dict[str, dict[int, dict[int, float]]] = {}
    for row in _rows(path):
        of_length = curves.setdefault(row["set"], {}).setdefault(int(row["iterations"]), {})
        of_length[int(row["seed"])] = float(row["miou"])
    return curves, read_json(path.with_suffix(".json"))


def table(curves: Curves) -> str:
    """Markdown: a set a line, a length a column, mean and deviation over the seeds that it has."""
    lengths = sorted({length for points in curves.values() for length in points})
    lines = [
        "| training set | " + " | ".join(f"{length:,}" for length in lengths) + " |",
        "|---|" + "---:|" * len(lengths),
    ]
    for name, points in curves.items():
        cells = [_mean(list(points.get(length, {}).values())) for length in lengths]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean(scores: Sequence[float]) -> str:
    if len(scores) < 2:
        return "".join(f"{score:.1f} (one training)" for score in scores)
    return f"{np.mean(scores):.1f} ± {np.std(scores, ddof=1):.1f} ({len(scores)})"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module's text."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Measure learning curves.")
    option = parser.add_argument
    work = "folder of sets and trainings; that of ablation saves what it has made"
    option("--work", type=Path, default=Path("runs/ablation"), help=work)
    option("--out", type=Path, default=REFERENCE, help="the CSV to write")
    option("--sets", nargs="+", default=SETS, choices=SETS, help="training sets")
    option("--lengths", type=int, nargs="+", default=LENGTHS, help="iterations of each training")
    option("--seeds", type=int, nargs="+", default=(0, 1, 2), help="of each set and length")
    option("--split", choices=("val", "test"), default="val", help="what trainings are judged on")
    option("--show", action="store_true", help="measure nothing, print what --out holds")
    option("--parallel", type=int, default=0, help="trainings side by side, 0 = one a core")
    options = parser.parse_args(arguments)

    def measure() -> None:
        if not options.show:
            settings = config.resolve(
                {"profile": "scenes", "jobs": options.parallel}, remember=False
            )
            machine.set_threads(settings.threads)
            points = Points(options.sets, options.seeds, options.lengths)
            measure_curve(options.work, options.out, points, settings, options.split)
        print(table(read_curves(options.out)[0]))

    return exit_code(measure)


if __name__ == "__main__":
    sys.exit(main())
