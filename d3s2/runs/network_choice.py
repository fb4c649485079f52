"""Which network chapter 04 trains, and where its pretrained backbone lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d3s2.runs.parameters import Settings
from d3s2.runs.published import missing, named_or_published


def training_network(settings: Settings) -> dict[str, Any]:
    """The fields of a `TrainingJob` that say which network is trained, by how many processes."""
    shared = {"processes": settings.gpus}
    if settings.network == "scaled-down":
        return shared
    return shared | {"network": settings.network, "backbone_weights": str(backbone_path(settings))}


def backbone_path(settings: Settings) -> Path:
    """The ImageNet weights of Swin-S: as named, else where `d3s2 fetch` puts the published ones."""
    address = "" if settings.backbone_weights else _address()
    return named_or_published(settings.backbone_weights, address)


def missing_backbone(settings: Settings) -> str:
    """A sentence when the network needs ImageNet weights that are not there, else ""."""
    if settings.network != "swin-s" or backbone_path(settings).is_file():
        return ""
    what = "the ImageNet weights of Swin-S"
    return missing(what, backbone_path(settings), _address(), "backbone_weights")


def _address() -> str:
    from d3s2.training.mask2former import SHIPPED, Config  # imports mmsegmentation: seconds

    return Config.fromfile(str(SHIPPED)).model.backbone.init_cfg.checkpoint
