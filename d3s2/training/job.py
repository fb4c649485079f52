"""One training: what decides it, its key, and what it leaves behind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from d3s2.core.code_version import code_version
from d3s2.core.errors import D3S2Error
from d3s2.core.files import digest, read_json, sha256
from d3s2.core.machine import require_gpus
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.folder import open_folder

RESULT, WEIGHTS, PREDICTIONS = "result.json", "model.safetensors", "predictions.npz"
TRAINS = "training.worker"
"""The module whose sources, and those of all that it imports, decide a result."""
OUT_OF_MEMORY, ERROR = (
    "out_of_memory",
    "error.txt",
)  # in logs/, why a training ended: an empty file; a traceback


@dataclass(frozen=True)
class TrainingJob:
    """Everything that decides one training.

    train_root, val_root: folder-format data; train_ids, val_ids: the images of the split, None =
    all of them;
    size: (H, W) of the images; device: "cpu" or "cuda"; work_dir: where the results go, which
    decides nothing. network: "scaled-down", or "swin-s" as mmsegmentation ships it, from the
    backbone_weights (a file).
    processes: how many, on as many GPUs, share each batch; parts: each takes its share in so many
    parts, which needs less memory; checkpoint_every: iterations between two checkpoints. These
    three decide nothing either.
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
    """What a training gave: mIoU and IoU per class in percent (NaN: a class that neither occurs nor
    is predicted), the loss curve as (iteration, mean loss of the last ten), and what it cost.
    """

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
    dataset = open_folder(root, split, tuple(size) if size is not None else None)
    if ids is None:
        return dataset
    place = {name: index for index, name in enumerate(dataset.ids)}
    unknown = [name for name in ids if name not in place]
    if unknown:
        raise D3S2Error(
            f"image {unknown[0]!r} is not in {Path(root) / split} ({len(unknown)} such): "
            "select again."
        )
    return dataset.subset([place[name] for name in ids])


def job_key(job: TrainingJob) -> str:
    """sha256 over what decides the result: the job, the files of both splits, and the source of
    what trains.

    Raises D3S2Error for sizes and numbers that cannot be trained with, and for everything
    `open_split` finds.
    """
    if min(job.iterations, job.batch_size, job.num_classes) < 1 or min(job.size) < 16:
        raise D3S2Error(
            f"training {job.name!r}: iterations {job.iterations}, batch_size {job.batch_size}, "
            "classes "
            f"{job.num_classes} must be at least 1, and the size {job.size} at least (16, 16)."
        )
    if job.device not in ("cpu", "cuda"):
        raise D3S2Error(
            f"training {job.name!r}: device {job.device!r} is unknown, use 'cpu' or 'cuda'."
        )
    if job.network not in ("scaled-down", "swin-s") or (
        job.network == "swin-s" and not Path(job.backbone_weights).is_file()
    ):
        raise D3S2Error(
            f"training {job.name!r}: network {job.network!r} must be 'scaled-down', or 'swin-s' "
            "with backbone_weights that are "
            f"there; {job.backbone_weights!r} is no file."
        )
    if min(job.processes, job.parts, job.checkpoint_every) < 1 or job.batch_size % (
        job.processes * job.parts
    ):
        raise D3S2Error(
            f"training {job.name!r}: a batch of {job.batch_size} cannot be shared by "
            f"{job.processes} processes in {job.parts} "
            "parts each: take a batch_size that both divide."
        )
    if job.device == "cuda" and job.processes > 1:
        require_gpus(job.processes)
    # How a batch is shared changes random numbers and rounding, not the experiment: no result is
    # made anew for that.
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
    return digest({"job": settings, "data": prints + weights, "code": code_version(TRAINS)})


def read_result(folder: str | Path) -> TrainingResult:
    """The result of a finished training. Raises D3S2Error when there is none."""
    folder = Path(folder)
    if not (folder / RESULT).is_file():
        raise D3S2Error(f"no finished training in {folder}: run notebook 04 first.")
    found = read_json(folder / RESULT)
    found["per_class_iou"] = tuple(
        math.nan if value is None else value for value in found["per_class_iou"]
    )
    found["curve"] = tuple((int(step), float(loss)) for step, loss in found["curve"])
    cost = folder / "logs" / "cost.json"
    return TrainingResult(**found, cost=read_json(cost) if cost.is_file() else {})
