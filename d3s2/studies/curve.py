"""How far all the real data gets with more and more training: the curve that chapter 04 shows.

    python -m d3s2.studies.curve --work runs/curve --out d3s2/reference/full_curve.csv

Each point is a training of its own with the schedule of chapter 04 stretched to its length, so that
every point is a finished training. The points are trained side by side, and finished ones are not
repeated.
"""

from __future__ import annotations

import argparse
import csv
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from d3s2.core.errors import D3S2Error, exit_code
from d3s2.core.files import read_json, write_csv, write_json
from d3s2.data.splits import open_splits
from d3s2.runs import config
from d3s2.training.job import TrainingJob
from d3s2.training.side_by_side import train_all

REFERENCE = Path(__file__).parent / "reference" / "full_curve.csv"
LENGTHS = (1500, 3000, 6000, 12000)


def measure_curve(
    work: Path, out: Path, lengths: Sequence[int], parallel: int, seed: int = 0
) -> None:
    """Train on all the real scenes for each length; write `out` (CSV) and how it was made
    (JSON).
    """
    settings = config.resolve({"profile": "scenes"}, remember=False)
    train, val = open_splits(settings, progress=False)
    root = str(train.root)
    size = train.read_image(0).shape[:2]
    jobs = [
        TrainingJob(
            name=f"full {length}",
            train_root=root,
            val_root=root,
            num_classes=train.num_classes,
            work_dir=str(work / f"full-{length}-{seed}"),
            train_ids=train.ids,
            val_ids=val.ids,
            iterations=length,
            batch_size=settings.batch_size,
            seed=seed,
            size=size,
        )
        for length in sorted(lengths, reverse=True)
    ]
    results = sorted(train_all(jobs, parallel), key=lambda result: result.iterations)
    rows = [[r.iterations, r.seed, round(r.miou, 2), round(r.seconds)] for r in results]
    write_csv(out, [["iterations", "seed", "miou", "seconds"], *rows])
    facts = {
        "command": "python -m d3s2.studies.curve --lengths " + " ".join(map(str, sorted(lengths))),
        "images": len(train),
        "batch_size": settings.batch_size,
        "machine": f"{_processor()}, one core a training",
    }
    write_json(out.with_suffix(".json"), facts)


def _processor() -> str:
    """The processor's name where the system tells it (Linux), else its architecture."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def read_curve(path: Path = REFERENCE) -> tuple[list[tuple[int, float]], dict[str, object]]:
    """([(iterations, mIoU)], how it was measured). Raises D3S2Error when the file is missing."""
    if not path.is_file():
        raise D3S2Error(f"{path} is missing: measure it with `python -m d3s2.studies.curve`.")
    with open(path, newline="", encoding="utf-8") as stream:
        curve = [(int(row["iterations"]), float(row["miou"])) for row in csv.DictReader(stream)]
    return curve, read_json(path.with_suffix(".json"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m d3s2.studies.curve", description="Measure the full data's learning curve."
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/curve"), help="folder of the trainings"
    )
    parser.add_argument("--out", type=Path, default=REFERENCE, help="the CSV to write")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=LENGTHS, help="iterations of each training"
    )
    parser.add_argument(
        "--parallel", type=int, default=0, help="trainings side by side, 0 = one a core"
    )
    options = parser.parse_args(arguments)
    return exit_code(
        lambda: measure_curve(options.work, options.out, options.lengths, options.parallel)
    )


if __name__ == "__main__":
    sys.exit(main())
