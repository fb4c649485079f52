"""Chapter 04: several trainings side by side, each in a process of its own.

One training is one process with one core: two multi-threaded trainings on the same cores slow each
other down many times. Finished trainings are only read; a killed one goes on from its checkpoint.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from d3s2.core import machine
from d3s2.core.errors import D3S2Error
from d3s2.core.halving import what_to_lower
from d3s2.core.places import PACKAGE
from d3s2.core.processes import bound_environment
from d3s2.training.forking import Forked, Forks
from d3s2.training.job import (
    ERROR,
    FINISHED,
    OUT_OF_MEMORY,
    RESULT,
    TrainingJob,
    TrainingResult,
    check_job,
    finished_key,
    job_key,
    read_result,
    write_job,
)
from d3s2.training.reuse import still_to_train
from d3s2.training.students import StudentJob, student_key
from d3s2.training.watch import Watch

POLL_SECONDS = 0.2
TAIL_LINES = 12


def train_all(
    jobs: Sequence[TrainingJob],
    parallel: int = 0,
    progress: Callable[[str], None] | None = print,
    reuse: Path | None = None,
    out_of_memory: str = "stop",
    keys: Sequence[str] | None = None,
) -> list[TrainingResult]:
    """Run trainings side by side, each in a process and on a core of its own; finished ones are
    only read.

    parallel: how many at once, 0 = one per core this process may use (on "cuda": one after the
    other). progress: called with a line when a training starts a new quarter, every few minutes,
    when it stands still (see `watch`) and when it ends; None for silence. reuse: a folder in which
    results of the same jobs may lie (any depth): those whose files still have their hashes are
    copied, not trained again. out_of_memory: "stop", or "halve": a training whose batch is too
    large for the GPU goes on from its checkpoint with the batch in twice as many parts, and so do
    those that come after it. keys: the jobs' `job_key`s where they
    are known, which read all data.
    Raises D3S2Error, before anything runs, for two jobs of one folder and what `check_job` and
    `job_key` find; and with the end of the log when a training fails: the others are stopped then.
    """
    folders = [Path(job.work_dir).resolve() for job in jobs]
    if len(set(folders)) < len(folders):
        raise D3S2Error("two trainings share a work_dir: give each one its own.")
    for job in jobs:
        check_job(job)
    keys = [_key(job) for job in jobs] if keys is None else keys
    waiting = still_to_train(jobs, keys, reuse)
    waiting = [replace(job, out_of_memory=out_of_memory) for job in waiting]
    say = progress or _silence
    by_folder = {job.work_dir: key for job, key in zip(jobs, keys, strict=True)}
    pool = _Pool(_cores(jobs, parallel), say, by_folder)
    try:
        while waiting or pool.is_busy:
            while waiting and pool.has_room:
                pool.start(waiting.pop(0))
            for training in pool.poll():
                if training.ran_out_of_memory and out_of_memory == "halve":
                    waiting = _in_more_parts(training, waiting, say)
                else:
                    say(training.last_line())
            time.sleep(POLL_SECONDS)
    finally:
        pool.stop()
    return [read_result(folder) for folder in folders]


def _key(job: TrainingJob) -> str:
    """What decides a job's result."""
    return student_key(job) if isinstance(job, StudentJob) else job_key(job)


def _silence(line: str) -> None:
    """Report to nobody."""


def how_many_at_once(jobs: Sequence[TrainingJob], parallel: int = 0) -> int:
    """How many of these trainings `train_all` has running at once, as long as enough are left."""
    return len(_cores(jobs, parallel))


def _cores(jobs: Sequence[TrainingJob], parallel: int) -> list[int]:
    """The cores that trainings are run on, one each. Where one takes a GPU or several processes it
    is a single place, for one after the other.
    """
    if any(job.device != "cpu" or job.processes > 1 for job in jobs):
        parallel = 1
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    else:
        cores = list(range(os.cpu_count() or 1))
    return cores[: parallel or machine.cores()]


# ------------------------------------------------------------------------------------ out of memory
def _in_more_parts(
    training: _Training, waiting: Sequence[TrainingJob], say: Callable[[str], None]
) -> list[TrainingJob]:
    """The trainings to come after one that ran out of memory: the same again, and those that
    waited, all with each batch in more parts. Raises its D3S2Error where it is in single images.
    """
    job = training.job
    parts = _more_parts(job)
    if not parts:
        raise training.error()
    say(f"{job.name}: out of memory, goes on with each batch in {parts} parts")
    return [replace(each, parts=parts) for each in (job, *waiting)]


def _more_parts(job: TrainingJob) -> int:
    """The next larger number of parts that divides a process's share of the batch; 0 = it is in
    single images already.
    """
    share = job.batch_size // job.processes
    larger = range(2 * job.parts, share + 1)
    return next((parts for parts in larger if share % parts == 0), 0)


