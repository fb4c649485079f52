"""The table of methods: every row works, says something of its own, and a reader's joins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from d3s2.core.errors import D3S2Error
from d3s2.data.folder import open_folder
from d3s2.guidance.sampler import Guidance
from d3s2.methods import table
from d3s2.methods.method import ByExamples, Method
from d3s2.methods.painted import Painted
from d3s2.methods.sfm import FlowMatched
from d3s2.methods.table import METHODS, find, register
from d3s2.methods.world import USES
from d3s2.runs import profiles


def short(method: Method) -> Method:
    """The same in a few steps."""
    if isinstance(method, Painted):
        return replace(method, recipe=replace(method.recipe, steps=2))
    if isinstance(method, FlowMatched):
        return replace(method, options=replace(method.options, steps=10))
    return method


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if not row.after])
def test_every_row_makes_a_set_of_the_budget_from_what_it_declares(world, name, tmp_path):
    method = short(find(name))
    method.write(world.seen_by(name, method.uses), tmp_path)
    made = open_folder(tmp_path, "train")
    assert len(made) == world.budget
    chosen = {world.shared.train.ids.index(each) for each in made.ids}
    other = replace(world, seed=4)
    method.write(other.seen_by(name, method.uses), tmp_path / "other")
    again = open_folder(tmp_path / "other", "train")
    same = [made.read_image(i).tobytes() for i in range(4)] == [
        again.read_image(i).tobytes() for i in range(4)
    ]
    assert same != method.varies and len(chosen) == 4


def test_rows_differ_and_say_so():
    assert len({row.says for row in METHODS.values()}) == len(METHODS)
    assert len({repr(row) for row in METHODS.values()}) == len(METHODS)
    assert all(row.uses <= set(USES) and row.name == name for name, row in METHODS.items())
    assert all(row.after in {"", *METHODS} for row in METHODS.values())


def test_the_row_d3s2_is_what_a_run_paints_by_default():
    run, row = profiles.PROFILES["scenes"], METHODS["d3s2"].recipe
    assert row.guidance == Guidance(
        {"segmentation": run["lambda_seg"], "feature": run["lambda_feat"]},
        (run["window_start"], run["window_end"]),
        jacobian=run["jacobian"],
        cfg_scale=run["cfg_scale"],
        eta=run["eta"],
        every=run["guide_every"],
    )
    assert (row.steps, row.strength, row.images_per_mask) == (
        run["steps"],
        run["strength"],
        run["images_per_mask"],
    )


def test_methods_that_compare_images_share_their_masks(world):
    rows = [METHODS[name] for name in ("unguided", "d3s2", "unidd plain", "unidd")]
    assert {row.rank for row in rows} == {METHODS["balanced"].rank}


class Mine(ByExamples):
    """A reader's own."""

    name = "mine"
    says = "nothing yet"

    def select(self, world):
        return np.arange(world.budget)


@pytest.fixture
def as_it_was(monkeypatch):
    monkeypatch.setattr(table, "METHODS", dict(METHODS))


def test_a_readers_method_joins_and_may_be_bettered(as_it_was):
    mine = register(Mine())
    assert find("mine") is mine and list(table.METHODS)[-1] == "mine"
    assert find("mine") is not register(Mine())


def test_names_of_the_table_are_taken_and_unknown_ones_are_listed(as_it_was):
    class Copy(Mine):
        name = "d3s2"

    with pytest.raises(D3S2Error, match="'d3s2' is a method of this package: choose another name"):
        register(Copy())
    with pytest.raises(D3S2Error, match="is no method"):
        register(42)
    with pytest.raises(D3S2Error, match="no method 'sgd': choose of random, uniform"):
        find("sgd")
