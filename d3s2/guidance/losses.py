"""The two guidance losses: segmentation consistency and class-wise feature matching.

The abstract of arXiv 2605.25022 names both and says that the second compares per-class feature
statistics across layers. The formulas below are our choice. Every loss returns one number per
image: the caller sums them, so that the images of a batch do not feel each other and a guidance
scale means the same at every batch size. Both are computed in float32, or the features' own
float64, whatever the precision of the proxy.

`scope="set"` of the second: compare not the image but the whole distilled set, the images made so
far (`SetMemory`) and this one together, with the data. One image is never as varied as a thousand;
a set can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import IGNORE
from d3s2.statistics.features import ClassMoments, soft_masks


def segmentation_consistency(logits: Tensor, labels: Tensor, balance: bool = False) -> Tensor:
    """Cross-entropy between the proxy's prediction and the mask, per image.

    L_seg = mean over valid pixels of -log softmax(logits)[label]; with `balance`, the mean over the
    classes present of their own means, so that a kite weighs as much as the sky.

    Args:
        logits: float[B, C, H, W]; labels: int64[B, H, W], 255 = ignore.
    Returns:
        float[B] >= 0; exactly 0 for an image without a valid pixel.
    """
    loss = pixel_losses(logits, labels).flatten(1)
    if not balance:
        return loss.sum(1) / (labels != IGNORE).flatten(1).sum(1).clamp(min=1)
    members = F.one_hot(
        labels.masked_fill(labels == IGNORE, logits.shape[1]).flatten(1), logits.shape[1] + 1
    )[..., :-1]
    pixels = members.sum(1)
    means = torch.einsum("bp,bpc->bc", loss, members.to(loss.dtype)) / pixels.clamp(min=1)
    return means.sum(1) / (pixels > 0).sum(1).clamp(min=1)


def pixel_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """float[B, H, W]: -log softmax(logits)[label] of every pixel, 0 where it is ignored; float32 at
    least.
    """
    return F.cross_entropy(_precise(logits), labels, ignore_index=IGNORE, reduction="none")


class ClassAreas:
    """The soft areas of the classes of a batch of masks, at every feature size asked for.

    Computed once and kept: the masks stay the same through all steps of a sampling run.
    """

    def __init__(self, labels: Tensor, num_classes: int) -> None:
        self.labels, self.num_classes = labels, num_classes
        self._kept: dict[tuple[tuple[int, ...], torch.dtype], tuple[Tensor, Tensor]] = {}

    def at(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """(n float[B, C] in cells, weights float[B, h * w, C] that sum to 1 over a class's cells)
        for one layer.
        """
        key = (tuple(feature.shape[2:]), feature.dtype)
        if key not in self._kept:
            masks = soft_masks(self.labels, self.num_classes, (int(key[0][0]), int(key[0][1])))
            self._kept[key] = _areas(masks.to(feature.dtype))
        return self._kept[key]


def _areas(masks: Tensor) -> tuple[Tensor, Tensor]:
    n = masks.flatten(2).sum(2)
    return n, (masks.flatten(2) / n.clamp(min=1e-12)[..., None]).transpose(1, 2)


def class_moments(features: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiable per-class area, mean and variance of one layer's features inside each image.

    Args:
        features: float[B, D, h, w]; masks: float[B, C, h, w], soft area masks.
    Returns:
        n float[B, C], mean float[B, C, D], variance float[B, C, D] (biased, >= 0); zeros for a
        class without area.
    """
    n, weights = _areas(masks)
    return n, *_weighted_moments(features, weights)


def _weighted_moments(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    # Features stand at the left: with the pixels first, a batch of one got a wrong gradient through
    # the proxy at noisy
    # images (PyTorch 2.13 on a CPU; a test watches it).
    flat = features.flatten(2)
    mean = (flat @ weights).transpose(1, 2)
    variance = ((flat.square() @ weights).transpose(1, 2) - mean.square()).clamp(min=0)
    return mean, variance


def _precise(values: Tensor) -> Tensor:
    """Half precision becomes float32; all else stays."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


@dataclass(frozen=True)
class FeatureTargets:
    """What real classes look like: per layer mean and deviation float[C, D], and the channel
    variance s^2 float[D].
    """

    mean: list[Tensor]
    deviation: list[Tensor]
    scale: list[Tensor]
    known: list[Tensor]  # bool[C]: the class was seen in the real data

    @classmethod
    def from_moments(
        cls,
        moments: ClassMoments,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        eps: float = 1e-6,
    ) -> FeatureTargets:
        """Take the targets from the statistics of chapter 01; sigma = sqrt(v + eps)."""

        def put(values: Sequence[Tensor]) -> list[Tensor]:
            return [value.to(device, dtype) for value in values]

        return cls(
            put(moments.mean),
            put([(v + eps).sqrt() for v in moments.variance()]),
            put(moments.global_variance()),
            [(n > 0).to(device) for n in moments.n],
        )


@dataclass(frozen=True)
class SetMemory:
    """The class statistics of the images made so far: per layer n float[C], mean and variance
    float[C, D].
    """

    n: list[Tensor]
    mean: list[Tensor]
    variance: list[Tensor]

    @classmethod
    def from_moments(
        cls,
        moments: ClassMoments,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> SetMemory:
        """Take them from moments, which merge: any split of the set into shards gives the same
        memory.
        """
        return cls(
            *(
                [value.to(device, dtype) for value in part]
                for part in (moments.n, moments.mean, moments.variance())
            )
        )

    def join(self, layer: int, n: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, variance) float[B, C, D] of the set with each image of a batch added to it, by
        Chan's formula.
        """
        share = (n / (self.n[layer] + n).clamp(min=1e-12))[..., None]
        gap = mean - self.mean[layer]
        joint = (
            (1 - share) * self.variance[layer]
            + share * variance
            + share * (1 - share) * gap.square()
        )
        return self.mean[layer] + share * gap, joint


def feature_matching(
    features: Sequence[Tensor],
    labels: Tensor | ClassAreas,
    targets: FeatureTargets,
    kappa: float = 1.0,
    min_area: float = 0.5,
    eps: float = 1e-6,
    layers: Sequence[int] | None = None,
    memory: SetMemory | None = None,
) -> Tensor:
    """Distance between each image's class statistics and those of the real data, averaged over
    layers and classes.

    L_feat = mean_l mean_{c present} mean_d [ (mu^_cd - mu_cd)^2 + kappa (sigma^_cd - sigma_cd)^2 ]
    / (s_d^2 + eps).

    Args:
        features: per layer float[B, D_l, h_l, w_l]; labels: int64[B, H, W], 255 = ignore, or their
        `ClassAreas`.
        kappa: weight of the deviations; 0 compares means only.
        min_area: a class counts as present in a layer when its soft area reaches this many feature
        cells.
        layers: numbers of the layers to compare; None = all.
        memory: the images made so far; mu^ and sigma^ are then those of the set with this image
        added ("set" scope).
    Returns:
        float[B] >= 0; 0 for an image in which no class is present.
    Raises:
        D3S2Error: when the targets have another number of layers than the features, or there is no
        layer to compare.
    """
    if len(features) != len(targets.mean):
        raise D3S2Error(
            f"The proxy gives {len(features)} feature layers but the statistics hold "
            f"{len(targets.mean)}: "
            "run notebook 01 again with this proxy."
        )
    chosen = range(len(features)) if layers is None else layers
    if not chosen or not set(chosen) <= set(range(len(features))):
        raise D3S2Error(f"layers are {list(chosen)}: choose some of 0 to {len(features) - 1}.")
    areas = labels if isinstance(labels, ClassAreas) else ClassAreas(labels, len(targets.mean[0]))
    total = torch.zeros(
        len(areas.labels), device=areas.labels.device, dtype=_precise(features[0]).dtype
    )
    for layer in chosen:
        feature, mean, deviation = (
            _precise(features[layer]),
            targets.mean[layer],
            targets.deviation[layer],
        )
        n, weights = areas.at(feature)
        mu, variance = _weighted_moments(feature, weights)
        if memory is not None:
            mu, variance = memory.join(layer, n, mu, variance)
        present = ((n >= min_area) & targets.known[layer]).to(feature.dtype)
        gap = (mu - mean).square() + kappa * ((variance + eps).sqrt() - deviation).square()
        per_class = (gap / (targets.scale[layer] + eps)).mean(2)
        total = total + (per_class * present).sum(1) / present.sum(1).clamp(min=1)
    return total / len(chosen)
