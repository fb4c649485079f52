"""Chapter 02: class-balanced mask selection.

The D3S2 abstract fixes three things: the selection is greedy, it puts under-represented classes
first, and it yields real masks. The objective is our choice. With a_ic in [0, 1], how present class
c is in mask i, and a_c(S) = sum of a_ic over the selection S:

    F(S) = sum_c w_c log(1 + a_c(S) / delta)
    gain of mask i:  sum_c w_c log(1 + a_ic / (delta + a_c(S)))

F is monotone and submodular, so greedy reaches at least (1 - 1/e) of the best value (Nemhauser,
Wolsey, Fisher 1978), and a gain computed earlier is an upper bound of the gain now, which makes
lazy evaluation (Minoux 1978) exact.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from d3s2.core.errors import D3S2Error
from d3s2.core.files import load_npz, write_npz
from d3s2.statistics.pixels import PixelCounts

BLOCK = 8192
"""Masks among which greedy looks first."""
AT_ONCE = 128
"""Gains that it computes anew together, at first."""


@dataclass(frozen=True)
class Ranking:
    """Masks in the order they were picked. indices: int64[k]; gains: float64[k], NaN where a rule
    has no gains.

    Every budget is a prefix: the first j entries are the selection of size j.
    """

    indices: np.ndarray
    gains: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def first(self, count: int) -> np.ndarray:
        """int64[count]: the selection of this size. Raises D3S2Error when the ranking is
        shorter.
        """
        if not 0 < count <= len(self):
            raise D3S2Error(
                f"{count} masks are asked of a ranking of {len(self)}: ask for 1 to {len(self)}."
            )
        return self.indices[:count]

    def save(self, path: Path) -> None:
        """Write an .npz without pickle; deterministic bytes."""
        write_npz(path, indices=self.indices, gains=self.gains)

    @staticmethod
    def load(path: Path) -> Ranking:
        """Read what `save` wrote. Raises D3S2Error when the file is missing or damaged."""
        data = load_npz(path, ("indices", "gains"))
        return Ranking(data["indices"], data["gains"])


@dataclass(frozen=True)
class Coverage:
    """How a selection S spreads over the classes.

    per_class: float64[C], a_c(S) = summed presence; covered: classes with a_c > 0; smallest and
    median a_c;
    gini: 0 = all classes equally present, towards 1 = one class takes all; kl: KL(share of n_c ||
    uniform), nats. Classes that occur nowhere in the data set are left out of all but per_class.
    """

    per_class: np.ndarray
    covered: int
    possible: int
    smallest: float
    median: float
    gini: float
    kl: float


def budget_size(budget: float, total: int) -> int:
    """Number of masks: a float in (0, 1] is a share of `total` (rounded, at least 1), all else is a
    count.

    1.0 is the whole share, of which it warns: parameters of a run are floats, so that whoever gives
    `budget=1` and means one mask arrives here too. The int 1 is one mask. Raises D3S2Error for 0, a
    negative number, NaN, a count that is not whole and a count above `total`.
    """
    if isinstance(budget, bool) or not isinstance(budget, (int, float, np.integer, np.floating)):
        raise D3S2Error(
            f"budget is {budget!r}: give a share such as 0.01 or a number of masks such as 40."
        )
    if isinstance(budget, (int, np.integer)) or (budget > 1 and float(budget).is_integer()):
        if not 0 < budget <= total:
            raise D3S2Error(
                f"budget is {budget} masks: give 1 to {total}, the size of the training set."
            )
        return int(budget)
    if not 0.0 < budget <= 1.0:
        raise D3S2Error(
            f"budget is {budget}: a share must be above 0 and at most 1 (0.01 = 1 % of "
            f"{total} masks)."
        )
    if budget == 1.0 and total > 1:
        warnings.warn(
            f"budget is {budget}, which is a share: all {total} masks are taken. For a single mask "
            f"give a smaller share, such as {0.5 / total:.1g}.",
            stacklevel=2,
        )
    return max(1, math.floor(budget * total + 0.5))


def presence(counts: PixelCounts, threshold: float = 0.02) -> sparse.csr_array:
    """a_ic = min(1, s_ic / threshold): csr float64[N, C], s = share of the mask's valid pixels.

    Saturates, so that a big sky counts no more than a small car; a sliver counts little. Our
    choice, as is 0.02.
    """
    if not 0.0 < threshold <= 1.0:
        raise D3S2Error(
            f"presence_threshold is {threshold}: give a share of the mask's pixels above 0 and "
            "at most 1."
        )
    matrix = counts.shares()
    matrix.data = np.minimum(1.0, matrix.data / threshold)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return matrix


def class_weights(image_counts: np.ndarray, beta: float = 0.5) -> np.ndarray:
    """w_c proportional to N_c^-beta, float64[C], N_c = number of images with the class; the weights
    sum to C.

    beta = 0: all classes alike, and balance comes from the logarithm alone; beta = 1: inverse
    frequency. Classes in no image get weight 0. Our choice.
    """
    if not 0.0 <= beta <= 1.0:
        raise D3S2Error(
            f"beta is {beta}: give a number from 0 (no static weight) to 1 (inverse frequency)."
        )
    frequency = np.asarray(image_counts)
    weights = np.where(frequency > 0, np.maximum(frequency, 1.0) ** -beta, 0.0)
    if weights.sum() == 0:
        raise D3S2Error(
            "no class occurs in any mask: nothing can be selected; check the label files."
        )
    return weights * (len(weights) / weights.sum())


def objective(
    matrix: sparse.csr_array,
    weights: np.ndarray,
    indices: Sequence[int] | np.ndarray,
    delta: float = 1.0,
) -> float:
    """F(S) of the module's text, for the masks at these positions of presence csr float64[N, C]."""
    totals = np.asarray(matrix[np.asarray(indices)].sum(axis=0)).ravel()
    return float(weights @ np.log1p(totals / delta))


