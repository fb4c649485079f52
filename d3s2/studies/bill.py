"""What a distilled set costs in all: labels, proxy, generator, distilling, training.

    python -m d3s2.studies.bill --run-dir runs/scenes

Equal iterations make trainings equally dear; what came before them stands in this table. Every
number is read from a log: those beside the weights, the seconds that `d3s2 run` notes of each
notebook, and the trainings' own clocks. What nobody noted is said to be unknown, never guessed.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from d3s2.core.errors import D3S2Error, exit_code
from d3s2.core.files import read_json
from d3s2.core.places import EMBEDDED_WEIGHTS
from d3s2.data.splits import SCENES_COUNTS, count_splits
from d3s2.runs import config
from d3s2.selection import budget_size
from d3s2.training.job import FINISHED, TrainingResult, read_result

COMMAND = "python -m d3s2.studies.bill"
UNKNOWN = "not noted"


@dataclass(frozen=True)
class Line:
    """One part of the bill. images: labelled ones that it reads, or the ones that it makes;
    seconds: None where no log says them.
    """

    part: str
    images: int
    work: str
    seconds: float | None = None

    @property
    def minutes(self) -> str:
        """As the table shows it."""
        return UNKNOWN if self.seconds is None else f"{self.seconds / 60:.1f}"


def bill(
    weights: Path, run_dir: Path, labelled: int, made: int, trainings: Iterable[TrainingResult]
) -> list[Line]:
    """The parts in the order in which they are paid.

    Args:
        weights: the run's networks, with `training_log.csv` beside each that was trained here.
        run_dir: where `d3s2 run` noted the notebooks' seconds.
        labelled: real images with a mask (the embedded networks learned from all the scenes,
            whatever the run takes); made: images of the distilled set.
        trainings: those of the run.
    """
    lines = [Line("masks", labelled, "they come with the data; all but distilling read them whole")]
    seen = SCENES_COUNTS[0] if weights == EMBEDDED_WEIGHTS else labelled
    for network in ("proxy", "generator"):
        lines.append(_of_network(network, weights / network / "training_log.csv", seen))
    chapters = (
        ("statistics", "01_data_statistics", labelled),
        ("selection", "02_mask_selection", labelled),
        ("distilling", "03_guided_sampling", made),
    )
    for part, notebook, images in chapters:
        chapter = f"the whole notebook {notebook[:2]}, demonstrations included"
        lines.append(Line(part, images, chapter, _notebook_seconds(run_dir, notebook)))
    for result in trainings:
        work = f"{result.iterations:,} iterations"
        lines.append(
            Line(f"training {result.name}", result.train_images, work, result.cost.get("seconds"))
        )
    return lines


def _of_network(network: str, log: Path, labelled: int) -> Line:
    """What a network's own training took; one without a log was trained by others."""
    if not log.is_file():
        return Line(network, labelled, "trained elsewhere")
    with open(log, newline="", encoding="utf-8") as stream:
        last = list(csv.DictReader(stream))[-1]
    work = f"{int(last['iteration']):,} iterations"
    return Line(network, labelled, work, float(last["seconds"]))


def _notebook_seconds(run_dir: Path, notebook: str) -> float | None:
    """As `d3s2 run` noted them; None for a notebook that was run by hand."""
    note = run_dir / "executed" / f"{notebook}.json"
    return float(read_json(note)["seconds"]) if note.is_file() else None


def table(lines: Sequence[Line]) -> str:
    """The bill as Markdown."""
    rows = [f"| {line.part} | {line.images:,} | {line.work} | {line.minutes} |" for line in lines]
    return "\n".join(["| part | images | work | minutes |", "|---|---:|---|---:|", *rows]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module's text."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="The whole bill of a finished run.")
    parser.add_argument("--run-dir", type=Path, default=None, help="its folder; runs/scenes")
    options = parser.parse_args(arguments)

    def show() -> None:
        settings = config.resolve({"run_dir": options.run_dir and str(options.run_dir)})
        run_dir = Path(settings.run_dir)
        folders = sorted(run_dir.glob(f"training/*/{FINISHED}"))
        if not folders:
            raise D3S2Error(f"{run_dir} holds no finished training: finish `d3s2 run` first.")
        trainings = [read_result(path.parent) for path in folders]
        labelled, _ = count_splits(settings)
        made = budget_size(settings.budget, labelled)
        print(table(bill(settings.weights_folder, run_dir, labelled, made, trainings)))

    return exit_code(show)


if __name__ == "__main__":
    sys.exit(main())
