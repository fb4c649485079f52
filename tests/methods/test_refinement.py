"""UniDD's scores, labels and its filter with redraws: limits, and small exact cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import IGNORE
from d3s2.methods.refinement import (
    REDRAWS,
    confidence,
    filter_and_redraw,
    passes,
    pixel_accuracy,
    relabel,
    settled,
)

SEEDS = st.integers(0, 100_000)
C = 5
SCORES = st.lists(st.floats(0, 1) | st.just(math.nan), min_size=1, max_size=6)


def some(seed: int, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, C, (4, 6, 7), generator=rng)
    labels[torch.rand(labels.shape, generator=rng) < 0.2] = IGNORE
    logits = spread * torch.randn(4, C, 6, 7, generator=rng, dtype=torch.float64)
    return logits, labels


# -------------------------------------------------------------------------------- scores and labels
@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 1.0, 30.0]))
def test_confidence_is_the_mean_of_the_largest_probability(seed: int, spread: float) -> None:
    logits, _ = some(seed, spread)
    found = confidence(logits)
    assert found.tolist() == pytest.approx(logits.softmax(1).amax(1).mean((1, 2)).tolist())
    assert ((found >= 1 / C - 1e-12) & (found <= 1)).all()
    alone = torch.cat([confidence(image[None]) for image in logits])
    assert torch.equal(alone, found)
    assert confidence(logits + 1e4).tolist() == pytest.approx(found.tolist())


def test_a_network_that_is_sure_has_confidence_one_and_one_that_knows_nothing_a_share() -> None:
    sure = 1e4 * F.one_hot(some(0)[1].clamp(max=C - 1), C).permute(0, 3, 1, 2).float()
    assert confidence(sure).tolist() == [1.0] * 4
    assert confidence(0 * sure).tolist() == pytest.approx([1 / C] * 4)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_accuracy_is_over_the_valid_pixels(seed: int) -> None:
    logits, labels = some(seed)
    labels[3] = IGNORE
    for image, mask, found in zip(logits, labels, pixel_accuracy(logits, labels), strict=True):
        valid = mask != IGNORE
        right = (image.argmax(0) == mask)[valid].double()
        assert found.item() == pytest.approx(right.mean().item() if valid.any() else 0.0)


def exact(labels: Tensor) -> Tensor:
    """Logits of a network that sees these labels; it says something of ignored pixels too."""
    return 9.0 * F.one_hot(labels.clamp(max=C - 1), C).permute(0, 3, 1, 2)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_the_labels_of_an_exact_network_are_the_mask(seed: int) -> None:
    mask = some(seed)[1].clamp(max=C - 1)
    again = relabel(exact(mask))
    assert torch.equal(again, mask) and again.dtype == torch.int64
    assert pixel_accuracy(exact(mask), mask).tolist() == [1.0] * 4


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_labels_below_the_floor_are_ignored(seed: int) -> None:
    logits, _ = some(seed, 1.0)
    sure = logits.softmax(1).amax(1)
    for floor in (0.0, 0.3, 0.6, 1.0):
        labels = relabel(logits, floor)
        assert torch.equal(labels == IGNORE, sure < floor)
        assert torch.equal(labels[sure >= floor], logits.argmax(1)[sure >= floor])
    assert torch.equal(relabel(logits), relabel(logits, 0.0))
    assert not relabel(logits[:, :1], 1.0).any()  # of a single class all is certain


@pytest.mark.parametrize("floor", [-0.1, 1.5, math.nan])
def test_a_floor_that_is_no_probability_is_a_sentence(floor: float) -> None:
    with pytest.raises(D3S2Error, match=f"floor is {floor}: give a probability"):
        relabel(some(0)[0], floor)


# -------------------------------------------------------------------------------- filter and redraw
def test_one_try_settles_what_passes_and_the_best_of_four_what_never_does() -> None:
    assert settled([0.8], 0.75) == 0 and settled([0.75], 0.75) == 0
    assert settled([0.7], 0.75) is None
    assert settled([0.7, 0.6, 0.5], 0.75) is None
    assert settled([0.7, 0.6, 0.9], 0.75) == 2
    assert settled([0.5, 0.7, 0.6, 0.7], 0.75) == 1
    assert settled([math.nan, 0.1, math.nan, math.nan], 0.75) == 1
    assert settled([0.1], 0.75, redraws=0) == 0
    assert REDRAWS == 3


@given(SCORES)
def test_without_a_threshold_the_first_stays_and_above_one_nothing_passes(
    scores: list[float],
) -> None:
    numbers = [score for score in scores if not math.isnan(score)]
    assert all(passes(score, 0.0) for score in numbers)
    assert not any(passes(score, 1.0001) for score in scores)
    if numbers and not math.isnan(scores[0]):
        assert settled(scores, 0.0) == 0
    if numbers:
        assert settled(scores, 1.0001, redraws=len(scores) - 1) == scores.index(max(numbers))
    assert settled(scores, 1.0001, redraws=len(scores)) is None


@given(SCORES, st.floats(0, 1), st.floats(0, 1))
def test_the_number_kept_falls_with_the_threshold(
    scores: list[float], one: float, other: float
) -> None:
    low, high = sorted([one, other])
    assert sum(passes(s, low) for s in scores) >= sum(passes(s, high) for s in scores)


class Painter:
    """Draws the image (place, try) with a score out of a table; notes what it is asked for."""

    def __init__(self, table: Sequence[Sequence[float]]) -> None:
        self.table = table
        self.asked: list[tuple[list[int], int]] = []

    def __call__(self, places: list[int], candidate: int) -> list[tuple[tuple[int, int], float]]:
        self.asked.append((list(places), candidate))
        return [((place, candidate), self.table[place][candidate]) for place in places]


def test_whoever_fails_is_drawn_again_and_what_is_thrown_away_is_counted() -> None:
    painter = Painter([[0.9], [0.1, 0.8], [0.2, 0.4, 0.3, 0.1], [0.1, 0.1, 0.76]])
    kept = filter_and_redraw(painter, 4, tau=0.75)
    assert painter.asked == [([0, 1, 2, 3], 0), ([1, 2, 3], 1), ([2, 3], 2), ([2], 3)]
    assert [found.image for found in kept] == [(0, 0), (1, 1), (2, 1), (3, 2)]
    assert [found.candidate for found in kept] == [0, 1, 1, 2]
    assert [found.passed for found in kept] == [True, True, False, True]
    assert [found.discarded for found in kept] == [0, 1, 3, 2]
    assert kept[2].scores == (0.2, 0.4, 0.3, 0.1)


def test_limits_of_the_threshold() -> None:
    table = [[0.3, 0.9, 0.2, 0.1], [0.5, 0.4, 0.6, 0.0]]
    everything = filter_and_redraw(Painter(table), 2, tau=0.0)
    assert [(f.candidate, f.passed, f.discarded) for f in everything] == [(0, True, 0)] * 2
    nothing = filter_and_redraw(Painter(table), 2, tau=1.01)
    assert [(f.candidate, f.passed, f.discarded) for f in nothing] == [(1, False, 3), (2, False, 3)]
    assert filter_and_redraw(Painter([]), 0, tau=0.5) == []


@settings(max_examples=30)
@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), max_size=5), st.data())
def test_a_mask_is_refined_as_if_it_were_alone(
    table: list[list[float]], data: st.DataObject
) -> None:
    tau = data.draw(st.floats(0, 1.1))
    together = filter_and_redraw(Painter(table), len(table), tau)
    for row, found in zip(table, together, strict=True):
        (alone,) = filter_and_redraw(Painter([row]), 1, tau)
        assert (alone.candidate, alone.scores, alone.passed) == (
            found.candidate,
            found.scores,
            found.passed,
        )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: settled([0.1], 0.5, -1), "redraws is -1: give 0"),
        (lambda: settled([math.nan] * 4, 0.5), "The score of an image is NaN in all 4 tries"),
        (lambda: filter_and_redraw(lambda places, k: [], 2, 0.5), "2 images were asked for and 0"),
    ],
)
def test_what_cannot_be_settled_is_a_sentence(call: Callable[[], object], words: str) -> None:
    with pytest.raises(D3S2Error, match=words):
        call()
