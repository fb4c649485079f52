"""How good is a synthetic image? What the proxy says of it, per image and per class, and what to do
about it.

Two remedies, both off by default: `ignore_doubtful` takes pixels out of the labels where the proxy
sees something else than the mask (FreeMask, Yang et al. 2023), and `best` picks one of several
images of the same mask. The proxy is no
truth: whatever it cannot see, neither remedy sees. That D3S2 filters or picks is not known to us.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import IGNORE, SegmentationDataset
from d3s2.data.tensors import pad_batch, read_images, read_masks
from d3s2.guidance.losses import (
    FeatureTargets,
    feature_matching,
    pixel_losses,
    segmentation_consistency,
)
from d3s2.models.proxy import ProxySegmenter

SCORES = {"segmentation_loss": -1, "feature_loss": -1, "proxy_agreement": 1}
"""What images can be picked by, and whether more of it is better (1) or worse (-1)."""


@torch.no_grad()
def judge(
    proxy: ProxySegmenter, targets: FeatureTargets, images: Tensor, labels: Tensor
) -> dict[str, list[float]]:
    """What the proxy says of images float[B, 3, H, W]: both losses, and the share of valid pixels
    it labels as the mask.
    """
    count, labels = len(labels), pad_batch(labels)
    output = proxy(pad_batch(images))
    right, pixels = class_agreement(output.logits, labels)
    values = {
        "segmentation_loss": segmentation_consistency(output.logits, labels),
        "feature_loss": feature_matching(output.features, labels, targets),
        "proxy_agreement": right.sum(1) / pixels.sum(1).clamp(min=1),
    }
    return {name: [round(float(v), 6) for v in value[:count]] for name, value in values.items()}


def class_agreement(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Per image and class, the pixels that the proxy labels as the mask does, and those the mask
    has.

    Args:
        logits: float[B, C, H, W]; labels: int64[B, H, W], 255 = ignore.
    Returns:
        two int64[B, C]; their ratio is the class's recall.
    """
    classes = logits.shape[1]
    members = F.one_hot(labels.masked_fill(labels == IGNORE, classes).flatten(1), classes + 1)[
        ..., :classes
    ]
    hit = (logits.argmax(1) == labels).flatten(1)[..., None]
    return (members * hit).sum(1), members.sum(1)


@torch.no_grad()
def class_mean_losses(
    proxy: ProxySegmenter, dataset: SegmentationDataset, batch: int = 8
) -> Tensor:
    """float64[C] on the CPU: the proxy's mean cross-entropy on the real pixels of each class;
    infinite for a class without any.

    One pass over `dataset`, which must be real images: FreeMask takes the training split.
    """
    total = torch.zeros(dataset.num_classes + 1, dtype=torch.float64)
    pixels = torch.zeros_like(total)
    for start in range(0, len(dataset), batch):
        indices = range(start, min(start + batch, len(dataset)))
        labels = pad_batch(read_masks(dataset, indices, str(proxy.device)))
        images = pad_batch(read_images(dataset, indices, str(proxy.device)))
        loss = pixel_losses(proxy(images).logits, labels)[: len(indices)].double().cpu().flatten()
        where = (
            labels[: len(indices)]
            .masked_fill(labels[: len(indices)] == IGNORE, dataset.num_classes)
            .cpu()
            .flatten()
        )
        total.index_add_(0, where, loss)
        pixels.index_add_(0, where, torch.ones_like(loss))
    return torch.where(pixels > 0, total / pixels.clamp(min=1), torch.inf)[:-1]


def ignore_doubtful(
    losses: Tensor, labels: Tensor, class_losses: Tensor, margin: float = 1.25
) -> Tensor:
    """FreeMask's filter: int64[B, H, W] labels with 255 where a pixel's loss is above `margin`
    times its class's real mean.

    Args:
        losses: float[B, H, W] from `pixel_losses`; labels: int64[B, H, W]; class_losses: float[C],
        see `class_mean_losses`.
    """
    limit = margin * class_losses.to(losses.device, torch.float64)
    doubtful = losses.double() > limit[labels.masked_fill(labels == IGNORE, 0)]
    return labels.masked_fill(doubtful, IGNORE)


def best(verdicts: Sequence[dict[str, list[float]]], score: str) -> list[int]:
    """For each image of a batch, which of several tries has the best score (the first of equals).

    Args:
        verdicts: `judge`'s answer for each try; score: a key of `SCORES`.
    """
    if score not in SCORES:
        raise D3S2Error(f"score is {score!r}: choose {', '.join(SCORES)}.")
    return (SCORES[score] * np.array([verdict[score] for verdict in verdicts])).argmax(0).tolist()
