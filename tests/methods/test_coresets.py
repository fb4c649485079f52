"""The coresets against brute force on small sets, their identities, ties and prefixes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from d3s2.core.errors import D3S2Error
from d3s2.methods import coresets
from d3s2.methods.coresets import (
    RARE_PIXELS,
    facility_location,
    herding,
    k_center,
    radius,
    rare_class_probabilities,
    rare_class_ranking,
)
from d3s2.methods.embeddings import normalised
from d3s2.selection import Ranking
from d3s2.statistics.pixels import PixelCounts

SEEDS = st.integers(0, 100_000)
RULES = (k_center, herding, facility_location)


def unit_points(seed: int, count: int = 11, width: int = 3) -> np.ndarray:
    return normalised(np.random.default_rng(seed).normal(size=(count, width)))


def counts_of(dense: np.ndarray) -> PixelCounts:
    dense = np.asarray(dense, dtype=np.int64)
    names = tuple(f"{number:05d}" for number in range(len(dense)))
    return PixelCounts(sparse.csr_array(dense), dense.sum(1), names)


# ------------------------------------------------------------------------------------ what all keep
@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_a_ranking_holds_every_point_once_and_every_budget_is_a_prefix(
    rule: Callable[..., Ranking], seed: int
) -> None:
    points = unit_points(seed)
    whole = rule(points)
    assert sorted(whole.indices.tolist()) == list(range(11))
    assert whole.indices.dtype == np.int64 and whole.gains.dtype == np.float64
    for budget in (1, 4, 11, 99):
        part = rule(points, budget)
        assert part.indices.tolist() == whole.indices[:budget].tolist()
        assert np.array_equal(part.gains, whole.gains[:budget], equal_nan=True)


@pytest.mark.parametrize("rule", RULES)
def test_of_equal_points_the_lowest_number_comes_first(rule: Callable[..., Ranking]) -> None:
    """Whatever the blocks in which they are computed."""
    same = np.tile([[0.6, 0.8]], (150, 1))
    assert rule(same).indices.tolist() == list(range(150))
    pairs = normalised(np.repeat(unit_points(1, 6), 2, axis=0))
    order = rule(pairs).indices.tolist()
    assert all(order.index(first) < order.index(first + 1) for first in range(0, 12, 2))


@pytest.mark.parametrize("rule", [k_center, herding])
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_another_order_of_the_points_changes_nothing_but_their_numbers(
    rule: Callable[..., Ranking], seed: int
) -> None:
    """Facility location has true ties: of two points that serve each other alone."""
    points = unit_points(seed, 9)
    order = np.random.default_rng(seed).permutation(9)
    picked = rule(points[order]).indices[:5]  # without the ties at the end
    assert order[picked].tolist() == rule(points).indices[:5].tolist()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("points", "budget", "words"),
    [
        (np.zeros((0, 3)), None, "got (0, 3)"),
        (np.zeros(3), None, "got (3,)"),
        (np.array([[0.0, np.nan]]), None, "1 numbers that are not finite"),
        (np.zeros((4, 2)), 0, "budget is 0 images: give 1 to 4"),
    ],
)
def test_what_cannot_be_ranked_is_a_sentence(
    rule: Callable[..., Ranking], points: np.ndarray, budget: int | None, words: str
) -> None:
    with pytest.raises(D3S2Error) as raised:
        rule(points, budget)
    assert words in str(raised.value)


# ----------------------------------------------------------------------------------------- k-center
@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_k_center_covers_within_twice_the_best_radius_and_its_gains_are_radii(seed: int) -> None:
    points = unit_points(seed, 9)
    ranking = k_center(points)
    for budget in (1, 2, 3, 4):
        choices = itertools.combinations(range(9), budget)
        best = min(radius(points, choice) for choice in choices)
        found = radius(points, ranking.first(budget))
        assert found <= 2 * best + 1e-12
        assert ranking.gains[budget] == found
    assert np.isnan(ranking.gains[0]) and (np.diff(ranking.gains[1:]) <= 0).all()


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_k_center_begins_next_to_the_mean_and_takes_the_farthest(seed: int) -> None:
    points = unit_points(seed)
    picked = k_center(points).indices.tolist()
    assert picked[0] == np.argmin(np.linalg.norm(points - points.mean(0), axis=1))
    for size in range(1, len(points)):
        apart = np.linalg.norm(points[:, None] - points[picked[:size]], axis=2).min(1)
        assert apart[picked[size]] == pytest.approx(apart.max())


def test_the_radius_is_its_definition_over_more_points_than_a_block() -> None:
    points = unit_points(3, coresets.ROWS + 3, 2)
    chosen = [5, coresets.ROWS + 1]
    apart = np.linalg.norm(points[:, None] - points[chosen], axis=2).min(1)
    assert radius(points, chosen) == pytest.approx(apart.max())
    assert radius(points, range(len(points))) == 0


# ------------------------------------------------------------------------------------------ herding
@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_herding_takes_whoever_brings_the_mean_of_the_picks_nearest(seed: int) -> None:
    """Of unit vectors; by brute force over the next pick. All picks together have the mean."""
    points = unit_points(seed)
    picked = herding(points).indices.tolist()
    centre = points.mean(0)
    for size in range(len(points)):
        free = [index for index in range(len(points)) if index not in picked[:size]]
        means = [points[[*picked[:size], index]].mean(0) for index in free]
        errors = np.linalg.norm(np.array(means) - centre, axis=1)
        assert errors[free.index(picked[size])] == pytest.approx(errors.min())
    assert points[picked].mean(0) == pytest.approx(centre)


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_herding_is_its_recurrence(seed: int) -> None:
    points = unit_points(seed) * 3
    ranking = herding(points, 6)
    w = points.mean(0)
    for index, gain in zip(ranking.indices, ranking.gains, strict=True):
        assert gain == pytest.approx(w @ points[index])
        w = w + points.mean(0) - points[index]


# -------------------------------------------------------------------------------- facility location
def served(points: np.ndarray, chosen: tuple[int, ...] | np.ndarray) -> float:
    """F(S), by its definition."""
    alike = (1 + points @ points[list(chosen)].T) / 2
    return float(alike.max(axis=1).sum())


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_facility_location_keeps_its_bound_against_brute_force(seed: int) -> None:
    points = unit_points(seed, 9)
    for budget in (1, 3, 4):
        best = max(served(points, s) for s in itertools.combinations(range(9), budget))
        found = facility_location(points, budget)
        assert found.gains.sum() == pytest.approx(served(points, found.indices), abs=1e-4)
        assert served(points, found.indices) >= (1 - 1 / np.e) * best


@pytest.mark.parametrize("candidates", [1, 3, 64])
def test_lazy_facility_location_picks_what_computing_every_gain_picks(
    monkeypatch: pytest.MonkeyPatch, candidates: int
) -> None:
    monkeypatch.setattr(coresets, "CANDIDATES", candidates)
    points = unit_points(8, 120, 5)
    ranking = facility_location(points, 25)
    picked: list[int] = []
    for index in ranking.indices.tolist():
        before = served(points, picked) if picked else 0.0
        gains = [served(points, [*picked, j]) - before for j in range(len(points))]
        assert gains[index] == pytest.approx(max(gains), abs=2e-6)
        picked.append(index)
    assert (np.diff(ranking.gains) <= 0).all()


def test_facility_location_computes_a_fraction_of_the_similarities(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed = []
    gains = coresets._facility_gains

    def counted(points: np.ndarray, nearest: np.ndarray, candidates: list[int]) -> list[float]:
        computed.append(len(candidates))
        return gains(points, nearest, candidates)

    monkeypatch.setattr(coresets, "_facility_gains", counted)
    facility_location(unit_points(2, 2000, 4), 40)
    assert sum(computed) < 2000 * 40 / 4


def test_points_that_are_too_long_are_a_sentence() -> None:
    with pytest.raises(D3S2Error, match="length 3: facility location needs points of length 1"):
        facility_location(np.array([[3.0, 0.0], [0.0, 1.0]]))
    rounded = unit_points(1, 50, 64).round(6)
    assert len(facility_location(rounded)) == 50


# ------------------------------------------------------------------------------ rare class sampling
LONG_TAIL = np.array([[900, 100, 0, 0], [700, 250, 50, 0], [990, 0, 0, 10]])


def test_rare_classes_have_the_softmax_of_their_rarity() -> None:
    counts = counts_of(LONG_TAIL)
    share = LONG_TAIL.sum(0) / LONG_TAIL.sum()
    for temperature in (0.01, 0.3):
        odds = np.exp((1 - share) / temperature)
        expected = odds / odds.sum()
        assert rare_class_probabilities(counts, temperature) == pytest.approx(expected)
    assert rare_class_probabilities(counts).tolist() == (
        rare_class_probabilities(counts, 0.01).tolist()
    )
    assert rare_class_probabilities(counts, np.inf).tolist() == [0.25] * 4
    empty = counts_of(np.column_stack([LONG_TAIL, [0, 0, 0]]))
    assert rare_class_probabilities(empty, np.inf).tolist() == [0.25] * 4 + [0]


def test_classes_below_a_thousandth_are_alike_and_the_sky_is_never_drawn() -> None:
    odds = rare_class_probabilities(counts_of([[600_000, 399_200, 700, 100]]))
    assert odds[2] / odds[3] == pytest.approx(np.exp(-0.06)) and odds[0] < 1e-20


def draws(counts: PixelCounts, count: int, temperature: float) -> np.ndarray:
    """Which class the first mask of many rankings is of, in single-class masks."""
    firsts = [
        rare_class_ranking(counts, 100, seed, temperature).indices[0] for seed in range(count)
    ]
    return np.bincount(counts.counts.toarray()[firsts].argmax(1), minlength=counts.num_classes)


def test_the_first_draw_has_these_odds_and_the_mask_is_any_of_its_class() -> None:
    masks = np.repeat(100 * np.eye(3, dtype=int), [7, 2, 1], axis=0)
    counts = counts_of(masks)
    for temperature in (np.inf, 0.5):
        found = draws(counts, 200, temperature)
        expected = 200 * rare_class_probabilities(counts, temperature)
        assert np.abs(found - expected).max() < 4 * np.sqrt(200 / 4)
    picked = {int(rare_class_ranking(counts, 100, seed, np.inf).indices[0]) for seed in range(99)}
    assert picked == set(range(10))


def test_the_threshold_is_daformers_at_another_size() -> None:
    """47 pixels of 64 x 64: 3,000 of 512 x 512 are 46.875; and more than 3,000 there."""
    assert 46 / 64**2 < RARE_PIXELS < 47 / 64**2
    counts = counts_of([[46, 4050], [47, 4049], [3000, 1096]])
    rare_first = [rare_class_ranking(counts, 64**2, seed).indices[:2] for seed in range(9)]
    assert all(set(found) == {1, 2} for found in rare_first)
    large = counts_of([[3000, 259_144], [3001, 259_143]])
    assert all(rare_class_ranking(large, 512**2, seed).indices[0] == 1 for seed in range(9))


def test_every_mask_comes_once_the_ones_of_no_class_last() -> None:
    dense = np.random.default_rng(0).integers(0, 60, (40, 6))
    dense[[3, 9]] = 0
    dense[17] = [5, 0, 0, 0, 0, 0]
    counts = counts_of(dense)
    order = rare_class_ranking(counts, 64**2, 4).indices.tolist()
    assert sorted(order) == list(range(40))
    enough = (dense > RARE_PIXELS * 64**2).any(1)
    assert enough[order].tolist() == sorted(enough.tolist(), reverse=True)
    assert order == rare_class_ranking(counts, 64**2, 4).indices.tolist()
    assert order != rare_class_ranking(counts, 64**2, 5).indices.tolist()
    assert np.isnan(rare_class_ranking(counts, 64**2).gains).all()


def test_a_class_that_is_used_up_leaves_its_odds_to_the_others() -> None:
    """Also one whose odds are too small for a float."""
    counts = counts_of(np.repeat(100 * np.eye(3, dtype=int), [5, 2, 1], axis=0))
    order = rare_class_ranking(counts, 100, 0, 1e-6).indices.tolist()
    assert order[0] == 7 and set(order[1:3]) == {5, 6} and set(order[3:]) == set(range(5))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rare_class_ranking(counts_of(LONG_TAIL), 100, 0, 0.0), "temperature is 0.0"),
        (lambda: rare_class_ranking(counts_of(LONG_TAIL), 0), "area is 0: give the number"),
        (lambda: rare_class_ranking(counts_of([[0, 0]]), 9), "no class occurs in any mask"),
    ],
)
def test_what_cannot_be_drawn_is_a_sentence(call: Callable[[], object], words: str) -> None:
    with pytest.raises(D3S2Error, match=words):
        call()
