"""Chapter 01, first half: how many pixels of every class every mask has (sparse, integers).

One pass over the data, mergeable, so that shards can be counted apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import sparse

from d3s2.core import parallel
from d3s2.core.files import load_npz, write_npz
from d3s2.core.parallel import chunks, with_bar
from d3s2.data.dataset import ClassInfo, SegmentationDataset


# ------------------------------------------------------------------------------------- pixel counts
@dataclass(frozen=True)
class PixelCounts:
    """Pixels per image and class.

    counts: scipy.sparse.csr int64[N, C]; valid: int64[N], pixels that are not ignore (the row sums
    of counts); ids: the N image ids, in the dataset's order.
    """

    counts: sparse.csr_array
    valid: np.ndarray
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.counts.shape[1])

    def shares(self) -> sparse.csr_array:
        """Share of each image's valid pixels: csr float64[N, C]; an all-ignore mask has an empty
        row.
        """
        scale = 1.0 / np.maximum(self.valid, 1)
        return sparse.csr_array(sparse.diags_array(scale) @ self.counts)

    def image_counts(self) -> np.ndarray:
        """int64[C]: the number of images in which the class has at least one pixel."""
        return np.bincount(self.counts.indices, minlength=self.num_classes)

    def pixel_counts(self) -> np.ndarray:
        """int64[C]: pixels of each class over all images."""
        return np.asarray(self.counts.sum(axis=0)).ravel()

    @staticmethod
    def concatenate(parts: Sequence[PixelCounts]) -> PixelCounts:
        """Counts of several shards, one after the other (all with the same classes)."""
        counts = sparse.csr_array(sparse.vstack([part.counts for part in parts]))
        valid = np.concatenate([part.valid for part in parts])
        ids = itertools.chain.from_iterable(part.ids for part in parts)
        return PixelCounts(counts, valid, tuple(ids))

    def save(self, path: Path) -> None:
        """Write an .npz without pickle; deterministic bytes."""
        matrix = self.counts
        parts = {
            "data": matrix.data,
            "indices": matrix.indices,
            "indptr": matrix.indptr,
            "valid": self.valid,
        }
        arrays = {name: np.asarray(part, dtype=np.int64) for name, part in parts.items()}
        write_npz(path, **arrays, shape=np.array(matrix.shape), ids=np.array(self.ids))

    @staticmethod
    def load(path: Path) -> PixelCounts:
        """Read what `save` wrote. Raises D3S2Error when the file is missing or damaged."""
        data = load_npz(path, ("data", "indices", "indptr", "shape", "valid", "ids"))
        matrix = sparse.csr_array(
            (data["data"], data["indices"], data["indptr"]), shape=tuple(data["shape"])
        )
        return PixelCounts(matrix, data["valid"], tuple(str(name) for name in data["ids"]))


def count_pixels(dataset: SegmentationDataset, progress: bool = True) -> PixelCounts:
    """Count every mask's pixels per class, in one pass. The bar is drawn on a terminal only."""
    if not len(dataset):
        none = sparse.csr_array((0, dataset.num_classes), dtype=np.int64)
        return PixelCounts(none, np.zeros(0, np.int64), ())
    shards = chunks(len(dataset), 64)
    parts = parallel.ordered(_count, shards, dataset)
    return PixelCounts.concatenate(list(with_bar(parts, len(shards), "counting pixels", progress)))


def _count(indices: Sequence[int], dataset: SegmentationDataset) -> PixelCounts:
    """The counts of the masks at these positions."""
    histograms = np.stack([dataset.count_labels(index) for index in indices])
    counts = sparse.csr_array(histograms[:, : dataset.num_classes])
    valid = np.asarray(counts.sum(axis=1)).ravel()
    return PixelCounts(counts, valid, tuple(dataset.ids[index] for index in indices))


class ClassRow(NamedTuple):
    """One line of the class table. Shares are in [0, 1]; `warning` is empty for a class that is
    seen.
    """

    train_id: int
    name: str
    pixels: int
    pixel_share: float
    images: int
    image_share: float
    warning: str


def class_table(counts: PixelCounts, classes: Sequence[ClassInfo]) -> list[ClassRow]:
    """One row per class in train-id order. A class without a pixel gets a warning, not a division
    by zero.
    """
    pixels = counts.pixel_counts().tolist()
    images = counts.image_counts().tolist()
    all_pixels = max(sum(pixels), 1)
    all_images = max(len(counts), 1)
    rows = enumerate(zip(classes, pixels, images, strict=True))
    return [
        ClassRow(
            train_id=c,
            name=info.name,
            pixels=area,
            pixel_share=area / all_pixels,
            images=count,
            image_share=count / all_images,
            warning="" if area else "no pixel in this split",
        )
        for c, (info, area, count) in rows
    ]


def co_occurrence(counts: PixelCounts) -> np.ndarray:
    """int64[C, C]: number of images that hold both classes; the diagonal counts images per
    class.
    """
    present = counts.counts.astype(bool).astype(np.int64)
    return (present.T @ present).toarray()
