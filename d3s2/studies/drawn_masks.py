"""Small data for benchmarks: masks as large data sets have them, drawn, and embedded scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from d3s2.data.dataset import ClassInfo, SegmentationDataset
from d3s2.data.folder import open_folder, write_classes
from d3s2.data.scenes import scenes_classes, write_split

CLASSES = 150
REGIONS = 24
"""Pieces of a mask; about eight classes share them."""
WAVES = (3, 9, 27)
"""Bends of an outline, across the image."""


def draw_mask(rng: np.random.Generator, side: int = 512, classes: int = CLASSES) -> np.ndarray:
    """uint8[side, side] of train ids: bent regions, whose classes have frequencies that fall as a
    power law (the c-th in proportion to c^-0.9). As a PNG it takes about 7 KB at 512 x 512.
    """
    centres = rng.random((REGIONS, 2)) * side
    odds = np.arange(1, classes + 1) ** -0.9
    few = rng.choice(classes, 9, p=odds / odds.sum())
    y, x = np.mgrid[:side, :side].astype(np.float32)
    for bends in WAVES:
        down, across = rng.random(2) * 2 * np.pi
        turn = np.pi * bends / side
        y = y + side / (6 * bends) * np.sin(x * turn + down)
        x = x + side / (6 * bends) * np.sin(y * turn + across)
    nearest = np.zeros((side, side), dtype=np.uint8)
    shortest = np.full((side, side), np.inf)
    for region, (row, column) in enumerate(centres):
        distance = (y - row) ** 2 + (x - column) ** 2
        nearest[distance < shortest] = few[region % len(few)]
        shortest = np.minimum(shortest, distance)
    return nearest


def draw_masks(
    folder: Path, count: int, side: int = 512, classes: int = CLASSES
) -> SegmentationDataset:
    """A data set of so many masks in the ordinary layout, with images of one colour: of those,
    statistics of masks read the size alone.
    """
    rng = np.random.default_rng(0)
    write_classes(
        folder / "classes.csv", [ClassInfo(f"c{c}", (c, 0, 255 - c)) for c in range(classes)]
    )
    for part in ("images", "labels"):
        (folder / "train" / part).mkdir(parents=True)
    for index in range(count):
        picture = Image.fromarray(draw_mask(rng, side, classes))
        picture.save(folder / "train" / "labels" / f"{index:06}.png")
        Image.new("RGB", (side, side)).save(folder / "train" / "images" / f"{index:06}.jpg")
    return open_folder(folder, "train")


def draw_scenes(
    folder: Path, count: int, splits: Sequence[str] = ("train",)
) -> SegmentationDataset:
    """The first embedded scenes of these splits, written into a folder; the first split, opened."""
    for split in splits:
        write_split(folder, split, count)
    write_classes(folder / "classes.csv", scenes_classes())
    return open_folder(folder, splits[0])
