"""One training: what decides it, its key, and what it leaves behind.

In its folder lie `result.json`, `model.safetensors`, `predictions.npz` and, written last,
`finished.json` with the key and the SHA-256 of the three: a result is believed by these, never by
what it says of itself. `mmseg.json` is the network's configuration, with which mmsegmentation opens
the weights without d3s2. In `logs/`, the job itself, what mmengine logs, the cost, and why the
training ended when it failed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from d3s2.core.code_version import code_version
from d3s2.core.errors import D3S2Error
from d3s2.core.files import digest, read_json, sha256, write_json
from d3s2.core.machine import require_gpus
from d3s2.data.dataset import IGNORE, SegmentationDataset
from d3s2.data.opening import open_dataset
from d3s2.training.tracking import PACKAGES, missing_tracker

RESULT = "result.json"
WEIGHTS = "model.safetensors"
PREDICTIONS = "predictions.npz"
"""uint8[H, W] for each validation image, under its id; see `predictions`."""
FINISHED = "finished.json"
CONFIG = "mmseg.json"
TRAINS = "training.worker"
"""The module whose sources, and those of all that it imports, decide a result."""
OUT_OF_MEMORY = "out_of_memory"
"""In logs/: an empty file, when the training ended because the GPU's memory was too small."""
ERROR = "error.txt"
"""In logs/: the traceback with which the training ended."""
NETWORKS = ("scaled-down", "swin-s")
DEVICES = ("cpu", "cuda")
PROTOCOLS = ("squeezed", "published")
PRECISIONS = ("float32", "bfloat16", "float16")
SMALLEST = 16
"""Pixels of an image's shorter side."""

# Whether a field of a job belongs to its key. A place or a name never does: what lies there counts
# by its content. How a batch is shared changes random numbers and rounding, not the experiment (its
# losses are those of the whole batch, see `registered.BatchedHead`): no result is made anew for
# that. Nor does it matter who looks at a training.
_PLACE = {"decides": False}
_SHARING = {"decides": False}
_LOOKING = {"decides": False}


@dataclass(frozen=True)
class TrainingJob:
    """Everything that decides one training, and where and how it is run, which decides nothing.

    train_root, val_root: data in the layouts train_format and val_format (see `data.opening`), of
    which the splits count by their content; train_ids, val_ids: the images of the split, None = all
    of them; size: (H, W) of the images, or of the crops; protocol: "squeezed" or "published", how
    images are read and judged (see `protocol`); device: "cpu"
    or "cuda"; work_dir: where the results go; network: "scaled-down", or "swin-s" as mmsegmentation
    ships it, from the backbone_weights (a file); precision: of the products in a training step (see
    `registered.MixedPrecision`); processes: how many, on as many GPUs, share each
    batch; parts: each takes its share in so many parts, which needs less memory and gives, random
    numbers apart, the gradient of the whole; out_of_memory: "stop", or "halve", of a batch that is
    judged; checkpoint_every: iterations between two checkpoints; judge_every: iterations between
    two looks at the mIoU on the way, which the logs get, 0 = the last one alone; tracking: who else
    gets what is logged (see `tracking`).
    """

    name: str = field(metadata=_PLACE)
    train_root: str = field(metadata=_PLACE)
    val_root: str = field(metadata=_PLACE)
    num_classes: int
    work_dir: str = field(metadata=_PLACE)
    train_ids: tuple[str, ...] | None = None
    val_ids: tuple[str, ...] | None = None
    train_split: str = "train"
    val_split: str = "val"
    iterations: int = 1500
    batch_size: int = 4
    seed: int = 0
    size: tuple[int, int] = (64, 64)
    protocol: str = "squeezed"
    train_format: str = field(default="folder", metadata=_PLACE)
    val_format: str = field(default="folder", metadata=_PLACE)
    device: str = "cpu"
    network: str = "scaled-down"
    precision: str = "float32"
    backbone_weights: str = field(default="", metadata=_PLACE)
    processes: int = field(default=1, metadata=_SHARING)
    parts: int = field(default=1, metadata=_SHARING)
    out_of_memory: str = field(default="stop", metadata=_SHARING)
    checkpoint_every: int = field(default=500, metadata=_SHARING)
    judge_every: int = field(default=0, metadata=_LOOKING)
    tracking: str = field(default="none", metadata=_LOOKING)


