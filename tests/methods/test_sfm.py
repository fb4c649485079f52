"""SFM through the one door of all methods: its set on disk, what it uses, and going on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_worlds import Tired, new_world, tiny

from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json
from d3s2.data.folder import open_folder
from d3s2.data.tensors import to_uint8
from d3s2.methods.distil import distil, place_of, read_bill
from d3s2.methods.method import Method
from d3s2.methods.set_optimisation import CHECKPOINT, SAVE_EVERY, PyramidOptions, optimise_set
from d3s2.methods.sfm import FlowMatched

SHORT = FlowMatched(options=PyramidOptions(steps=6, travel=1.0))


def test_a_set_is_that_of_the_optimisation_with_the_masks_as_labels(tmp_path: Path) -> None:
    world = new_world(tmp_path)
    assert isinstance(SHORT, Method)
    folder = distil(SHORT, world)
    made = open_folder(folder, "train")
    chosen = SHORT.select(world)
    images, losses = optimise_set(world, chosen, SHORT.options, progress=False)
    assert set(made.ids) == {world.train.ids[index] for index in chosen}
    for place, index in enumerate(chosen):
        name = world.train.ids[index]
        here = made.ids.index(name)
        np.testing.assert_array_equal(made.read_labels(here), world.train.read_labels(index))
        np.testing.assert_array_equal(made.read_image(here), to_uint8(images)[place])
        record = read_json(folder / "records" / f"{name}.json")
        said = {"mask": name, "method": "sfm", "seed": 0, "tries": 1, "labels": "mask"}
        assert record.items() >= said.items() and record["loss"] == round(losses[-1], 6)
        assert record["together"] == 3 and record["steps"] == 6
    assert read_bill(folder).evaluations_an_image == 0
    assert not list(folder.rglob(CHECKPOINT))


def test_broken_off_and_resumed_the_set_is_the_same(tmp_path: Path) -> None:
    method = FlowMatched(options=PyramidOptions(steps=SAVE_EVERY + 4, travel=1.0))
    whole = distil(method, new_world(tmp_path / "whole"))
    tired = tiny(Tired)
    world = new_world(tmp_path / "broken", tired)
    tired.left = 1
    assert world.targets  # made now, so that what is left are steps
    tired.left = SAVE_EVERY + 2
    with pytest.raises(KeyboardInterrupt):
        distil(method, world)
    assert (place_of(method, world) / "units" / CHECKPOINT).is_file()
    tired.left = 4
    folder = distil(method, world)
    assert tired.left == 0
    for path in (whole / "train").rglob("*.png"):
        assert (folder / path.relative_to(whole)).read_bytes() == path.read_bytes()


def test_it_declares_what_it_uses(tmp_path: Path) -> None:
    world = new_world(tmp_path)
    chosen = SHORT.select(world)
    for missing, said in (("images", "the photographs"), ("masks", "their masks")):
        with pytest.raises(D3S2Error, match=f"sfm takes {said} without saying so"):
            SHORT.make(world.seen_by("sfm", SHORT.uses - {missing}), chosen)
    with pytest.raises(D3S2Error, match="takes the segmenter"):
        SHORT.make(world.seen_by("sfm", SHORT.uses - {"proxy"}), chosen)


def test_seed_and_options_decide_the_folder(tmp_path: Path) -> None:
    world = new_world(tmp_path)
    longer = FlowMatched(options=PyramidOptions(steps=7, travel=1.0))
    places = {place_of(SHORT, world), place_of(longer, world)}
    places.add(place_of(SHORT, new_world(tmp_path / "other", seed=1)))
    assert len(places) == 3
    assert len(SHORT.units(np.arange(5))) == 1
