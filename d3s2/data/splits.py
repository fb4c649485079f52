"""The data of a run: drawn or converted on first use, then simply opened.

Whatever the source, later chapters find the ordinary layout at the run's image size under
`<home>/data/<name>-<digest>`. The digest covers everything that decides the bytes (source files,
size, counts, the drawing code), so different settings never share a folder and a changed source is
never mistaken for the old one.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from d3s2.core import places
from d3s2.core.code_version import code_version
from d3s2.core.errors import D3S2Error
from d3s2.core.files import digest, write_json
from d3s2.data import scenes
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.folder import materialise, open_folder, write_classes
from d3s2.data.opening import open_dataset
from d3s2.data.scenes import scenes_classes

SPLITS = ("train", "val")
PREPARED = "prepared.json"
"""Written last: vouches for all files of the folder."""
SCENES_COUNTS = (4000, 500)
SCENES_SEED = 0
"""The embedded data set is one fixed data set: the run's `seed` never changes it (our choice)."""


class DataSettings(Protocol):
    """The fields of `runs.parameters.Settings` that decide the data."""

    data_format: str
    data_root: str
    image_size: str
    train_images: int
    val_images: int


def open_splits(
    settings: DataSettings, progress: bool = True
) -> tuple[SegmentationDataset, SegmentationDataset]:
    """(train, val) of a run, in the ordinary layout at `image_size`; prepared first where missing.

    A killed preparation goes on where it stopped. Raises D3S2Error for a missing data_root, a size
    that scenes do not have, a number of images above the split's, and everything that
    `open_dataset` and the readers find.
    """
    counts = (settings.train_images, settings.val_images)
    if min(counts) < 0:
        raise D3S2Error(
            f"train_images and val_images are {counts}: give numbers of images, 0 = all."
        )
    size = parse_size(settings.image_size)
    if settings.data_format == "scenes":
        return _open_scenes(size, counts, progress)
    if not settings.data_root:
        raise D3S2Error(
            f"data_format {settings.data_format!r} reads a folder of yours: name it with -p "
            f"data_root=/path/to/data."
        )
    sources = [
        _thin(open_dataset(settings.data_format, settings.data_root, split, size), count)
        for split, count in zip(SPLITS, counts, strict=True)
    ]
    name = _short([source.fingerprint() for source in sources])
    folder = places.home() / "data" / f"{settings.data_format}-{settings.image_size}-{name}"
    if not _is_prepared(folder):
        for source in sources:
            materialise(source, folder, progress)
    return _finish(folder, settings.data_format, [len(source) for source in sources])


def parse_size(text: str) -> tuple[int, int]:
    """(H, W) from "HxW", e.g. "96x128". Raises D3S2Error for anything else, and for sides under 16
    or over 4096.
    """
    height, _, width = text.lower().partition("x")
    if not (
        height.isdecimal()
        and width.isdecimal()
        and 16 <= min(int(height), int(width))
        and max(int(height), int(width)) <= 4096
    ):
        raise D3S2Error(
            f"image_size is {text!r}: give height x width from 16 to 4096, such as 96x128."
        )
    return int(height), int(width)


def _open_scenes(
    size: tuple[int, int], counts: tuple[int, int], progress: bool
) -> tuple[SegmentationDataset, SegmentationDataset]:
    if size != (scenes.SIZE, scenes.SIZE):
        raise D3S2Error(
            f"image_size is {size[0]}x{size[1]} but scenes are drawn at "
            f"{scenes.SIZE}x{scenes.SIZE}."
        )
    wanted = [count or standard for count, standard in zip(counts, SCENES_COUNTS, strict=True)]
    drawn = [code_version("data.scenes"), SCENES_SEED, wanted]
    folder = places.home() / "data" / f"scenes-{_short(drawn)}"
    if not _is_prepared(folder):
        write_classes(folder / "classes.csv", scenes_classes())
        for split, count in zip(SPLITS, wanted, strict=True):
            with tqdm(
                total=count, desc=f"drawing {split}", disable=None if progress else True
            ) as bar:
                advance = partial(_advance, bar)
                scenes.write_split(folder, split, count, SCENES_SEED, advance)
    return _finish(folder, "scenes", wanted)


def _advance(bar: tqdm, done: int) -> None:
    bar.update(done - bar.n)


def _thin(dataset: SegmentationDataset, count: int) -> SegmentationDataset:
    """`count` images spread evenly over the sorted ids: neighbours in a video look alike. 0 =
    all.
    """
    if count > len(dataset):
        raise D3S2Error(
            f"{count} {dataset.split} images are asked for but {dataset.name} has {len(dataset)}: "
            "0 = all."
        )
    return dataset.subset(np.arange(count) * len(dataset) // count) if count else dataset


def _finish(
    folder: Path, name: str, counts: list[int]
) -> tuple[SegmentationDataset, SegmentationDataset]:
    opened = [replace(open_folder(folder, split), name=name) for split in SPLITS]
    if [len(dataset) for dataset in opened] != counts:
        raise D3S2Error(
            f"{folder} holds {[len(dataset) for dataset in opened]} images instead of {counts}: "
            "move it away, it will be made again."
        )
    if not _is_prepared(folder):
        os.sync()  # what the images' own writes left to the system
        write_json(folder / PREPARED, dict(zip(SPLITS, counts, strict=True)))
    return opened[0], opened[1]


def _is_prepared(folder: Path) -> bool:
    return (folder / PREPARED).is_file()


def _short(parts: list[object]) -> str:
    return digest(parts)[:8]
