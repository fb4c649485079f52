"""A method of one's own: what it writes, how it goes on, and what is refused."""

from __future__ import annotations

import json
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import IGNORE
from d3s2.data.folder import open_folder
from d3s2.methods.method import ByExamples, Example, Method, checked_selection


class Inverted(ByExamples):
    """The photographs of the first masks, negative."""

    name = "inverted"
    says = "photographs, negative"
    made: ClassVar[list[int]] = []

    def select(self, world):
        return np.arange(world.budget)[::-1]

    def units(self, chosen):
        return [chosen[:3], chosen[3:]]

    def make(self, world, unit):
        self.made.extend(unit.tolist())
        train = world.train
        return [
            Example(train.ids[i], 255 - train.read_image(i), train.read_labels(i), {"mask": int(i)})
            for i in unit
        ]


def test_what_it_makes_is_an_ordinary_data_set_with_records(world, scenes, tmp_path):
    assert isinstance(Inverted(), Method)
    Inverted().write(world, tmp_path)
    made = open_folder(tmp_path, "train")
    assert made.ids == scenes.ids[:4] and made.class_names == scenes.class_names
    for index in range(4):
        assert (made.read_image(index) == 255 - scenes.read_image(index)).all()
        assert (made.read_labels(index) == scenes.read_labels(index)).all()
    record = json.loads((tmp_path / "records" / f"{scenes.ids[2]}.json").read_text())
    assert record == {"id": scenes.ids[2], "method": "inverted", "mask": 2}
    rows = (tmp_path / "train" / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(row)["file_name"] for row in rows] == [f"images/{i}.png" for i in made.ids]


def test_a_unit_that_was_finished_is_kept_and_another_is_made_anew(world, scenes, tmp_path):
    Inverted().write(world, tmp_path)
    Inverted.made.clear()
    Inverted().write(world, tmp_path)
    assert Inverted.made == []
    (tmp_path / "units" / "1.json").unlink()  # killed before the note, which is written last
    (tmp_path / "train" / "images" / f"{scenes.ids[0]}.png").unlink()
    Inverted().write(world, tmp_path)
    assert Inverted.made == [0] and len(open_folder(tmp_path, "train")) == 4


WRONG = {
    "images": (
        lambda image, labels: (image[:5], labels),
        r"an image uint8\[5, 64, 3\] with labels",
    ),
    "floats": (lambda image, labels: (image / 255, labels), "an image float64"),
    "labels": (lambda image, labels: (image, labels * 0 + 20), "gives .* label 20: uint8, 0 to 19"),
    "types": (lambda image, labels: (image, labels.astype(int)), "labels of type int64"),
}


@pytest.mark.parametrize("what", WRONG)
def test_examples_that_do_not_fit_are_refused_before_they_are_written(world, tmp_path, what):
    change, words = WRONG[what]

    class Wrong(Inverted):
        def make(self, world, unit):
            return [
                each._replace(
                    **dict(zip(("image", "labels"), change(each.image, each.labels), strict=True))
                )
                for each in super().make(world, unit)
            ]

    with pytest.raises(D3S2Error, match=words):
        Wrong().write(world, tmp_path)
    assert not list(tmp_path.rglob("*.png"))


def test_ignored_pixels_may_be_written(world, scenes, tmp_path):
    class Void(Inverted):
        def make(self, world, unit):
            return [
                each._replace(labels=np.full_like(each.labels, IGNORE))
                for each in super().make(world, unit)
            ]

    Void().write(world, tmp_path)
    with Image.open(tmp_path / "train" / "labels" / f"{scenes.ids[0]}.png") as written:
        assert (np.array(written) == IGNORE).all()


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ([0, 1, 2], "selects 3 masks, 3 of them different: the budget is 4"),
        ([0, 1, 2, 2], "selects 4 masks, 3 of them different"),
        ([0, 1, 2, 12], "selects mask 12: there are 0 to 11"),
        ([0, -1, 2, 3], "selects mask -1"),
    ],
)
def test_a_selection_that_is_none_is_refused(world, chosen, words):
    with pytest.raises(D3S2Error, match=words):
        checked_selection("mine", np.array(chosen), world)
    assert checked_selection("mine", np.array([3, 1, 0, 11]), world).tolist() == [3, 1, 0, 11]
