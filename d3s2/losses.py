"""The two guidance losses: segmentation consistency and class-wise feature matching.

The abstract of arXiv 2605.25022 names both and says that the second compares per-class feature statistics across
layers. The formulas below are our choice. Every loss returns one number per image: the caller sums them, so that the
images of a batch do not feel each other and a guidance scale means the same at every batch size.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .data.base import IGNORE
from .errors import D3S2Error
from .statistics import ClassMoments, soft_masks


def segmentation_consistency(logits: Tensor, labels: Tensor, balance: bool = False) -> Tensor:
    """Cross-entropy between the proxy's prediction and the mask, per image.

    L_seg = mean over valid pixels of -log softmax(logits)[label]; with `balance`, the mean over the classes present of
    their own means, so that a kite weighs as much as the sky.

    Args:
        logits: float[B, C, H, W]; labels: int64[B, H, W], 255 = ignore.
    Returns:
        float[B] >= 0; exactly 0 for an image without a valid pixel.
    """
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").flatten(1)
    if not balance:
        return loss.sum(1) / (labels != IGNORE).flatten(1).sum(1).clamp(min=1)
    members = F.one_hot(labels.masked_fill(labels == IGNORE, logits.shape[1]).flatten(1), logits.shape[1] + 1)[..., :-1]
    pixels = members.sum(1)
    means = torch.einsum("bp,bpc->bc", loss, members.to(loss.dtype)) / pixels.clamp(min=1)
    return means.sum(1) / (pixels > 0).sum(1).clamp(min=1)


def class_moments(features: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiable per-class area, mean and variance of one layer's features inside each image.

    Args:
        features: float[B, D, h, w]; masks: float[B, C, h, w], soft area masks.
    Returns:
        n float[B, C], mean float[B, C, D], variance float[B, C, D] (biased, >= 0); zeros for a class without area.
    """
    n = masks.flatten(2).sum(2)
    weights = (masks.flatten(2) / n.clamp(min=1e-12)[..., None]).transpose(1, 2)
    # Features stand at the left: with the pixels first, a batch of one got a wrong gradient through the proxy at noisy
    # images (PyTorch 2.13 on a CPU; a test watches it).
    flat = features.flatten(2)
    mean = (flat @ weights).transpose(1, 2)
    variance = ((flat.square() @ weights).transpose(1, 2) - mean.square()).clamp(min=0)
    return n, mean, variance


@dataclass(frozen=True)
class FeatureTargets:
    """What real classes look like: per layer mean and deviation float[C, D], and the channel variance s^2 float[D]."""

    mean: list[Tensor]
    deviation: list[Tensor]
    scale: list[Tensor]
    known: list[Tensor]  # bool[C]: the class was seen in the real data

    @classmethod
    def from_moments(cls, moments: ClassMoments, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
                     eps: float = 1e-6) -> FeatureTargets:
        """Take the targets from the statistics of chapter 01; sigma = sqrt(v + eps)."""
        def put(values: Sequence[Tensor]) -> list[Tensor]:
            return [value.to(device, dtype) for value in values]

        return cls(put(moments.mean), put([(v + eps).sqrt() for v in moments.variance()]), put(moments.global_variance()),
                   [(n > 0).to(device) for n in moments.n])


def feature_matching(features: Sequence[Tensor], labels: Tensor, targets: FeatureTargets, kappa: float = 1.0,
                     min_area: float = 0.5, eps: float = 1e-6) -> Tensor:
    """Distance between each image's class statistics and those of the real data, averaged over layers and classes.

    L_feat = mean_l mean_{c present} mean_d [ (mu^_cd - mu_cd)^2 + kappa (sigma^_cd - sigma_cd)^2 ] / (s_d^2 + eps).

    Args:
        features: per layer float[B, D_l, h_l, w_l]; labels: int64[B, H, W], 255 = ignore.
        kappa: weight of the deviations; 0 compares means only.
        min_area: a class counts as present in a layer when its soft area reaches this many feature cells.
    Returns:
        float[B] >= 0; 0 for an image in which no class is present.
    Raises:
        D3S2Error: when the targets have another number of layers than the features.
    """
    if len(features) != len(targets.mean):
        raise D3S2Error(f"The proxy gives {len(features)} feature layers but the statistics hold {len(targets.mean)}: "
                        "run notebook 01 again with this proxy.")
    total = torch.zeros(len(labels), device=labels.device, dtype=features[0].dtype)
    for feature, mean, deviation, scale, known in zip(features, targets.mean, targets.deviation, targets.scale, targets.known):
        masks = soft_masks(labels, len(mean), tuple(feature.shape[2:])).to(feature.dtype)
        n, mu, variance = class_moments(feature, masks)
        present = ((n >= min_area) & known).to(feature.dtype)
        gap = (mu - mean).square() + kappa * ((variance + eps).sqrt() - deviation).square()
        per_class = (gap / (scale + eps)).mean(2)
        total = total + (per_class * present).sum(1) / present.sum(1).clamp(min=1)
    return total / len(features)
