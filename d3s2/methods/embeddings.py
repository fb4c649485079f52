"""What a network makes of an image as a whole: the points that coresets and EDITS choose among.

One pass over the images, pure per batch, so that it runs wherever `core.parallel` runs it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from d3s2.core import parallel
from d3s2.core.errors import D3S2Error
from d3s2.core.halving import in_halves
from d3s2.core.parallel import chunks, with_bar
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.tensors import pad_batch, read_images
from d3s2.statistics.features import MOST_PIXELS

DIGITS = 6
"""Embeddings are rounded to so many decimals: convolutions of batches of another size, or on
another device, may differ in the last bits of a float32.
"""


def encoder_layers(proxy: Any) -> tuple[str, ...]:
    """The proxy's feature layers but its decoder, finest first."""
    return tuple(name for name in proxy.layers if name != "decoder")


def pooled_features(
    dataset: SegmentationDataset,
    proxy: Any,
    layers: Sequence[str] | None = None,
    batch_size: int = 32,
    progress: bool = True,
    out_of_memory: str = "stop",
) -> np.ndarray:
    """float64[N, D]: each image's mean features, one pass; D is the widths of the layers together.

    proxy: a `d3s2.models.proxy.ProxySegmenter` or what has its parts; layers: names out of
    `proxy.layers`, None = `encoder_layers`. The images of a batch must have one size. batch_size,
    progress, out_of_memory: as in `statistics.features.feature_statistics`; a batch changes an
    image by no more than the rounding of a float32. Raises D3S2Error for a data set without an
    image, for layers that the proxy lacks and a memory too small.
    """
    if not len(dataset):
        raise D3S2Error(f"{dataset.name}/{dataset.split} holds no image: there is nothing to pool.")
    wanted = encoder_layers(proxy) if layers is None else tuple(layers)
    unknown = sorted(set(wanted).difference(proxy.layers))
    if unknown or not wanted:
        raise D3S2Error(
            f"layers is {wanted!r}, but the proxy has {', '.join(proxy.layers)}: name some of them."
        )
    pixels = math.prod(dataset.read_labels(0).shape)
    batches = chunks(len(dataset), min(batch_size, max(1, MOST_PIXELS // pixels)))
    parts = parallel.ordered(_pooled_in_halves, batches, dataset, proxy, wanted, out_of_memory)
    rows = list(with_bar(parts, len(batches), "embedding the images", progress))
    return np.concatenate(rows)


def embeddings(
    dataset: SegmentationDataset, proxy: Any, layer: str | None = None, **how: Any
) -> np.ndarray:
    """float64[N, D]: each image's mean features of one layer, of length 1, to `DIGITS` decimals.

    layer: None = the deepest of `encoder_layers`; how: as in `pooled_features`, with its errors.
    """
    chosen = encoder_layers(proxy)[-1] if layer is None else layer
    return normalised(pooled_features(dataset, proxy, [chosen], **how)).round(DIGITS)


def normalised(points: np.ndarray) -> np.ndarray:
    """float64[N, D]: rows of length 1; a row of zeros stays one."""
    lengths = np.sqrt(np.einsum("nd,nd->n", points, points))
    return points / np.where(lengths > 0, lengths, 1.0)[:, None]


def _pooled_in_halves(
    indices: Sequence[int],
    dataset: SegmentationDataset,
    proxy: Any,
    layers: Sequence[str],
    out_of_memory: str,
) -> np.ndarray:
    """`_pooled`, or that of halves where the GPU's memory is too small for it."""
    work = partial(_pooled, dataset=dataset, proxy=proxy, layers=layers)
    return np.concatenate(in_halves(work, indices, out_of_memory, "", "a smaller image_size"))


@torch.no_grad()
def _pooled(
    indices: Sequence[int], dataset: SegmentationDataset, proxy: Any, layers: Sequence[str]
) -> np.ndarray:
    """float64[B, D] of the images at these positions, taken as one batch."""
    images = read_images(dataset, indices, str(next(proxy.parameters()).device))
    features = dict(zip(proxy.layers, proxy(pad_batch(images)).features, strict=True))
    means = [features[name].double().flatten(2).mean(2) for name in layers]
    return torch.cat(means, 1)[: len(indices)].cpu().numpy()
