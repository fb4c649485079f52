"""The shared space against the textbook's CCA, and the semantic query in its limits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cross_decomposition import CCA

from d3s2.core.errors import D3S2Error
from d3s2.methods import towers
from d3s2.methods.embeddings import normalised
from d3s2.methods.towers import fused, multi_hot, semantic_query, two_towers

SEEDS = st.integers(0, 100_000)


def pair(seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Images float[N, 5] and texts float[N, 4] that share two directions, under noise."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(count, 2)) * [3, 1]
    images = shared @ rng.normal(size=(2, 5)) + 0.3 * rng.normal(size=(count, 5))
    texts = shared @ rng.normal(size=(2, 4)) + 0.3 * rng.normal(size=(count, 4))
    return images, texts


def space(seed: int, count: int = 9, texts: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return normalised(rng.normal(size=(count, 3))), normalised(rng.normal(size=(texts, 3)))


# ------------------------------------------------------------------------------------------ towers
def test_with_little_ridge_the_first_directions_are_those_of_plain_cca() -> None:
    """Another library's iteration; rows are scaled to length 1 afterwards, so one column alone is
    only signs, and the angle of two tells.
    """
    images, texts = pair(1)
    v, t = two_towers(images, texts, ridge=1e-9, width=2)
    other = CCA(n_components=2, scale=False, max_iter=5000, tol=1e-12).fit(images, texts)
    u, w = other.transform(images, texts)
    u = normalised(u / u.std(0))
    w = normalised(w / w.std(0))
    signs = np.sign((v * u).sum(0))
    assert v == pytest.approx(u * signs, abs=1e-3)
    assert t == pytest.approx(w * signs, abs=1e-3)


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_rows_have_length_one_and_a_pair_goes_together(seed: int) -> None:
    images, texts = pair(seed)
    v, t = two_towers(images, texts, width=2)
    assert v.shape == t.shape == (60, 2)
    for tower in (v, t):
        assert np.linalg.norm(tower, axis=1) == pytest.approx(np.ones(60))
    own = np.sum(v * t, axis=1).mean()
    others = np.sum(v * np.roll(t, 7, axis=0), axis=1).mean()
    assert own > 0.5 + others


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_neither_order_nor_offset_nor_unit_matter(seed: int) -> None:
    images, texts = pair(seed)
    v, t = two_towers(images, texts, width=3)
    order = np.random.default_rng(seed).permutation(60)
    shuffled = two_towers(images[order], texts[order], width=3)
    assert shuffled[0] == pytest.approx(v[order], abs=1e-6)
    assert shuffled[1] == pytest.approx(t[order], abs=1e-6)
    moved = two_towers(7 * images + 5, texts - 3, width=3)
    assert moved[0] == pytest.approx(v, abs=1e-6) and moved[1] == pytest.approx(t, abs=1e-6)


def test_the_ridge_is_in_units_of_the_mean_variance_and_dead_columns_do_no_harm() -> None:
    images, texts = pair(3)
    dead = np.column_stack([images, np.zeros(60)])
    v, t = two_towers(dead, texts, ridge=0.1)
    assert v.shape == (60, 4) and np.isfinite(v).all() and np.isfinite(t).all()
    centred = images - images.mean(0)
    table = centred.T @ centred
    values, vectors = np.linalg.eigh(table + 0.1 * np.trace(table) / 5 * np.eye(5))
    expected = vectors @ np.diag(values**-0.5) @ vectors.T
    assert towers._whitening(centred, 0.1) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"texts": np.ones((59, 4))}, "60 images, 59 texts"),
        ({"width": 0}, "width 0 and ridge"),
        ({"ridge": 0.0}, "ridge 0.0: give"),
        ({"texts": np.ones((60, 4))}, "All 60 texts are alike"),
        ({"images": np.full((60, 2), 0.1)}, "All 60 images are alike"),
        ({"images": np.full((60, 2), np.nan)}, "The images have numbers that are not finite"),
    ],
)
def test_what_has_no_shared_space_is_a_sentence(change: dict[str, object], words: str) -> None:
    images, texts = pair(0)
    with pytest.raises(D3S2Error, match=words):
        two_towers(**({"images": images, "texts": texts} | change))


# ------------------------------------------------------------------------------------------- query
@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_towards_zero_the_nearest_text_and_towards_infinity_the_mean(seed: int) -> None:
    v, t = space(seed)
    nearest = t[(v @ t.T).argmax(1)]
    assert semantic_query(v, t, 1e-9) == pytest.approx(nearest, abs=1e-6)
    assert semantic_query(v, t, np.inf) == pytest.approx(np.tile(t.mean(0), (9, 1)), abs=1e-12)
    assert semantic_query(v, t, 1e9) == pytest.approx(np.tile(t.mean(0), (9, 1)), abs=1e-7)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([0.01, 0.3, 5.0]))
def test_the_query_is_its_formula_and_identical_texts_give_their_own(seed: int, tau: float) -> None:
    v, t = space(seed)
    weights = np.exp(v @ t.T / tau)
    expected = weights / weights.sum(1, keepdims=True) @ t
    assert semantic_query(v, t, tau) == pytest.approx(expected, abs=1e-9)
    same = np.tile(t[:1], (6, 1))
    assert semantic_query(v, same, tau) == pytest.approx(np.tile(t[:1], (9, 1)), abs=1e-9)
    joined = fused(v, t, tau)
    assert joined[:, :3].tolist() == v.tolist() and joined[:, 3:] == pytest.approx(
        expected, abs=1e-9
    )


def test_blocks_do_not_change_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    v, t = space(5, 10)
    whole = semantic_query(v, t)
    assert whole.tolist() == semantic_query(v, t, 0.01).tolist()
    monkeypatch.setattr(towers, "ROWS", 3)
    assert semantic_query(v, t) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("tau", [0.0, -1.0, np.nan])
def test_a_tau_that_is_no_temperature_is_a_sentence(tau: float) -> None:
    v, t = space(0)
    with pytest.raises(D3S2Error, match="give a tau above 0"):
        semantic_query(v, t, tau)
    with pytest.raises(D3S2Error, match="there are 0 texts"):
        semantic_query(v, t[:0])


# ------------------------------------------------------------------------------------------- words
def test_captions_become_the_words_and_phrases_they_have() -> None:
    table = multi_hot(["a photo of red sky, car", "red sky", "car, car"])
    words = ["car", "red", "red sky", "sky"]  # in the order of the alphabet
    assert table.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 0, 0]]
    assert table.shape[1] == len(words) and table.dtype == np.float64


def test_of_many_words_the_most_frequent_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "MOST_UNITS", 2)
    assert multi_hot(["sky", "sky, car", "car", "rare"]).tolist() == [
        [0, 1],
        [1, 1],
        [1, 0],
        [0, 0],
    ]


def calls() -> list[Callable[[], object]]:
    return [lambda: multi_hot(["", "  "]), lambda: multi_hot([",;"])]


@pytest.mark.parametrize("call", calls())
def test_captions_without_a_word_are_a_sentence(call: Callable[[], object]) -> None:
    with pytest.raises(D3S2Error, match="captions has a word in it: look at the captioner"):
        call()
