"""How SFM shows an image to the network: a random view of it, together with its mask.

The files with the released augmentation are absent from the public code of SFM (arXiv 2602.05391).
Its names, and the numbers in the code that it grew from, are: flips; crops of .08 to 1 of the area
with sides of 3/4 to 4/3; noise of deviation .2 about a mean of .5. Ours: image and mask go through
one view; crops of .36 and more, lest small classes are lost; noise about 0; what lies beside the
image is ignored.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from d3s2.data.dataset import IGNORE


class Views(NamedTuple):
    """How each image of a set is shown in one step.

    theta: float[N, 2, 3], from the view's coordinates to the image's, both in [-1, 1]; noise:
    float[N], its deviation in images of [-1, 1].
    """

    theta: Tensor
    noise: Tensor


def draw_views(count: int, smallest_crop: float, noise: float, rng: torch.Generator) -> Views:
    """For each image a crop of an area in [smallest_crop, 1] and a ratio of sides in [3/4, 4/3], at
    any place, flipped every other time, noised every other time.

    A crop can be wider than the image, and then holds all of its width and something beside it.
    noise: its deviation in images of [0, 1].
    """
    area, ratio, across, down = torch.rand(4, count, generator=rng)
    flips, noises = torch.rand(2, count, generator=rng) < 0.5
    area = smallest_crop + (1 - smallest_crop) * area
    ratio = ((2 * ratio - 1) * math.log(4 / 3)).exp()
    sides = ((area * ratio).sqrt(), (area / ratio).sqrt())
    theta = torch.zeros(count, 2, 3)
    for axis, (side, place) in enumerate(zip(sides, (across, down), strict=True)):
        theta[:, axis, axis] = side
        theta[:, axis, 2] = (2 * place - 1) * (1 - side).abs()
    theta[:, 0, 0] *= torch.where(flips, -1, 1)
    return Views(theta, 2 * noise * noises)


def shown(images: Tensor, labels: Tensor, views: Views, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Images and masks through the same views, at their own size.

    Args:
        images: float[B, 3, H, W] in [-1, 1]; labels: int64[B, H, W]; noise: float[B, 3, H, W] of
            N(0, 1).
    Returns:
        float[B, 3, H, W], bilinear, grey beside the image, and not clamped; int64[B, H, W],
        nearest, 255 beside the image.
    """
    grid = F.affine_grid(views.theta, list(images.shape), align_corners=False)
    seen = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
    above = (labels[:, None] + 1).to(images.dtype)  # so that 0, which fills, is nobody's label
    found = F.grid_sample(above, grid, mode="nearest", align_corners=False)[:, 0].long() - 1
    return seen + views.noise[:, None, None, None] * noise, found.where(found >= 0, IGNORE)