@dataclass(frozen=True)
class TrainingResult:
    """What a training gave.

    miou, per_class_iou: in percent, NaN for a class that neither occurs nor is predicted; curve:
    (iteration, mean loss of the last ten, or of the fewer that were left at the end); parameters:
    weights of the network; cost: "seconds" and "peak_memory_mb", which do not count when results
    are compared.
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
    root: str | Path,
    split: str,
    ids: Sequence[str] | None,
    size: Sequence[int] | None,
    layout: str = "folder",
) -> SegmentationDataset:
    """The images of a split that the ids name (None = all), in that order. size: (H, W) to read
    them at, None = as they are; layout: how the data lies on disk, see `data.opening`.

    Raises D3S2Error for an id that the split does not have.
    """
    dataset = open_dataset(layout, root, split, tuple(size) if size is not None else None)
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


def training_split(job: TrainingJob) -> SegmentationDataset:
    """The images that a job trains on, at the size at which they are read."""
    size = job.size if job.protocol == "squeezed" else None
    return open_split(job.train_root, job.train_split, job.train_ids, size, job.train_format)


def validation_split(job: TrainingJob) -> SegmentationDataset:
    """The images that a job is judged on; its predictions have the sizes of their masks."""
    size = job.size if job.protocol == "squeezed" else None
    return open_split(job.val_root, job.val_split, job.val_ids, size, job.val_format)


def check_job(job: TrainingJob) -> None:
    """Raise D3S2Error for what cannot be trained: numbers, device, network, a batch that its
    processes and parts cannot share, GPUs and a tracker that are not there. The data is not opened
    here.
    """
    if min(job.iterations, job.batch_size, job.num_classes) < 1 or min(job.size) < SMALLEST:
        raise D3S2Error(
            f"training {job.name!r}: iterations {job.iterations}, batch_size {job.batch_size}, "
            f"classes {job.num_classes} must be at least 1, and the size {job.size} at least "
            f"({SMALLEST}, {SMALLEST})."
        )
    if job.device not in DEVICES:
        raise D3S2Error(
            f"training {job.name!r}: device {job.device!r} is unknown, use 'cpu' or 'cuda'."
        )
    if job.protocol not in PROTOCOLS:
        raise D3S2Error(
            f"training {job.name!r}: protocol {job.protocol!r} is unknown, use 'squeezed' or "
            "'published'."
        )
    if job.precision not in PRECISIONS or (job.precision, job.device) == ("float16", "cpu"):
        raise D3S2Error(
            f"training {job.name!r}: precision {job.precision!r} must be 'float32', 'bfloat16', or "
            "on a GPU 'float16'."
        )
    lacks_weights = job.network == "swin-s" and not Path(job.backbone_weights).is_file()
    if job.network not in NETWORKS or lacks_weights:
        raise D3S2Error(
            f"training {job.name!r}: network {job.network!r} must be 'scaled-down', or 'swin-s' "
            f"with backbone_weights that are there; {job.backbone_weights!r} is no file."
        )
    too_few = min(job.processes, job.parts, job.checkpoint_every) < 1
    if too_few or job.batch_size % (job.processes * job.parts):
        raise D3S2Error(
            f"training {job.name!r}: a batch of {job.batch_size} cannot be shared by "
            f"{job.processes} processes in {job.parts} parts each: take a batch_size that both "
            "divide."
        )
    _check_looks(job)
    if job.device == "cuda" and job.processes > 1:
        require_gpus(job.processes)


def _check_looks(job: TrainingJob) -> None:
    """Raise D3S2Error where nobody can look on as is asked for."""
    if job.judge_every < 0 or job.tracking not in PACKAGES:
        raise D3S2Error(
            f"training {job.name!r}: judge_every {job.judge_every} must be at least 0, and "
            f"tracking {job.tracking!r} one of {', '.join(PACKAGES)}."
        )
    if sentence := missing_tracker(job.tracking):
        raise D3S2Error(f"training {job.name!r}: {sentence}")


def job_key(job: TrainingJob) -> str:
    """sha256 over what decides the result of a job that `check_job` lets pass: its fields, the
    files of both splits, the backbone's weights, and the source of what trains.

    Opens the data. Raises D3S2Error for everything `open_split` finds, and for a split without a
    labelled pixel.
    """
    values = asdict(job)
    deciding = [spec.name for spec in fields(job) if spec.metadata.get("decides", True)]
    train = training_split(job)
    val = validation_split(job)
    _require_labels(job, train, "there is nothing to learn")
    _require_labels(job, val, "there is no mIoU to measure")
    data = [train.fingerprint(), val.fingerprint()]
    if job.network == "swin-s":
        data.append(sha256(job.backbone_weights))
    settings = {name: values[name] for name in deciding}
    return digest({"job": settings, "data": data, "code": code_version(TRAINS)})


def _require_labels(job: TrainingJob, split: SegmentationDataset, so: str) -> None:
    """Raise D3S2Error unless some pixel of the split has a class."""
    if not split.has_labels():
        raise D3S2Error(
            f"training {job.name!r}: none of the {len(split)} masks of {split.name!r} has a pixel "
            f"with a class, all are ignored ({IGNORE}): {so}. Check the masks and classes.csv."
        )


def write_job(path: str | Path, job: TrainingJob) -> None:
    """Write a job as JSON, for the process that trains it."""
    write_json(path, asdict(job))


def read_job(path: str | Path) -> TrainingJob:
    """Read what `write_job` wrote. Raises D3S2Error for a file that is missing or damaged."""
    values = read_json(path)
    for name in ("size", "train_ids", "val_ids"):
        if values[name] is not None:
            values[name] = tuple(values[name])
    return TrainingJob(**values)


def write_finished(folder: str | Path, key: str) -> None:
    """Say, last of all, that the training with this key is whole: from now on its files count."""
    folder = Path(folder)
    files = {name: sha256(folder / name) for name in (RESULT, WEIGHTS, PREDICTIONS)}
    write_json(folder / FINISHED, {"key": key, "files": files})


def finished_key(folder: str | Path) -> str:
    """The key of the finished training in a folder; "" where there is none, or one whose files are
    no longer what it wrote.
    """
    folder = Path(folder)
    return "" if _fault(folder) else read_json(folder / FINISHED)["key"]


def _fault(folder: Path) -> str:
    """Why what lies in a folder is no finished training, in words; empty when it is one."""
    if not (folder / FINISHED).is_file():
        return f"there is no finished training in {folder}"
    try:
        finished = read_json(folder / FINISHED)
        files = finished["files"]
        wrong = [
            folder / name
            for name in (RESULT, WEIGHTS, PREDICTIONS)
            if not (folder / name).is_file() or sha256(folder / name) != files[name]
        ]
        if wrong:
            return f"{wrong[0]} is not what the training wrote"
        if read_json(folder / RESULT)["key"] != finished["key"]:
            return f"{folder / FINISHED} is of another training than {RESULT}"
    except (D3S2Error, KeyError, TypeError):
        return f"{folder / FINISHED} cannot be read"
    return ""


def read_result(folder: str | Path) -> TrainingResult:
    """The result of a finished training. Raises D3S2Error when there is none, or when one of its
    files is no longer what the training wrote.
    """
    folder = Path(folder)
    if fault := _fault(folder):
        raise D3S2Error(f"{fault}: run notebook 04, which trains what is missing.")
    found = read_json(folder / RESULT)
    scores = found["per_class_iou"]
    found["per_class_iou"] = tuple(math.nan if score is None else score for score in scores)
    found["curve"] = tuple((int(step), float(loss)) for step, loss in found["curve"])
    cost = folder / "logs" / "cost.json"
    return TrainingResult(**found, cost=read_json(cost) if cost.is_file() else {})
