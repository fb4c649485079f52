"""Every row of the table with a generator of Stable Diffusion's kind, as real data have it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_diffusion import save_tiny
from tiny_painter import tiny_proxy

from d3s2.data.folder import open_folder
from d3s2.methods.comparison import Contest
from d3s2.methods.method import Method
from d3s2.methods.painted import Painted
from d3s2.methods.sfm import FlowMatched
from d3s2.methods.table import METHODS
from d3s2.methods.world import Networks, Shared
from d3s2.models.diffusion_parts import DiffusionOptions
from d3s2.models.stable_diffusion import load_stable_diffusion
from d3s2.training.job import TrainingJob


def short(method: Method) -> Method:
    """The same in a few steps."""
    if isinstance(method, Painted):
        return replace(method, recipe=replace(method.recipe, steps=5, group=2))
    if isinstance(method, FlowMatched):
        return replace(method, options=replace(method.options, steps=10))
    return method


@pytest.fixture(scope="module")
def contest(scenes, tmp_path_factory) -> Contest:
    folder = tmp_path_factory.mktemp("diffusion")
    options = DiffusionOptions(*save_tiny(folder), precision="float32")
    names = scenes.class_names
    generator = load_stable_diffusion(options, names, scenes.palette[: len(names)], "cpu")
    networks = Networks(generator, tiny_proxy(), "of tests")
    shared = Shared(scenes, folder / "work", lambda: networks)
    template = TrainingJob("template", "", "", num_classes=len(names), work_dir="")
    known = {name: short(method) for name, method in METHODS.items()}
    return Contest(shared, template, known)


@pytest.mark.parametrize("name", METHODS)
def test_every_row_makes_its_set(contest, name):
    folder = contest.folder(contest.known[name], 2, 0)
    made = open_folder(folder, "train")
    assert len(made) == 2
    for place in range(2):
        image, labels = made.read_image(place), made.read_labels(place)
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        assert set(np.unique(labels)) <= {*range(20), 255}
    job = contest.job(contest.known[name], 0, folder)
    assert job.train_ids == tuple(sorted(made.ids)) and job.train_root == str(folder.resolve())
