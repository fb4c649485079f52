"""Chapter 04: train Mask2Former on a training set, evaluate it, several side by side.

One training is one process with one core of its own: two multi-threaded trainings on the same cores slow each
other down many times. A finished training leaves `result.json`, `model.safetensors` and `predictions.npz` in
its folder and is not repeated; a killed one leaves a checkpoint and goes on from there. On one machine the same
job gives the same bytes, with or without a break. Several GPUs share one training with `torchrun`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from .artifacts import atomic_path, digest, read_json, sha256, write_json, write_npz
from .data.base import SegmentationDataset
from .data.formats import open_dataset
from .environment import require_gpus
from .errors import D3S2Error, what_to_lower
from .processes import bound_environment, end_with_parent

PACKAGE = Path(__file__).parent
RESULT, WEIGHTS, PREDICTIONS = "result.json", "model.safetensors", "predictions.npz"
OUT_OF_MEMORY, ERROR = "out_of_memory", "error.txt"  # in logs/, why a training ended: an empty file; a traceback
DECIDES = ("mask2former", "mmseg_parts", "mmcv_ops", "swin", "training_loop")  # whose source decides a result


@dataclass(frozen=True)
class TrainingJob:
    """Everything that decides one training.

    train_root, val_root: folder-format data; train_ids, val_ids: the images of the split, None = all of them;
    size: (H, W) of the images; device: "cpu" or "cuda"; work_dir: where the results go, which decides
    nothing. network: "scaled-down", or "swin-s" as mmsegmentation ships it, from the backbone_weights (a file).
    processes: how many, on as many GPUs, share each batch; parts: each takes its share in so many parts, which needs
    less memory; checkpoint_every: iterations between two checkpoints. These three decide nothing either.
    """

    name: str
    train_root: str
    val_root: str
    num_classes: int
    work_dir: str
    train_ids: tuple[str, ...] | None = None
    val_ids: tuple[str, ...] | None = None
    train_split: str = "train"
    val_split: str = "val"
    iterations: int = 1500
    batch_size: int = 4
    seed: int = 0
    size: tuple[int, int] = (64, 64)
    device: str = "cpu"
    network: str = "scaled-down"
    backbone_weights: str = ""
    processes: int = 1
    parts: int = 1
    checkpoint_every: int = 500


@dataclass(frozen=True)
class TrainingResult:
    """What a training gave: mIoU and IoU per class in percent (NaN: a class that neither occurs nor is
    predicted), the loss curve as (iteration, mean loss of the last ten), and what it cost."""

    name: str
    miou: float
    per_class_iou: tuple[float, ...]
    curve: tuple[tuple[int, float], ...]
    parameters: int
    train_images: int
    iterations: int
    seed: int
    key: str
    processes: int = 1
    parts: int = 1
    cost: dict[str, float] = field(default_factory=dict, compare=False)

    @property
    def seconds(self) -> float:
        """Wall clock of training and evaluation, without imports."""
        return self.cost.get("seconds", math.nan)


def open_split(
    root: str | Path, split: str, ids: Sequence[str] | None, size: Sequence[int] | None
) -> SegmentationDataset:
    """The images of a folder-format split that the ids name (None = all), in that order.

    Raises D3S2Error for an id that the split does not have.
    """
    dataset = open_dataset("folder", root, split, tuple(size) if size is not None else None)
    if ids is None:
        return dataset
    place = {name: index for index, name in enumerate(dataset.ids)}
    unknown = [name for name in ids if name not in place]
    if unknown:
        raise D3S2Error(
            f"image {unknown[0]!r} is not in {Path(root) / split} ({len(unknown)} such): select again."
        )
    return dataset.subset([place[name] for name in ids])


def job_key(job: TrainingJob) -> str:
    """sha256 over what decides the result: the job, the files of both splits, and the source of what trains.

    Raises D3S2Error for sizes and numbers that cannot be trained with, and for everything `open_split` finds.
    """
    if min(job.iterations, job.batch_size, job.num_classes) < 1 or min(job.size) < 16:
        raise D3S2Error(
            f"training {job.name!r}: iterations {job.iterations}, batch_size {job.batch_size}, classes "
            f"{job.num_classes} must be at least 1, and the size {job.size} at least (16, 16)."
        )
    if job.device not in ("cpu", "cuda"):
        raise D3S2Error(f"training {job.name!r}: device {job.device!r} is unknown, use 'cpu' or 'cuda'.")
    if job.network not in ("scaled-down", "swin-s") or (job.network == "swin-s" and not Path(job.backbone_weights).is_file()):
        raise D3S2Error(
            f"training {job.name!r}: network {job.network!r} must be 'scaled-down', or 'swin-s' with backbone_weights that are "
            f"there; {job.backbone_weights!r} is no file."
        )
    if min(job.processes, job.parts, job.checkpoint_every) < 1 or job.batch_size % (job.processes * job.parts):
        raise D3S2Error(
            f"training {job.name!r}: a batch of {job.batch_size} cannot be shared by {job.processes} processes in {job.parts} "
            "parts each: take a batch_size that both divide."
        )
    if job.device == "cuda" and job.processes > 1:
        require_gpus(job.processes)
    # How a batch is shared changes random numbers and rounding, not the experiment: no result is made anew for that.
    shared = ("processes", "parts", "checkpoint_every")
    elsewhere = ("name", "work_dir", "train_root", "val_root", "backbone_weights", *shared)
    settings = {name: value for name, value in asdict(job).items() if name not in elsewhere}
    prints = [
        open_split(root, split, ids, job.size).fingerprint()
        for root, split, ids in (
            (job.train_root, job.train_split, job.train_ids),
            (job.val_root, job.val_split, job.val_ids),
        )
    ]
    weights = [sha256(Path(job.backbone_weights))] if job.network == "swin-s" else []
    return digest(
        {"job": settings, "data": prints + weights, "code": [sha256(PACKAGE / f"{name}.py") for name in DECIDES]}
    )


# ------------------------------------------------------------------------------------ one training, in here
def train(job: TrainingJob) -> TrainingResult | None:
    """Train and evaluate in this process with mmengine's Runner; writes the files named in the module's text.

    Goes on from the checkpoint of the same job. Of several processes only the first has a result, the others None.
    Prefer `train_all` in notebooks: the Runner logs hundreds of lines and keeps the threads it finds.
    """
    from . import mask2former  # imports mmseg: some seconds

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
    cost = {"seconds": seconds, "peak_memory_mb": mask2former.peak_memory_mb()}
    write_json(folder / "logs" / "cost.json", cost)
    write_json(folder / RESULT, result)
    for path in (folder / "logs").glob("checkpoint-*.pt"):
        path.unlink()
    return read_result(folder)


def read_result(folder: str | Path) -> TrainingResult:
    """The result of a finished training. Raises D3S2Error when there is none."""
    folder = Path(folder)
    if not (folder / RESULT).is_file():
        raise D3S2Error(f"no finished training in {folder}: run notebook 04 first.")
    found = read_json(folder / RESULT)
    found["per_class_iou"] = tuple(math.nan if value is None else value for value in found["per_class_iou"])
    found["curve"] = tuple((int(step), float(loss)) for step, loss in found["curve"])
    cost = folder / "logs" / "cost.json"
    return TrainingResult(**found, cost=read_json(cost) if cost.is_file() else {})


# ------------------------------------------------------------------------------- several trainings, in others
def train_all(
    jobs: Sequence[TrainingJob],
    parallel: int = 0,
    progress: Callable[[str], None] | None = print,
    reuse: Path | None = None,
    out_of_memory: str = "stop",
) -> list[TrainingResult]:
    """Run trainings side by side, each in a process and on a core of its own; finished ones are only read.

    parallel: how many at once, 0 = one per core this process may use (on "cuda": one after the other).
    progress: called with a line when a training starts a new quarter or ends; None for silence.
    reuse: a folder in which results of the same jobs may lie (any depth): they are copied, not trained again.
    out_of_memory: "stop", or "halve": a training whose batch is too large for the GPU goes on from its checkpoint with
        the batch in twice as many parts, and so do those that come after it.
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
                        progress(f"{child.job.name}: out of memory, goes on with each batch in {parts} parts")
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
    """The next larger number of parts that divides a process's share of the batch; 0 = it is in single images already."""
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
            write_json(Path(job.work_dir) / RESULT, {**read_json(found[key] / RESULT), "name": job.name})


