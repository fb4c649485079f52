"""Pixels as tensors: the range [-1, 1], which axis is which, and what is counted where."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d3s2.data.dataset import IGNORE, ClassInfo, SegmentationDataset
from d3s2.data.folder import write_classes
from d3s2.data.opening import open_dataset
from d3s2.data.tensors import (
    class_members,
    class_pixels,
    class_sets,
    class_sums,
    pad_batch,
    read_images,
    read_masks,
    scaled,
    to_float,
    to_uint8,
)

SEEDS = st.integers(0, 10_000)
SIZES = st.integers(1, 6)


def pixels(seed: int, batch: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


@settings(max_examples=30, deadline=None)
@given(SEEDS, SIZES, SIZES)
def test_every_pixel_is_its_byte_between_minus_one_and_one_at_its_own_place(seed, height, width):
    raw = pixels(seed, 2, height, width)
    images = to_float(raw)
    assert images.shape == (2, 3, height, width) and images.dtype == torch.float32
    for index in np.ndindex(*raw.shape):
        b, y, x, channel = index
        assert images[b, channel, y, x].item() == pytest.approx(raw[index] / 127.5 - 1, abs=1e-6)
    assert np.array_equal(to_uint8(images), raw)


def test_black_is_minus_one_and_white_is_one_and_what_lies_beyond_is_cut():
    assert scaled(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]
    beyond = torch.tensor([-7.0, -1, 1, 9]).reshape(1, 1, 1, 4).expand(1, 3, 1, 4)
    assert to_uint8(beyond)[0, 0, :, 0].tolist() == [0, 0, 255, 255]
    assert to_uint8(torch.full((1, 3, 1, 1), 0.999)).max() == 255  # rounded, not cut off


@pytest.fixture(scope="module")
def oblong(tmp_path_factory) -> SegmentationDataset:
    root = tmp_path_factory.mktemp("oblong")
    write_classes(root / "classes.csv", [ClassInfo(f"c{k}", (k, 0, 0)) for k in range(4)])
    rng = np.random.default_rng(0)
    for part, shape, top in (("images", (4, 7, 3), 256), ("labels", (4, 7), 4)):
        (root / "train" / part).mkdir(parents=True)
        for k in range(3):
            array = rng.integers(0, top, shape).astype(np.uint8)
            Image.fromarray(array).save(root / "train" / part / f"{k}.png")
    return open_dataset("folder", root, "train")


def test_batches_are_made_on_the_device_asked_for(oblong):
    assert read_images(oblong, [0], "meta").device.type == "meta"
    assert read_masks(oblong, [0], "meta").device.type == "meta"
    assert read_images(oblong, [0]).device.type == read_masks(oblong, [0]).device.type == "cpu"


def test_a_data_set_is_read_in_the_order_asked_for_height_before_width(oblong):
    images, labels = read_images(oblong, [2, 0]), read_masks(oblong, [2, 0])
    assert images.shape == (2, 3, 4, 7) and labels.shape == (2, 4, 7)
    assert labels.dtype == torch.int64
    for place, index in enumerate((2, 0)):
        assert np.array_equal(labels[place].numpy(), oblong.read_labels(index))
        assert np.array_equal(to_uint8(images[place : place + 1])[0], oblong.read_image(index))


@settings(max_examples=30, deadline=None)
@given(SEEDS, SIZES, SIZES, st.integers(1, 5))
def test_sums_over_a_class_are_those_of_its_own_pixels(seed, height, width, classes):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (2, height, width), generator=rng)
    labels[torch.rand(labels.shape, generator=rng) < 0.3] = IGNORE
    values = torch.rand(2, height * width, generator=rng)
    members = class_members(labels, classes)
    sums = class_sums(values, members, classes)
    counts = class_pixels(labels, classes)
    for b in range(2):
        for c in range(classes):
            inside = (labels[b] == c).flatten()
            assert sums[b, c].item() == pytest.approx(values[b][inside].sum().item(), abs=1e-5)
            assert counts[b, c] == inside.sum()
            assert class_sets(labels, classes)[b, c] == float(inside.any())
    assert sums.shape == counts.shape == (2, classes)


@given(st.integers(1, 7))
def test_a_small_batch_is_padded_to_four_by_its_last_item_and_a_large_one_is_left(size):
    batch = torch.arange(size * 2).reshape(size, 2)
    padded = pad_batch(batch)
    assert len(padded) == max(size, 4) and torch.equal(padded[:size], batch)
    assert (padded[size:] == batch[-1]).all()
    assert (padded is batch) == (size >= 4)
