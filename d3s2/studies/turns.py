"""Pieces of work beside each other: they take turns in one process, and ratios are what is said.

Each call counts the processor's seconds of this process, so that what else a machine does lengthens
none of them by its waiting, and slows neighbours in time alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

Works = Mapping[str, Callable[[], object]]
"""Pieces of work by their names."""
Seconds = dict[str, list[float]]
"""Of each piece of work, one number a round."""


class Ratio(NamedTuple):
    """Of two pieces of work, round by round: the median, and the smallest and largest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:5.2f} ({self.low:.2f} to {self.high:.2f})"


def in_turns(works: Works, rounds: int) -> Seconds:
    """The processor's seconds of each, in each of `rounds`; one before them does not count. Every
    other round goes backwards, so that nobody always comes after the same one.
    """
    seconds: Seconds = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name in reversed(works) if turn % 2 else works:
            began = time.process_time()
            works[name]()
            if turn:
                seconds[name].append(time.process_time() - began)
    return seconds


def ratio(longer: Sequence[float], shorter: Sequence[float]) -> Ratio:
    """Of the seconds of two pieces of work, in the same rounds."""
    found = [mine / theirs for mine, theirs in zip(longer, shorter, strict=True)]
    return Ratio(statistics.median(found), min(found), max(found))


def fastest(seconds: Seconds, names: Iterable[str]) -> str:
    """Which of these has the smallest median."""
    return min(names, key=lambda name: statistics.median(seconds[name]))


def beside(seconds: Seconds, floor: str, of: int, unit: str) -> str:
    """A line for each: milliseconds of one of the `of` units that a call does, and the ratio to the
    floor.
    """
    lines = []
    for name, values in seconds.items():
        each = 1e3 * statistics.median(values) / of
        lines.append(f"  {name:<34} {each:9.2f} ms {unit:<10} {ratio(values, seconds[floor])}")
    return "\n".join(lines)
