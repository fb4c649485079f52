"""Differences between training sets, with the unit that a claim about a method has.

A second training of the same painted set is no second draw of the method: what varies then is the
training alone. So a difference is taken seed by seed, seeds that share a set are averaged, and the
interval counts these averages, its *units*. Several differences that answer one question are a
*family* and are corrected together (Holm, 1979).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import stats

from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json

LEVEL = 0.95
"""Of every interval; a difference is clear when its corrected p-value is at most 1 - LEVEL."""


@dataclass(frozen=True)
class Difference:
    """Mean of differences in mIoU, half the width of its 95 % confidence interval, how many units
    it counts, and Student's two-sided p-value (NaN for a single unit).
    """

    mean: float
    half_width: float
    units: int
    p: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval, uncorrected, leaves out zero."""
        return abs(self.mean) > self.half_width

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ± {self.half_width:.1f}"


@dataclass(frozen=True)
class Compared:
    """One difference of a family. p: as if it stood alone; corrected: by Holm, over the family."""

    difference: Difference
    corrected: float

    @property
    def is_clear(self) -> bool:
        """Whether the family as a whole allows the claim."""
        return self.corrected <= 1 - LEVEL

    def __str__(self) -> str:
        if not self.is_clear:
            return "not told apart"
        return "higher" if self.difference.mean > 0 else "lower"

    def sentence(self, name: str) -> str:
        """A line that says what a difference of this name allows to say, and no more.

        A null result is no equality: the interval stands beside "not told apart".
        """
        found = self.difference
        chance = "" if np.isnan(found.p) else f", p {_chance(self.corrected)} corrected"
        return f"{name:24s} {found!s:>13s}  {found.units:2d} units{chance:21s}  {self}"


def _chance(p: float) -> str:
    """To three digits; no p is zero."""
    return "< .001" if p < 0.0005 else f"{p:.3f}"


def student(values: Sequence[float]) -> Difference:
    """The mean of independent values with Student's t interval; infinite for a single one.

    Raises D3S2Error when there is none.
    """
    numbers = np.array(values, dtype=np.float64)
    if not len(numbers):
        raise D3S2Error("a difference needs a value: none was measured.")
    mean = float(numbers.mean())
    if len(numbers) < 2:
        return Difference(mean, float("inf"), 1, float("nan"))
    error = float(numbers.std(ddof=1) / np.sqrt(len(numbers)))
    freedom = len(numbers) - 1
    half = float(stats.t.ppf(0.5 + LEVEL / 2, freedom) * error)
    if error == 0:
        return Difference(mean, half, len(numbers), 1.0 if mean == 0 else 0.0)
    return Difference(mean, half, len(numbers), float(2 * stats.t.sf(abs(mean) / error, freedom)))


def paired_difference(
    a: Mapping[int, float],
    b: Mapping[int, float],
    sets_a: Mapping[int, int] | None = None,
    sets_b: Mapping[int, int] | None = None,
) -> Difference:
    """a - b over the seeds that both have; seeds that share a set of a or of b count as one unit,
    their mean.

    Args:
        a, b: {seed: mIoU}.
        sets_a, sets_b: {seed: which set it was trained on}; None: each training counts.
    Raises:
        D3S2Error: when they share no seed.
    """
    seeds = sorted(set(a) & set(b))
    if not seeds:
        raise D3S2Error(
            f"no seed in common: {sorted(a)} and {sorted(b)}. Train both with the same seeds."
        )
    groups = _units(seeds, sets_a or {}, sets_b or {})
    return student([float(np.mean([a[seed] - b[seed] for seed in group])) for group in groups])


