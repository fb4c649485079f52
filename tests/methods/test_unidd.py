"""UniDD's conditions, its filter and its labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_painter import tiny_proxy

from d3s2.core.errors import D3S2Error
from d3s2.data.tensors import class_sets, to_float
from d3s2.methods.refinement import confidence, relabel
from d3s2.methods.unidd import FilterAndRelabel, classes_alone, nothing

LABELS = torch.randint(0, 20, (3, 16, 16), generator=torch.Generator().manual_seed(1))
PROXY = tiny_proxy()


def pictures(candidate: int, rows) -> np.ndarray:
    """Another noise for every image and try."""
    return np.stack(
        [
            np.random.default_rng([row, candidate]).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            for row in rows
        ]
    )


def scores(candidate: int) -> list[float]:
    with torch.no_grad():
        images = to_float(pictures(candidate, range(3)))
        return confidence(PROXY(torch.cat([images, images])).logits)[:3].tolist()


def test_the_layout_is_not_told():
    layout, classes = classes_alone(LABELS, 20)
    assert layout is None and torch.equal(classes, class_sets(LABELS, 20))
    assert nothing(LABELS, 20) == (None, None)


def test_no_threshold_keeps_the_first_images_and_labels_them_by_the_proxy():
    drawn = []

    def draw(candidate, rows):
        drawn.append((candidate, list(rows)))
        return pictures(candidate, rows)

    found = FilterAndRelabel(tau=0)(PROXY, LABELS, draw)
    assert drawn == [(0, [0, 1, 2])] and found.tries == [0, 0, 0]
    assert (found.pixels == pictures(0, range(3))).all()
    images = to_float(found.pixels)
    expected = relabel(PROXY(torch.cat([images, images])).logits)[:3]
    assert torch.equal(found.labels, expected)
    changed = (expected != LABELS).flatten(1).sum(1).tolist()
    assert [note["relabelled_pixels"] for note in found.notes] == changed
    assert [note["tries"] for note in found.notes] == [1, 1, 1]
    assert [note["confidence"] for note in found.notes] == pytest.approx(scores(0), abs=1e-6)


def test_a_threshold_that_nothing_passes_takes_the_best_of_four():
    found = FilterAndRelabel(tau=2)(PROXY, LABELS, pictures)
    tried = np.array([scores(candidate) for candidate in range(4)])
    assert found.tries == tried.argmax(0).tolist()
    assert [note["tries"] for note in found.notes] == [4, 4, 4]
    for row, candidate in enumerate(found.tries):
        assert (found.pixels[row] == pictures(candidate, [row])[0]).all()


def test_only_what_fails_is_drawn_again():
    first = scores(0)
    tau = sorted(first)[1]  # the worst alone fails
    drawn = []

    def draw(candidate, rows):
        drawn.append((candidate, list(rows)))
        return pictures(candidate, rows)

    found = FilterAndRelabel(tau=tau, redraws=1)(PROXY, LABELS, draw)
    worst = first.index(min(first))
    assert drawn == [(0, [0, 1, 2]), (1, [worst])]
    assert [note["tries"] for note in found.notes] == [2 if i == worst else 1 for i in range(3)]


def test_unsure_pixels_may_be_ignored():
    found = FilterAndRelabel(tau=0, floor=1.0)(PROXY, LABELS, pictures)
    assert (found.labels == 255).all()


@pytest.mark.parametrize(
    "wrong", [{"tau": -0.1}, {"tau": float("nan")}, {"redraws": -1}, {"floor": 1.1}]
)
def test_what_is_no_filter_is_refused(wrong):
    with pytest.raises(D3S2Error, match=f"{next(iter(wrong))} "):
        FilterAndRelabel(**wrong)
