"""Chapter 01, second half: mean and variance of a proxy network's features, per class and layer.

One pass over the data, float64, mergeable, so that shards can be counted apart. The definition is
our choice; the D3S2 abstract only says "class-wise feature statistics across layers".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d3s2.core import parallel
from d3s2.core.errors import D3S2Error
from d3s2.core.files import load_npz, write_npz
from d3s2.core.halving import in_halves
from d3s2.core.parallel import chunks, with_bar
from d3s2.data.dataset import IGNORE, SegmentationDataset
from d3s2.data.tensors import read_images, read_masks

MOST_PIXELS = 2**19
"""Pixels of the images taken at once: 32 of 96 x 128, but 2 of 512 x 512, whose features and shares
of 150 classes would fill the memory otherwise. A sum's last digits depend on it.
"""


# -------------------------------------------------------------------- features: soft masks, moments
def soft_masks(labels: Tensor, num_classes: int, size: tuple[int, int]) -> Tensor:
    """The share of each feature cell that each class covers: one-hot masks, averaged over the
    cell's area.

    labels: int64[B, H, W] of train ids, IGNORE (255) = no class. size: the feature map's (h, w).
    Returns float32[B, C, h, w] in [0, 1], on the labels' device. Ignored pixels are in no mask, so
    a cell's masks sum to its valid share. Area-exact for every ratio: the masks' total area is kept
    (times h*w / H*W), also where h does not divide H. Raises D3S2Error for an id outside [0, C)
    other than IGNORE. Our choice.
    """
    if labels.ndim != 3:
        raise D3S2Error(
            f"soft_masks needs labels [B, H, W] but got {tuple(labels.shape)}: add a batch axis."
        )
    labels = labels.long()
    wrong = (labels != IGNORE) & ((labels < 0) | (labels >= num_classes))
    if bool(wrong.any()):
        found = int(labels[wrong][0])
        raise D3S2Error(
            f"label id {found} is outside the {num_classes} classes: map it to one, or to 255."
        )
    pixels, cells = math.prod(labels.shape[1:]), math.prod(size)
    area = pixels // cells
    divides = labels.shape[1] % size[0] == 0 and labels.shape[2] % size[1] == 0
    if divides and area.bit_count() == 1:  # shares of 1/2^k: what follows would give the same bits
        return _counted(labels, num_classes, size) / area
    rows = _area_weights(labels.shape[1], size[0], labels.device)
    columns = _area_weights(labels.shape[2], size[1], labels.device)
    ids = torch.arange(num_classes, device=labels.device)[None, :, None, None]
    one_hot = (labels[:, None] == ids).to(rows.dtype)
    return torch.matmul(rows, torch.matmul(one_hot, columns.T))


def _counted(labels: Tensor, num_classes: int, size: tuple[int, int]) -> Tensor:
    """float32[B, C, h, w]: how many pixels of each class each cell has, of a size that divides
    theirs. No mask of each class is made: 150 of 512 x 512 would take 157 MB an image.
    """
    (height, width), (h, w) = labels.shape[1:], size
    row = torch.arange(height, device=labels.device) // (height // h)
    column = torch.arange(width, device=labels.device) // (width // w)
    members = labels.masked_fill(labels == IGNORE, num_classes)
    places = (members * h + row[:, None]) * w + column
    counts = torch.zeros(len(labels), (num_classes + 1) * h * w, device=labels.device)
    ones = counts.new_ones(1).expand(len(labels), height * width)
    counts.scatter_add_(1, places.flatten(1), ones)
    return counts.view(-1, num_classes + 1, h, w)[:, :num_classes]


def _area_weights(source: int, target: int, device: torch.device) -> Tensor:
    """float32[target, source]: how much of target cell i lies over source pixel j; each row sums to
    1.
    """
    edges = torch.arange(target + 1, dtype=torch.float64) * (source / target)
    low = edges[:-1, None]
    high = edges[1:, None]
    pixel = torch.arange(source)[None]
    overlap = (torch.minimum(high, pixel + 1) - torch.maximum(low, pixel)).clamp(min=0)
    return (overlap * (target / source)).float().to(device)


class ClassMoments:
    """Streaming mean and variance of features, per class and layer (float64, CPU).

    Lists run over the proxy's layers: `n[l]` float64[C] soft area in feature cells, `mean[l]`
    float64[C, D_l], `m2[l]` float64[C, D_l], the sum of squared distances from the mean. Classes
    never seen hold zeros: ask `n`. A batch is reduced on its own and joined by the pairwise update
    of Chan, Golub and LeVeque (1979), so any split of the data into shards gives the same result up
    to rounding.
    """

    def __init__(
        self, num_classes: int, channels: Sequence[int], layers: Sequence[str] = ()
    ) -> None:
        self.num_classes = num_classes
        self.layers = tuple(layers) or tuple(f"layer{index}" for index in range(len(channels)))
        self.n = [torch.zeros(num_classes, dtype=torch.float64) for _ in channels]
        self.mean = [torch.zeros(num_classes, width, dtype=torch.float64) for width in channels]
        self.m2 = [torch.zeros(num_classes, width, dtype=torch.float64) for width in channels]

    @property
    def channels(self) -> tuple[int, ...]:
        """D_l: how many features a cell of each layer has."""
        return tuple(int(mean.shape[1]) for mean in self.mean)

    def update(self, features: Sequence[Tensor], labels: Tensor) -> None:
        """Add a batch.

        features: per layer float[B, D_l, h_l, w_l]; labels: integer [B, H, W], 255 = ignore. Raises
        D3S2Error for other channels than before, and for ids outside the classes.
        """
        found = tuple(int(feature.shape[1]) for feature in features)
        if found != self.channels:
            raise D3S2Error(
                f"features have {found} channels but these statistics were begun with "
                f"{self.channels}."
            )
        weights: dict[tuple[int, int], Tensor] = {}
        for layer, feature in enumerate(features):
            size = (int(feature.shape[2]), int(feature.shape[3]))
            if size not in weights:
                masks = soft_masks(labels.to(feature.device), self.num_classes, size)
                weights[size] = masks.transpose(0, 1).reshape(self.num_classes, -1).double()
            self._join(layer, *_batch_moments(feature.detach(), weights[size]))

    def merge(self, other: ClassMoments) -> None:
        """Add another shard's statistics to these, in place.

        Raises D3S2Error for those of other classes or another proxy.
        """
        if (other.channels, other.num_classes) != (self.channels, self.num_classes):
            raise D3S2Error(
                f"cannot merge statistics of {other.num_classes} classes x {other.channels} "
                f"channels into {self.num_classes} x {self.channels}: compute both with the same "
                "proxy and classes."
            )
        for layer in range(len(self.n)):
            self._join(layer, other.n[layer], other.mean[layer], other.m2[layer])

    def _join(self, layer: int, n: Tensor, mean: Tensor, m2: Tensor) -> None:
        """The pairwise update: n [C], mean [C, D] and m2 [C, D] of a part join a layer's."""
        total = self.n[layer] + n
        share = (n / total.clamp(min=1e-300))[:, None]
        gap = mean - self.mean[layer]
        self.m2[layer] = self.m2[layer] + m2 + gap * gap * share * self.n[layer][:, None]
        self.mean[layer] = self.mean[layer] + gap * share
        self.n[layer] = total

    def variance(self) -> list[Tensor]:
        """Per layer float64[C, D_l]: v = m2 / n (the biased form, as in the loss); 0 where a class
        has no area.
        """
        return [m2 / n.clamp(min=1e-300)[:, None] for n, m2 in zip(self.n, self.m2, strict=True)]

    def global_mean(self) -> list[Tensor]:
        """Per layer float64[D_l]: the mean over all valid pixels."""
        return [
            (n[:, None] * mean).sum(0) / n.sum().clamp(min=1e-300)
            for n, mean in zip(self.n, self.mean, strict=True)
        ]

    def global_variance(self) -> list[Tensor]:
        """Per layer float64[D_l]: s_d^2 over all valid pixels, by the law of total variance."""
        result = []
        for n, mean, m2, centre in zip(self.n, self.mean, self.m2, self.global_mean(), strict=True):
            between = (n[:, None] * (mean - centre) ** 2).sum(0)
            result.append((m2.sum(0) + between) / n.sum().clamp(min=1e-300))
        return result

    def save(self, path: Path) -> None:
        """Write an .npz without pickle; deterministic bytes."""
        arrays = {"layers": np.array(self.layers)}
        for layer in range(len(self.layers)):
            arrays[f"n_{layer}"] = self.n[layer].numpy()
            arrays[f"mean_{layer}"] = self.mean[layer].numpy()
            arrays[f"m2_{layer}"] = self.m2[layer].numpy()
        write_npz(path, **arrays)

    @staticmethod
    def load(path: Path) -> ClassMoments:
        """Read what `save` wrote. Raises D3S2Error when the file is missing or damaged."""
        data = load_npz(path, ("layers",))
        layers = [str(name) for name in data["layers"]]
        first = data["mean_0"]
        channels = [data[f"mean_{layer}"].shape[1] for layer in range(len(layers))]
        moments = ClassMoments(len(first), channels, layers)
        for layer in range(len(layers)):
            moments.n[layer] = torch.from_numpy(data[f"n_{layer}"])
            moments.mean[layer] = torch.from_numpy(data[f"mean_{layer}"])
            moments.m2[layer] = torch.from_numpy(data[f"m2_{layer}"])
        return moments