def _units(seeds: Sequence[int], *which: Mapping[int, int]) -> list[list[int]]:
    """The seeds in groups of which no two share a set."""
    groups: list[list[int]] = []
    for seed in seeds:
        shared = [
            group
            for group in groups
            if any(
                seed in sets and sets[seed] == sets.get(other) for sets in which for other in group
            )
        ]
        groups = [group for group in groups if group not in shared]
        groups.append(sorted([seed, *(other for group in shared for other in group)]))
    return sorted(groups)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's corrected p-values: the k-th smallest of m times (m - k + 1), none below the one
    before it, at most 1. NaN, a single unit, counts as 1.

    Rejecting where it is at most 0.05 errs anywhere in the family with a chance of at most 0.05.
    """
    known = {name: 1.0 if np.isnan(p) else p for name, p in p_values.items()}
    corrected: dict[str, float] = {}
    least = 0.0
    for rank, name in enumerate(sorted(known, key=known.__getitem__)):
        least = max(least, min(1.0, (len(known) - rank) * known[name]))
        corrected[name] = least
    return {name: corrected[name] for name in p_values}


# ------------------------------------------------------------------------------ a measurement
@dataclass(frozen=True)
class Measurement:
    """A file of trainings.

    Args:
        scores: {arm: {seed: mIoU in percent}}.
        sets: {arm: {seed: number of its draw or distillation}}; an arm of one fixed set has none.
        seconds: {arm: mean seconds an image}, of the arms that are painted.
        facts: how it was measured; `command` makes it.
    """

    scores: Mapping[str, Mapping[int, float]]
    sets: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)

    def difference(self, a: str, b: str) -> Difference:
        """Arm a minus arm b. Raises D3S2Error when they share no seed."""
        return paired_difference(self.scores[a], self.scores[b], self.sets.get(a), self.sets.get(b))

    def unit(self, *arms: str) -> str:
        """What an interval over these arms counts: "distillation", "draw" or "training"."""
        if any(arm in self.seconds for arm in arms):
            return "distillation"
        return "draw" if any(self.sets.get(arm) for arm in arms) else "training"

    def means(self, arm: str) -> list[float]:
        """One mIoU for each unit of an arm: the mean of the trainings that share a set."""
        seeds = sorted(self.scores[arm])
        groups = _units(seeds, self.sets.get(arm, {}))
        return [float(np.mean([self.scores[arm][seed] for seed in group])) for group in groups]

    def family(self, pairs: Iterable[tuple[str, str]]) -> dict[str, Compared]:
        """{"a - b": the difference} for each pair whose arms were measured with a common seed,
        corrected over them all.
        """
        found = {
            f"{a} - {b}": self.difference(a, b)
            for a, b in pairs
            if self.scores.get(a, {}).keys() & self.scores.get(b, {}).keys()
        }
        corrected = holm({name: one.p for name, one in found.items()})
        return {name: Compared(one, corrected[name]) for name, one in found.items()}

    def against(self, reference: str, arms: Iterable[str] | None = None) -> dict[str, Compared]:
        """{arm: arm minus the reference}, corrected over all these arms; None: over all others."""
        names = self.scores if arms is None else arms
        pairs = [(name, reference) for name in names if name != reference]
        found = self.family(pairs)
        return {name.removesuffix(f" - {reference}"): one for name, one in found.items()}


def read_measurement(path: Path, command: str, budget: int | None = None) -> Measurement:
    """A CSV with columns method, seed, distillation, miou, seconds_an_image, and its facts in a
    JSON beside it.

    budget: of a comparison of several, the rows of this one; None = all rows are of one. A set
    without a number is the same for all seeds: each training counts then. Raises D3S2Error, naming
    the command that measures, when it is missing, and for a budget that it lacks.
    """
    if not path.is_file():
        raise D3S2Error(f"{path} is missing: measure it with `{command}`.")
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if budget is not None:
        budgets = {int(row["budget"]) for row in rows}
        if budget not in budgets:
            known = ", ".join(map(str, sorted(budgets)))
            raise D3S2Error(f"{path} has no budget of {budget} masks: it has {known}.")
        rows = [row for row in rows if int(row["budget"]) == budget]
    scores: dict[str, dict[int, float]] = {}
    sets: dict[str, dict[int, int]] = {}
    seconds: dict[str, list[float]] = {}
    for row in rows:
        arm, seed = row["method"], int(row["seed"])
        scores.setdefault(arm, {})[seed] = float(row["miou"])
        if row["distillation"]:
            sets.setdefault(arm, {})[seed] = int(row["distillation"])
        if row["seconds_an_image"]:
            seconds.setdefault(arm, []).append(float(row["seconds_an_image"]))
    means = {arm: float(np.mean(values)) for arm, values in seconds.items()}
    return Measurement(scores, sets, means, read_json(path.with_suffix(".json")))


# ------------------------------------------------------------------------------------- in words
def table(
    found: Measurement,
    against: Iterable[str] = ("random", "balanced", "unguided"),
    rows: Iterable[str] | None = None,
) -> str:
    """Markdown: for each arm its units, mean and deviation over them, and the difference to each
    reference arm with its 95 % interval; a star marks what stays clear when the column is corrected
    by Holm. rows: the arms to show, None = all; the correction is always over all.
    """
    references = [name for name in against if name in found.scores]
    columns = {name: found.against(name) for name in references}
    titles = " | ".join(f"minus {name}" for name in references)
    lines = [
        f"| arm | units | mIoU (%) | {titles} |",
        "|---|---:|---:|" + "---:|" * len(references),
    ]
    shown = list(found.scores if rows is None else rows)
    for name in [name for name in found.scores if name in shown]:
        cells = [cell(columns[reference].get(name)) for reference in references]
        lines.append(
            f"| {name} | {_count(found, name)} | {spread(found, name)} | "
            + " | ".join(cells)
            + " |"
        )
    sizes = ", ".join(f"{len(column)} against {name}" for name, column in columns.items())
    lines.append("")
    lines.append(f"± of a difference: 95 % interval over units. *: clear after Holm ({sizes}).")
    return "\n".join(lines) + "\n"


def cell(one: Compared | None) -> str:
    """A difference with its star, if it has one; "" where nothing was compared."""
    if one is None:
        return ""
    return f"{one.difference}{' *' if one.is_clear else ''}"


def _count(found: Measurement, arm: str) -> str:
    """ "5 distillations", and how many trainings where these are more."""
    units = len(found.means(arm))
    text = f"{units} {found.unit(arm)}{'' if units == 1 else 's'}"
    trainings = len(found.scores[arm])
    return text if trainings == units else f"{text}, {trainings} trainings"


def spread(found: Measurement, arm: str) -> str:
    """Mean and deviation over the units of an arm."""
    means = found.means(arm)
    deviation = f" ± {np.std(means, ddof=1):.1f}" if len(means) > 1 else ""
    return f"{np.mean(means):.1f}{deviation}"


def caption(found: Measurement, arms: Iterable[str], family: int, what: str = "mIoU") -> str:
    """What an axis of differences must say: the unit of its intervals and the size of the family.

    arms: all that are compared. The smallest number of units is named.
    """
    names = [name for name in arms if name in found.scores]
    unit = found.unit(*names)
    fewest = min((len(found.means(name)) for name in names if found.unit(name) == unit), default=0)
    return (
        f"{what}, 95 % interval over {fewest} {unit}{'' if fewest == 1 else 's'}\n"
        f"filled: clear after Holm over a family of {family}"
    )


def winner(compared: Mapping[str, Compared]) -> str:
    """The name of the largest difference: the winner, which fresh seeds must confirm.

    Raises D3S2Error when nothing was compared.
    """
    if not compared:
        raise D3S2Error("nothing was compared: measure two arms with the same seeds.")
    return max(compared, key=lambda name: compared[name].difference.mean)
