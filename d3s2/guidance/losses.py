"""The two guidance losses: segmentation consistency and class-wise feature matching.

The abstract of arXiv 2605.25022 names both and says that the second compares per-class feature
statistics across layers. The formulas below are our choice. Every loss returns one number per
image: the caller sums them, so that the images of a batch do not feel each other and a guidance
scale means the same at every batch size. Both are computed in float32, or the features' own
float64, whatever the precision of the proxy.

`scope="set"` of the second: compare not the image but the whole distilled set, the images made so
far (`SetMemory`) and this one together, with the data. One image is never as varied as a thousand;
a set can be.

`guidance_losses` puts the two together for the sampler. It is a factory: called once for a batch of
masks, it gives the function that is asked at every step. A method with losses of its own brings a
factory of the same shape (`painting.LossFactory`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import IGNORE
from d3s2.data.tensors import class_members, class_pixels, class_sums
from d3s2.models.proxy import ProxySegmenter
from d3s2.statistics.features import ClassMoments, soft_masks


@dataclass(frozen=True)
class LossOptions:
    """Forms of the two losses; the defaults are our choice.

    Args:
        balance: segmentation loss as the mean over classes, not over pixels.
        kappa: weight of the deviations in the feature loss, 0 = means only.
        layers: names of the proxy's layers to compare, () = all.
        scope: "image", or "set", which steers the statistics of all images made so far and this one
            together.
        renew: in the set scope, after how many images "so far" is brought up to date; images that
            share it can be made in any order and company.
    Raises:
        D3S2Error: for an unknown scope, a renew below 1 or a negative kappa.
    """

    balance: bool = False
    kappa: float = 1.0
    layers: tuple[str, ...] = ()
    scope: str = "image"
    renew: int = 8

    def __post_init__(self) -> None:
        if self.scope not in ("image", "set"):
            raise D3S2Error(f"scope is {self.scope!r}: use 'image' or 'set'.")
        if self.renew < 1 or not self.kappa >= 0:
            raise D3S2Error(
                f"renew is {self.renew} and kappa {self.kappa}: renew counts from 1, kappa is 0 or "
                "more."
            )


# ------------------------------------------------------------------------------------- segmentation


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
    num_classes = logits.shape[1]
    pixels = class_pixels(labels, num_classes)
    sums = class_sums(loss, class_members(labels, num_classes), num_classes)
    means = sums / pixels.clamp(min=1)
    return means.sum(1) / (pixels > 0).sum(1).clamp(min=1)


def pixel_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy between prediction and mask, pixel by pixel.

    Args:
        logits: float[B, C, H, W]; labels: int64[B, H, W], 255 = ignore.
    Returns:
        float[B, H, W] >= 0, 0 where a pixel is ignored; float32 at least.
    """
    return F.cross_entropy(_precise(logits), labels, ignore_index=IGNORE, reduction="none")


