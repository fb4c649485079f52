"""Chapter 04: train Mask2Former on a training set and evaluate it, in this process.

A finished training leaves `result.json`, `model.safetensors`, `mmseg.json`, `predictions.npz` and,
last, hashes in its folder and is not repeated; a killed one leaves a checkpoint and goes on from
there.
On one machine the same job gives the same bytes, with or without a break. `python -m
d3s2.training.worker` is the process in which `side_by_side.train_all` runs a job; several GPUs
share one with `torchrun`.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d3s2.core import machine
from d3s2.core.errors import DiskFull
from d3s2.core.files import atomic_path, write_json
from d3s2.core.processes import end_with_parent
from d3s2.training import predictions
from d3s2.training.job import (
    CONFIG,
    ERROR,
    OUT_OF_MEMORY,
    PREDICTIONS,
    RESULT,
    WEIGHTS,
    TrainingJob,
    TrainingResult,
    check_job,
    job_key,
    read_job,
    read_result,
    write_finished,
)


# ---------------------------------------------------------------------------- one training, in here
def train(job: TrainingJob, key: str = "") -> TrainingResult | None:
    """Train and evaluate in this process with mmengine's Runner; writes the files named in the
    module's text.

    Goes on from the checkpoint of the same job. Of several processes only the first has a result,
    the others None. Prefer `train_all` in notebooks: the Runner logs hundreds of lines and keeps
    the threads it finds. key: the job's `job_key` where it is known, which reads all data. Raises
    D3S2Error for everything `check_job` and `job_key` find.
    """
    from d3s2.training import mask2former  # imports mmseg: some seconds

    begun = time.perf_counter()
    check_job(job)
    key = key or job_key(job)
    folder = Path(job.work_dir)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    runner = mask2former.build_runner(job, folder / "logs" / f"checkpoint-{key[:16]}.pt")
    runner.train()  # its loop ends with one evaluation
    if runner.rank > 0:
        return None
    shown = runner.train_dataloader.dataset.metainfo
    write_json(folder / CONFIG, mask2former.plain_config(runner.cfg, shown))
    leave_results(job, key, runner, begun)
    return read_result(folder)


def leave_results(job: TrainingJob, key: str, runner: Any, begun: float) -> None:
    """Write a training that has ended into its folder: all but `mmseg.json` of the module's text.

    key: see `job_key`; runner: mmengine's, after its loop; begun: `time.perf_counter` at the
    beginning of this process's part.
    """
    _write_files(Path(job.work_dir), runner, _facts(job, key, runner), begun)


def _facts(job: TrainingJob, key: str, runner: Any) -> dict[str, object]:
    """What `result.json` holds of a training that has ended."""
    from d3s2.training.loop import progress_of

    scores = runner.val_evaluator.metrics[0].per_class
    return {
        "name": job.name,
        "miou": 100 * float(np.nanmean(scores)),
        "curve": progress_of(runner).curve,
        "per_class_iou": [None if math.isnan(score) else 100 * score for score in scores],
        "parameters": sum(weight.numel() for weight in runner.model.parameters()),
        "train_images": len(runner.train_dataloader.dataset),
        "iterations": job.iterations,
        "seed": job.seed,
        "key": key,
        "processes": job.processes,
        "parts": job.parts,
    }


def _write_files(folder: Path, runner: Any, facts: dict[str, object], begun: float) -> None:
    """Weights, predictions, cost, result, and last their hashes, without which none of them counts;
    then nobody needs the checkpoints any more.
    """
    from d3s2.training import mask2former

    with atomic_path(folder / WEIGHTS) as temporary:
        mask2former.save_weights(runner.model, temporary)
    judged = runner.val_dataloader.dataset.source
    predictions.pack(runner.val_evaluator.metrics[0].folder, judged.ids, folder / PREDICTIONS)
    seconds = runner.train_loop.seconds_before + time.perf_counter() - begun
    cost = {"seconds": seconds, "peak_memory_mb": machine.peak_memory()}
    write_json(folder / "logs" / "cost.json", cost)
    write_json(folder / RESULT, facts)
    write_finished(folder, str(facts["key"]))
    for path in (folder / "logs").glob("checkpoint-*.pt"):
        path.unlink()


# ------------------------------------------------------------------------------ the process for one
def main(arguments: Sequence[str]) -> int:
    """The child: `python -m d3s2.training.worker <job.json> <core> [<key>]`. Anything that goes
    wrong ends up in its log.

    For a job of several processes it becomes `torchrun`, which starts this command once for each of
    them.
    """
    end_with_parent()
    path, core, *key = arguments
    job = read_job(path)
    if job.processes > 1 and "LOCAL_RANK" not in os.environ:
        _become_torchrun(job.processes, arguments)
        return 0
    return run_as_child(job, int(core), lambda: train(job, *key))


def run_as_child(job: TrainingJob, core: int, training: Callable[[], object]) -> int:
    """Run a training on its core, and leave what goes wrong for the parent; the exit status."""
    if job.device == "cpu" and job.processes == 1:
        _stay_on(core)
    try:
        with _reported(Path(job.work_dir) / "logs"):
            training()
    except (DiskFull, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOSPC:
            raise
        return errno.ENOSPC  # where nothing can be written, this is all that can be said
    return 0


def _become_torchrun(processes: int, arguments: Sequence[str]) -> None:
    """Start this command once for each process, and wait for them. Each finds its place in
    LOCAL_RANK.
    """
    from torch.distributed import run

    command = ["--standalone", f"--nproc-per-node={processes}", "-m", "d3s2.training.worker"]
    run.main([*command, *arguments])


def _stay_on(core: int) -> None:
    """Bind this process to one core, where the system can: side by side they do not get in each
    other's way.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


@contextlib.contextmanager
def _reported(logs: Path) -> Iterator[None]:
    """Leave an exception's traceback in `ERROR`, and a mark for want of memory, for the parent."""
    import torch

    try:
        yield
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            (logs / OUT_OF_MEMORY).touch()
        # Of several processes the first to fail tells why; the others only lose it. A full disk
        # takes no words.
        with (
            contextlib.suppress(OSError),
            open(logs / ERROR, "x", encoding="utf-8") as file,
        ):
            file.write(traceback.format_exc())
        raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