def online_bound(
    matrix: sparse.csr_array,
    weights: np.ndarray,
    indices: Sequence[int] | np.ndarray,
    budget: int,
    delta: float = 1.0,
) -> float:
    """A number that F of the best selection of `budget` masks does not exceed, from any S at hand.

    F(best) <= F(S and best) <= F(S) + the sum of the `budget` largest gains at S, since no gain
    rises when S grows: true of every monotone submodular function (Minoux 1978; Leskovec et al.,
    KDD 2007). indices: the masks of S, none twice, of any number. Raises D3S2Error as `greedy`.
    """
    count = _check(matrix, weights, budget, delta)
    chosen, totals = _represented(matrix, indices, delta)
    classes = matrix.indices
    gains = _row_sums(matrix, weights[classes] * np.log1p(matrix.data / totals[classes]))
    gains[chosen] = 0.0
    return objective(matrix, weights, chosen, delta) + _largest(gains, count)


def tangent_bound(
    matrix: sparse.csr_array,
    weights: np.ndarray,
    indices: Sequence[int] | np.ndarray,
    budget: int,
    delta: float = 1.0,
) -> float:
    """The same from the logarithm's tangent: far tighter near the best selection. Ours.

    A logarithm lies below its tangents, so that with the pull w_c / (delta + a_c(S)) of each class
    F(T) <= F(S) + sum_c pull_c (a_c(T) - a_c(S)) for every T: largest for the `budget` masks of the
    largest pulls. Arguments and errors are those of `online_bound`.
    """
    count = _check(matrix, weights, budget, delta)
    chosen, totals = _represented(matrix, indices, delta)
    pulls = _row_sums(matrix, (weights / totals)[matrix.indices] * matrix.data)
    step = _largest(pulls, count) - float(pulls[chosen].sum())
    return objective(matrix, weights, chosen, delta) + step


def greedy(
    matrix: sparse.csr_array, weights: np.ndarray, budget: int | None = None, delta: float = 1.0
) -> Ranking:
    """Lazy greedy maximisation of F: exactly `naive_greedy`'s picks, for a fraction of the work.

    matrix: presence, csr float64[N, C]; weights: float64[C] >= 0; budget: number of picks, None or
    more than N = all N; delta > 0: how many full presences halve a class's pull. Ties go to the
    lowest index. The last known gain of a mask bounds its gain now. The masks of the largest bounds
    are a block; in it gains are computed anew, many at once, until a new one is the largest. It is
    picked when it is above all bounds outside of the block, too; else the block is chosen anew.
    """
    count = _check(matrix, weights, budget, delta)
    gains = _Gains(matrix, weights, delta)
    bounds = gains.of_all()
    picked: list[int] = []
    values: list[float] = []
    size = BLOCK
    while len(picked) < count:
        block, outside, first = _block(bounds, size)
        found = len(picked)
        known = bounds[block]
        while len(picked) < count:
            best = _refresh(known, block, gains)
            index, gain = int(block[best]), float(known[best])
            if gain < outside or (gain == outside and index > first):
                break
            picked.append(index)
            values.append(gain)
            gains.add(index)
            known[best] = -np.inf
        bounds[block] = known
        size = BLOCK if len(picked) > found else 2 * size  # so that many equal masks end, too
    return _ranking(picked, values)


