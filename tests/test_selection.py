"""The selection's guarantees: bound, monotone gains, laziness without consequence, and its
limits.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from d3s2 import selection
from d3s2.core.errors import D3S2Error
from d3s2.selection import (
    Ranking,
    budget_size,
    class_weights,
    coverage,
    greedy,
    naive_greedy,
    objective,
    online_bound,
    presence,
    random_ranking,
    tangent_bound,
    uniform_ranking,
)
from d3s2.statistics.pixels import PixelCounts

SEEDS = st.integers(0, 100_000)


def matrix_of(
    seed: int, masks: int = 12, classes: int = 4, density: float = 0.5
) -> sparse.csr_array:
    rng = np.random.default_rng(seed)
    dense = rng.random((masks, classes)) * (rng.random((masks, classes)) < density)
    return sparse.csr_array(dense)


def counts_of(dense: np.ndarray) -> PixelCounts:
    dense = np.asarray(dense, dtype=np.int64)
    return PixelCounts(
        sparse.csr_array(dense), dense.sum(1), tuple(f"{i:05d}" for i in range(len(dense)))
    )


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([0.1, 1.0, 10.0]))
def test_greedy_keeps_its_bound_against_brute_force(seed: int, delta: float) -> None:
    matrix, weights = matrix_of(seed, 9), np.random.default_rng(seed).random(4)
    best = max(objective(matrix, weights, s, delta) for s in itertools.combinations(range(9), 4))
    picked = greedy(matrix, weights, 4, delta)
    assert objective(matrix, weights, picked.indices, delta) >= (1 - 1 / np.e) * best - 1e-12
    assert objective(matrix, weights, picked.indices, delta) == pytest.approx(picked.gains.sum())


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(0, 9), st.integers(1, 9), st.sampled_from([0.1, 1.0, 10.0]))
def test_no_selection_exceeds_a_bound_from_any_other(
    seed: int, size: int, budget: int, delta: float
) -> None:
    rng = np.random.default_rng(seed)
    matrix, weights = matrix_of(seed, 9), rng.random(4)
    some = rng.permutation(9)[:size]
    every = itertools.combinations(range(9), budget)
    best = max(objective(matrix, weights, chosen, delta) for chosen in every)
    assert online_bound(matrix, weights, some, budget, delta) >= best - 1e-12
    assert tangent_bound(matrix, weights, some, budget, delta) >= best - 1e-12


@given(SEEDS, st.integers(1, 12))
def test_bounds_by_their_formulas(seed: int, budget: int) -> None:
    """Written once more, mask by mask."""
    rng = np.random.default_rng(seed)
    matrix, weights, delta = matrix_of(seed), rng.random(4), 0.7
    some = rng.permutation(12)[:5].tolist()
    reached = objective(matrix, weights, some, delta)
    gains = [objective(matrix, weights, [*some, i], delta) - reached for i in range(12)]
    gains = sorted((0.0 if i in some else gain for i, gain in enumerate(gains)), reverse=True)
    online = reached + sum(gains[:budget])
    assert online_bound(matrix, weights, some, budget, delta) == pytest.approx(online)
    dense = matrix.toarray()
    pulls = dense @ (weights / (delta + dense[some].sum(axis=0)))
    tangent = reached + np.sort(pulls)[::-1][:budget].sum() - pulls[some].sum()
    assert tangent_bound(matrix, weights, some, budget, delta) == pytest.approx(tangent)


@pytest.mark.parametrize("bound", [online_bound, tangent_bound])
def test_bounds_count_the_last_masks_and_classes_though_nothing_is_in_them(
    bound: Callable[..., float],
) -> None:
    dense = np.zeros((5, 4))
    dense[:3, :2] = matrix_of(1, 3, 2, 1.0).toarray()
    matrix, weights = sparse.csr_array(dense), np.ones(4)
    lean = sparse.csr_array(dense[:3, :2])
    assert bound(matrix, weights, [4], 2) == pytest.approx(bound(lean, np.ones(2), [], 2, 1.0))


@pytest.mark.parametrize("bound", [online_bound, tangent_bound])
def test_bounds_are_reached_where_nothing_is_left_to_choose(bound: Callable[..., float]) -> None:
    """With all masks selected, and where F is as good as linear (delta is large, S empty)."""
    matrix, weights = matrix_of(3), np.ones(4)
    whole = objective(matrix, weights, range(12), 1.0)
    assert bound(matrix, weights, range(12), 12, 1.0) == pytest.approx(whole)
    picked = greedy(matrix, weights, 4, 1e9)
    best = objective(matrix, weights, picked.indices, 1e9)
    assert bound(matrix, weights, [], 4, 1e9) == pytest.approx(best)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 40), st.sampled_from([0.01, 1.0, 100.0]))
def test_lazy_is_naive_and_gains_fall(seed: int, budget: int, delta: float) -> None:
    matrix = matrix_of(seed, 40, 6, 0.3)
    weights = np.random.default_rng(seed).random(6)
    lazy = greedy(matrix, weights, budget, delta)
    naive = naive_greedy(matrix, weights, budget, delta)
    assert lazy.indices.tolist() == naive.indices.tolist()
    assert lazy.gains.tolist() == naive.gains.tolist()
    assert (np.diff(lazy.gains) <= 1e-15).all() and (lazy.gains >= 0).all()


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_lazy_is_naive_whatever_is_looked_at_first(
    seed: int, block: int, at_once: int, binary: bool
) -> None:
    """Blocks and refreshes far smaller than the data, with and without equal masks, to the last."""
    matrix = matrix_of(seed, 40, 5, 0.3)
    matrix = sparse.csr_array(np.sign(matrix.toarray())) if binary else matrix
    weights = np.ones(5) if binary else np.random.default_rng(seed).random(5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "BLOCK", block)
        patch.setattr(selection, "AT_ONCE", at_once)
        lazy = greedy(matrix, weights)
    naive = naive_greedy(matrix, weights)
    assert lazy.indices.tolist() == naive.indices.tolist()
    assert lazy.gains.tolist() == naive.gains.tolist()


def test_a_thousand_equal_masks_are_picked_in_their_order() -> None:
    matrix = sparse.csr_array(np.ones((1000, 2)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "BLOCK", 8)
        assert greedy(matrix, np.ones(2)).indices.tolist() == list(range(1000))


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([0.1, 1.0, 10.0]))
def test_the_oracle_takes_what_raises_the_objective_most(seed: int, delta: float) -> None:
    matrix = matrix_of(seed, 12, 4)
    weights = np.random.default_rng(seed).random(4)
    ranking = naive_greedy(matrix, weights, 5, delta)
    before: list[int] = []
    for index, gain in zip(ranking.indices.tolist(), ranking.gains, strict=True):
        value = objective(matrix, weights, before, delta)
        rises = {
            i: objective(matrix, weights, [*before, i], delta) - value
            for i in range(12)
            if i not in before
        }
        assert rises[index] == pytest.approx(gain, abs=1e-12)
        assert gain >= max(rises.values()) - 1e-12
        before.append(index)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_lazy_is_naive_with_many_ties(seed: int) -> None:
    """Binary presences of few classes: most masks have a twin, and the lowest index must win."""
    matrix = sparse.csr_array((matrix_of(seed, 60, 3).toarray() > 0).astype(float))
    lazy, naive = greedy(matrix, np.ones(3)), naive_greedy(matrix, np.ones(3))
    assert lazy.indices.tolist() == naive.indices.tolist()
    for row in np.unique(matrix.toarray(), axis=0):
        twins = np.flatnonzero((matrix.toarray() == row).all(1))
        order = np.argsort(lazy.indices)[twins]
        assert (np.diff(order) > 0).all()


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_the_order_of_the_masks_does_not_matter(seed: int) -> None:
    matrix, weights = matrix_of(seed, 30, 5), np.random.default_rng(seed).random(5)
    order = np.random.default_rng(seed + 1).permutation(30)
    plain = greedy(matrix, weights, 10)
    shuffled = greedy(sparse.csr_array(matrix[order]), weights, 10)
    assert order[shuffled.indices].tolist() == plain.indices.tolist()  # random reals: no ties


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 29))
def test_every_budget_is_a_prefix(seed: int, budget: int) -> None:
    matrix, weights = matrix_of(seed, 30, 5), np.ones(5)
    full = greedy(matrix, weights)
    assert len(full) == 30 and sorted(full.indices.tolist()) == list(range(30))
    assert greedy(matrix, weights, budget).indices.tolist() == full.first(budget).tolist()
    assert greedy(matrix, weights, 99).indices.tolist() == full.indices.tolist()


def test_an_all_ignore_mask_gains_nothing() -> None:
    counts = counts_of([[5, 5], [0, 0], [9, 1], [0, 0]])
    ranking = greedy(presence(counts), np.ones(2))
    assert ranking.indices[-2:].tolist() == [1, 3] and ranking.gains[-2:].tolist() == [0.0, 0.0]
    assert (ranking.gains[:2] > 0).all()


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_a_large_delta_is_static_weighting(seed: int) -> None:
    matrix, weights = matrix_of(seed, 30, 5), np.random.default_rng(seed).random(5)
    static = np.argsort(-(matrix @ weights), kind="stable")
    assert greedy(matrix, weights, 8, delta=1e9).indices.tolist() == static[:8].tolist()


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_a_small_delta_is_set_cover(seed: int) -> None:
    """Until all classes are covered, every pick is one that covers most new classes."""
    binary = matrix_of(seed, 25, 8, 0.2).toarray() > 0
    possible, covered = binary.any(0), np.zeros(8, dtype=bool)
    for index in greedy(sparse.csr_array(binary.astype(float)), np.ones(8), delta=1e-30).indices:
        if (covered | ~possible).all():
            break
        new = (binary & ~covered).sum(1)
        assert new[index] == new.max()
        covered |= binary[index]


def test_single_class_masks_are_picked_in_turn() -> None:
    """Proportional fairness: n_c equalises, or follows the weights."""
    matrix = sparse.csr_array(np.repeat(np.eye(3), [200, 50, 30], axis=0))
    per_class = coverage(matrix, greedy(matrix, np.ones(3), 60).indices).per_class
    assert per_class.tolist() == [20, 20, 20]
    weighted = coverage(matrix, greedy(matrix, np.array([3.0, 1.0, 1.0]), 100).indices).per_class
    assert weighted == pytest.approx([60, 20, 20], abs=2)


# --------------------------------------------------------------------- ingredients of the objective
def test_presence_saturates() -> None:
    counts = counts_of([[1000, 0, 0], [980, 20, 0], [990, 10, 0], [0, 0, 0]])
    expected = [[1, 0, 0], [1, 1, 0], [1, 0.5, 0], [0, 0, 0]]
    np.testing.assert_allclose(presence(counts, 0.02).toarray(), expected)
    np.testing.assert_allclose(presence(counts, 1.0).toarray(), counts.shares().toarray())
    for wrong in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(D3S2Error, match="presence_threshold"):
            presence(counts, wrong)


def test_class_weights() -> None:
    frequency = np.array([100, 25, 0, 4])
    assert class_weights(frequency, 0.0).tolist() == pytest.approx([4 / 3, 4 / 3, 0, 4 / 3])
    half = class_weights(frequency, 0.5)
    assert half.sum() == pytest.approx(4) and half[2] == 0
    assert half[3] / half[0] == pytest.approx(5) and half[1] / half[0] == pytest.approx(2)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(D3S2Error, match="beta"):
            class_weights(frequency, wrong)
    with pytest.raises(D3S2Error, match="no class occurs"):
        class_weights(np.zeros(3), 0.5)


def test_budget_size() -> None:
    budgets = {0.01: 40, 0.00001: 1, 40: 40, 41.0: 41, 4000: 4000}
    assert {budget: budget_size(budget, 4000) for budget in budgets} == budgets
    assert budget_size(0.01, 20_210) == 202 and budget_size(0.01, 118_287) == 1183
    assert budget_size(np.float64(0.05), 367) == 18 and budget_size(np.int64(3), 9) == 3
    for wrong in (0, 0.0, -1, -0.1, 1.5, 4001, 4001.0, float("nan"), float("inf"), True, "1"):
        with pytest.raises(D3S2Error, match="budget is"):
            budget_size(wrong, 4000)


def test_the_share_one_is_said_to_be_all_masks_and_the_number_one_is_one() -> None:
    with pytest.warns(
        UserWarning, match=r"all 4000 masks .* smaller share, such as 0\.0001"
    ) as told:
        assert budget_size(1.0, 4000) == budget_size(np.float64(1.0), 4000) == 4000
    assert len(told) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert budget_size(1, 4000) == budget_size(np.int64(1), 4000) == budget_size(1.0, 1) == 1
        for total in (2, 3, 33, 367, 4000, 20_210, 118_287):
            assert budget_size(float(f"{0.5 / total:.1g}"), total) == 1


def test_wrong_arguments_are_named() -> None:
    matrix = matrix_of(0)
    for weights in (np.ones(3), -np.ones(4), np.array([1, 1, 1, np.nan])):
        with pytest.raises(D3S2Error, match="class weights"):
            greedy(matrix, weights)
    for delta in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(D3S2Error, match="delta is"):
            greedy(matrix, np.ones(4), delta=delta)
    with pytest.raises(D3S2Error, match="budget is 0"):
        greedy(matrix, np.ones(4), 0)
    with pytest.raises(D3S2Error, match="99 masks are asked"):
        greedy(matrix, np.ones(4)).first(99)


# --------------------------------------------------------------------------- baselines and coverage
def test_baselines_are_seeded_permutations() -> None:
    counts = counts_of(matrix_of(1, 50, 5, 0.2).toarray() * 100)
    for rank in (lambda seed: random_ranking(50, seed), lambda seed: uniform_ranking(counts, seed)):
        assert sorted(rank(0).indices.tolist()) == list(range(50))
        assert rank(0).indices.tolist() == rank(0).indices.tolist() != rank(1).indices.tolist()


def test_the_picks_of_a_seed_are_these_and_stay_so() -> None:
    counts = counts_of(matrix_of(5, 12, 3).toarray() * 100)
    assert random_ranking(12, 3).indices.tolist() == [0, 4, 11, 1, 2, 5, 10, 7, 9, 8, 6, 3]
    assert uniform_ranking(counts, 3).indices.tolist() == [7, 0, 8, 6, 2, 3, 4, 5, 11, 1, 9, 10]
    chosen = greedy(presence(counts), np.ones(3))
    assert chosen.indices.tolist() == [0, 2, 4, 8, 11, 3, 6, 1, 7, 5, 9, 10]


def test_uniform_takes_classes_in_turn() -> None:
    counts = counts_of(np.repeat(np.eye(3), [40, 10, 2], axis=0))
    picked = uniform_ranking(counts, 0).first(6)
    assert coverage(counts.counts, picked).per_class.tolist() == [2, 2, 2]
    assert len(uniform_ranking(counts_of([[0, 0], [1, 0]]), 0)) == 2


def test_coverage_numbers() -> None:
    matrix = sparse.csr_array(np.diag([1.0, 1.0, 1.0, 0.0]))
    even = coverage(matrix, [0, 1, 2])
    assert (even.covered, even.possible, even.smallest, even.median) == (3, 3, 1.0, 1.0)
    assert even.gini == pytest.approx(0) and even.kl == pytest.approx(0)
    one = coverage(matrix, [0])
    assert (one.covered, one.smallest) == (1, 0.0)
    assert one.gini == pytest.approx(2 / 3) and one.kl == pytest.approx(np.log(3))
    nothing = coverage(matrix, [3])
    assert (nothing.covered, nothing.gini, nothing.kl) == (0, 0.0, 0.0)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_gini_is_the_mean_difference(seed: int) -> None:
    matrix = matrix_of(seed, 10, 5, 0.9)
    values = coverage(matrix, range(5)).per_class[coverage(matrix, range(10)).per_class > 0]
    expected = np.abs(values[:, None] - values).sum() / (2 * len(values) * values.sum())
    assert coverage(matrix, range(5)).gini == pytest.approx(expected)


def test_ranking_survives_the_disk(tmp_path: Path) -> None:
    ranking = greedy(matrix_of(2), np.ones(4))
    ranking.save(tmp_path / "r.npz")
    loaded = Ranking.load(tmp_path / "r.npz")
    assert loaded.indices.tolist() == ranking.indices.tolist()
    assert loaded.gains.tolist() == ranking.gains.tolist()


def long_tail(masks: int = 20_210, classes: int = 150, seed: int = 0) -> PixelCounts:
    """Sparse counts the size of ADE20K: class frequencies fall as a power law, 9 classes an
    image.
    """
    rng = np.random.default_rng(seed)
    odds = np.minimum(0.75, 0.9 / np.arange(1, classes + 1) ** 0.66)
    present = rng.random((masks, classes)) < odds
    present[:, 0] = True
    return counts_of(present * np.ceil(rng.pareto(1.0, present.shape) * 2000))


def test_selection_at_the_size_of_ade20k_is_lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    """One gain a mask to begin with, and a few for each pick instead of one for every mask."""
    counts, computed = long_tail(), []
    matrix, weights = presence(counts), class_weights(counts.image_counts(), 0.5)
    some, whole = selection._Gains.of, selection._Gains.of_all

    def count_some(gains: selection._Gains, masks: np.ndarray) -> np.ndarray:
        computed.append(len(masks))
        return some(gains, masks)

    def count_whole(gains: selection._Gains) -> np.ndarray:
        computed.append(len(counts))
        return whole(gains)

    monkeypatch.setattr(selection._Gains, "of", count_some)
    monkeypatch.setattr(selection._Gains, "of_all", count_whole)
    ranking = greedy(matrix, weights, 202)
    assert sum(computed) < len(counts) + 202 * len(counts) / 40
    spread = coverage(matrix, ranking.first(202))
    chance = coverage(matrix, random_ranking(len(counts), 0).first(202))
    assert spread.covered >= chance.covered
    assert spread.gini < chance.gini
    assert spread.smallest > chance.smallest


# --------------------------------------------------------------- coverage, from its definitions
@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 9), st.integers(1, 12))
def test_coverage_is_its_definition(seed: int, classes: int, picks: int) -> None:
    """Over the classes that the data has, in any number, odd or even, some of them not covered."""
    matrix = matrix_of(seed, 12, classes, 0.25)
    chosen = np.random.default_rng(seed).permutation(12)[:picks]
    found = coverage(matrix, chosen)
    totals = matrix.toarray()[chosen].sum(0)
    assert found.per_class == pytest.approx(totals)
    values = totals[matrix.toarray().any(0)]
    assert (found.possible, found.covered) == (len(values), (values > 0).sum())
    if values.sum() == 0:
        assert (found.smallest, found.median, found.gini, found.kl) == (0, 0, 0, 0)
        return
    assert found.smallest == pytest.approx(values.min())
    assert found.median == pytest.approx(np.median(values))
    apart = np.abs(values[:, None] - values).mean()
    assert found.gini == pytest.approx(apart / (2 * values.mean()), abs=1e-12)
    share = values[values > 0] / values.sum()
    uniform = 1 / len(values)
    assert found.kl == pytest.approx((share * np.log(share / uniform)).sum(), abs=1e-12)


@pytest.mark.parametrize(
    "totals, median, gini",
    [
        ([1, 2, 3, 10], 2.5, 0.4375),
        ([10, 1, 3, 2], 2.5, 0.4375),
        ([5, 5, 5], 5, 0),
        ([0, 0, 9], 0, 2 / 3),
        ([4, 1], 2.5, 0.3),
    ],
)
def test_coverage_of_hand_made_totals(totals: list[int], median: float, gini: float) -> None:
    data = np.array([totals, [1] * len(totals)], dtype=float)
    found = coverage(sparse.csr_array(data), [0])
    assert (found.median, found.gini) == pytest.approx((median, gini))


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_coverage_knows_neither_the_order_of_picks_and_classes_nor_the_unit(seed: int) -> None:
    rng, dense = np.random.default_rng(seed), matrix_of(seed, 12, 5, 0.7).toarray()
    picks, order = rng.permutation(12)[:6], rng.permutation(5)
    plain = coverage(sparse.csr_array(dense), picks)
    other = coverage(sparse.csr_array(8.0 * dense[:, order]), picks[::-1])
    assert other.per_class == pytest.approx(8 * plain.per_class[order])
    assert (other.covered, other.possible) == (plain.covered, plain.possible)
    assert (other.gini, other.kl) == pytest.approx((plain.gini, plain.kl), abs=1e-12)
    assert (other.median, other.smallest) == pytest.approx((8 * plain.median, 8 * plain.smallest))


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([0.1, 1.0, 10.0]))
def test_the_objective_is_its_formula(seed: int, delta: float) -> None:
    matrix, rng = matrix_of(seed), np.random.default_rng(seed)
    weights, picks = rng.random(4), rng.permutation(12)[:5]
    totals = matrix.toarray()[picks].sum(0)
    expected = (weights * np.log(1 + totals / delta)).sum()
    assert objective(matrix, weights, picks, delta) == pytest.approx(expected)
    assert objective(matrix, weights, [], delta) == 0


# ------------------------------------------------------------------------- edges and defaults
def test_a_class_of_a_single_image_has_the_largest_weight() -> None:
    """f^-beta from f = 1 on, up to inverse frequency; one half unless something else is said."""
    frequency = np.array([1, 2, 4, 100, 0])
    for beta in (0.0, 0.25, 0.5, 1.0):
        weights = class_weights(frequency, beta)
        assert weights[:4] / weights[0] == pytest.approx(np.array([1, 2, 4, 100.0]) ** -beta)
        assert weights.sum() == pytest.approx(5) and weights[4] == 0
    assert class_weights(frequency).tolist() == class_weights(frequency, 0.5).tolist()


def test_the_smallest_budgets_are_counts_and_nothing_is_no_selection() -> None:
    assert [budget_size(b, 9) for b in (1, 2, 2.0, 9.0, np.int64(1))] == [1, 2, 2, 9, 1]
    ranking = random_ranking(9)
    assert [len(ranking.first(k)) for k in (1, 9)] == [1, 9]
    for wrong in (0, -1, 10):
        with pytest.raises(D3S2Error, match="masks are asked"):
            ranking.first(wrong)


def test_what_is_not_said_is_a_delta_of_one_and_seed_zero() -> None:
    matrix, weights = matrix_of(4), np.ones(4)
    for rule in (greedy, naive_greedy):
        assert (
            rule(matrix, weights).gains.tolist() == rule(matrix, weights, None, 1.0).gains.tolist()
        )
    assert objective(matrix, weights, [0, 3]) == objective(matrix, weights, [0, 3], 1.0)
    counts = counts_of(matrix.toarray() * 100)
    assert random_ranking(30).indices.tolist() == random_ranking(30, 0).indices.tolist()
    assert uniform_ranking(counts).indices.tolist() == uniform_ranking(counts, 0).indices.tolist()
    assert (presence(counts) != presence(counts, 0.02)).nnz == 0


# ------------------------------------------------------------------------- types and sentences
def test_a_ranking_has_its_types_also_when_it_is_empty() -> None:
    counts = counts_of(matrix_of(4).toarray() * 100)
    chosen = [random_ranking(12), uniform_ranking(counts), greedy(matrix_of(4), np.ones(4))]
    nothing = sparse.csr_array((0, 4))
    empty = [rule(nothing, np.ones(4)) for rule in (greedy, naive_greedy)]
    for ranking in (*chosen, *empty, uniform_ranking(counts_of(np.zeros((0, 3))))):
        assert ranking.indices.dtype == np.int64 and ranking.gains.dtype == np.float64
        assert ranking.gains.shape == ranking.indices.shape
    for ranking in chosen[:2]:
        assert np.isnan(ranking.gains).all()
    assert coverage(counts.counts, [0, 1]).per_class.dtype == np.float64


def test_a_class_without_weight_pulls_nothing() -> None:
    """As `class_weights` gives one that occurs nowhere, or as a user may wish it."""
    matrix = sparse.csr_array(np.array([[0.0, 1.0], [0.1, 0.0], [0.2, 1.0]]))
    ranking = greedy(matrix, np.array([1.0, 0.0]))
    assert ranking.indices.tolist() == [2, 1, 0] and ranking.gains[2] == 0
    assert ranking.gains.sum() == pytest.approx(np.log1p(0.3))


def test_two_masks_are_enough_for_a_warning_that_names_the_callers_line() -> None:
    with pytest.warns(UserWarning, match=r"all 2 masks .* such as 0\.2") as told:
        assert budget_size(1.0, 2) == 2
    # `make mutants` puts a call of its own between a function and whoever calls it
    assert told[0].filename == __file__ or "mutmut" in told[0].filename


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: presence(counts_of([[1, 2]]), 1.5),
            "presence_threshold is 1.5: give a share of the mask's pixels above 0 and at most 1.",
        ),
        (
            lambda: class_weights(np.zeros(3)),
            "no class occurs in any mask: nothing can be selected; check the label files.",
        ),
        (
            lambda: class_weights(np.ones(3), 2.0),
            "beta is 2.0: give a number from 0 (no static weight) to 1 (inverse frequency).",
        ),
        (
            lambda: greedy(matrix_of(0), np.ones(4), -1),
            "budget is -1 masks: give 1 to 12, or None for the full ranking.",
        ),
        (
            lambda: greedy(matrix_of(0), np.ones(4), delta=0.0),
            "delta is 0.0: give a finite number above 0.",
        ),
    ],
)
def test_a_wrong_parameter_is_a_whole_sentence(call: Callable[[], object], words: str) -> None:
    with pytest.raises(D3S2Error) as raised:
        call()
    assert str(raised.value) == words
