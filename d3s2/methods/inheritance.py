"""SFM's classifier inheritance, for regions: the head of all data, handed on to another network.

The abstract of SFM (arXiv 2602.05391) promises a linear head on a frozen backbone. In its public
code the head is that of the original data, on the backbone phi that distilled; for another backbone
psi a linear projector is trained on the distilled images, so that psi looks like phi there, and the
head is kept. Both are maps of single cells here (1 x 1 convolutions), and both are fitted in closed
form, by ridge regression: ours, as is everything about regions. The projector is

    W* = (Psi^T Psi + lambda I)^-1 Psi^T Phi

over the cells of the distilled images. It asks for no label of theirs, but the head knows the
labels of all real data: C x (D + 1) numbers that every comparison has to name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from d3s2.core import parallel
from d3s2.core.errors import D3S2Error
from d3s2.core.parallel import chunks, with_bar
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.tensors import read_images, read_masks
from d3s2.methods.flow_matching import layer_numbers
from d3s2.models.proxy import ProxySegmenter
from d3s2.statistics.features import MOST_PIXELS, soft_masks
from d3s2.training.evaluation import confusion

RIDGE = 1e-4
"""lambda, as a share of the mean diagonal of Psi^T Psi. Our choice."""


# --------------------------------------------------------------------------------- ridge regression
@dataclass(frozen=True)
class LinearMap:
    """A 1 x 1 convolution. weight: float[D_out, D_in]; bias: float[D_out]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """float[B, D_in, h, w] to float[B, D_out, h, w]."""
        weight, bias = (
            part.to(features.device, features.dtype) for part in (self.weight, self.bias)
        )
        return F.conv2d(features, weight[:, :, None, None], bias)


class RidgeSums:
    """What a ridge regression needs of its data; sums of shards add up. float64, on the CPU.

    gram: float64[D_in + 1, D_in + 1], X^T X with a column of ones at the end of X; cross:
    float64[D_in + 1, D_out], X^T Y.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.gram = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64)
        self.cross = torch.zeros(inputs + 1, outputs, dtype=torch.float64)

    def add(self, inputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Add rows: inputs float[n, D_in], targets float[n, D_out], weights float[n] or all 1."""
        rows = torch.cat([inputs.double(), inputs.new_ones(len(inputs), 1).double()], 1)
        weighted = rows if weights is None else rows * weights.double()[:, None]
        self.gram += (weighted.T @ rows).cpu()
        self.cross += (weighted.T @ targets.double()).cpu()

    def merge(self, other: RidgeSums) -> None:
        """Add another shard's sums, in place. Raises D3S2Error for other widths."""
        if other.cross.shape != self.cross.shape:
            raise D3S2Error(
                f"sums of {tuple(other.cross.shape)} cannot be merged into those of "
                f"{tuple(self.cross.shape)}: use the same two networks and layers for both."
            )
        self.gram += other.gram
        self.cross += other.cross

    def solve(self, ridge: float = RIDGE) -> LinearMap:
        """The map that minimises the weighted sum of |W x + b - y|^2 + lambda |W|^2.

        ridge: lambda as a share of the mean diagonal of X^T X; b is not held back. Raises D3S2Error
        for a negative one, and where the data do not fix the map and ridge is 0.
        """
        if not ridge >= 0:
            raise D3S2Error(f"ridge is {ridge}: give 0 or more.")
        penalty = ridge * self.gram.diagonal()[:-1].mean() * torch.ones(len(self.gram))
        penalty[-1] = 0
        factor, failed = torch.linalg.cholesky_ex(self.gram + torch.diag(penalty.double()))
        if failed:
            raise D3S2Error(
                f"the cells at hand do not fix a map of {len(self.gram) - 1} features with ridge "
                f"{ridge}: raise it, to {RIDGE} for example, or take more images."
            )
        solution = torch.cholesky_solve(self.cross, factor)
        return LinearMap(solution[:-1].T.contiguous(), solution[-1])


