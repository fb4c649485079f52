"""Chapter 04's training, and what it trained, in words that mmsegmentation knows without d3s2.

`training_config` says what `mask2former.build_config` says, as far as plain mmsegmentation can: its
own data set instead of `registered.FolderDataset`, its own head, mmengine's loop and optimizer.
`WORDS` tells the reader of the file what that leaves out.
"""

from __future__ import annotations

import pprint
import textwrap
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from d3s2.core.files import atomic_path
from d3s2.data.dataset import IGNORE
from d3s2.training.job import TrainingJob
from d3s2.training.mask2former import SHIPPED, Config, build_config, plain_config

WIDTH = 100
WORDS = """\
Mask2Former on the images and masks beside this file, with mmsegmentation alone: give this file to
its tools/train.py. mmcv needs its compiled operations (MultiScaleDeformableAttention).

Network, losses, augmentation, optimizer, schedule and batch are those of chapter 04 of d3s2. What
is said there and cannot be said here:
- Queries and masks are matched by the same costs, but image by image, not a batch at once: the
  random points at which masks are compared are others, and with them the weights.
- The network is judged nowhere: a distilled set has no validation split. Name one of your own as
  val_dataloader, val_evaluator and val_cfg, with images resized as in test_pipeline.
- batch_size is the whole batch, for one process: for several, divide it by their number.
- A training that was broken off goes on from a checkpoint of mmengine's (resume), which draws other
  images from there on.
- AdamW is not fused here, since not every PyTorch can on a CPU: sums are rounded differently."""
MIXED = """\
- Mixed precision is mmengine's AmpOptimWrapper, which asks for a GPU."""
PRETRAINED = """\
- The backbone begins with the ImageNet weights that mmsegmentation fetches from the address in
  init_cfg; put a file of your own there where you do not trust an address."""


class _Name(str):
    """A name in a configuration, written without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


_OWN_FOLDER = _Name('"{{ fileDirname }}"')
"""mmengine puts the file's own folder there; in these quotes its name may hold an apostrophe."""


def training_config(
    job: TrainingJob, classes: Sequence[str], palette: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """A configuration that trains as the job does, on the folder in which its file lies: images and
    masks uint8[H, W] of train ids (255 = ignore) in `train/images` and `train/labels`, all PNG.

    classes, palette: names and colours (RGB, 0 to 255) in the order of the train ids.
    """
    config = build_config(job)
    shown = {"classes": list(classes), "palette": [list(map(int, color)) for color in palette]}
    plain = plain_config(config, shown)
    if job.network == "swin-s":
        plain["model"]["backbone"]["init_cfg"] = _published_backbone()
    return {
        "default_scope": plain["default_scope"],
        "data_root": _OWN_FOLDER,
        "dataset_meta": plain["dataset_meta"],
        "model": plain["model"],
        "train_dataloader": _loader(config),
        "test_pipeline": plain["test_pipeline"],
        "optim_wrapper": _optimizer(config, job),
        "param_scheduler": [dict(each) for each in config.param_scheduler],
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": job.iterations},
        "default_hooks": {
            "checkpoint": {
                "type": "CheckpointHook",
                "by_epoch": False,
                "interval": job.checkpoint_every,
                "max_keep_ckpts": 1,
            },
            "logger": {"type": "LoggerHook", "interval": 50, "log_metric_by_epoch": False},
        },
        "log_processor": {"by_epoch": False},
        "randomness": {"seed": job.seed},
        "work_dir": "work_dirs/mask2former",
    }


def words_of(job: TrainingJob) -> str:
    """What the reader of a job's `training_config` must know of it."""
    words = [WORDS]
    if job.precision != "float32":
        words.append(MIXED)
    if job.network == "swin-s":
        words.append(PRETRAINED)
    return "\n".join(words)


def as_python(config: Mapping[str, Any], words: str) -> str:
    """The text of a Python file that holds these values and nothing else, the words above them."""
    lines = [f"# {line}".rstrip() for line in words.splitlines()]
    for name, value in config.items():
        lines += ["", f"{name} = {_written(value, len(name) + 3)}"]
    return "\n".join(lines) + "\n"


def write_checkpoint_pth(weights: Path, path: Path, meta: Mapping[str, Any]) -> None:
    """The weights of a training, a safetensors file, as mmengine's trainer leaves them: in a pickle
    with the classes and the palette, of which `torch.load` needs no more than tensors and values.
    """
    state = OrderedDict(sorted(load_file(weights).items()))
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        torch.save({"meta": dict(meta), "state_dict": state}, file)


def _written(value: Any, indent: int) -> str:
    """A value as Python has it; what is longer than a line goes on below its beginning."""
    text = pprint.pformat(value, width=WIDTH - indent, sort_dicts=False, compact=True)
    first, *more = text.splitlines()
    return "\n".join([first, *(textwrap.indent(line, " " * indent) for line in more)])


def _published_backbone() -> dict[str, Any]:
    """Where the shipped configuration takes the backbone's weights from."""
    return Config.fromfile(str(SHIPPED)).model.backbone.init_cfg.to_dict()


def _loader(config: Config) -> dict[str, Any]:
    """The job's training data, read by mmsegmentation's own data set."""
    loader = {name: value for name, value in config.train_dataloader.items() if name != "dataset"}
    given = config.train_dataloader["dataset"]["pipeline"]
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]
    return _plain(loader) | {
        "dataset": {
            "type": "BaseSegDataset",
            "data_root": _Name("data_root"),
            "data_prefix": {"img_path": "train/images", "seg_map_path": "train/labels"},
            "img_suffix": ".png",
            "seg_map_suffix": ".png",
            "metainfo": _Name("dataset_meta"),
            "ignore_index": IGNORE,
            "reduce_zero_label": False,
            "pipeline": pipeline + _plain(given),
        }
    }


def _optimizer(config: Config, job: TrainingJob) -> dict[str, Any]:
    """The job's optimizer and, for fewer bits, mmengine's own wrapper around it."""
    wrapper = config.optim_wrapper.to_dict()
    wrapper["optimizer"].pop("fused", None)
    for ours in ("precision", "device", "accumulative_counts"):
        wrapper.pop(ours, None)
    if job.precision == "float32":
        return wrapper
    scale = "dynamic" if job.precision == "float16" else 1.0
    return wrapper | {"type": "AmpOptimWrapper", "dtype": job.precision, "loss_scale": scale}


def _plain(value: Any) -> Any:
    """A part of a configuration in Python's own types."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(each) for each in value)
    return value