def _block(bounds: np.ndarray, size: int) -> tuple[np.ndarray, float, int]:
    """The masks of the largest bounds, of equal ones the first: (positions int64[size] in ascending
    order, the largest bound outside of them, the first mask there that has it).
    """
    if size >= len(bounds):
        return np.arange(len(bounds)), -np.inf, len(bounds)
    edge = np.partition(bounds, len(bounds) - size)[len(bounds) - size]
    above, equal = np.flatnonzero(bounds > edge), np.flatnonzero(bounds == edge)
    block = np.sort(np.concatenate([above, equal[: size - len(above)]]))
    rest = bounds.copy()
    rest[block] = -np.inf
    first = int(rest.argmax())
    return block, float(rest[first]), first


def _refresh(known: np.ndarray, block: np.ndarray, gains: _Gains) -> int:
    """Compute gains anew, those of the largest bounds first, until the largest of all is a new one;
    its place in the block. Of equal ones that is the first.
    """
    is_new = np.zeros(len(block), dtype=bool)
    at_once = AT_ONCE
    best = int(known.argmax())
    while not is_new[best]:
        some = np.flatnonzero(~is_new)
        if len(some) > at_once:
            some = some[np.argpartition(known[some], len(some) - at_once)[-at_once:]]
        known[some] = np.where(np.isneginf(known[some]), -np.inf, gains.of(block[some]))
        is_new[some] = True
        at_once *= 2
        best = int(known.argmax())
    return best


def naive_greedy(
    matrix: sparse.csr_array, weights: np.ndarray, budget: int | None = None, delta: float = 1.0
) -> Ranking:
    """The same by its definition, for reading and for tests: every gain anew for every pick.

    Arguments, ties and result are those of `greedy`, which computes a fraction of these k N gains.
    """
    count = _check(matrix, weights, budget, delta)
    gains = _Gains(matrix, weights, delta)
    is_free = np.ones(matrix.shape[0], dtype=bool)
    picked: list[int] = []
    values: list[float] = []
    for _ in range(count):
        now = np.where(is_free, gains.of_all(), -np.inf)
        best = int(now.argmax())  # of equal ones the first: the lowest index
        picked.append(best)
        values.append(float(now[best]))
        is_free[best] = False
        gains.add(best)
    return _ranking(picked, values)


def random_ranking(total: int, seed: int = 0) -> Ranking:
    """All masks in random order: the baseline that every method has to beat."""
    return _ranking(np.random.default_rng([seed, 1]).permutation(total))


def uniform_ranking(counts: PixelCounts, seed: int = 0) -> Ranking:
    """Round robin over the classes, each time a random unused mask that holds the class; classes
    run out one by one.

    The "Uniform" baseline of UniDD is only named there; this reading of it is ours. Masks without a
    valid pixel come last.
    """
    rng = np.random.default_rng([seed, 2])
    columns = counts.counts.tocsc()
    bounds = itertools.pairwise(columns.indptr)
    queues = [rng.permutation(columns.indices[a:b]).tolist() for a, b in bounds]
    used = np.zeros(len(counts), dtype=bool)
    order: list[int] = []
    while any(queues):
        for queue in queues:
            while queue and used[queue[-1]]:
                queue.pop()
            if queue:
                index = queue.pop()
                used[index] = True
                order.append(index)
    order += rng.permutation(np.flatnonzero(~used)).tolist()
    return _ranking(order)


def coverage(matrix: sparse.csr_array, indices: Sequence[int] | np.ndarray) -> Coverage:
    """How the selection at these positions spreads over the classes.

    matrix: presence or counts, any csr[N, C] >= 0; a class that it lacks altogether is left out.
    """
    chosen = matrix[np.asarray(indices)]
    per_class = np.asarray(chosen.sum(axis=0), dtype=np.float64).ravel()
    possible = np.asarray(matrix.sum(axis=0)).ravel() > 0
    values = np.sort(per_class[possible])
    if values.sum() == 0:
        return Coverage(per_class, 0, len(values), smallest=0.0, median=0.0, gini=0.0, kl=0.0)
    share = values / values.sum()
    return Coverage(
        per_class=per_class,
        covered=int((values > 0).sum()),
        possible=len(values),
        smallest=float(values[0]),
        median=float(np.median(values)),
        gini=_gini(share),
        kl=_divergence(share),
    )


