"""Images and masks of a data set as batches of tensors, and what is counted in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from d3s2.data.dataset import IGNORE, SegmentationDataset


def read_masks(dataset: SegmentationDataset, indices: Sequence[int], device: str = "cpu") -> Tensor:
    """int64[B, H, W] labels of some of a dataset's images."""
    labels = np.stack([dataset.read_labels(int(i)) for i in indices])
    return torch.from_numpy(labels.astype(np.int64)).to(device)


def read_images(
    dataset: SegmentationDataset, indices: Sequence[int], device: str = "cpu"
) -> Tensor:
    """float32[B, 3, H, W] images in [-1, 1]."""
    return to_float(np.stack([dataset.read_image(int(i)) for i in indices]), device)


def to_float(pixels: np.ndarray, device: str = "cpu") -> Tensor:
    """uint8[B, H, W, 3] to float32[B, 3, H, W] in [-1, 1]."""
    return scaled(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device))


def scaled(pixels: Tensor) -> Tensor:
    """uint8 of any shape, 0 .. 255, to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """float[B, 3, H, W] in [-1, 1] to uint8[B, H, W, 3]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def pad_batch(batch: Tensor) -> Tensor:
    """The batch, with its last item repeated until there are four.

    For one or two images a CPU's kernels sum in another order than for more, and the last bits
    differ: padded, an image comes out the same in every company.
    """
    missing = 4 - len(batch)
    if missing <= 0:
        return batch
    return torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])])


def class_members(labels: Tensor, num_classes: int) -> Tensor:
    """int64[B, H * W]: the class of each pixel; C, one more than the last class, where it is
    ignored.

    labels: int64[B, H, W], 255 = ignore. The place to which a sum over a class's pixels is
    scattered: no one-hot mask of B x C x H x W is made, which at 150 classes and 512 x 512 would
    take 317 MB an image.
    """
    return labels.masked_fill(labels == IGNORE, num_classes).flatten(1)


def class_sums(values: Tensor, members: Tensor, num_classes: int) -> Tensor:
    """[B, C]: for each image the sum of `values` [B, H * W] over each class's pixels (see
    `class_members`).
    """
    sums = values.new_zeros(len(members), num_classes + 1)
    return sums.scatter_add(1, members, values)[:, :num_classes]


def class_pixels(labels: Tensor, num_classes: int) -> Tensor:
    """int64[B, C]: how many pixels of each class each mask int64[B, H, W] has; 255 is nobody's
    class.
    """
    members = class_members(labels, num_classes)
    return class_sums(torch.ones_like(members), members, num_classes)


def class_sets(labels: Tensor, num_classes: int) -> Tensor:
    """float32[B, C] multi-hot: which classes occur in each mask int64[B, H, W]."""
    return (class_pixels(labels, num_classes) > 0).float()
