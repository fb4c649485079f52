"""What chapter 04 trains and on which files, how it judges, and where the pretrained backbone
lies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d3s2.core import machine
from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.pairing import parse_size
from d3s2.runs.parameters import Settings
from d3s2.runs.published import missing, named_or_published


def training_network(settings: Settings) -> dict[str, Any]:
    """The fields of a `TrainingJob` that say which network is trained, by how many processes, how
    it is judged, and who looks on.
    """
    shared = {"processes": settings.gpus, "protocol": settings.protocol}
    shared |= {"precision": settings.training_precision}
    shared |= {"judge_every": settings.judge_every, "tracking": settings.tracking}
    if settings.network == "scaled-down":
        return shared
    return shared | {"network": settings.network, "backbone_weights": str(backbone_path(settings))}


def training_data(
    settings: Settings, train: SegmentationDataset, val: SegmentationDataset
) -> dict[str, Any]:
    """The fields of a `TrainingJob` that say which images it reads: the prepared ones, or with
    protocol=published the files that these were prepared from. A distilled set has no others.
    """
    places = {"train_root": str(train.root), "val_root": str(val.root)}
    places |= {"train_ids": train.ids, "val_ids": val.ids}
    if settings.protocol == "squeezed":
        return places
    places |= {"val_root": settings.data_root, "val_format": settings.data_format}
    if train.root == val.root:  # prepared together
        places |= {"train_root": settings.data_root, "train_format": settings.data_format}
    return places


def protocol_facts(settings: Settings) -> dict[str, str]:
    """What a table of this run must say of how its scores were made, under "protocol"; nothing
    where nobody would hold them beside published ones.
    """
    if settings.protocol == "published":
        short = min(parse_size(settings.image_size))
        how = (
            f"published: crops of {settings.image_size} of the original images; whole validation "
            f"images with a short side of {short}, judged at the size of their own masks"
        )
        return {"protocol": how}
    if settings.network == "scaled-down":
        return {}
    size = settings.image_size
    how = f"squeezed: images and masks of {size} whatever their aspect, also to judge"
    return {"protocol": f"{how}; not the usual evaluation"}


def backbone_path(settings: Settings) -> Path:
    """The ImageNet weights of Swin-S: as named, else where `d3s2 fetch` puts the published ones."""
    address = "" if settings.backbone_weights else _address()
    return named_or_published(settings.backbone_weights, address)


def missing_backbone(settings: Settings) -> str:
    """A sentence when the network needs ImageNet weights that are not there, or that cannot be read
    as weights alone, else "".
    """
    if settings.network != "swin-s":
        return ""
    path = backbone_path(settings)
    if not path.is_file():
        return missing("the ImageNet weights of Swin-S", path, _address(), "backbone_weights")
    from d3s2.models.checkpoints import read_checkpoint  # imports PyTorch: seconds

    try:
        read_checkpoint(path)
    except D3S2Error as error:
        return str(error)
    return ""


def refused_precision(settings: Settings) -> str:
    """A sentence when the trainings' precision needs a GPU and the run takes none, else ""."""
    needs_gpu = settings.training_precision == "float16" and settings.device != "cuda"
    if not needs_gpu or machine.pick_device(settings.device) != "cpu":
        return ""
    return (
        "training_precision is 'float16', which is for GPUs, but the networks run on the CPU: take "
        "bfloat16 or float32."
    )


def _address() -> str:
    from d3s2.training.mask2former import SHIPPED, Config  # imports mmsegmentation: seconds

    return Config.fromfile(str(SHIPPED)).model.backbone.init_cfg.checkpoint
