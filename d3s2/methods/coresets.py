"""Chapter 05, the coresets: real images chosen by what a network makes of them, or by their
classes.

UniDD names Random, Uniform, K-Center and Herding as its baselines without saying how; the first two
are in `d3s2.selection`. The rules here are the literature's, what they look at is our choice: an
image is the L2-normalised mean of the proxy's deepest encoder layer. All give a `Ranking`, of which
every budget is a prefix, and of equal candidates the one with the lowest number.

- K-Center: farthest first (Gonzalez 1985), within twice the best radius.
- Herding (Welling 2009): the selection's mean follows the mean of all.
- Facility location: every image has somebody like it in the selection; greedy keeps (1 - 1/e).
- Rare class sampling (DAFormer, Hoyer et al. 2022): it looks at the masks alone.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from d3s2.core.errors import D3S2Error
from d3s2.core.parallel import chunks
from d3s2.methods.embeddings import DIGITS
from d3s2.selection import Ranking
from d3s2.statistics.pixels import PixelCounts

ROWS = 4096
"""Points that are compared with others at once."""
CANDIDATES = 64
"""Masks whose gains facility location computes anew together."""
RARE_PIXELS = 3000 / 512**2
"""Share of an image that a class must exceed to be drawn there: DAFormer's 3,000 of 512 x 512."""


# ------------------------------------------------------------------------------- rules over a space
def k_center(points: np.ndarray, budget: int | None = None) -> Ranking:
    """Farthest first: begin next to the mean, then take what is farthest from all that is taken.

    points: float[N, D]; budget: number of picks, None or more than N = all. gains: how far each
    pick was from those before it, which is the radius (see `radius`) of the picks before it; NaN
    for the first. They never rise. A prefix covers all points within twice the radius of the best
    selection of its size (Gonzalez 1985). Where to begin is our choice. Raises D3S2Error for points
    that are no finite table and a budget below 1.
    """
    points, count = _checked(points, budget)
    picked = [int(np.argmin(_squared_distances(points, _mean(points))))]
    gains = [math.nan]
    nearest = _squared_distances(points, points[picked[0]])
    nearest[picked] = -1.0  # below every distance: none is taken twice
    while len(picked) < count:
        farthest = int(np.argmax(nearest))
        picked.append(farthest)
        gains.append(math.sqrt(nearest[farthest]))
        nearest = np.minimum(nearest, _squared_distances(points, points[farthest]))
        nearest[farthest] = -1.0
    return _ranking(picked, gains)


def radius(points: np.ndarray, indices: Sequence[int] | np.ndarray) -> float:
    """How far the worst of points float[N, D] is from the nearest of those at these positions."""
    nearest = np.full(len(points), np.inf)
    for index in indices:
        nearest = np.minimum(nearest, _squared_distances(points, points[index]))
    return float(np.sqrt(nearest.max()))


def herding(points: np.ndarray, budget: int | None = None) -> Ranking:
    """w_0 = mu; take the x with the largest <w, x>; w <- w + mu - x: the picks' mean follows mu.

    Arguments and errors as `k_center`; mu is the mean of all points. gains: <w, x> of each pick.
    Without replacement, so that all points are picked in the end. On points of one length a pick is
    the one after which the mean of the picks is nearest to mu.
    """
    points, count = _checked(points, budget)
    centre = _mean(points)
    pull = centre.copy()
    free = np.ones(len(points), dtype=bool)
    picked: list[int] = []
    gains: list[float] = []
    while len(picked) < count:
        scores = np.where(free, _products(points, pull), -np.inf)
        best = int(np.argmax(scores))
        picked.append(best)
        gains.append(float(scores[best]))
        free[best] = False
        pull = pull + centre - points[best]
    return _ranking(picked, gains)


def facility_location(points: np.ndarray, budget: int | None = None) -> Ranking:
    """Lazy greedy maximisation of F(S) = sum_i max_{j in S} (1 + <x_i, x_j>) / 2.

    points: float[N, D] of length at most 1, which keeps all similarities in [0, 1]: F is then
    monotone and submodular, greedy reaches at least (1 - 1/e) of the best value, and a gain that
    was computed earlier is an upper bound of the gain now. budget and errors as `k_center`, and for
    longer points. gains: how much F rises with each pick, to `DIGITS` decimals. The table of
    similarities is never held: the `CANDIDATES` with the largest known gains are computed together.
    """
    points, count = _checked(points, budget)
    longest = math.sqrt(float(np.einsum("nd,nd->n", points, points).max()))
    if longest > 1 + 10.0**-DIGITS * math.sqrt(points.shape[1]):
        raise D3S2Error(
            f"The longest of the points has length {longest:.6g}: facility location needs points "
            "of length 1; see `normalised`."
        )
    nearest = np.zeros(len(points))
    everybody = _products(points, points.sum(axis=0))
    first = np.round((len(points) + everybody) / 2, DIGITS)
    heap = [(-gain, index) for index, gain in enumerate(first.tolist())]
    heapq.heapify(heap)
    picked: list[int] = []
    gains: list[float] = []
    while len(picked) < count:
        index, gain = _best_facility(points, nearest, heap)
        picked.append(index)
        gains.append(gain)
        nearest = np.maximum(nearest, _similarities(points, [index])[0])
    return _ranking(picked, gains)


