"""Miniatures of the public benchmarks: a few drawn images in the true layout and label code.

They stand in for the archives in a rehearsal. A mask is cut into blocks of random classes with an
ignored border between them; its photograph shows each class in its own colour under noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from d3s2.core.errors import D3S2Error
from d3s2.data.benchmarks import COCO_GAPS, FORMATS
from d3s2.data.dataset import IGNORE

CELLS = 3
"""Blocks along each side of a mask."""
CLASSES = 12
"""Different classes in all masks together."""


@dataclass(frozen=True)
class _Spot:
    """Where one image and its mask lie."""

    image: Path
    mask: Path


def write_miniature(
    data_format: str,
    root: Path,
    train: int = 8,
    val: int = 4,
    size: tuple[int, int] = (96, 128),
    seed: int = 0,
) -> Path:
    """Write `train` and `val` images of a benchmark below `root`; returns `root`.

    size: (height, width) of the images; the same seed gives the same files.
    Raises D3S2Error for a data_format that is no public benchmark.
    """
    if data_format not in FORMATS:
        raise D3S2Error(f"data_format is {data_format!r}: choose {', '.join(FORMATS)}.")
    rng = np.random.default_rng(seed)
    values, ignored = _label_code(data_format)
    values = rng.choice(values, CLASSES, replace=False)
    for place in _places(data_format, root, train, val):
        mask = _blocks(rng, values, ignored, size)
        for path, pixels in ((place.mask, mask), (place.image, _photograph(rng, mask))):
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(pixels)
            if path.suffix == ".png" and data_format.startswith("voc"):
                picture.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tolist())
            picture.save(path)
    return root


def _label_code(data_format: str) -> tuple[np.ndarray, int]:
    """(the values of all classes in the annotations, the value of ignored pixels)."""
    if data_format == "ade20k":
        return np.arange(1, 151), 0
    if data_format == "cocostuff":
        return np.setdiff1d(np.arange(182), COCO_GAPS), IGNORE
    return np.arange(21), IGNORE


def _places(data_format: str, root: Path, train: int, val: int) -> Iterator[_Spot]:
    numbers = [("train", number) for number in range(train)]
    numbers += [("val", train + number) for number in range(val)]
    if data_format == "ade20k":
        base, parts = root / "ADEChallengeData2016", {"train": "training", "val": "validation"}
        for split, number in numbers:
            name = f"ADE_{split}_{number:08}"
            yield _Spot(
                base / "images" / parts[split] / f"{name}.jpg",
                base / "annotations" / parts[split] / f"{name}.png",
            )
    elif data_format == "cocostuff":
        for split, number in numbers:
            inner = Path(f"{split}2017", f"{number:012}")
            yield _Spot(
                root / "images" / inner.with_suffix(".jpg"),
                root / "annotations" / inner.with_suffix(".png"),
            )
    else:
        yield from _voc_places(root / "VOCdevkit" / "VOC2012", numbers)


def _voc_places(base: Path, numbers: list[tuple[str, int]]) -> Iterator[_Spot]:
    """VOC's places, and its lists; the augmented list names the same images."""
    listed: dict[str, list[str]] = {"train": [], "val": []}
    for split, number in numbers:
        listed[split].append(f"2007_{number:06}")
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True, exist_ok=True)
    for name, split in (("train", "train"), ("val", "val"), ("trainaug", "train")):
        (lists / f"{name}.txt").write_text("".join(f"{line}\n" for line in listed[split]))
    for name in (*listed["train"], *listed["val"]):
        yield _Spot(base / "JPEGImages" / f"{name}.jpg", base / "SegmentationClass" / f"{name}.png")


def _blocks(
    rng: np.random.Generator, values: np.ndarray, ignored: int, size: tuple[int, int]
) -> np.ndarray:
    """uint8[H, W]: blocks of random classes, with a line of ignored pixels below each row."""
    height, width = size
    cells = rng.choice(values, (CELLS, CELLS)).astype(np.uint8)
    rows = np.arange(height) * CELLS // height
    columns = np.arange(width) * CELLS // width
    mask = cells[rows[:, None], columns[None, :]]
    mask[np.flatnonzero(np.diff(rows))] = ignored
    return mask


def _photograph(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """uint8[H, W, 3]: every value of the mask in a colour that it always has, under noise."""
    colors = np.random.default_rng(0).integers(30, 226, (256, 3))
    noisy = colors[mask] + rng.normal(0, 12, (*mask.shape, 3))
    return noisy.clip(0, 255).astype(np.uint8)
