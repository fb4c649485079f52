"""The answers for a validation split: one by one on disk and in memory, whatever its size."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from d3s2.studies.memory import LiveBytes
from d3s2.training import predictions, registered

SIDE = 256
CLASSES = 150


def judge(folder: Path, images: int) -> tuple[int, int, int]:
    """(Bytes in NumPy's arrays, in tensors, bytes that stay) at most while so many images are
    judged, packed and read again.
    """
    metric = registered.ClassIoU(str(folder / "answers"))
    metric.dataset_meta = {"classes": tuple(map(str, range(CLASSES)))}
    rng = np.random.default_rng(0)
    names = [f"image {k}" for k in range(images)]
    tracemalloc.start()
    with LiveBytes() as live:
        for name in names:
            said, true = rng.integers(0, CLASSES, (2, 1, SIDE, SIDE), dtype=np.uint8)
            sample = {
                "pred_sem_seg": {"data": torch.from_numpy(said).long()},
                "gt_sem_seg": {"data": torch.from_numpy(true)},
                "img_path": name,
            }
            metric.process({}, [sample])
        kept = [area for areas in metric.results for area in areas]
        assert all(area.base is None for area in kept)  # tensors would hold freed memory in pieces
        stay = sum(area.nbytes for area in kept)
        metric.evaluate(images)
    predictions.pack(metric.folder, names, folder / "all.npz")
    with np.load(folder / "all.npz") as stored:
        sums = [int(stored[name].sum()) for name in names]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(sums)) == images
    return most, live.peak, stay


def test_memory_does_not_grow_with_the_validation_split(tmp_path):
    """Of an image the areas of its classes stay, four numbers a class: of 2,000 images and 150
    classes 5 MB. Its pixels do not, which would be 0.5 GB at 512 x 512.
    """
    few_arrays, few_tensors, few_stay = judge(tmp_path / "few", 4)
    many_arrays, many_tensors, many_stay = judge(tmp_path / "many", 24)
    pixels = SIDE * SIDE
    assert many_arrays - few_arrays < many_stay - few_stay + 4 * pixels  # of 20 more images
    assert many_arrays < 20 * pixels
    assert many_tensors - few_tensors <= many_stay - few_stay
    assert many_stay == 24 * 4 * 4 * CLASSES
    assert 2000 / 24 * many_stay < 5e6


def test_answers_of_several_sizes_come_back_as_they_were(tmp_path):
    rng = np.random.default_rng(0)
    said = {
        name: rng.integers(0, 256, size, dtype=np.uint8)
        for name, size in (("b.x", (3, 5)), ("a", (64, 2)), ("Äpfel, 2", (1, 1)))
    }
    for place in ("one", "two"):
        for name, labels in said.items():
            predictions.keep(tmp_path / place, name, labels)
        predictions.keep(tmp_path / place, "of a run before", said["a"])
        predictions.pack(tmp_path / place, tuple(said), tmp_path / f"{place}.npz")
        assert not (tmp_path / place).exists()
    with np.load(tmp_path / "one.npz", allow_pickle=False) as stored:
        assert stored.files == list(said)
        for name, labels in said.items():
            np.testing.assert_array_equal(stored[name], labels)
            assert stored[name].dtype == np.uint8
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_an_image_without_an_answer_leaves_no_file(tmp_path):
    predictions.keep(tmp_path / "some", "a", np.zeros((2, 2), np.uint8))
    with pytest.raises(FileNotFoundError):
        predictions.pack(tmp_path / "some", ["a", "b"], tmp_path / "all.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some"]


def test_pixels_of_large_splits_are_counted_to_the_last(tmp_path):
    """float32 cannot add one pixel to 2^24."""
    metric = registered.ClassIoU(str(tmp_path))
    metric.dataset_meta = {"classes": ("sky", "sea")}
    counts = [(2.0**24, 1.0), *[(1.0, 1.0)] * 1000]
    metric.results = [(np.array(each, np.float32),) * 4 for each in counts]
    metric.results[0] = (np.array([2.0**23, 1.0], np.float32), *metric.results[0][1:])
    metric.evaluate(len(counts))
    assert metric.per_class == [(2**23 + 1000) / (2**24 + 1000), 1.0]
