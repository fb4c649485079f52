"""How good is a synthetic image? What the proxy says of it, per image and per class, and what to do
about it.

Two remedies, both off by default: `ignore_doubtful` takes pixels out of the labels where the proxy
sees something else than the mask (FreeMask, Yang et al. 2023), and `best` picks one of several
images of the same mask. The proxy is no truth: whatever it cannot see, neither remedy sees. That
D3S2 filters or picks is not known to us.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json, write_json
from d3s2.data.dataset import IGNORE, SegmentationDataset
from d3s2.data.tensors import class_members, class_pixels, pad_batch, read_images, read_masks
from d3s2.guidance.losses import (
    FeatureTargets,
    feature_matching,
    pixel_losses,
    segmentation_consistency,
)
from d3s2.models.proxy import ProxySegmenter

SCORES = {"segmentation_loss": -1, "feature_loss": -1, "proxy_agreement": 1}
"""What images can be picked by, and whether more of it is better (1) or worse (-1)."""


class Recognition(NamedTuple):
    """Shares of valid pixels that a segmenter labels as the mask does: over all pixels, and the
    mean over the classes.
    """

    pixels: float
    class_mean: float


@torch.no_grad()
def judge(
    proxy: ProxySegmenter, targets: FeatureTargets, images: Tensor, labels: Tensor
) -> dict[str, list[float]]:
    """What the proxy says of images: both losses, and the share of valid pixels it labels as the
    mask.

    Args:
        images: float[B, 3, H, W] in [-1, 1]; labels: int64[B, H, W], 255 = ignore.
    Returns:
        for each name of `SCORES` one number an image, rounded to six digits; an image's verdict
        does not depend on its company.
    """
    count = len(labels)
    labels = pad_batch(labels)
    output = proxy(pad_batch(images))
    recognised, present = class_agreement(output.logits, labels)
    values = {
        "segmentation_loss": segmentation_consistency(output.logits, labels),
        "feature_loss": feature_matching(output.features, labels, targets),
        "proxy_agreement": recognised.sum(1) / present.sum(1).clamp(min=1),
    }
    return {name: _rounded(value[:count]) for name, value in values.items()}


def _rounded(values: Tensor) -> list[float]:
    return [round(float(value), 6) for value in values]


def class_agreement(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Per image and class, the pixels that the proxy labels as the mask does, and those the mask
    has.

    Args:
        logits: float[B, C, H, W]; labels: int64[B, H, W], 255 = ignore.
    Returns:
        (recognised, present), two int64[B, C]; their ratio is the class's recall.
    """
    num_classes = logits.shape[1]
    missed = logits.argmax(1) != labels
    recognised = class_pixels(labels.masked_fill(missed, IGNORE), num_classes)
    return recognised, class_pixels(labels, num_classes)


@torch.no_grad()
def recognition(
    network: ProxySegmenter, dataset: SegmentationDataset, batch: int = 50
) -> Recognition:
    """How much of a set's pixels a segmenter, on the CPU, labels as their masks do; classes that do
    not occur do not count.
    """
    recognised = torch.zeros(dataset.num_classes, dtype=torch.int64)
    present = torch.zeros_like(recognised)
    for start in range(0, len(dataset), batch):
        indices = range(start, min(start + batch, len(dataset)))
        logits = network(read_images(dataset, indices)).logits
        right, there = class_agreement(logits, read_masks(dataset, indices))
        recognised += right.sum(0)
        present += there.sum(0)
    recall = (recognised / present)[present > 0]
    return Recognition(float(recognised.sum() / present.sum()), float(recall.mean()))


@torch.no_grad()
def class_mean_losses(
    proxy: ProxySegmenter, dataset: SegmentationDataset, batch: int = 8
) -> Tensor:
    """float64[C] on the CPU: the proxy's mean cross-entropy on the real pixels of each class;
    infinite for a class without any.

    One pass over `dataset`, which must be real images: FreeMask takes the training split.
    """
    classes = dataset.num_classes
    total = torch.zeros(classes + 1, dtype=torch.float64)  # one more for the ignored pixels
    pixels = torch.zeros_like(total)
    for start in range(0, len(dataset), batch):
        indices = range(start, min(start + batch, len(dataset)))
        labels = read_masks(dataset, indices, str(proxy.device))
        images = read_images(dataset, indices, str(proxy.device))
        loss = pixel_losses(proxy(pad_batch(images)).logits, pad_batch(labels))[: len(indices)]
        loss = loss.double().cpu().flatten()
        members = class_members(labels, classes).cpu().flatten()
        total.index_add_(0, members, loss)
        pixels.index_add_(0, members, torch.ones_like(loss))
    return torch.where(pixels > 0, total / pixels, torch.inf)[:classes]


def kept_class_losses(proxy: ProxySegmenter, dataset: SegmentationDataset, path: Path) -> Tensor:
    """`class_mean_losses` from the file of a run before, else computed and written there.

    In the file null stands for infinity, a class without a pixel, which JSON cannot write.
    Raises D3S2Error for a damaged file.
    """
    if not path.is_file():
        values = class_mean_losses(proxy, dataset).tolist()
        write_json(path, [value if math.isfinite(value) else None for value in values])
    known = [math.inf if value is None else value for value in read_json(path)]
    return torch.tensor(known, dtype=torch.float64)


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


def best(verdicts: Sequence[Mapping[str, Sequence[float]]], score: str) -> list[int]:
    """For each image of a batch, which of several tries has the best score (the first of equals;
    NaN is worse than any number).

    Args:
        verdicts: `judge`'s answer for each try; score: a key of `SCORES`.
    Raises:
        D3S2Error: for an unknown score, one that the verdicts, of another judge, do not hold, and
            an image whose tries are all NaN.
    """
    if score not in SCORES:
        raise D3S2Error(f"score is {score!r}: choose {', '.join(SCORES)}.")
    if not all(score in verdict for verdict in verdicts):
        raise D3S2Error(
            f"score is {score!r}, but the judge gives {', '.join(verdicts[0])}: choose one of them."
        )
    sign = SCORES[score]
    return [
        first_best([sign * value for value in tries], f"{score} of image {k} of the batch")
        for k, tries in enumerate(zip(*(verdict[score] for verdict in verdicts), strict=True))
    ]


def first_best(values: Sequence[float], what: str) -> int:
    """The place of the largest number, the first of equals. Raises D3S2Error if all are NaN."""
    numbers = [place for place, value in enumerate(values) if not math.isnan(value)]
    if not numbers:
        raise D3S2Error(
            f"The {what} is NaN in all {len(values)} tries, so none is the best: look at what the "
            "proxy answers."
        )
    return max(numbers, key=values.__getitem__)