# ----------------------------------------------------------------------------------------- features
class ClassAreas:
    """The soft areas of the classes of a batch of masks, at every feature size asked for.

    Computed once and kept: the masks stay the same through all steps of a sampling run.
    """

    def __init__(self, labels: Tensor, num_classes: int) -> None:
        self.labels = labels
        self.num_classes = num_classes
        self._kept: dict[tuple[tuple[int, ...], torch.dtype], tuple[Tensor, Tensor]] = {}

    def at(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """The areas at the size of one layer's features float[B, D, h, w].

        Returns:
            n float[B, C] in cells; weights float[B, h * w, C], which sum to 1 over a class's cells.
        """
        size = (int(feature.shape[2]), int(feature.shape[3]))
        key = (size, feature.dtype)
        if key not in self._kept:
            masks = soft_masks(self.labels, self.num_classes, size)
            self._kept[key] = _areas(masks.to(feature.dtype))
        return self._kept[key]


def _areas(masks: Tensor) -> tuple[Tensor, Tensor]:
    """What `ClassAreas.at` gives, of soft masks float[B, C, h, w]."""
    cells = masks.flatten(2)
    n = cells.sum(2)
    weights = cells / n.clamp(min=1e-12)[..., None]
    return n, weights.transpose(1, 2)


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


def _weighted_moments(
    features: Tensor, weights: Tensor, center: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """(mean, variance) float[B, C, D] of features [B, D, h, w] under weights [B, h * w, C].

    center: float[D]; squares are taken about it, since E[x^2] - E[x]^2 cancels far from zero.
    """
    center = torch.as_tensor(center, device=features.device, dtype=features.dtype)
    flat = features.flatten(2) - center.reshape(-1, 1)
    # Features stand at the left: with the pixels first, a batch of one got a wrong gradient through
    # the proxy at noisy images (PyTorch 2.13 on a CPU; a test watches it).
    offset = (flat @ weights).transpose(1, 2)
    mean_square = (flat.square() @ weights).transpose(1, 2)
    mean = offset + weights.sum(1)[..., None] * center
    return mean, (mean_square - offset.square()).clamp(min=0)


def _precise(values: Tensor) -> Tensor:
    """Half precision becomes float32; all else stays."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


FAR = 8.0
"""From how many deviations on a channel counts as far from zero: its variance would lose more than
one part in 100,000.
"""


@dataclass(frozen=True)
class FeatureTargets:
    """What real classes look like, one item a layer of the proxy.

    mean and deviation float[C, D]; scale float[D], the channels' variance s^2 over all classes;
    known bool[C], whether the class was seen in the real data.
    """

    mean: list[Tensor]
    deviation: list[Tensor]
    scale: list[Tensor]
    known: list[Tensor]

    @classmethod
    def from_moments(
        cls,
        moments: ClassMoments,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        eps: float = 1e-6,
    ) -> FeatureTargets:
        """Take the targets from the statistics of chapter 01; sigma = sqrt(v + eps)."""
        deviation = [(variance + eps).sqrt() for variance in moments.variance()]
        return cls(
            _moved(moments.mean, device, dtype),
            _moved(deviation, device, dtype),
            _moved(moments.global_variance(), device, dtype),
            [(n > 0).to(device) for n in moments.n],
        )

    def center(self, layer: int) -> Tensor:
        """float[D]: the mean of the known classes' means, in the channels whose values are so far
        from zero that float32 would lose their variance; 0 in the others, whose bits stay.
        """
        known = self.known[layer]
        mean = (self.mean[layer] * known[:, None]).sum(0) / known.sum().clamp(min=1)
        far = mean.abs() > FAR * self.scale[layer].sqrt()
        return mean * far

    def distance(
        self, layer: int, mean: Tensor, variance: Tensor, kappa: float, eps: float
    ) -> Tensor:
        """float[B, C]: how far moments float[B, C, D] are from the real ones of one layer, in units
        of the channels' variance, averaged over the channels.
        """
        mean_gap = (mean - self.mean[layer]).square()
        deviation_gap = ((variance + eps).sqrt() - self.deviation[layer]).square()
        gap = mean_gap + kappa * deviation_gap
        return (gap / (self.scale[layer] + eps)).mean(2)


@dataclass(frozen=True)
class SetMemory:
    """The class statistics of the images made so far, one item a layer.

    n float[C]; mean and variance float[C, D].
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
            _moved(moments.n, device, dtype),
            _moved(moments.mean, device, dtype),
            _moved(moments.variance(), device, dtype),
        )

    def join(self, layer: int, n: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """The moments of the set with each image of a batch added to it, by Chan's formula.

        Args:
            n: float[B, C]; mean, variance: float[B, C, D], of each image alone.
        Returns:
            (mean, variance) float[B, C, D].
        """
        share = (n / (self.n[layer] + n).clamp(min=1e-12))[..., None]
        gap = mean - self.mean[layer]
        joint = (
            (1 - share) * self.variance[layer]
            + share * variance
            + share * (1 - share) * gap.square()
        )
        return self.mean[layer] + share * gap, joint


def _moved(
    values: Sequence[Tensor], device: str | torch.device, dtype: torch.dtype
) -> list[Tensor]:
    return [value.to(device, dtype) for value in values]


def feature_matching(
    features: Sequence[Tensor],
    labels: Tensor | ClassAreas,
    targets: FeatureTargets,
    *,
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
    chosen = _chosen_layers(len(features), targets, layers)
    areas = labels if isinstance(labels, ClassAreas) else ClassAreas(labels, len(targets.mean[0]))
    losses = []
    for layer in chosen:
        feature = _precise(features[layer])
        n, weights = areas.at(feature)
        mean, variance = _weighted_moments(feature, weights, targets.center(layer))
        if memory is not None:
            mean, variance = memory.join(layer, n, mean, variance)
        distance = targets.distance(layer, mean, variance, kappa, eps)
        present = ((n >= min_area) & targets.known[layer]).to(feature.dtype)
        losses.append((distance * present).sum(1) / present.sum(1).clamp(min=1))
    return sum(losses) / len(losses)


def _chosen_layers(
    count: int, targets: FeatureTargets, layers: Sequence[int] | None
) -> Sequence[int]:
    """The layers to compare out of the proxy's `count`, if there are such."""
    if count != len(targets.mean):
        raise D3S2Error(
            f"The proxy gives {count} feature layers but the statistics hold {len(targets.mean)}: "
            "run notebook 01 again with this proxy."
        )
    chosen = range(count) if layers is None else layers
    if not chosen or not set(chosen) <= set(range(count)):
        raise D3S2Error(f"layers are {list(chosen)}: choose some of 0 to {count - 1}.")
    return chosen


# --------------------------------------------------------------------------------------------- both
def guidance_losses(
    proxy: ProxySegmenter,
    labels: Tensor,
    targets: FeatureTargets,
    options: LossOptions = LossOptions(),
    memory: SetMemory | None = None,
) -> Callable[[Tensor], dict[str, Tensor]]:
    """Both losses of chapter 03 for a batch of masks; they share one pass through the proxy.

    Args:
        labels: int64[B, H, W], 255 = ignore.
        memory: the images made so far, for the set scope; None = each image on its own.
    Returns:
        A function of images float[B, 3, H, W] in [-1, 1] (see `sampler.Losses`), which gives
        "segmentation" and "feature", float[B] each.
    Raises:
        D3S2Error: for a layer that the proxy does not have.
    """
    unknown = sorted(set(options.layers) - set(proxy.layers))
    if unknown:
        raise D3S2Error(
            f"The proxy has no layer {unknown[0]!r}: choose from {', '.join(proxy.layers)}."
        )
    layers = [proxy.layers.index(name) for name in options.layers] or None
    areas = ClassAreas(labels, len(targets.mean[0]))

    def losses(images: Tensor) -> dict[str, Tensor]:
        output = proxy(images)
        return {
            "segmentation": segmentation_consistency(output.logits, labels, options.balance),
            "feature": feature_matching(
                output.features, areas, targets, kappa=options.kappa, layers=layers, memory=memory
            ),
        }

    return losses