def _gini(share: np.ndarray) -> float:
    """The Gini coefficient of shares float64[C] in ascending order that sum to 1."""
    size = len(share)
    ranks = 2 * np.arange(1, size + 1) - size - 1
    return float((ranks @ share) / size)


def _divergence(share: np.ndarray) -> float:
    """KL(share || uniform) in nats, for shares float64[C] that sum to 1."""
    some = share[share > 0]
    return float((some * np.log(some * len(share))).sum())


def _ranking(picked: Sequence[int] | np.ndarray, gains: Sequence[float] | None = None) -> Ranking:
    """The picks as a Ranking; without gains, for a rule that has none, they are NaN."""
    indices = np.array(picked, dtype=np.int64)
    if gains is None:
        return Ranking(indices, np.full(len(indices), np.nan))
    return Ranking(indices, np.array(gains, dtype=np.float64))


class _Gains:
    """Marginal gains while a selection grows. Each is one sum in the order of its mask's entries,
    whichever others are computed beside it: equal masks have equal gains, to the last bit.

    matrix: presence, csr float64[N, C]; weights: float64[C].
    """

    def __init__(self, matrix: sparse.csr_array, weights: np.ndarray, delta: float) -> None:
        self._classes, self._presences = matrix.indices, matrix.data
        self._starts, self._weights = matrix.indptr.astype(np.int64), weights
        self._totals = np.full(matrix.shape[1], float(delta))  # delta + a_c(S), S still empty

    def of_all(self) -> np.ndarray:
        """float64[N]."""
        masks = np.repeat(np.arange(len(self._starts) - 1), np.diff(self._starts))
        return np.bincount(masks, self._terms(slice(None)), len(self._starts) - 1)

    def of(self, masks: np.ndarray) -> np.ndarray:
        """float64[k], of the masks at these positions, int64[k]."""
        begins = self._starts[masks]
        lengths = self._starts[masks + 1] - begins
        ends = np.cumsum(lengths)
        entries = np.arange(ends[-1]) + np.repeat(begins - ends + lengths, lengths)
        rows = np.repeat(np.arange(len(masks)), lengths)
        return np.bincount(rows, self._terms(entries), len(masks))

    def add(self, mask: int) -> None:
        """One more mask is selected: its presences join the totals."""
        entries = slice(self._starts[mask], self._starts[mask + 1])
        self._totals[self._classes[entries]] += self._presences[entries]

    def _terms(self, entries: slice | np.ndarray) -> np.ndarray:
        classes = self._classes[entries]
        return self._weights[classes] * np.log1p(self._presences[entries] / self._totals[classes])


def _represented(
    matrix: sparse.csr_array, indices: Sequence[int] | np.ndarray, delta: float
) -> tuple[np.ndarray, np.ndarray]:
    """The masks of S as int64[k], and delta + a_c(S), float64[C]."""
    chosen = np.asarray(indices, dtype=np.int64)
    return chosen, delta + np.asarray(matrix[chosen].sum(axis=0)).ravel()


def _row_sums(matrix: sparse.csr_array, values: np.ndarray) -> np.ndarray:
    """float64[N]: the sum over each mask of one value for each of its entries."""
    return np.asarray(
        sparse.csr_array((values, matrix.indices, matrix.indptr), matrix.shape).sum(1)
    )


def _largest(values: np.ndarray, count: int) -> float:
    """The sum of the `count` largest."""
    return float(np.sort(values)[len(values) - count :].sum())


def _check(matrix: sparse.csr_array, weights: np.ndarray, budget: int | None, delta: float) -> int:
    """How many picks there will be. Raises D3S2Error for what cannot be maximised."""
    total, classes = matrix.shape
    if weights.shape != (classes,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise D3S2Error(
            f"class weights must be {classes} finite numbers >= 0, one per class; got {weights!r}."
        )
    if not (math.isfinite(delta) and delta > 0):
        raise D3S2Error(f"delta is {delta}: give a finite number above 0.")
    if budget is not None and budget <= 0:
        raise D3S2Error(
            f"budget is {budget} masks: give 1 to {total}, or None for the full ranking."
        )
    return total if budget is None else min(int(budget), total)
