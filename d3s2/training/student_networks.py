"""Chapter 05: mmsegmentation's shipped LR-ASPP and U-Net, at the size of chapter 04's images.

Each inherits a configuration that mmsegmentation ships for training from scratch, and changes
values in it; all changes are our choice. LR-ASPP is the student of UniDD's segmentation table,
there on the large MobileNetV3 and with pretrained weights; here it has the small one and none. The
U-Net's first level has 16 channels instead of 64, so that it has 1.8 million parameters, as the
scaled-down Mask2Former has.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn

from d3s2.models.openmmlab import CONFIGS, MODELS
from d3s2.training import mask2former
from d3s2.training.job import TrainingJob

LRASPP = CONFIGS / "mobilenet_v3/mobilenet-v3-d8-scratch-s_lraspp_4xb4-320k_cityscapes-512x1024.py"
UNET = CONFIGS / "unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py"
CHANNELS = 16
"""Of the U-Net's first level; each of the four below has twice as many as the one above."""


@MODELS.register_module(name="D3S2PooledHead", force=True)
class PooledHead(MODELS.get("mmseg.LRASPPHead")):  # type: ignore[misc]
    """mmsegmentation's LR-ASPP head, whose pooled branch sees the whole image: the shipped window
    of 49 x 49 cells is larger than all cells of an image of 64 x 64 pixels.
    """

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self.image_pool[0] = nn.AdaptiveAvgPool2d(1)


def build_config(job: TrainingJob, student: str, checkpoint: Path | None = None) -> Config:
    """Chapter 04's configuration of this training, with the student in Mask2Former's place.

    student: a name of `students.STUDENTS`; checkpoint: the file by which a broken training goes on.
    """
    config = mask2former.build_config(job, checkpoint)
    model = _NETWORKS[student]()
    model["data_preprocessor"] = config.model.data_preprocessor.to_dict()
    for head in (model["decode_head"], model.get("auxiliary_head")):
        if head is not None:
            _fit_classes(head, job.num_classes)
    _plain_norms(model)
    model["test_cfg"] = {"mode": "whole"}
    config.model = model
    return config


def build_student(job: TrainingJob, student: str) -> nn.Module:
    """A student for a job with fresh weights, in eval mode."""
    init_default_scope("mmseg")
    return MODELS.build(build_config(job, student).model).eval()


def build_runner(job: TrainingJob, student: str, checkpoint: Path | None = None) -> Runner:
    """mmengine's Runner for a job. On the CPU it takes one thread: then the same job gives the same
    bytes.
    """
    if job.device == "cpu":
        torch.set_num_threads(1)
    return Runner.from_cfg(build_config(job, student, checkpoint))


def _lraspp() -> dict[str, Any]:
    model = Config.fromfile(str(LRASPP)).model.to_dict()
    model["decode_head"]["type"] = "D3S2PooledHead"
    return model


def _unet() -> dict[str, Any]:
    model = Config.fromfile(str(UNET)).model.to_dict()
    model["backbone"]["base_channels"] = CHANNELS
    model["decode_head"].update(in_channels=CHANNELS, channels=CHANNELS)
    model["auxiliary_head"].update(in_channels=2 * CHANNELS, channels=CHANNELS)
    return model


_NETWORKS: dict[str, Callable[[], dict[str, Any]]] = {"lraspp": _lraspp, "unet": _unet}


def _fit_classes(head: dict[str, Any], num_classes: int) -> None:
    """As many outputs as classes. Of data with one class, whose logits mmsegmentation would compare
    with a threshold, all pixels are class 0.
    """
    head.update(num_classes=num_classes, out_channels=num_classes)
    if num_classes == 1:
        head["threshold"] = float("inf")


def _plain_norms(part: Any) -> None:
    """Statistics of a process's own share of a batch in the place of all processes': SyncBN needs
    GPUs.
    """
    if isinstance(part, dict):
        for name, value in part.items():
            if name == "type" and value == "SyncBN":
                part[name] = "BN"
            _plain_norms(value)