def _batch_moments(feature: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(n [C], mean [C, D], m2 [C, D]) of one batch, float64 on the CPU; without area, any mean.

    feature: float[B, D, h, w]; weights: float64[C, B * h * w], each class's share of each cell.
    Values are taken relative to the batch's first cell: squares of large common offsets would
    otherwise cost digits, and constant features would not give exactly zero variance. They are many
    megabytes: each is written where the one before lay.
    """
    values = feature.permute(0, 2, 3, 1).reshape(-1, feature.shape[1]).to(torch.float64, copy=True)
    origin = values[:1].clone()
    values -= origin
    n = weights.sum(1)
    mean = weights @ values / n.clamp(min=1e-300)[:, None]
    m2 = (weights @ values.square_() - n[:, None] * mean.square()).clamp(min=0)
    return n.cpu(), (mean + origin).cpu(), m2.cpu()


def feature_statistics(
    dataset: SegmentationDataset,
    proxy: Any,
    batch_size: int = 32,
    progress: bool = True,
    out_of_memory: str = "stop",
) -> ClassMoments:
    """Moments of the proxy's features on the dataset's real images and masks.

    proxy: a `d3s2.models.proxy.ProxySegmenter` (images float[B, 3, H, W] in [-1, 1] -> output with
    `.features`). The images of a batch must have one size. batch_size: at most; fewer where images
    are large (`MOST_PIXELS`). Exact up to rounding for every batch size. out_of_memory: "stop", or
    "halve": a batch that a GPU's memory is too small for is taken in two halves, and these in
    halves. Raises D3S2Error for a data set without an image, and a memory too small.
    """
    if not len(dataset):
        raise D3S2Error(
            f"{dataset.name}/{dataset.split} holds no image: feature statistics need one."
        )
    pixels = math.prod(dataset.read_labels(0).shape)
    batches = chunks(len(dataset), min(batch_size, max(1, MOST_PIXELS // pixels)))
    parts = parallel.ordered(_moments_in_halves, batches, dataset, proxy, out_of_memory)
    bar = iter(with_bar(parts, len(batches), "feature statistics", progress))
    moments = next(bar)
    for part in bar:  # always in this order, wherever they were made: sums of floats depend on it
        moments.merge(part)
    return moments


def _moments_in_halves(
    indices: Sequence[int], dataset: SegmentationDataset, proxy: Any, out_of_memory: str
) -> ClassMoments:
    """`_moments`, or those of halves where the GPU's memory is too small for that."""
    work = partial(_moments, dataset=dataset, proxy=proxy)
    first, *rest = in_halves(work, indices, out_of_memory, "", "a smaller image_size")
    for part in rest:
        first.merge(part)
    return first


@torch.no_grad()
def _moments(indices: Sequence[int], dataset: SegmentationDataset, proxy: Any) -> ClassMoments:
    """Moments of the images at these positions, taken as one batch."""
    device = next(proxy.parameters()).device
    images = read_images(dataset, indices, device)
    labels = read_masks(dataset, indices, device)
    features = proxy(images).features
    widths = [int(feature.shape[1]) for feature in features]
    moments = ClassMoments(dataset.num_classes, widths, getattr(proxy, "layers", ()))
    moments.update(features, labels)
    return moments
