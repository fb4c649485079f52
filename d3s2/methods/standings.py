"""What a comparison's file says beside its main table: for charts, and as Markdown.

A comparison has a file for Mask2Former and, beside it, one for each other network that was trained
on the same sets; they have the same columns (see `comparison.HEADER`).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from d3s2.core.errors import D3S2Error
from d3s2.methods.intervals import Measurement, cell, read_measurement, spread
from d3s2.training.students import MASK2FORMER, NETWORK_NAMES

COMMAND = "d3s2 compare"
THIRDS = ("head", "body", "tail")
BILL = {
    "images": "images",
    "seconds_an_image": "seconds an image",
    "evaluations_an_image": "evaluations an image",
    "peak_mb": "peak MB",
    "png_kb": "PNG kB",
}
"""Columns that say what a set cost, and their titles."""


def file_of(out: Path, network: str) -> Path:
    """The file of one network's trainings, where Mask2Former's is `out`."""
    return out if network == MASK2FORMER else out.with_stem(f"{out.stem}-{network}")


def measured_networks(out: Path) -> dict[str, Path]:
    """The files that there are, by network."""
    files = {network: file_of(out, network) for network in NETWORK_NAMES}
    return {network: path for network, path in files.items() if path.is_file()}


# ----------------------------------------------------------------------------------- for the charts
def per_budget(out: Path, column: str = "miou") -> dict[str, dict[int, list[float]]]:
    """{method: {masks: one value a row}}, methods and budgets in the order of the file; rows in
    which the column is empty do not count. For `plots.budget_curves`.

    Raises D3S2Error for a file or a column that there is not.
    """
    found: dict[str, dict[int, list[float]]] = {}
    for row in _rows(out, column):
        of_method = found.setdefault(row["method"], {})
        if row[column]:
            of_method.setdefault(int(row["budget"]), []).append(float(row[column]))
    return {method: values for method, values in found.items() if values}


def per_third(out: Path, budget: int) -> dict[str, dict[str, list[float]]]:
    """{method: {"head": one mean IoU a row, "body": ..., "tail": ...}} of one budget, without those
    that have none. For `plots.third_bars`. Raises D3S2Error as `per_budget`.
    """
    thirds = {third: per_budget(out, third) for third in THIRDS}
    found = {}
    for method in thirds["head"]:
        values = {third: of.get(method, {}).get(budget, []) for third, of in thirds.items()}
        known = {third: [each for each in of if not np.isnan(each)] for third, of in values.items()}
        if all(known.values()):
            found[method] = known
    return found


def _rows(out: Path, column: str) -> list[dict[str, str]]:
    if not out.is_file():
        raise D3S2Error(f"{out} is missing: measure it with `{COMMAND}`.")
    with open(out, newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
    names = reader.fieldnames or ()
    if column not in names:
        raise D3S2Error(f"{out} has no column {column!r}: it has {', '.join(names)}.")
    return rows


# ---------------------------------------------------------------------------------------- in tables
def details(out: Path, budget: int) -> str:
    """Markdown: for each method the means of head, body, tail and judge, and its bill; empty where
    nothing was noted. Raises D3S2Error as `per_budget`.
    """
    columns = {name: f"{name} (%)" for name in THIRDS} | {"judge": "judge"} | BILL
    means = {name: per_budget(out, name) for name in columns}
    methods = [name for name, of in per_budget(out).items() if budget in of]
    lines = [
        f"| arm | {' | '.join(columns.values())} |",
        "|---|" + "---:|" * len(columns),
    ]
    for method in methods:
        cells = [_mean(name, of.get(method, {}).get(budget, [])) for name, of in means.items()]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines += [
        "",
        "Means over the rows. head, body, tail: IoU of the most frequent, middle and rarest third "
        "of the classes; judge: how much of the set a segmenter recognises that never guided.",
    ]
    return "\n".join(lines) + "\n"


def _mean(column: str, values: Sequence[float]) -> str:
    """A cell: the mean, with as many digits as its column can have."""
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return ""
    digits = {"judge": 3, "seconds_an_image": 2, "images": 0, "peak_mb": 0, "png_kb": 0}
    return f"{np.mean(known):.{digits.get(column, 1)}f}"


def across_networks(out: Path, budget: int, against: str = "random") -> str:
    """Markdown: for each method and network the mean mIoU with its deviation over the units, and
    the difference to one reference, corrected over the column; "" where there are not two networks
    of this budget.
    """
    found = _measurements(out, budget)
    if len(found) < 2:
        return ""
    methods = dict.fromkeys(name for each in found.values() for name in each.scores)
    titles = [f"{network} (%) | minus {against}" for network in found]
    lines = [
        f"| arm | {' | '.join(titles)} |",
        "|---|" + "---:|" * (2 * len(found)),
    ]
    columns = {
        network: each.against(against) if against in each.scores else {}
        for network, each in found.items()
    }
    for method in methods:
        cells = []
        for network, each in found.items():
            known = method in each.scores
            cells += [spread(each, method) if known else "", cell(columns[network].get(method))]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines += ["", "The same sets under other networks. *: clear after Holm, within a column."]
    return "\n".join(lines) + "\n"


def _measurements(out: Path, budget: int) -> Mapping[str, Measurement]:
    """Of the networks that have rows of this budget."""
    files = measured_networks(out)
    return {
        network: read_measurement(path, COMMAND, budget)
        for network, path in files.items()
        if any(int(row["budget"]) == budget for row in _rows(path, "budget"))
    }
