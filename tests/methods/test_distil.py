"""One distillation: its folder, its bill, its card, and when it is made anew."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from d3s2.core.errors import D3S2Error
from d3s2.data.folder import open_folder
from d3s2.guidance.painting import Recipe
from d3s2.guidance.sampler import Guidance
from d3s2.methods.coresets import k_center
from d3s2.methods.distil import BILL, described, distil, place_of, read_bill, with_set
from d3s2.methods.method import ByExamples, Example
from d3s2.methods.painted import Painted, greedy_masks
from d3s2.methods.photographs import InFeatureSpace, Photographs, random_masks
from d3s2.methods.unidd import FilterAndRelabel, classes_alone

PAINTED = Painted("mine", "", Recipe(steps=5, group=4))
CHOSEN = Photographs("chosen", greedy_masks, "of the greedy masks", varies=False)


@pytest.fixture
def own(world, tmp_path):
    """The same world with a folder of its own for sets."""
    shared = replace(world.shared, work=tmp_path)
    shared.counts, shared.moments = world.shared.counts, world.shared.moments
    return replace(world, shared=shared)


def test_what_is_finished_is_only_read(own):
    folder = distil(PAINTED, own)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert distil(PAINTED, own) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_what_was_broken_off_is_completed_with_the_same_bytes(own):
    folder = distil(PAINTED, own)
    whole = {path.name: path.read_bytes() for path in folder.glob("train/*/*.png")}
    (folder / "bill.json").unlink()
    (folder / "card.json").unlink()
    record = sorted(folder.glob("records/*.json"))[1]
    record.unlink()
    (folder / "train" / "images" / f"{record.stem}.png").unlink()
    assert distil(PAINTED, own) == folder
    assert {path.name: path.read_bytes() for path in folder.glob("train/*/*.png")} == whole


CHANGES = {
    "seed": lambda method, world: (method, replace(world, seed=9)),
    "budget": lambda method, world: (method, replace(world, budget=5)),
    "steps": lambda method, world: (replace(method, recipe=Recipe(steps=10, group=4)), world),
    "masks": lambda method, world: (replace(method, rank=random_masks), world),
    "refine": lambda method, world: (replace(method, refine=FilterAndRelabel()), world),
    "threshold": lambda method, world: (replace(method, refine=FilterAndRelabel(0.5)), world),
    "condition": lambda method, world: (replace(method, condition=classes_alone), world),
    "rule": lambda method, world: (
        method,
        replace(world, shared=replace(world.shared, rule=world.shared.rule._replace(delta=2.0))),
    ),
    "networks": lambda method, world: (
        method,
        replace(
            world,
            shared=replace(
                world.shared, load=lambda: world.shared.networks._replace(digest="other")
            ),
        ),
    ),
    "data": lambda method, world: (
        method,
        replace(world, shared=replace(world.shared, train=world.shared.train.subset(range(6)))),
    ),
}


def test_every_change_that_decides_has_a_folder_of_its_own(own):
    places = {"same": place_of(PAINTED, own)}
    places |= {what: place_of(*change(PAINTED, own)) for what, change in CHANGES.items()}
    assert len(set(places.values())) == len(CHANGES) + 1
    assert place_of(PAINTED, replace(own)) == places["same"]


def test_the_set_that_it_builds_on_decides_too(own, tmp_path):
    after = replace(PAINTED, recipe=Recipe(steps=5, strength=0.8), after="first")
    a = with_set(own, "first", tmp_path / "first-4-3-aaaa")
    b = with_set(own, "first", tmp_path / "first-4-3-bbbb")
    assert place_of(after, a) != place_of(after, b)
    with pytest.raises(D3S2Error, match="mine builds on the set of 'first'"):
        distil(after, own)


def test_the_bill_counts_what_the_generator_was_asked(own):
    bill = read_bill(distil(PAINTED, own))
    assert bill.images == 4 and bill.evaluations_an_image == 5
    assert bill.seconds_an_image > 0 and bill.peak_mb > 50
    folder = distil(PAINTED, own)
    size = sum(path.stat().st_size for path in (folder / "train" / "images").iterdir())
    assert bill.png_kb == round(size / 1000)
    (folder / "train" / "images" / "half-written.png.part").write_bytes(bytes(9000))
    (folder / BILL).unlink()
    assert read_bill(distil(PAINTED, own)).png_kb == bill.png_kb  # what is no image of the set
    twice = replace(PAINTED, recipe=Recipe(steps=5, group=4, guidance=Guidance(cfg_scale=2.0)))
    assert read_bill(distil(twice, own)).evaluations_an_image == 10
    redrawn = replace(PAINTED, refine=FilterAndRelabel(tau=2.0))
    assert read_bill(distil(redrawn, own)).evaluations_an_image == 20
    assert read_bill(distil(CHOSEN, own)).evaluations_an_image == 0
    network = own.shared.networks.generator.unet
    assert not network._forward_pre_hooks  # nothing goes on counting


def test_what_all_methods_share_is_on_nobodys_bill(own, monkeypatch):
    """The first method that asks for statistics or embeddings pays no more than the second."""
    clock = [0.0]

    def slow(train, proxy):
        clock[0] += 1000
        return np.eye(12)

    shared = replace(own.shared, work=own.shared.work / "anew", spent=0.0)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("d3s2.methods.photographs.embeddings", slow)
    space = Photographs("space", InFeatureSpace(k_center), also=frozenset({"proxy"}))
    world = replace(own, shared=shared)
    assert read_bill(distil(space, world)).seconds_an_image == 0
    assert shared.spent == 1000
    shared.kept("other", "d3s2.methods.embeddings", lambda: slow(None, None))
    assert shared.spent == 2000


def test_a_card_says_what_a_stranger_needs(own, scenes):
    folder = distil(CHOSEN, own)
    card = json.loads((folder / "card.json").read_text())
    assert card["method"] == "chosen" and card["uses"] == ["images", "masks"]
    assert card["images"] == 4 and card["of"] == 12 and card["seed"] == 3
    assert tuple(card["ids"]) == open_folder(folder, "train").ids


def test_a_method_that_takes_what_it_does_not_declare_stops(own):
    class Sly(ByExamples):
        name = "sly"
        uses = frozenset({"masks"})

        def select(self, world):
            return np.arange(world.budget)

        def make(self, world, unit):
            i = int(unit[0])
            return [Example(str(i), world.train.read_image(i), world.train.read_labels(i), {})]

    with pytest.raises(D3S2Error, match="sly takes the photographs without saying so"):
        distil(Sly(), own)
    Sly.uses = frozenset({"masks", "images"})
    assert len(open_folder(distil(Sly(), own), "train")) == 4


def test_what_is_no_method_is_refused(own):
    with pytest.raises(D3S2Error, match="is no method: it must have name"):
        distil(object(), own)


# ----------------------------------------------------------------------------- what decides a value
@dataclass(frozen=True)
class Scaled:
    """A part from outside of the package."""

    factor: float = 2.0

    def __call__(self, x):
        return self.factor * x


def test_a_value_is_described_by_its_code_and_its_fields():
    row, modules = described(PAINTED)
    assert "d3s2.methods.painted" in modules and "d3s2.guidance.losses" in modules
    assert described(Scaled()) != described(Scaled(3.0))
    assert "return self.factor * x" in str(described(Scaled())[0])  # one's own code counts
    json.dumps(row)


def test_order_counts_in_a_list_and_not_in_a_set():
    assert described([1, 2]) != described([2, 1])
    assert described(frozenset("abc")) == described(frozenset("cba"))
    assert described({"a": 1}) != described({"a": 2})


class Broken(ByExamples):
    """Fails at its third unit."""

    name = "broken"

    def __init__(self, error):
        self.error = error

    def select(self, world):
        return np.arange(world.budget)

    def make(self, world, unit):
        index = int(unit[0])
        if index == 2:
            raise self.error
        image, labels = world.train.read_image(index), world.train.read_labels(index)
        return [Example(world.train.ids[index], image, labels.astype(np.uint8), {})]


def test_what_a_method_raises_is_a_sentence_and_what_it_made_is_kept(own):
    with pytest.raises(D3S2Error) as raised:
        distil(Broken(ZeroDivisionError("no images\nat all")), own)
    words = str(raised.value)
    assert "broken failed in test_distil.py, line " in words and "\n" not in words
    assert "(ZeroDivisionError: no images)" in words and "run the same again" in words
    assert len(list(own.shared.work.glob("sets/broken-*/train/images/*.png"))) == 2
    assert not list(own.shared.work.glob("sets/broken-*/bill.json"))
    with pytest.raises(D3S2Error, match=r"\(AssertionError\)"):
        distil(Broken(AssertionError()), own)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "full"), D3S2Error("known")])
def test_what_others_understand_goes_on_as_it_is(own, error):
    with pytest.raises(type(error)) as raised:
        distil(Broken(error), own)
    assert raised.value is error


def test_a_first_set_of_other_classes_is_refused(own, tmp_path):
    first = distil(CHOSEN, own)
    assert with_set(own, "chosen", first).sets["chosen"] == first
    listed = first / "classes.csv"
    listed.write_text(listed.read_text().replace(",road,", ",motorway,"))
    with pytest.raises(D3S2Error, match=r"the set of 'chosen' in .* has 20 classes that are not"):
        with_set(own, "chosen", first)
    lines = listed.read_text().splitlines()
    listed.write_text("\n".join(lines[:4]) + "\n")
    with pytest.raises(D3S2Error, match="has 3 classes that are not the 20 of"):
        with_set(own, "chosen", first)
