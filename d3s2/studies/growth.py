"""How work grows with the data: python -m d3s2.studies.growth [statistics|features|selection ...]
[--picture FILE]

Statistics of masks, statistics of features and greedy selection (of 1 %) are done for N, 10 N and
100 N images, in turns within one process with one thread; the exponent is the slope of a straight
line through the medians, both axes logarithmic: 1 = in proportion to the data. Files are read from
the system's memory: a few are drawn, and stand for all images, again and again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from d3s2.core import machine
from d3s2.core.errors import D3S2Error, exit_code
from d3s2.data.dataset import SegmentationDataset
from d3s2.models.load import load_proxy
from d3s2.plots.house_style import GRID, SERIES, new_figure, style
from d3s2.runs import config
from d3s2.statistics.features import feature_statistics
from d3s2.statistics.pixels import count_pixels
from d3s2.studies.drawn_masks import draw_masks, draw_scenes
from d3s2.studies.selection_speed import long_tail, ours
from d3s2.studies.turns import in_turns

FACTORS = (1, 10, 100)
DRAWN = 32
"""Files that stand for all images."""
SHARE = 0.01
"""Of the masks, that are selected."""
SELECTION_CLASSES = 171
NAMES = {
    "statistics": "statistics of masks (512 x 512)",
    "features": "statistics of features (64 x 64)",
    "selection": "greedy selection of 1 %",
}

COLOURS = {
    "statistics": SERIES["uniform"],
    "features": SERIES["balanced"],
    "selection": SERIES["greedy"],
}


class Growth(NamedTuple):
    """Seconds of the processor for each number of images."""

    images: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def exponent(self) -> float:
        """The slope of log(seconds) over log(images), by least squares."""
        return float(np.polyfit(np.log(self.images), np.log(self.seconds), 1)[0])


def repeated(dataset: SegmentationDataset, count: int) -> SegmentationDataset:
    """A data set of so many images, which are those of a smaller one again and again."""
    return dataset.subset(np.arange(count) % len(dataset))


def statistics_of(folder: Path) -> Callable[[int], object]:
    """Counts the classes of so many masks."""
    dataset = draw_masks(folder / "masks", DRAWN)
    return lambda count: count_pixels(repeated(dataset, count), progress=False)


def features_of(folder: Path) -> Callable[[int], object]:
    """Takes the shipped proxy's features of so many scenes."""
    dataset = draw_scenes(folder / "scenes", DRAWN)
    weights = config.resolve({"profile": "scenes"}, remember=False).weights_folder
    proxy = load_proxy(weights / "proxy")
    return lambda count: feature_statistics(repeated(dataset, count), proxy, progress=False)


def selection_of(folder: Path) -> Callable[[int], object]:
    """Selects 1 % of so many masks, whose classes were drawn before."""
    matrices = {}

    def select(count: int) -> object:
        if count not in matrices:
            matrices[count] = long_tail(count, SELECTION_CLASSES)
        return ours(matrices[count], max(1, round(SHARE * count)))

    return select


WORK = {
    "statistics": (statistics_of, 50),
    "features": (features_of, 16),
    "selection": (selection_of, 1200),
}
"""What grows, and the smallest number of images."""


def measure(prepare: Callable[[Path], Callable[[int], object]], first: int, rounds: int) -> Growth:
    """Do the work for 1, 10 and 100 times `first` images in turns."""
    images = [factor * first for factor in FACTORS]
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(Path(folder))
        seconds = in_turns({str(count): partial(work, count) for count in images}, rounds)
    return Growth(tuple(images), tuple(median(seconds[str(count)]) for count in images))


def picture(found: Mapping[str, Growth]) -> Figure:
    """Seconds over images, both logarithmic, with the straight lines; pale ones grow as data do."""
    figure, axes = new_figure(6.4, 4.2)
    axes = axes[0, 0]
    for name, growth in found.items():
        images, seconds = np.array(growth.images), np.array(growth.seconds)
        label = f"{NAMES[name]}: exponent {growth.exponent:.2f}"
        shift = np.exp(np.mean(np.log(seconds)) - growth.exponent * np.mean(np.log(images)))
        colour = COLOURS[name]
        axes.plot(images, shift * images**growth.exponent, color=colour, label=label)
        axes.plot(images, seconds, "o", color=colour)
        axes.plot(images, seconds[0] * images / images[0], color=GRID, zorder=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    style(axes, "images", "processor's seconds", "How work grows with the data")
    axes.legend(fontsize=8, frameon=False)
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module's text; 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m d3s2.studies.growth", description="Measure how work grows with the data."
    )
    parser.add_argument("work", nargs="*", default=[], help=f"of {', '.join(WORK)}; all")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count")
    parser.add_argument("--picture", type=Path, help="a PNG to write")
    options = parser.parse_args(arguments)

    def work() -> None:
        for name in options.work:
            if name not in WORK:
                raise D3S2Error(f"{name!r} is no work: choose {', '.join(WORK)}.")
        if options.rounds < 1:
            raise D3S2Error(f"rounds is {options.rounds}: they count from 1.")
        machine.set_threads(1)
        print(f"processor's seconds, 1 thread, medians of {options.rounds} rounds in turns")
        found = {}
        for name in options.work or WORK:
            found[name] = measure(*WORK[name], options.rounds)
            pairs = zip(found[name].images, found[name].seconds, strict=True)
            listed = ", ".join(f"{count:,}: {seconds:.3f} s" for count, seconds in pairs)
            print(f"{NAMES[name]:34} exponent {found[name].exponent:.2f}   {listed}", flush=True)
        if options.picture:
            picture(found).savefig(options.picture, format="png", metadata={"Software": None})

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
