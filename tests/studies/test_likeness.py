"""Measures of painted images: identities, limits, and sets that nobody could mistake."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.linalg import sqrtm
from training_jobs import write_data

from d3s2.core.errors import D3S2Error
from d3s2.data.folder import open_folder
from d3s2.guidance.quality import recognition
from d3s2.studies.likeness import frechet_distance, told_apart


def sample(seed: int, count: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(2, 30), st.integers(2, 30), st.integers(1, 5))
def test_the_distance_is_a_distance(seed, n, m, width):
    a, b = sample(seed, n, width), sample(seed + 1, m, width)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9 * (1 + (a**2).sum()))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9, abs=1e-9)
    shift = np.arange(1, width + 1)
    moved = frechet_distance(a, a + shift)
    assert moved == pytest.approx((shift**2).sum(), rel=1e-6)
    one, two = a[:, :1], 3 * a[:, :1]
    spread = 4 * one.std(ddof=1) ** 2 + 4 * one.mean() ** 2
    assert frechet_distance(one, two) == pytest.approx(spread, rel=1e-6, abs=1e-9)


def test_the_distance_is_the_formula_with_a_matrix_root():
    a, b = sample(0, 200, 6), sample(1, 150, 6) + 0.5
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    right = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(right, rel=1e-9)


@pytest.mark.parametrize(("a", "b"), [((1, 3), (5, 3)), ((5, 3), (5, 2))])
def test_what_has_no_distance_is_refused(a, b):
    with pytest.raises(D3S2Error, match="no Fréchet distance"):
        frechet_distance(np.zeros(a), np.zeros(b))


class Grey:
    """A segmenter of rectangles' colours, whose only features are the image and its half."""

    encoder = (0, 1)

    def __call__(self, images):
        red = torch.arange(4) * 60 / 127.5 - 1
        logits = -(images[:, :1] - red[None, :, None, None]).abs()
        return SimpleNamespace(
            logits=logits, features=[images, images[:, :, ::2, ::2] / 2, 9 * images]
        )


@pytest.fixture
def real(tmp_path):
    write_data(tmp_path / "real", "train", 60, (32, 48), 0)
    return open_folder(tmp_path / "real", "train")


def changed(real, change, folder):
    """The same masks with other images: change(pixels uint8[H, W, 3], number) -> pixels."""
    shutil.copytree(real.root, folder)
    for number, path in enumerate(sorted((folder / "train" / "images").glob("*.png"))):
        pixels = change(np.array(Image.open(path)), number)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return open_folder(folder, "train")


def test_a_segmenter_that_is_right_recognises_everything_and_a_hidden_class_is_missed(
    real, tmp_path
):
    assert recognition(Grey(), real) == (1.0, 1.0)

    def hidden(pixels, number):
        pixels[pixels[..., 0] == 120] = (0, 200, 90)  # class 2 looks like class 0
        return pixels

    found = recognition(Grey(), changed(real, hidden, tmp_path / "hidden"))
    counted = np.bincount(
        np.concatenate([real.read_labels(i).ravel() for i in range(len(real))]), minlength=256
    )[:4]
    assert found.class_mean == pytest.approx(3 / 4)
    assert found.pixels == pytest.approx(1 - counted[2] / counted.sum())


@pytest.mark.processes
def test_what_differs_is_told_apart_and_what_does_not_is_not(real, tmp_path):
    noisy = changed(
        real,
        lambda pixels, number: np.clip(
            pixels + np.random.default_rng(number).normal(0, 40, pixels.shape), 0, 255
        ),
        tmp_path / "noisy",
    )
    accuracy, asked = told_apart(real, noisy)
    assert accuracy > 0.95 and asked == 120
    accuracy, _ = told_apart(real, changed(real, lambda pixels, number: pixels, tmp_path / "same"))
    assert accuracy == 0.5  # each image is asked about as both


def test_sets_of_other_masks_are_not_compared(real, tmp_path):
    write_data(tmp_path / "other", "train", 59, (32, 48), 0)
    with pytest.raises(D3S2Error, match="must hold the same masks"):
        told_apart(real, open_folder(tmp_path / "other", "train"))
    with pytest.raises(D3S2Error, match="four or more: 3 and 3"):
        told_apart(real.subset(range(3)), real.subset(range(3)))