class _Child:
    """A training in another process: `python -m d3s2.training <job.json> <core>`, logged in train.log."""

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
        """Report progress; True when the training has ended well. Raises D3S2Error when it has failed."""
        code = self.process.poll()
        if code is None:
            self._report()
            return False
        self.log.close()
        if (self.folder / "logs" / OUT_OF_MEMORY).is_file():
            share = self.job.batch_size // self.job.processes // self.job.parts
            raise _OutOfMemory(f"training {self.job.name!r}: {what_to_lower(share, 'batch_size', 'a smaller image_size')}")
        if code != 0 or not (self.folder / RESULT).is_file():
            raise D3S2Error(
                f"training {self.job.name!r} failed (exit code {code}). The end of {self.log.name}:\n{self._tail()}"
            )
        if self.progress:
            result = read_result(self.folder)
            self.progress(f"{self.job.name}: done, mIoU {result.miou:.1f} in {result.seconds:.0f} s")
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
        source = error if error.is_file() else Path(self.log.name)  # without: killed, or failed before it began
        return "\n".join(source.read_text(errors="replace").splitlines()[-lines:])


def _command() -> list[str]:
    return [sys.executable, "-m", "d3s2.training"]


def main(arguments: Sequence[str]) -> int:
    """The child: `python -m d3s2.training <job.json> <core>`. Anything that goes wrong ends up in its log.

    For a job of several processes it becomes `torchrun`, which starts this command once for each of them.
    """
    import torch

    end_with_parent()
    settings = read_json(arguments[0])
    for name in ("size", "train_ids", "val_ids"):
        settings[name] = None if settings[name] is None else tuple(settings[name])
    job = TrainingJob(**settings)
    if job.processes > 1 and "LOCAL_RANK" not in os.environ:
        from torch.distributed import run

        run.main(["--standalone", f"--nproc-per-node={job.processes}", "-m", "d3s2.training", *arguments])
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
        with contextlib.suppress(FileExistsError), open(logs / ERROR, "x", encoding="utf-8") as file:
            file.write(traceback.format_exc())
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
