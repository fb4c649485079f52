"""Intersection over union, and the table that a run ends with.

mmsegmentation's metric judges the trainings; the functions here say the same in a few lines, so
that a notebook can write them out, and tests can hold one against the other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d3s2.core.errors import D3S2Error
from d3s2.core.files import write_csv, write_json, write_text
from d3s2.data.dataset import IGNORE
from d3s2.training.job import TrainingResult

COLUMNS = ("set", "images", "iterations", "seeds", "miou_mean", "miou_sd")


def confusion(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of the row's class that were called the column's, int64[C, C]; label 255 does not
    count.

    predicted, labels: integers of one shape. Raises D3S2Error for different shapes and for ids
    outside 0 .. C-1.
    """
    if predicted.shape != labels.shape:
        raise D3S2Error(
            f"predictions have shape {predicted.shape}, labels {labels.shape}: compare images of "
            "one size."
        )
    valid = labels != IGNORE
    true = labels[valid].astype(np.int64)
    said = predicted[valid].astype(np.int64)
    if said.size and not (0 <= said.min() and max(said.max(), true.max()) < num_classes):
        raise D3S2Error(
            f"a prediction or a label lies outside 0 .. {num_classes - 1}: check the number of "
            "classes."
        )
    cells = np.bincount(num_classes * true + said, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def intersect_and_union(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int64[C], int64[C]) from a confusion matrix: pixels that are and are called c; that are
    either.
    """
    intersection = np.diag(matrix)
    return intersection, matrix.sum(0) + matrix.sum(1) - intersection


def class_iou(matrix: np.ndarray) -> np.ndarray:
    """float64[C] in percent; NaN for a class that neither occurs nor is predicted."""
    intersection, union = intersect_and_union(matrix)
    return np.divide(100.0 * intersection, union, out=np.full(len(union), np.nan), where=union > 0)


def mean_iou(matrix: np.ndarray) -> float:
    """Mean of `class_iou` over the classes that have one; NaN when none has."""
    values = class_iou(matrix)
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


@dataclass(frozen=True)
class Row:
    """One training set in the table: mIoU in percent over its trainings, sd None for a single
    one.
    """

    set: str
    images: int
    iterations: int
    seeds: int
    miou_mean: float
    miou_sd: float | None
    miou: tuple[float, ...]
    per_class_iou: tuple[float | None, ...]


def summarise(results: Mapping[str, Sequence[TrainingResult]]) -> list[Row]:
    """One row per training set, in the order given; per_class_iou is the mean over the trainings.

    Raises D3S2Error for a set without trainings, or with trainings of different lengths.
    """
    rows = []
    for name, trainings in results.items():
        if len({result.iterations for result in trainings}) != 1:
            raise D3S2Error(
                f"set {name!r} needs trainings of one length: it has {len(trainings)}, of several "
                "or none."
            )
        scores = tuple(result.miou for result in trainings)
        rows.append(
            Row(
                set=name,
                images=trainings[0].train_images,
                iterations=trainings[0].iterations,
                seeds=len(scores),
                miou_mean=statistics.fmean(scores),
                miou_sd=statistics.stdev(scores) if len(scores) > 1 else None,
                miou=scores,
                per_class_iou=_class_means([result.per_class_iou for result in trainings]),
            )
        )
    return rows


def _class_means(scores: Sequence[Sequence[float]]) -> tuple[float | None, ...]:
    """Each class's mean over the trainings that have it; None where none has."""
    classes = np.array(scores).T
    return tuple(
        float(np.nanmean(values)) if np.isfinite(values).any() else None for values in classes
    )


def markdown_table(rows: Sequence[Row], protocol: str = "") -> str:
    """The table as Markdown, mIoU as mean +- standard deviation. protocol: how the scores were
    made, which is said below.
    """
    lines = [
        "| training set | images | iterations | trainings | val mIoU (%) |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        spread = "" if row.miou_sd is None else f" ± {row.miou_sd:.1f}"
        lines.append(
            f"| {row.set} | {row.images} | {row.iterations} | {row.seeds} | "
            f"{row.miou_mean:.1f}{spread} |"
        )
    if protocol:
        lines += ["", f"Protocol: {protocol}."]
    return "\n".join(lines) + "\n"


def write_report(
    folder: str | Path, rows: Sequence[Row], class_names: Sequence[str], facts: Mapping[str, Any]
) -> None:
    """Write results.json (everything), results.csv and results.md (the table). facts: JSON values,
    of which "protocol" is said below the table.
    """
    folder = Path(folder)
    write_json(
        folder / "results.json",
        {"facts": dict(facts), "classes": list(class_names), "rows": [asdict(row) for row in rows]},
    )
    header = [*COLUMNS, *(f"iou_{name}" for name in class_names)]
    write_csv(folder / "results.csv", [header, *map(_cells, rows)])
    write_text(folder / "results.md", markdown_table(rows, str(facts.get("protocol", ""))))


def _cells(row: Row) -> list[object]:
    """A line of the CSV; None, an unknown value, becomes an empty cell."""
    return [*(getattr(row, column) for column in COLUMNS), *row.per_class_iou]
