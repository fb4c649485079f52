"""What a method may see, and what is made once."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
from tiny_painter import tiny_shared

from d3s2.core.errors import D3S2Error
from d3s2.methods.world import USES, World

ASKED = {
    "images": lambda world: world.train.read_image(0),
    "images of a part": lambda world: world.train.subset([1, 2]).read_image(0),
    "masks": lambda world: world.train.read_labels(0),
    "masks of a part": lambda world: world.train.subset([1]).subset([0]).read_labels(0),
    "masks counted": lambda world: world.counts,
    "masks present": lambda world: world.presence,
    "masks weighed": lambda world: world.class_weights,
    "proxy": lambda world: world.proxy,
    "proxy's statistics": lambda world: world.moments,
    "proxy's targets": lambda world: world.targets,
    "generator": lambda world: world.generator,
}


@pytest.mark.parametrize("what", ASKED)
def test_a_method_sees_what_it_declares_and_nothing_else(world, what):
    use = what.split()[0].removesuffix("'s")
    ASKED[what](world.seen_by("mine", frozenset({use})))
    others = frozenset(USES) - {use}
    with pytest.raises(D3S2Error, match=f"^mine takes {USES[use]} without.*add '{use}'"):
        ASKED[what](world.seen_by("mine", others))


def test_what_another_method_made_of_the_photographs_is_theirs_too(world):
    def points():
        return np.arange(2.0)

    name = ("seen", "d3s2.methods.embeddings", points)
    world.kept(*name)
    for missing in ("images", "proxy"):
        with pytest.raises(D3S2Error, match=f"add '{missing}'"):
            world.seen_by("mine", frozenset(USES) - {missing}).kept(*name)


def test_a_declared_split_travels_to_a_worker(world):
    seen = copy.copy(world.seen_by("mine", frozenset({"masks"})).train)
    there = pickle.loads(pickle.dumps(seen))  # noqa: S301 - written by ourselves
    assert (there.read_labels(0) == world.train.read_labels(0)).all()
    with pytest.raises(D3S2Error, match="add 'images'"):
        there.read_image(0)


def test_ids_classes_and_sizes_are_no_secret(world, scenes):
    blind = world.seen_by("mine", frozenset())
    assert (blind.train.ids, len(blind.train)) == (scenes.ids, len(scenes))
    assert blind.train.subset([2]).ids == (scenes.ids[2],) and blind.train.num_classes == 20


def test_an_unknown_use_is_named(world):
    with pytest.raises(D3S2Error, match="mine declares that it uses 'captions': choose of images"):
        world.seen_by("mine", frozenset({"captions"}))


def test_the_set_that_one_builds_on_must_be_there(world, tmp_path):
    with pytest.raises(D3S2Error, match="builds on the set of 'sfm': distil that one first"):
        world.first_set("sfm")
    assert replace(world, sets={"sfm": tmp_path}).first_set("sfm") == tmp_path


def test_what_is_dear_is_made_once_for_one_set_of_data_and_networks(scenes, tmp_path):
    made = []

    def make(shared):
        return shared.kept(
            "points", "d3s2.methods.embeddings", lambda: made.append(1) or np.arange(3.0)
        )

    first, second = (tiny_shared(scenes, tmp_path) for _ in range(2))
    assert (make(first) == make(second)).all() and len(made) == 1
    fewer = tiny_shared(scenes.subset(range(5)), tmp_path)
    make(fewer)
    assert len(made) == 2
    retrained = tiny_shared(scenes, tmp_path)
    retrained.load = lambda: first.networks._replace(digest="others")
    make(retrained)
    assert len(made) == 3


def test_statistics_survive_their_first_use(scenes, tmp_path):
    first = tiny_shared(scenes, tmp_path).moments
    (path,) = tmp_path.glob("moments-*.npz")
    written = path.stat().st_mtime_ns
    again = World(tiny_shared(scenes, tmp_path), 2).moments
    assert path.stat().st_mtime_ns == written
    assert all((a == b).all() for a, b in zip(first.mean, again.mean, strict=True))