def _best_facility(
    points: np.ndarray, nearest: np.ndarray, heap: list[tuple[float, int]]
) -> tuple[int, float]:
    """The candidate with the largest gain, and its gain. It leaves the heap of (-gain, number)."""
    fresh: dict[int, float] = {}
    while heap[0][1] not in fresh:
        top = [heapq.heappop(heap)[1] for _ in range(min(CANDIDATES, len(heap)))]
        stale = [index for index in top if index not in fresh]
        fresh |= zip(stale, _facility_gains(points, nearest, stale), strict=True)
        for index in top:
            heapq.heappush(heap, (-fresh[index], index))
    gain, index = heapq.heappop(heap)
    return index, -gain


def _facility_gains(
    points: np.ndarray, nearest: np.ndarray, candidates: Sequence[int]
) -> list[float]:
    """How much F rises with each candidate, when each point's best so far is `nearest`."""
    rises = np.maximum(_similarities(points, candidates) - nearest, 0.0)
    return rises.sum(axis=1).round(DIGITS).tolist()


def _similarities(points: np.ndarray, candidates: Sequence[int]) -> np.ndarray:
    """float64[K, N] in [0, 1]: (1 + <x_i, x_j>) / 2 of some points with all."""
    return (1 + points[list(candidates)] @ points.T) / 2


def _mean(points: np.ndarray) -> np.ndarray:
    return points.mean(axis=0, dtype=np.float64)


def _products(points: np.ndarray, with_one: np.ndarray) -> np.ndarray:
    """float64[N]: <x_i, w>, summed in the same order whatever the threads (BLAS may not)."""
    return np.einsum("nd,d->n", points, with_one)


def _squared_distances(points: np.ndarray, to: np.ndarray) -> np.ndarray:
    """float64[N], exactly 0 for equal points: |x_i - x|^2, in blocks of `ROWS`."""
    blocks = [points[block.start : block.stop] - to for block in chunks(len(points), ROWS)]
    return np.concatenate([np.einsum("nd,nd->n", block, block) for block in blocks])


# -------------------------------------------------------------------------------- rule over classes
def rare_class_probabilities(counts: PixelCounts, temperature: float = 0.01) -> np.ndarray:
    """P(c) = softmax((1 - f_c) / T), float64[C]: f_c is class c's share of all pixels.

    Classes without a pixel get 0. T = 0.01 is DAFormer's. Raises D3S2Error for a temperature that
    is not above 0 and for counts without a pixel.
    """
    return softmax(_rarity(counts, temperature))


def _rarity(counts: PixelCounts, temperature: float) -> np.ndarray:
    """float64[C]: (1 - f_c) / T, -inf for a class without a pixel."""
    if not temperature > 0:
        raise D3S2Error(f"temperature is {temperature}: give a number above 0; DAFormer's is 0.01.")
    pixels = counts.pixel_counts()
    if not pixels.sum():
        raise D3S2Error("no class occurs in any mask: nothing can be drawn; check the label files.")
    return np.where(pixels > 0, (1 - pixels / pixels.sum()) / temperature, -np.inf)


def rare_class_ranking(
    counts: PixelCounts, area: int, seed: int = 0, temperature: float = 0.01
) -> Ranking:
    """Draw a class by `rare_class_probabilities`, then one of its unused masks; again and again.

    A mask is a class's when the class has more than `RARE_PIXELS` of its area there; area: pixels
    of one mask, H W, valid or not. A class whose masks are used up is drawn no more, its odds go to
    the others; masks that are no class's come last. DAFormer draws with replacement for every
    training step; without is our choice, for a set. Raises D3S2Error as
    `rare_class_probabilities`, and for an area below 1.
    """
    if area < 1:
        raise D3S2Error(f"area is {area}: give the number of pixels of one mask, such as 64 x 64.")
    rarity = _rarity(counts, temperature)
    rng = np.random.default_rng([seed, 3])
    columns = counts.counts.tocsc()
    queues = []
    for start, stop in zip(columns.indptr[:-1], columns.indptr[1:], strict=True):
        enough = columns.data[start:stop] > RARE_PIXELS * area
        queues.append(rng.permutation(columns.indices[start:stop][enough]).tolist())
    used = np.zeros(len(counts), dtype=bool)
    order: list[int] = []
    while True:
        for queue in queues:
            while queue and used[queue[-1]]:
                queue.pop()
        left = np.flatnonzero([bool(queue) for queue in queues])
        if not len(left):
            break
        drawn = rng.choice(left, p=softmax(rarity[left]))
        index = queues[drawn].pop()
        used[index] = True
        order.append(index)
    order += rng.permutation(np.flatnonzero(~used)).tolist()
    return _ranking(order, [math.nan] * len(order))


# ------------------------------------------------------------------------------------ what all need
def _checked(points: np.ndarray, budget: int | None) -> tuple[np.ndarray, int]:
    """The points in float64, and how many picks there will be. Raises D3S2Error for what cannot be
    ranked.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or not points.size or not np.isfinite(points).all():
        raise D3S2Error(
            f"points must be a finite table [N, D] with a row an image; got {points.shape} with "
            f"{np.count_nonzero(~np.isfinite(points))} numbers that are not finite."
        )
    total = len(points)
    if budget is not None and budget < 1:
        raise D3S2Error(
            f"budget is {budget} images: give 1 to {total}, or None for the full ranking."
        )
    return points, total if budget is None else min(int(budget), total)


def _ranking(picked: Sequence[int], gains: Sequence[float]) -> Ranking:
    return Ranking(np.array(picked, dtype=np.int64), np.array(gains, dtype=np.float64))
