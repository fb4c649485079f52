"""Runs of a sweep that differ in nothing but their seeds share no training."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from notebook_maker import write_notebook

from d3s2.core.errors import D3S2Error
from d3s2.runs import sweep

MANY = st.lists(st.integers(0, 12), min_size=1, max_size=5, unique=True)


def seeds_of(seed: int, trainings: int) -> set[int]:
    """The seeds that notebook 04 trains with."""
    return {seed + number for number in range(trainings)}


@settings(max_examples=60, deadline=None)
@given(MANY, st.lists(st.integers(1, 4), min_size=1, max_size=2, unique=True))
def test_a_grid_is_refused_where_runs_share_a_training(
    seeds: list[int], trainings: list[int]
) -> None:
    grid = {"beta": (0.25, 0.5), "train_seeds": tuple(trainings), "seed": tuple(seeds)}
    points = list(sweep.expand(grid))
    jobs = [sweep._job({"profile": "smoke"}, point, Path("/sweep"), None) for point in points]
    shared = any(
        seeds_of(one, count) & seeds_of(other, count)
        for count in trainings
        for one in seeds
        for other in seeds
        if one < other
    )
    if not shared:
        sweep._refuse_shared_trainings(points, jobs)
        return
    with pytest.raises(D3S2Error, match=r"share trainings.* at least [234] apart"):
        sweep._refuse_shared_trainings(points, jobs)


def test_it_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    notebooks = write_notebook(tmp_path / "notebooks" / "00_start.ipynb").parent
    grid = {"seed": (0, 2)}
    with pytest.raises(D3S2Error, match="seed 0 and 2 with train_seeds 3 share trainings"):
        sweep.sweep({"profile": "smoke", "train_seeds": 3}, grid, tmp_path / "s", "", notebooks)
    assert not (tmp_path / "s").exists()
