"""A fingerprint sees all that decides what a data set means, each on its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from d3s2.data.dataset import ClassInfo, SegmentationDataset
from d3s2.data.folder import write_classes
from d3s2.data.opening import open_dataset


@pytest.fixture
def data(tmp_path) -> SegmentationDataset:
    write_classes(
        tmp_path / "classes.csv", [ClassInfo("sky", (1, 2, 3)), ClassInfo("sea", (4, 5, 6))]
    )
    for part, shape in (("images", (4, 6, 3)), ("labels", (4, 6))):
        (tmp_path / "train" / part).mkdir(parents=True)
        for name in "ab":
            Image.fromarray(np.zeros(shape, np.uint8)).save(
                tmp_path / "train" / part / f"{name}.png"
            )
    return open_dataset("folder", tmp_path, "train")


def other_ids(data: SegmentationDataset) -> SegmentationDataset:
    """The same files, whose ids 0 and 1 mean each other's class."""
    to_train = data.code.to_train
    return replace(
        data, code=replace(data.code, to_train=(to_train[1], to_train[0], *to_train[2:]))
    )


def void(data: SegmentationDataset) -> SegmentationDataset:
    """The same files, in which id 1 is ignored."""
    to_train = data.code.to_train
    return replace(data, code=replace(data.code, to_train=(to_train[0], 255, *to_train[2:])))


def other_colors(data: SegmentationDataset) -> SegmentationDataset:
    """The same files, whose colours mean each other's class."""
    first, second = data.code.colors.items()
    swapped = {first[0]: second[1], second[0]: first[1]}
    return replace(data, code=replace(data.code, colors=swapped))


CHANGES = {
    "ids of the masks stand for other classes": other_ids,
    "colours of the masks stand for other classes": other_colors,
    "an id of the masks is void": void,
    "a class has another name": lambda data: replace(
        data, classes=(data.classes[0], ClassInfo("lake", (4, 5, 6)))
    ),
    "a class has another colour": lambda data: replace(
        data, classes=(data.classes[0], ClassInfo("sea", (4, 5, 7)))
    ),
    "another size": lambda data: replace(data, size=(2, 3)),
    "other ids": lambda data: replace(data, ids=("a", "c")),
    "an image less": lambda data: data.subset([0]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_thing_that_decides_changes_the_fingerprint(data, change):
    changed = CHANGES[change](data)
    assert changed.fingerprint() != data.fingerprint() == replace(data).fingerprint()


@pytest.mark.parametrize("part", ["images", "labels"])
def test_a_single_pixel_changes_the_fingerprint(data, part):
    before = data.fingerprint()
    path = (data.image_paths if part == "images" else data.label_paths)[1]
    array = np.array(Image.open(path))
    array[3, 5] = 1
    Image.fromarray(array).save(path)
    assert data.fingerprint() != before
