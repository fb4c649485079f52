"""Keys that are known are handed down: to make one, all data is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_jobs import make_job, write_finished_training, write_splits

from d3s2.training import side_by_side
from d3s2.training.job import finished_key
from d3s2.training.side_by_side import train_all

CHILD = """
import sys
from pathlib import Path
from d3s2.training.job import read_job
from training_jobs import write_finished_training

write_finished_training(Path(read_job(sys.argv[1]).work_dir), sys.argv[3], name="made")
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("data"))


def forbidden(job) -> str:
    raise AssertionError(f"the data of {job.name} was read again")


def test_finished_trainings_of_known_keys_are_read_without_the_data(data, tmp_path, monkeypatch):
    monkeypatch.setattr(side_by_side, "job_key", forbidden)
    jobs = [make_job(data, tmp_path / name, name=name) for name in "ab"]
    for job, key in zip(jobs, ("x", "y"), strict=True):
        write_finished_training(Path(job.work_dir), key, name=job.name)
    results = train_all(jobs, progress=None, keys=["x", "y"])
    assert [(result.name, result.key) for result in results] == [("a", "x"), ("b", "y")]
    with pytest.raises(AssertionError, match="was read again"):
        train_all(jobs, progress=None)


@pytest.mark.processes
def test_each_training_gets_its_own_key_in_its_process(data, tmp_path, monkeypatch):
    (tmp_path / "child.py").write_text(CHILD)
    place = [side_by_side.sys.executable, str(tmp_path / "child.py")]
    monkeypatch.setattr(side_by_side, "_command", lambda: place)
    monkeypatch.setattr(side_by_side, "_is_forked", lambda job: False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    jobs = [make_job(data, tmp_path / name, name=name) for name in "abc"]
    results = train_all(jobs, 2, progress=None, keys=["x", "y", "z"])
    assert [result.key for result in results] == ["x", "y", "z"]
    monkeypatch.setattr(side_by_side, "job_key", lambda job: f"made of {job.name}")
    train_all(jobs[:1], progress=None)
    assert finished_key(tmp_path / "a") == "made of a"
