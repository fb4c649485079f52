"""All that is wrong with a data set at once, and what it holds: what `d3s2 check` reports."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import IGNORE, BadFile, SegmentationDataset
from d3s2.data.opening import open_dataset

BAR = {"delay": 1, "mininterval": 0.1, "leave": False}
IN_A_LOG = {"delay": 10, "mininterval": 30}
"""Seconds until a bar appears, and between two states of it."""

Value = int | tuple[int, int, int]
"""What a mask writes for a class: an id or a colour."""


@dataclass
class Fault:
    """One kind of fault: how many files, or lines of classes.csv, have it, and the sentence about
    the first of them.
    """

    count: int
    first: str
    what: str = "files"

    def __str__(self) -> str:
        many = f" ({self.count} {self.what} with this)"
        return self.first + (many if self.count > 1 else "")


@dataclass
class Examination:
    """What was found in one split.

    dataset: None when it cannot be opened at all; read: how many of its images were looked into;
    faults: by kind; pixels, images: int64[C], of each class; ignored: pixels without a class;
    empty: masks that have no other; unknown, unknown_images: pixels and masks of each id or colour
    that stands for nothing.
    """

    split: str
    dataset: SegmentationDataset | None = None
    read: int = 0
    faults: dict[str, Fault] = field(default_factory=dict)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    images: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    ignored: int = 0
    empty: int = 0
    unknown: Counter[Value] = field(default_factory=Counter)
    unknown_images: Counter[Value] = field(default_factory=Counter)

    def note(self, error: D3S2Error) -> None:
        """Count a fault under its kind; what has no kind of its own is a kind by itself."""
        kind = error.kind if isinstance(error, BadFile) else str(error)
        what = "lines" if kind.startswith("line ") else "files"
        known = self.faults.setdefault(kind, Fault(0, str(error), what))
        known.count += 1
        if isinstance(error, BadFile):
            self.unknown.update(error.unknown)
            self.unknown_images.update(error.unknown.keys())


def examine(
    format: str, root: Path | str, split: str, most: int = 0, progress: bool = True
) -> Examination:
    """Open a split and read its images and masks, every one or `most` of them, spread evenly.

    Nothing is raised: whatever is wrong is counted. A bar is drawn on stderr, which in a log is a
    line every half minute.
    """
    found = Examination(split)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an unusual number of images is not a fault
            dataset = open_dataset(format, Path(root), split, tell=found.note)
    except D3S2Error as error:
        found.note(error)
        return found
    found.dataset = dataset
    found.pixels, found.images = np.zeros((2, dataset.num_classes), np.int64)
    found.read = min(most or len(dataset), len(dataset))
    places = np.arange(found.read) * len(dataset) // max(found.read, 1)
    bar = BAR | ({} if sys.stderr.isatty() else IN_A_LOG)
    for index in tqdm(places, desc=f"reading {split}", disable=not progress, **bar):
        _look_into(found, dataset, int(index))
    if found.read == len(dataset) and not found.faults and not dataset.has_labels():
        found.note(
            D3S2Error(
                f"no mask of {dataset.name}/{split} has a pixel of a class, all {found.read} are "
                "ignored throughout: check the ids of its masks."
            )
        )
    return found


def _look_into(found: Examination, dataset: SegmentationDataset, index: int) -> None:
    said = ""
    try:
        dataset.read_image(index)
    except D3S2Error as error:
        found.note(error)
        said = str(error)
    try:
        labels = dataset.read_labels(index)
    except D3S2Error as error:
        if str(error) != said:  # a mask's size is compared with its image's, which may be damaged
            found.note(error)
        return
    counts = np.bincount(labels.ravel(), minlength=IGNORE + 1)
    found.ignored += int(counts[IGNORE])
    counts = counts[: dataset.num_classes]
    found.empty += not counts.any()
    found.pixels += counts
    found.images += counts > 0


def class_table(found: Examination) -> list[str]:
    """Lines: each class with its pixels, its share of them and its images, then what is void, then
    what stands for nothing.
    """
    total = max(int(found.pixels.sum()), 1)
    names = found.dataset.class_names if found.dataset else ()
    width = max(map(len, [*names, "(ignored)"]))
    lines = [f"{'class':<{width}} {'pixels':>12} {'share':>8} {'images':>7}"]
    for name, pixels, images in zip(names, found.pixels, found.images, strict=True):
        lines.append(f"{name:<{width}} {pixels:>12} {pixels / total:>8.2%} {images:>7}")
    lines.append(f"{'(ignored)':<{width}} {found.ignored:>12}")
    for value, pixels in found.unknown.most_common(20):
        what = f"colour {value}" if isinstance(value, tuple) else f"id {value}"
        lines.append(f"unknown {what}: {pixels} pixels in {found.unknown_images[value]} images")
    if len(found.unknown) > 20:
        lines.append(f"and {len(found.unknown) - 20} more unknown ids and colours")
    return lines


def lines_to_add(examinations: list[Examination], most: int = 20) -> list[str]:
    """A line of classes.csv for each id and colour that stands for nothing, the frequent ones
    first; its name, and what the mask does not say of it, is made up.
    """
    unknown: Counter[Value] = sum((found.unknown for found in examinations), Counter())
    ids: set[int] = set()
    colors: set[tuple[int, int, int]] = set()
    for found in examinations:
        if found.dataset is not None:
            code = found.dataset.code
            ids |= {number for number, train in enumerate(code.to_train) if train >= 0}
            colors |= set(code.colors)
    ids |= {value for value in unknown if isinstance(value, int)}
    colors |= {value for value in unknown if isinstance(value, tuple)}
    lines = []
    for value, _ in unknown.most_common(most):
        number, color = value, value
        if isinstance(value, tuple):
            number = next((free for free in range(256) if free not in ids), None)
        else:
            color = next(grey for grey in _made_up_colors() if grey not in colors)
        if number is None:
            break
        ids.add(number)
        colors.add(color)
        lines.append(f"{number},unnamed-{number},{color[0]},{color[1]},{color[2]}")
    return lines


def _made_up_colors() -> list[tuple[int, int, int]]:
    """Colours apart from each other, none of them grey."""
    steps = range(16, 256, 40)
    return [(r, g, b) for r in steps for g in steps for b in steps if not r == g == b] + [
        (r, g, 255) for r in range(256) for g in range(255)
    ]
