"""Chapter 04: train Mask2Former on a training set, evaluate it, several side by side.

One training is one process with one core of its own: two multi-threaded trainings on the same cores
slow each other down many times. A finished training leaves `result.json`, `model.safetensors` and
`predictions.npz` in its folder and is not repeated; a killed one leaves a checkpoint and goes on
from there. On one machine the same job gives the same bytes, with or without a break. Several GPUs
share one training with `torchrun`.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from d3s2.core import machine
from d3s2.core.files import atomic_path, read_json, write_json, write_npz
from d3s2.core.processes import end_with_parent
from d3s2.training.job import (
    ERROR,
    OUT_OF_MEMORY,
    PREDICTIONS,
    RESULT,
    WEIGHTS,
    TrainingJob,
    TrainingResult,
    job_key,
    read_result,
)


# ---------------------------------------------------------------------------- one training, in here
def train(job: TrainingJob) -> TrainingResult | None:
    """Train and evaluate in this process with mmengine's Runner; writes the files named in the
    module's text.

    Goes on from the checkpoint of the same job. Of several processes only the first has a result,
    the others None. Prefer `train_all` in notebooks: the Runner logs hundreds of lines and keeps
    the threads it finds.
    """
    from d3s2.training import mask2former  # imports mmseg: some seconds

    key, folder, start = job_key(job), Path(job.work_dir), time.perf_counter()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "logs" / f"checkpoint-{key[:16]}.pt"
    runner = mask2former.build_runner(job, checkpoint)
    runner.train()  # its loop ends with one evaluation
    if runner.rank > 0:
        return None
    metric, progress = runner.val_evaluator.metrics[0], mask2former.progress_hook(runner)
    result = {
        "name": job.name,
        "miou": 100 * float(np.nanmean(metric.per_class)),
        "curve": progress.curve,
        "per_class_iou": [None if math.isnan(value) else 100 * value for value in metric.per_class],
        "parameters": sum(weight.numel() for weight in runner.model.parameters()),
        "train_images": len(runner.train_dataloader.dataset),
        "iterations": job.iterations,
        "seed": job.seed,
        "key": key,
        "processes": job.processes,
        "parts": job.parts,
    }
    with atomic_path(folder / WEIGHTS) as temporary:
        mask2former.save_weights(runner.model, temporary)
    write_npz(folder / PREDICTIONS, labels=np.stack(metric.predictions))
    seconds = runner.train_loop.seconds_before + time.perf_counter() - start
    cost = {"seconds": seconds, "peak_memory_mb": machine.peak_memory()}
    write_json(folder / "logs" / "cost.json", cost)
    write_json(folder / RESULT, result)
    for path in (folder / "logs").glob("checkpoint-*.pt"):
        path.unlink()
    return read_result(folder)


def main(arguments: Sequence[str]) -> int:
    """The child: `python -m d3s2.training.worker <job.json> <core>`. Anything that goes wrong ends
    up in its log.

    For a job of several processes it becomes `torchrun`, which starts this command once for each of
    them.
    """
    import torch

    end_with_parent()
    settings = read_json(arguments[0])
    for name in ("size", "train_ids", "val_ids"):
        settings[name] = None if settings[name] is None else tuple(settings[name])
    job = TrainingJob(**settings)
    if job.processes > 1 and "LOCAL_RANK" not in os.environ:
        from torch.distributed import run

        run.main(
            [
                "--standalone",
                f"--nproc-per-node={job.processes}",
                "-m",
                "d3s2.training.worker",
                *arguments,
            ]
        )
        return 0
    if job.device == "cpu" and job.processes == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(arguments[1])})
    logs = Path(job.work_dir) / "logs"
    try:
        train(job)
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            (logs / OUT_OF_MEMORY).touch()
        # Of several processes the first to fail tells why; the others only lose it.
        with (
            contextlib.suppress(FileExistsError),
            open(logs / ERROR, "x", encoding="utf-8") as file,
        ):
            file.write(traceback.format_exc())
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
