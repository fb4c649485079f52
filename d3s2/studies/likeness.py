"""How like photographs are painted images? Numbers of a set of images, beside real ones.

Nothing here looks at a training on the images, which is what they are for: see `studies.images`,
which also measures that.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.tensors import read_images

TELLING_STEPS = 300
"""Iterations of the classifier that tells painted from real; its training accuracy is then near
1 where there is anything to see.
"""


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Fréchet distance between two Gaussians with the means and covariances of a, float[N,
    D], and b, float[M, D]: |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), 0 or more.

    The measure of Heusel et al. 2017 (FID), there on Inception's features. It falls with the number
    of images: compare sets of one size. Raises D3S2Error for fewer than two rows, and other widths.
    """
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise D3S2Error(
            f"Features of shape {a.shape} and {b.shape} have no Fréchet distance: give two rows or "
            "more of one width."
        )
    a, b = a.astype(np.float64), b.astype(np.float64)
    shift = a.mean(0) - b.mean(0)
    # The eigenvalues of S_a S_b are the squared singular values of the factors' product
    roots = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    traces = sum(float((root**2).sum()) for root in roots)
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return max(0.0, float(shift @ shift) + traces - 2 * float(shared))


def told_apart(
    real: SegmentationDataset, painted: SegmentationDataset, seed: int = 0
) -> tuple[float, int]:
    """(accuracy, images asked): how often a small convolutional network tells a painted image from
    a photograph, both of masks that it has not seen; 0.5 = it cannot.

    real, painted: the same masks under the same ids, four or more. Of every four masks it learns
    from three, painted and real, and is asked about the fourth, with each in turn: so all are asked
    once, in four trainings. Raises D3S2Error where the ids differ.
    """
    if real.ids != painted.ids or len(real) < 4:
        raise D3S2Error(
            f"{painted.root} and {real.root} must hold the same masks, four or more: "
            f"{len(painted)} and {len(real)}."
        )
    everything = range(len(real))
    images = torch.cat([read_images(real, everything), read_images(painted, everything)])
    is_painted = torch.arange(2 * len(real)) >= len(real)
    fold = torch.arange(len(real)).repeat(2) % 4
    right = 0
    for number in range(4):
        learns = fold != number
        answers = _classifier(images[learns], is_painted[learns], seed)(images[~learns])
        right += int(((answers[:, 0] > 0) == is_painted[~learns]).sum())
    return right / len(images), len(images)


def _classifier(images: Tensor, is_painted: Tensor, seed: int) -> nn.Module:
    """A small network trained to answer float[B, 1], above 0 for painted images."""
    torch.manual_seed(seed)
    widths = (3, 16, 32, 64)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(4, after), nn.SiLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    rng = torch.Generator().manual_seed(seed)
    target = is_painted[:, None].float()
    for _ in range(TELLING_STEPS):
        batch = torch.randint(len(images), (32,), generator=rng)
        shown = images[batch]
        if torch.rand((), generator=rng) < 0.5:
            shown = shown.flip(-1)
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(network(shown), target[batch]).backward()
        optimizer.step()
    return network.eval().requires_grad_(False)
