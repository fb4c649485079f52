"""Chapter 04: train Mask2Former on a training set, evaluate it, several side by side.

One training is one process with one core of its own: two multi-threaded trainings on the same cores
slow each other down many times. A finished training leaves `result.json`, `model.safetensors` and
`predictions.npz` in its folder and is not repeated; a killed one leaves a checkpoint and goes on
from there. On one machine the same job gives the same bytes, with or without a break. Several GPUs
share one training with `torchrun`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from d3s2.core.errors import D3S2Error, what_to_lower
from d3s2.core.files import read_json, write_json
from d3s2.core.places import PACKAGE
from d3s2.core.processes import bound_environment
from d3s2.training.job import (
    ERROR,
    OUT_OF_MEMORY,
    RESULT,
    TrainingJob,
    TrainingResult,
    job_key,
    read_result,
)


# --------------------------------------------------------------------- several trainings, in others
def train_all(
    jobs: Sequence[TrainingJob],
    parallel: int = 0,
    progress: Callable[[str], None] | None = print,
    reuse: Path | None = None,
    out_of_memory: str = "stop",
) -> list[TrainingResult]:
    """Run trainings side by side, each in a process and on a core of its own; finished ones are
    only read.

    parallel: how many at once, 0 = one per core this process may use (on "cuda": one after the
    other).
    progress: called with a line when a training starts a new quarter or ends; None for silence.
    reuse: a folder in which results of the same jobs may lie (any depth): they are copied, not
    trained again.
    out_of_memory: "stop", or "halve": a training whose batch is too large for the GPU goes on from
        its checkpoint with the batch in twice as many parts, and so do those that come after it.
    Raises D3S2Error with the end of the log when a training fails; the others are stopped then.
    """
    folders = [Path(job.work_dir).resolve() for job in jobs]
    if len(set(folders)) < len(folders):
        raise D3S2Error("two trainings share a work_dir: give each one its own.")
    pinned = hasattr(os, "sched_getaffinity")
    cores = sorted(os.sched_getaffinity(0)) if pinned else [*range(os.cpu_count() or 1)]
    one_core = all(job.device == "cpu" and job.processes == 1 for job in jobs)
    at_once = min(parallel or len(cores), len(cores)) if one_core else 1
    keys = [job_key(job) for job in jobs]  # which also finds bad jobs before any training starts
    if reuse is not None:
        _copy_finished(jobs, keys, reuse)
    waiting = [job for job, key in zip(jobs, keys, strict=True) if not _is_finished(job, key)]
    running: dict[int, _Child] = {}
    try:
        while waiting or running:
            for core in cores[:at_once]:
                if core not in running and waiting:
                    running[core] = _Child(waiting.pop(0), core, progress)
            for core, child in list(running.items()):
                try:
                    done = child.is_done()
                except _OutOfMemory:
                    parts = _more_parts(child.job) if out_of_memory == "halve" else 0
                    if not parts:
                        raise
                    if progress:
                        progress(
                            f"{child.job.name}: out of memory, goes on with each batch in "
                            f"{parts} parts"
                        )
                    waiting = [replace(job, parts=parts) for job in [child.job, *waiting]]
                    done = True
                if done:
                    running.pop(core)
            time.sleep(0.2)
    finally:
        for child in running.values():
            child.stop()
    return [read_result(folder) for folder in folders]


class _OutOfMemory(D3S2Error):
    """The GPU's memory was too small for a part of a batch."""


def _more_parts(job: TrainingJob) -> int:
    """The next larger number of parts that divides a process's share of the batch; 0 = it is in
    single images already.
    """
    share = job.batch_size // job.processes
    return next((parts for parts in range(2 * job.parts, share + 1) if share % parts == 0), 0)


def _is_finished(job: TrainingJob, key: str) -> bool:
    path = Path(job.work_dir) / RESULT
    return path.is_file() and read_json(path).get("key") == key


def _copy_finished(jobs: Sequence[TrainingJob], keys: Sequence[str], reuse: Path) -> None:
    found = {read_json(path).get("key"): path.parent for path in sorted(reuse.rglob(RESULT))}
    for job, key in zip(jobs, keys, strict=True):
        if key in found and not _is_finished(job, key):
            shutil.copytree(found[key], job.work_dir, dirs_exist_ok=True)
            write_json(
                Path(job.work_dir) / RESULT, {**read_json(found[key] / RESULT), "name": job.name}
            )


class _Child:
    """A training in another process: `python -m d3s2.training.worker <job.json> <core>`, logged in
    train.log.
    """

    def __init__(self, job: TrainingJob, core: int, progress: Callable[[str], None] | None):
        self.job, self.progress, self.quarter = job, progress, 0
        self.folder = Path(job.work_dir)
        logs = self.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        for name in ("progress.json", OUT_OF_MEMORY, ERROR):
            (logs / name).unlink(missing_ok=True)
        (self.folder / RESULT).unlink(missing_ok=True)
        write_json(logs / "job.json", asdict(job))
        environment = bound_environment() | {"PYTHONWARNINGS": "ignore"}
        if job.device == "cpu":
            environment.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
        self.log = open(logs / "train.log", "wb")  # noqa: SIM115 - closed when the process has ended
        command = [*_command(), str(logs / "job.json"), str(core)]
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(PACKAGE.parent), *filter(None, [environment.get("PYTHONPATH")])]
        )
        streams = {"stdin": subprocess.DEVNULL, "stdout": self.log, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, env=environment, **streams)

    def is_done(self) -> bool:
        """Report progress; True when the training has ended well. Raises D3S2Error when it has
        failed.
        """
        code = self.process.poll()
        if code is None:
            self._report()
            return False
        self.log.close()
        if (self.folder / "logs" / OUT_OF_MEMORY).is_file():
            share = self.job.batch_size // self.job.processes // self.job.parts
            raise _OutOfMemory(
                f"training {self.job.name!r}: "
                f"{what_to_lower(share, 'batch_size', 'a smaller image_size')}"
            )
        if code != 0 or not (self.folder / RESULT).is_file():
            raise D3S2Error(
                f"training {self.job.name!r} failed (exit code {code}). The end of "
                f"{self.log.name}:\n{self._tail()}"
            )
        if self.progress:
            result = read_result(self.folder)
            self.progress(
                f"{self.job.name}: done, mIoU {result.miou:.1f} in {result.seconds:.0f} s"
            )
        return True

    def stop(self) -> None:
        """End the process, and wait until it has ended."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()
        self.log.close()

    def _report(self) -> None:
        try:
            state = json.loads((self.folder / "logs" / "progress.json").read_text())
        except (OSError, ValueError):
            return
        quarter = 4 * state["iteration"] // self.job.iterations
        if self.progress and self.quarter < quarter < 4:
            self.quarter = quarter
            done = f"{state['iteration']} of {self.job.iterations} iterations"
            self.progress(f"{self.job.name}: {done}, loss {state['loss']:.1f}")

    def _tail(self, lines: int = 12) -> str:
        error = self.folder / "logs" / ERROR
        source = (
            error if error.is_file() else Path(self.log.name)
        )  # without: killed, or failed before it began
        return "\n".join(source.read_text(errors="replace").splitlines()[-lines:])


def _command() -> list[str]:
    return [sys.executable, "-m", "d3s2.training.worker"]