# ----------------------------------------------------------------------------------- dense features
@dataclass(frozen=True)
class Backbone:
    """A frozen network as a giver of dense features: its layers side by side, on the grid of the
    finest of them.

    layers: their names; () = all but the network's finest and its last.
    """

    network: ProxySegmenter
    layers: tuple[str, ...] = ()

    @torch.no_grad()
    def features(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """float32[B, D, h, w] of images float[B, 3, H, W] in [-1, 1]; bilinear where a layer has
        another grid. size: (h, w) of the grid, None = the finest layer's.
        """
        found = self.network(images).features
        chosen = [found[number] for number in layer_numbers(self.network.layers, self.layers)]
        height, width = size or max(tuple(map(int, layer.shape[2:])) for layer in chosen)
        grids = [_on_grid(layer.float(), (height, width)) for layer in chosen]
        return torch.cat(grids, 1)


def _on_grid(layer: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(layer.shape[2:]) == size:
        return layer
    return F.interpolate(layer, size, mode="bilinear", antialias=True)


def _rows(features: Tensor) -> Tensor:
    """[B, D, h, w] to [B * h * w, D]."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def _batches(dataset: SegmentationDataset, what: str) -> list[Sequence[int]]:
    if not len(dataset):
        raise D3S2Error(f"{dataset.name}/{dataset.split} holds no image: {what} needs one.")
    pixels = math.prod(dataset.read_image(0).shape[:2])
    return chunks(len(dataset), min(32, max(1, MOST_PIXELS // pixels)))


def _merged(parts: Iterator[RidgeSums]) -> RidgeSums:
    """All of them in one, of which never more than two are there at once."""
    first = next(parts)
    for part in parts:
        first.merge(part)
    return first


# ------------------------------------------------------------------------------- head and projector
def fit_head(
    dataset: SegmentationDataset,
    backbone: Backbone,
    areas: np.ndarray,
    balance: float = 0.5,
    ridge: float = RIDGE,
    progress: bool = True,
) -> LinearMap:
    """The linear head of a data set on a frozen backbone, D features to C scores, in closed form.

    Ridge regression of the soft area masks on the cells' features, each cell weighted by its
    classes' weights (share of the area) ** -balance: 0 = all pixels alike, 1 = all classes alike.
    Ours: the released head is trained by gradient descent.

    Args:
        areas: int64[C], pixels of each class in the data set, such as `PixelCounts.pixel_counts()`.
    Raises:
        D3S2Error: for a data set without an image or another number of classes, and as
            `RidgeSums.solve`.
    """
    if len(areas) != dataset.num_classes:
        raise D3S2Error(
            f"areas are of {len(areas)} classes, {dataset.name} has {dataset.num_classes}: count "
            "the pixels of the same data."
        )
    shares = np.maximum(areas, 1) / max(int(areas.sum()), 1)
    weights = torch.from_numpy(shares**-balance)
    batches = _batches(dataset, "a head")
    parts = parallel.ordered(_head_sums, batches, dataset, backbone, weights)
    bar = with_bar(parts, len(batches), "fitting a head", progress)
    return _merged(bar).solve(ridge)


def _head_sums(
    indices: Sequence[int], dataset: SegmentationDataset, backbone: Backbone, weights: Tensor
) -> RidgeSums:
    """The sums of the images at these positions."""
    device = next(backbone.network.parameters()).device
    features = backbone.features(read_images(dataset, indices, device))
    labels = read_masks(dataset, indices, device)
    size = (int(features.shape[2]), int(features.shape[3]))
    masks = _rows(soft_masks(labels, len(weights), size)).double() * weights.to(device)
    total = masks.sum(1)
    sums = RidgeSums(features.shape[1], len(weights))
    sums.add(_rows(features), masks / total.clamp(min=1e-12)[:, None], total)
    return sums


def fit_projector(
    dataset: SegmentationDataset,
    student: Backbone,
    teacher: Backbone,
    ridge: float = RIDGE,
    progress: bool = True,
) -> LinearMap:
    """The linear map from the student's features to the teacher's, on the images of a (distilled)
    data set, whose masks it does not read. Both are taken on the teacher's grid.

    Raises D3S2Error for a data set without an image, and as `RidgeSums.solve`.
    """
    batches = _batches(dataset, "a projector")
    parts = parallel.ordered(_projector_sums, batches, dataset, student, teacher)
    bar = with_bar(parts, len(batches), "fitting a projector", progress)
    return _merged(bar).solve(ridge)


def _projector_sums(
    indices: Sequence[int], dataset: SegmentationDataset, student: Backbone, teacher: Backbone
) -> RidgeSums:
    """The sums of the images at these positions."""
    images = read_images(dataset, indices, next(teacher.network.parameters()).device)
    wanted = teacher.features(images)
    given = student.features(images, (int(wanted.shape[2]), int(wanted.shape[3])))
    sums = RidgeSums(given.shape[1], wanted.shape[1])
    sums.add(_rows(given), _rows(wanted))
    return sums


# ---------------------------------------------------------------------------------------- judgement
@dataclass(frozen=True)
class LinearSegmenter:
    """A frozen backbone with linear maps behind it: (head,), or (projector, head), inherited."""

    backbone: Backbone
    maps: tuple[LinearMap, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """float32[B, C, H, W], the scores of images float[B, 3, H, W] in [-1, 1], enlarged."""
        found = self.backbone.features(images)
        for linear in self.maps:
            found = linear(found)
        return F.interpolate(found, images.shape[2:], mode="bilinear")


def segmenter_confusion(
    segmenter: Callable[[Tensor], Tensor], dataset: SegmentationDataset, device: str = "cpu"
) -> np.ndarray:
    """int64[C, C] of a segmenter's answers on a data set, image by image, for
    `training.evaluation.mean_iou`.

    segmenter: images float[1, 3, H, W] in [-1, 1] to scores [1, C, H, W].
    """
    matrix = np.zeros((dataset.num_classes, dataset.num_classes), dtype=np.int64)
    for index in range(len(dataset)):
        scores = segmenter(read_images(dataset, [index], device))
        predicted = scores.argmax(1)[0].cpu().numpy()
        matrix += confusion(predicted, dataset.read_labels(index), dataset.num_classes)
    return matrix
