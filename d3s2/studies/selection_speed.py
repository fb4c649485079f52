"""What greedy selection costs beside what one would take instead:
python -m d3s2.studies.selection_speed

Masks with about eight classes each, whose frequencies fall as a power law, at the sizes of ADE20K,
COCO-Stuff and a million masks; 1 % of them is selected. Beside `selection.greedy`:

* heap: lazy greedy with a heap, as one writes it in Python;
* apricot: its feature-based selection with the logarithm, lazy, where it is installed
  (`pip install apricot-select`); its first call, which compiles, does not count.

All maximise the same objective (delta 1, equal weights), and their picks are compared. Each counts
the processor's seconds, and they run one after the other in one process, on one core.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse

from d3s2.core import machine
from d3s2.core.errors import D3S2Error, exit_code
from d3s2.selection import greedy

SIZES = {
    "ade20k": (20_210, 150, 202),
    "cocostuff": (118_287, 171, 1_183),
    "million": (1_000_000, 171, 10_000),
}
"""Masks, classes, picks."""
Select = Callable[[sparse.csr_array, int], np.ndarray]


def long_tail(masks: int, classes: int, a_mask: float = 8.0, seed: int = 0) -> sparse.csr_array:
    """Presences csr float64[masks, classes]: about so many classes a mask, the c-th with a
    frequency in proportion to c^-0.9, none in more than three masks of four.
    """
    rng = np.random.default_rng(seed)
    odds = np.arange(1, classes + 1) ** -0.9
    for _ in range(20):  # until the capped ones have given their share to the others
        odds = np.minimum(0.75, odds * a_mask / odds.sum())
    held = [rng.choice(masks, rng.binomial(masks, p), replace=False) for p in odds]
    column = np.repeat(np.arange(classes), [len(rows) for rows in held])
    values = np.minimum(1.0, rng.exponential(3.0, len(column)))
    return sparse.csr_array((values, (np.concatenate(held), column)), shape=(masks, classes))


def ours(matrix: sparse.csr_array, picks: int) -> np.ndarray:
    """int64[picks] by `selection.greedy`."""
    return greedy(matrix, np.ones(matrix.shape[1]), picks).indices


def heap(matrix: sparse.csr_array, picks: int) -> np.ndarray:
    """int64[picks] by lazy greedy with a heap over Python numbers."""
    pairs = list(zip(matrix.indices.tolist(), matrix.data.tolist(), strict=True))
    rows = [pairs[a:b] for a, b in itertools.pairwise(matrix.indptr.tolist())]
    totals = [1.0] * matrix.shape[1]
    queue = [(-sum([math.log1p(a) for _, a in row]), index) for index, row in enumerate(rows)]
    heapq.heapify(queue)
    picked: list[int] = []
    while len(picked) < picks:
        index = queue[0][1]
        fresh = (-sum([math.log1p(a / totals[c]) for c, a in rows[index]]), index)
        heapq.heapreplace(queue, fresh)
        if queue[0] == fresh:
            heapq.heappop(queue)
            picked.append(index)
            for c, a in rows[index]:
                totals[c] += a
    return np.array(picked)


def apricot() -> Select | None:
    """The same by apricot's feature-based selection; None where it is not installed."""
    try:
        from apricot import FeatureBasedSelection
    except ImportError:
        return None

    def select(matrix: sparse.csr_array, picks: int) -> np.ndarray:
        features = sparse.csr_matrix(matrix)
        features.indices, features.indptr = (  # it knows no others
            each.astype(np.int32) for each in (features.indices, features.indptr)
        )
        chooser = FeatureBasedSelection(picks, concave_func="log", optimizer="lazy")
        return np.asarray(chooser.fit(features).ranking)

    select(long_tail(200, 5), 3)  # compiles
    return select


def measure(name: str, with_peers: bool = True) -> str:
    """A line: seconds of each, as multiples of ours, and how many picks they share with ours."""
    masks, classes, picks = SIZES[name]
    matrix = long_tail(masks, classes)
    found, seconds = _timed(ours, matrix, picks)
    line = f"{name:10} {masks:9,} x {classes}, {picks:6,} picks: {seconds:6.2f} s"
    if not with_peers:
        return line
    for peer, select in {"heap": heap, "apricot": apricot()}.items():
        if select is not None:
            theirs, longer = _timed(select, matrix, picks)
            same = len(np.intersect1d(theirs, found))
            line += f"   {peer} {longer / seconds:5.1f} x, {same} of {picks} picks the same"
    return line


def _timed(select: Select, matrix: sparse.csr_array, picks: int) -> tuple[np.ndarray, float]:
    began = time.process_time()
    found = select(matrix, picks)
    return found, time.process_time() - began


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module's text; 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m d3s2.studies.selection_speed", description="Time greedy selection."
    )
    parser.add_argument("sizes", nargs="*", default=[], help=f"of {', '.join(SIZES)}; all")
    options = parser.parse_args(arguments)

    def work() -> None:
        for name in options.sizes:
            if name not in SIZES:
                raise D3S2Error(f"{name!r} is no size: choose {', '.join(SIZES)}.")
        for name in options.sizes or SIZES:
            print(measure(name, with_peers=name != "million"), flush=True)
        print(f"peak memory of this process {machine.peak_memory():.0f} MB")

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
