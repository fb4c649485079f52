"""Chapter 05: trainings as tasks of a Dask cluster.

Where a training runs decides none of its bytes on a CPU of one kind. Workers see data and folders
under the same paths; a task that was lost with its worker goes on from the training's checkpoint.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from d3s2.core import parallel
from d3s2.core.errors import D3S2Error
from d3s2.training.job import TrainingJob, TrainingResult, check_job
from d3s2.training.side_by_side import train_all


def train_spread(jobs: Sequence[TrainingJob], scheduler: str) -> list[TrainingResult]:
    """Run trainings on the workers of a cluster, one each; finished ones are only read.

    scheduler: "local", or an address (see `parallel`). Raises D3S2Error, before anything runs, for
    two jobs of one folder and what `check_job` finds; and as `parallel.each` and `train_all`.
    """
    if len({Path(job.work_dir).resolve() for job in jobs}) < len(jobs):
        raise D3S2Error("two trainings share a work_dir: give each one its own.")
    for job in jobs:
        check_job(job)
    return list(parallel.ordered(_train_here, list(jobs), scheduler=scheduler))


def _train_here(job: TrainingJob) -> TrainingResult:
    """A worker's task: one training, on a CPU with a core that no other worker's has."""
    if job.device != "cpu":
        return train_all([job], progress=None)[0]
    with _own_core():
        return train_all([job], 1, progress=None)[0]


@contextmanager
def _own_core() -> Iterator[None]:
    """Bind this thread, and with it what it starts, to the first core that nobody else of this user
    holds in the same way; to none where the system cannot, or all are held.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    import fcntl

    before = os.sched_getaffinity(0)
    for core in sorted(before):
        path = Path(tempfile.gettempdir()) / f"d3s2-{os.getuid()}-core-{core}.lock"
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            continue
        try:
            os.sched_setaffinity(0, {core})
            yield
        finally:
            os.sched_setaffinity(0, before)
            os.close(held)  # which frees it
        return
    yield
