"""Trainings on a cluster's workers: a core each, results as side by side."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from training_jobs import make_job, write_splits

from d3s2.core.errors import D3S2Error
from d3s2.training import on_cluster
from d3s2.training.job import WEIGHTS
from d3s2.training.on_cluster import train_spread
from d3s2.training.side_by_side import train_all

SCRIPT = """
import sys
from pathlib import Path
import dask.system
dask.system.CPU_COUNT = 2
from training_jobs import make_job
from d3s2.training.on_cluster import train_spread
from d3s2.training.students import with_network
if __name__ == "__main__":
    data, work = map(Path, sys.argv[1:])
    jobs = [make_job(data, work / name, name=name, seed=n) for n, name in enumerate("ab")]
    jobs.append(with_network(make_job(data, work / "c", name="c"), "lraspp"))
    for result in train_spread(jobs, "local"):
        print(result.name, result.key, flush=True)
"""


@pytest.mark.processes
def test_a_local_cluster_of_two_trains_to_the_same_bytes(tmp_path):
    data = write_splits(tmp_path / "data")
    (tmp_path / "script.py").write_text(SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    command = [sys.executable, str(tmp_path / "script.py"), str(data), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    said = dict(line.split() for line in done.stdout.splitlines())
    assert list(said) == ["a", "b", "c"]
    alone = make_job(data, tmp_path / "alone", name="a", seed=0)
    (result,) = train_all([alone], 1, progress=None)
    assert result.key == said["a"]
    weights = [(tmp_path / name / WEIGHTS).read_bytes() for name in ("alone", "a", "b")]
    assert weights[0] == weights[1] != weights[2]


def test_what_cannot_be_trained_is_refused_before_a_worker_is_asked(tmp_path):
    job = make_job(tmp_path, tmp_path / "a")
    with pytest.raises(D3S2Error, match="share a work_dir"):
        train_spread([job, job], "tcp://127.0.0.1:9")
    with pytest.raises(D3S2Error, match="must be at least 1"):
        train_spread([make_job(tmp_path, tmp_path / "a", iterations=0)], "tcp://127.0.0.1:9")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no processor can be chosen")
def test_a_core_is_held_by_one_and_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(on_cluster.tempfile, "gettempdir", lambda: str(tmp_path))
    before = os.sched_getaffinity(0)
    with on_cluster._own_core():
        first = os.sched_getaffinity(0)
        assert len(first) == 1 and first <= before
        os.sched_setaffinity(0, before)  # as another worker finds it
        with on_cluster._own_core():
            second = os.sched_getaffinity(0)
            assert second == before if len(before) == 1 else second.isdisjoint(first)
    assert os.sched_getaffinity(0) == before
    with on_cluster._own_core():
        assert os.sched_getaffinity(0) == first