# ---------------------------------------------------------------------------------------- processes
class _Pool:
    """Running trainings, at most one on each of the cores; `say` hears how far they are.

    keys: of the jobs, by their folders.
    """

    def __init__(
        self, cores: Sequence[int], say: Callable[[str], None], keys: Mapping[str, str]
    ) -> None:
        self._cores = cores
        self._say = say
        self._keys = keys
        self._running: dict[int, _Training] = {}
        self._nursery: Forks | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a training runs."""
        return bool(self._running)

    @property
    def has_room(self) -> bool:
        """Whether a core is free."""
        return len(self._running) < len(self._cores)

    def start(self, job: TrainingJob) -> None:
        """Begin a training on the first free core."""
        core = next(core for core in self._cores if core not in self._running)
        if self._nursery is None and _is_forked(job):
            self._nursery = Forks(_environment(job))
        nursery = self._nursery if _is_forked(job) else None
        self._running[core] = _Training(job, core, self._keys[job.work_dir], nursery)

    def poll(self) -> list[_Training]:
        """The trainings that have ended, well or not, since the last call; their cores are free."""
        ended = []
        for core, training in list(self._running.items()):
            if training.has_ended():
                ended.append(self._running.pop(core))
            elif line := training.news():
                self._say(line)
        return ended

    def stop(self) -> None:
        """End all that still run, and wait until they have ended."""
        for training in self._running.values():
            training.stop()
        self._running.clear()
        if self._nursery is not None:
            self._nursery.close()


class _Training:
    """A training in another process, logged in train.log: forked from the nursery, or, without one,
    `python -m d3s2.training.worker <job.json> <core> <key>`, of a student `d3s2.training.students`.
    """

    def __init__(self, job: TrainingJob, core: int, key: str, nursery: Forks | None = None) -> None:
        self.job = job
        self.folder = Path(job.work_dir)
        self.logs = self.folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        for name in ("progress.json", OUT_OF_MEMORY, ERROR):
            (self.logs / name).unlink(missing_ok=True)
        for name in (FINISHED, RESULT):
            (self.folder / name).unlink(missing_ok=True)
        write_job(self.logs / "job.json", job)
        arguments = [str(self.logs / "job.json"), str(core), key]
        log = self.logs / "train.log"
        if nursery is None:
            self.process: Forked | subprocess.Popen[bytes] = _start(job, arguments, log)
        else:
            self.process = nursery.start(arguments, log)
        self.watch = Watch(job.name, job.iterations, self.logs, self.process.pid)

    def has_ended(self) -> bool:
        """Whether the process is gone, for whatever reason."""
        return self.process.poll() is not None

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether it ended because the GPU's memory was too small for a part of a batch."""
        return (self.logs / OUT_OF_MEMORY).is_file()

    def last_line(self) -> str:
        """What is to be said of a training that has ended well. Raises its D3S2Error when it has
        failed.
        """
        failed = self.process.returncode != 0 or not finished_key(self.folder)
        if self.ran_out_of_memory or failed:
            raise self.error()
        result = read_result(self.folder)
        return f"{self.job.name}: done, mIoU {result.miou:.1f} in {result.seconds:.0f} s"

    def error(self) -> D3S2Error:
        """Why it failed: what to lower for want of memory, else the end of the log."""
        if self.ran_out_of_memory:
            share = self.job.batch_size // self.job.processes // self.job.parts
            remedy = what_to_lower(share, "batch_size", "a smaller image_size")
            return D3S2Error(f"training {self.job.name!r}: {remedy}")
        if self.process.returncode == errno.ENOSPC:
            return D3S2Error(
                f"The disk is full: training {self.job.name!r} could not write in {self.folder}. "
                "Free some space, then run the same again; it goes on from its checkpoint."
            )
        return D3S2Error(
            f"training {self.job.name!r} failed (exit code {self.process.returncode}). The end of "
            f"{self.logs / 'train.log'}:\n{self._tail()}"
        )

    def news(self) -> str:
        """The line that is due now of how far it is; "" when there is none."""
        return self.watch.news()

    def stop(self) -> None:
        """End the process, and wait until it has ended."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()

    def _tail(self) -> str:
        """The end of the traceback; without one (killed, or failed before it began), of the log."""
        error = self.logs / ERROR
        source = error if error.is_file() else self.logs / "train.log"
        lines = source.read_text(errors="replace").splitlines()
        return "\n".join(lines[-TAIL_LINES:])


def _is_forked(job: TrainingJob) -> bool:
    """Whether a training can be forked from a process that has imported all it needs."""
    return sys.platform == "linux" and job.device == "cpu" and job.processes == 1


def _start(job: TrainingJob, arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """A training in a process that begins with nothing."""
    command = _command("d3s2.training.students") if isinstance(job, StudentJob) else _command()
    with open(log, "wb") as file:  # the process keeps its own end of it
        return subprocess.Popen(
            [*command, *arguments],
            env=_environment(job),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def _command(module: str = "d3s2.training.worker") -> list[str]:
    """What a training is started with, before its job and its core."""
    return [sys.executable, "-P", "-m", module]


def _environment(job: TrainingJob) -> dict[str, str]:
    """The process ends with this one, finds this package, and on a CPU takes one thread."""
    found = bound_environment() | {"PYTHONWARNINGS": "ignore"}
    if job.device == "cpu":
        found |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    earlier = found.get("PYTHONPATH")
    found["PYTHONPATH"] = str(PACKAGE.parent) + (os.pathsep + earlier if earlier else "")
    return found
