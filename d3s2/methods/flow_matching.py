"""SFM's loss: the flow of the class centres of a set, held against that of the real data.

Statistical Flow Matching (arXiv 2602.05391) gives an image one class and one feature vector; its
public code calls `flow_c` the way from the centre mu_c of class c to the mean of the other classes'
centres, and compares all of them by one cosine. Here a class is a region: its centre is the mean of
the dense features under its mask, over all images of a set. Ours are the soft area masks, the
division of the features by their deviation s_d, one cosine for each layer, the mean over layers,
and that a class which a set hardly shows is in neither flow. Where a released line divides by the
number of images less one, the number of classes less one stands here, as the text has it: the same
for one image a class.

For class-balanced cross-entropy the flow is the gradient of a linear head at W = 0, but for the
factor (P - 1) / P^2: SFM is gradient matching without a gradient of a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from d3s2.core.errors import D3S2Error
from d3s2.guidance.losses import FeatureTargets
from d3s2.statistics.features import ClassMoments

MIN_AREA = 0.5
"""Feature cells: a class of which the whole set shows less is in neither flow. Our choice."""
EPS = 1e-6
"""Added to the channels' variance before its root is divided by, as in chapter 03."""


class Centres(NamedTuple):
    """Sums from which the class centres of one layer follow; sums of parts of a set add up.

    area: float[C] in feature cells; total: float[C, D], the features summed over a class's area.
    """

    area: Tensor
    total: Tensor

    @property
    def mean(self) -> Tensor:
        """mu float[C, D]; zeros for a class without area."""
        return self.total / self.area.clamp(min=1e-12)[:, None]

    def join(self, other: Centres) -> Centres:
        """The sums of both parts of a set. Raises D3S2Error for other classes or channels."""
        if self.total.shape != other.total.shape:
            raise D3S2Error(
                f"centres of {tuple(self.total.shape)} and {tuple(other.total.shape)} (classes, "
                "channels) cannot be joined: take both from one layer of one proxy."
            )
        return Centres(self.area + other.area, self.total + other.total)

    @staticmethod
    def of_moments(moments: ClassMoments, layer: int) -> Centres:
        """Those of the real data, float64 on the CPU, from the statistics of chapter 01."""
        area = moments.n[layer]
        return Centres(area, area[:, None] * moments.mean[layer])


def class_centres(features: Tensor, masks: Tensor) -> Centres:
    """The class centres of one layer over all images together; differentiable in the features.

    Args:
        features: float[B, D, h, w]; half precision is summed in float32.
        masks: float[B, C, h, w] in [0, 1], as `statistics.features.soft_masks` gives them.
    Raises:
        D3S2Error: for masks of another batch or size.
    """
    if (len(features), *features.shape[2:]) != (len(masks), *masks.shape[2:]):
        raise D3S2Error(
            f"features of shape {tuple(features.shape)} need masks of their batch and size, not "
            f"{tuple(masks.shape)}: give soft_masks the features' size."
        )
    wide = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
    weights = masks.to(wide.dtype).flatten(2)
    total = (wide.flatten(2) @ weights.transpose(1, 2)).sum(0).T
    return Centres(weights.sum((0, 2)), total)


def flow(centres: Tensor, present: Tensor) -> Tensor:
    """The flow of the present classes: from each centre to the mean of the others.

    flow_c = (sum of the others) / (P - 1) - mu_c = P / (P - 1) (mean of all - mu_c), P = number of
    classes present. Absent classes are in no sum: a zero in their place would be a centre too.

    Args:
        centres: float[C, D]; present: bool[C].
    Returns:
        float[P, D], its rows in the order of the classes; they sum to zero.
    Raises:
        D3S2Error: for fewer than two classes, between which nothing flows.
    """
    chosen = centres[present]
    count = len(chosen)
    if count < 2:
        raise D3S2Error(
            f"a flow runs between classes, and there is {count}: take masks that show two or more."
        )
    return (chosen.mean(0) - chosen) * (count / (count - 1))


def flow_distance(found: Tensor, real: Tensor) -> Tensor:
    """1 - cos of two flows float[P, D], each taken as one long vector: from 0, the same direction,
    to 2, the opposite one.
    """
    return 1 - F.cosine_similarity(found.flatten(), real.flatten(), dim=0)


def flow_matching(
    found: Sequence[Centres],
    targets: FeatureTargets,
    layers: Sequence[int] | None = None,
    min_area: float = MIN_AREA,
) -> Tensor:
    """SFM's loss of a set of images: 1 - cos of its flow and the real one, mean over the layers.

    Both flows are restricted to the classes of which the set shows `min_area` cells in the layer
    and the real data some, and have their features divided by s_d, lest the channels of large
    values decide alone. A layer in which fewer than two such classes are left is left out.

    Args:
        found: the set's sums, one item for each layer compared.
        targets: what the real classes look like, on the same device.
        layers: numbers of these layers among those of the targets; None = all of them, in order.
    Returns:
        A scalar in [0, 2]; 0, with a gradient of zero, where no layer is left.
    Raises:
        D3S2Error: when there is no layer, or another number of them than of sums.
    """
    numbers = range(len(targets.mean)) if layers is None else layers
    if not found or len(found) != len(numbers):
        raise D3S2Error(
            f"there are centres of {len(found)} layers and {len(numbers)} layers to compare them "
            "with: give one for each."
        )
    losses = []
    for centres, layer in zip(found, numbers, strict=True):
        present = (centres.area >= min_area) & targets.known[layer]
        if int(present.sum()) > 1:
            deviation = (targets.scale[layer] + EPS).sqrt()
            real = flow(targets.mean[layer] / deviation, present)
            losses.append(flow_distance(flow(centres.mean / deviation, present), real))
    if not losses:
        return sum(0 * centres.total.sum() for centres in found)
    return torch.stack(losses).mean()


def layer_numbers(known: Sequence[str], wanted: Sequence[str] = ()) -> tuple[int, ...]:
    """The numbers of a proxy's layers of these names; without names, of all but the finest and the
    last (of all, where there are only two): our stand-in for the self-supervised backbone.

    Raises D3S2Error for a name that the proxy does not have.
    """
    if unknown := sorted(set(wanted) - set(known)):
        raise D3S2Error(f"The proxy has no layer {unknown[0]!r}: choose from {', '.join(known)}.")
    if wanted:
        return tuple(known.index(name) for name in wanted)
    inner = range(1, len(known) - 1)
    return tuple(inner or range(len(known)))
