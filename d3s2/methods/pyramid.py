"""SFM's images before they are images: a sum of levels, from one pixel to all of them.

The levels have 1, 2, 4, ... pixels a side, each enlarged to the image's size, so that the first
steps of an optimisation can only choose colours and the last ones draw details. As in the public
code of SFM (arXiv 2602.05391), but for the colours, which go together as in the data at hand and
not as in ImageNet: ours.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import SegmentationDataset

COLOUR_IMAGES = 256
"""Train images, evenly spread, whose pixels say how colours go together."""


def random_numbers(seed: int, *what: object) -> torch.Generator:
    """The random numbers of one thing, whatever was drawn before: resuming needs no other state."""
    text = ":".join(map(str, (seed, *what)))
    first = hashlib.sha256(text.encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(first, "big") >> 1)


def level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """(h, w) of each level: one pixel, then always twice as many a side (rounded up), until the
    last is the image's size.
    """
    doublings = (max(height, width) - 1).bit_length()
    shares = [2 ** (doublings - level) for level in range(doublings + 1)]
    return [(math.ceil(height / share), math.ceil(width / share)) for share in shares]


def colour_matrix(dataset: SegmentationDataset) -> Tensor:
    """float32[3, 3] that gives independent channels the correlations of the data's colours.

    The symmetric root of the covariance of RGB in [0, 1], over every pixel of `COLOUR_IMAGES`,
    divided by its longest column; the identity for data of a single colour. The released code does
    so with ImageNet's.
    """
    chosen = np.unique(np.linspace(0, len(dataset) - 1, COLOUR_IMAGES).round().astype(int))
    count, total, squares = 0, np.zeros(3), np.zeros((3, 3))
    for index in chosen:
        pixels = dataset.read_image(int(index)).reshape(-1, 3) / 255.0
        count += len(pixels)
        total += pixels.sum(0)
        squares += pixels.T @ pixels
    mean = total / count
    values, vectors = np.linalg.eigh(squares / count - np.outer(mean, mean))
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    longest = np.linalg.norm(root, axis=0).max()
    return torch.from_numpy(root / longest if longest > 1e-6 else np.eye(3)).float()


class Pyramid:
    """N images of one size as sums of levels.

    levels: the leaves that are optimised, float32[N, 3, h, w] each, coarsest first. Begins with one
    level; every level is drawn from N(0, 1) / (levels so far), and those before it are scaled down
    likewise, so that the sum keeps its size.
    """

    def __init__(
        self, count: int, size: tuple[int, int], colours: Tensor, seed: int, device: str = "cpu"
    ) -> None:
        self.count = count
        self.sizes = level_sizes(*size)
        self.colours = colours.to(device)
        self.seed = seed
        self.levels: list[Tensor] = []
        self.grow()

    def grow(self) -> None:
        """Add the next level. Raises D3S2Error where the last one is as fine as the images."""
        before = len(self.levels)
        if before == len(self.sizes):
            height, width = self.sizes[-1]
            raise D3S2Error(
                f"a pyramid of {height} x {width} pixels has {before} levels: it cannot grow more."
            )
        shape = (self.count, 3, *self.sizes[before])
        noise = torch.randn(shape, generator=random_numbers(self.seed, "level", before))
        new = noise.to(self.colours.device) / (before + 1)
        kept = [level.detach() * (before / (before + 1)) for level in self.levels]
        self.levels = [level.requires_grad_() for level in (*kept, new)]

    def images(self, rows: slice = slice(None)) -> Tensor:
        """float32[n, 3, H, W] in [-1, 1] of these images, differentiable in the levels.

        tanh(colours x sum of the enlarged levels): in [0, 1] the released sigmoid(2 x ...).
        """
        enlarged = (
            F.interpolate(level[rows], self.sizes[-1], mode="bilinear") for level in self.levels
        )
        return torch.einsum("ij,njhw->nihw", self.colours, sum(enlarged)).tanh()
