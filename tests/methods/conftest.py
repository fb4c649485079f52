"""A world of a few scenes and toy networks."""

from __future__ import annotations

import pytest
from small_scenes import small_scenes
from tiny_painter import tiny_shared

from d3s2.data.dataset import SegmentationDataset
from d3s2.methods.world import Shared, World


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> SegmentationDataset:
    return small_scenes(tmp_path_factory.mktemp("scenes"), 12)


@pytest.fixture(scope="session")
def kept(scenes, tmp_path_factory) -> Shared:
    """What is dear is made once for all tests."""
    return tiny_shared(scenes, tmp_path_factory.mktemp("shared"))


@pytest.fixture
def world(kept) -> World:
    return World(kept, budget=4, seed=3)
