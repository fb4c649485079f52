"""The data of a run: drawn or converted on first use, then simply opened.

Whatever the source, later chapters find the ordinary layout at the run's image size under
`<home>/data/<name>-<digest>`. The digest covers everything that decides the bytes (source files,
size, counts, the code that draws or reads), so different settings never share a folder and a
changed source is never mistaken for the old one. `prepared.json` vouches for every byte that was
written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from d3s2.core import places
from d3s2.core.code_version import code_version
from d3s2.core.errors import D3S2Error
from d3s2.core.files import digest, read_json, write_json
from d3s2.core.hashes import remembered_hashes
from d3s2.core.long_work import Steps
from d3s2.data import scenes
from d3s2.data.benchmarks import FORMATS, fetching
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.folder import open_folder, write_classes
from d3s2.data.opening import open_dataset
from d3s2.data.pairing import parse_size
from d3s2.data.preparing import materialise
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
    that scenes do not have, a number of images above the split's, a split without a labelled pixel,
    a prepared folder that was changed, and everything that `open_dataset` and the readers find.
    """
    size, counts = parse_size(settings.image_size), _counts(settings)
    if settings.data_format == "scenes":
        return _open_scenes(size, counts, progress)
    sources = _sources(settings)
    for source in sources:
        _require_labels(source)
    decides = [code_version("data.dataset"), *(source.fingerprint() for source in sources)]
    name = f"{settings.data_format}-{settings.image_size}-{_short(decides)}"
    folder = places.home() / "data" / name
    if not _is_prepared(folder):
        _refuse_foreign_files(folder, {source.split: source.ids for source in sources})
        for source in sources:
            materialise(source, folder, progress)
    return _finish(folder, settings.data_format, [len(source) for source in sources])


def left_unfinished() -> list[Path]:
    """Folders of the home that a preparation began and did not finish, as when the parameters were
    changed after it was killed; or that another process prepares now.
    """
    folders = sorted((places.home() / "data").glob("*-" + 8 * "[0-9a-f]"))
    return [folder for folder in folders if folder.is_dir() and not _is_prepared(folder)]


def count_splits(settings: DataSettings) -> tuple[int, int]:
    """Images of (train, val) in a run. Nothing is written, and masks are read up to the first that
    has a class. Raises D3S2Error as `open_splits` does before it writes.
    """
    if settings.data_format == "scenes":
        return _of_scenes(_counts(settings))
    sources = _sources(settings)
    for source in sources:
        _require_labels(source)
    return len(sources[0]), len(sources[1])


def _counts(settings: DataSettings) -> tuple[int, int]:
    counts = (settings.train_images, settings.val_images)
    if min(counts) < 0:
        raise D3S2Error(
            f"train_images and val_images are {counts}: give numbers of images, 0 = all."
        )
    return counts


def _sources(settings: DataSettings) -> list[SegmentationDataset]:
    """Both splits of a folder of the user's, of as many images as asked for."""
    if not settings.data_root:
        public = settings.data_format in FORMATS
        fetch = f"; fetch it with: {fetching(settings.data_format)}" if public else ""
        raise D3S2Error(
            f"data_format {settings.data_format!r} reads a folder of yours: name it with -p "
            f"data_root=/path/to/data{fetch}."
        )
    size, counts = parse_size(settings.image_size), _counts(settings)
    return [
        _thin(
            _remembering(open_dataset(settings.data_format, settings.data_root, split, size)), count
        )
        for split, count in zip(SPLITS, counts, strict=True)
    ]


def _of_scenes(counts: tuple[int, int]) -> tuple[int, int]:
    return counts[0] or SCENES_COUNTS[0], counts[1] or SCENES_COUNTS[1]


def _open_scenes(
    size: tuple[int, int], counts: tuple[int, int], progress: bool
) -> tuple[SegmentationDataset, SegmentationDataset]:
    if size != (scenes.SIZE, scenes.SIZE):
        raise D3S2Error(
            f"image_size is {size[0]}x{size[1]} but scenes are drawn at "
            f"{scenes.SIZE}x{scenes.SIZE}."
        )
    wanted = list(_of_scenes(counts))
    drawn = [code_version("data.scenes"), SCENES_SEED, wanted]
    folder = places.home() / "data" / f"scenes-{_short(drawn)}"
    if not _is_prepared(folder):
        names = {split: scenes.names(count) for split, count in zip(SPLITS, wanted, strict=True)}
        _refuse_foreign_files(folder, names)
        write_classes(folder / "classes.csv", scenes_classes())
        for split, count in zip(SPLITS, wanted, strict=True):
            with Steps(f"drawing {split}", count, shown=progress) as steps:
                scenes.write_split(folder, split, count, SCENES_SEED, lambda _: steps.add())
    return _finish(folder, "scenes", wanted)


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
    opened = [replace(_remembering(open_folder(folder, split)), name=name) for split in SPLITS]
    if [len(dataset) for dataset in opened] != counts:
        raise D3S2Error(
            f"{folder} holds {[len(dataset) for dataset in opened]} images instead of {counts}: "
            "move it away, it will be made again."
        )
    found = {dataset.split: dataset.fingerprint() for dataset in opened}
    if not _is_prepared(folder):
        os.sync()  # what the images' own writes left to the system
        write_json(folder / PREPARED, found)
    vouched = read_json(folder / PREPARED)
    for split in SPLITS:
        if not isinstance(vouched, dict) or vouched.get(split) != found[split]:
            raise D3S2Error(
                f"{folder} was changed after it was prepared (its {split} images, masks or "
                "classes.csv): move it away, it will be made again."
            )
    return opened[0], opened[1]


def _remembering(dataset: SegmentationDataset) -> SegmentationDataset:
    """The data set with a fingerprint that reads big files once."""
    return replace(dataset, hashes=partial(remembered_hashes, places.home() / "cache"))


def _require_labels(dataset: SegmentationDataset) -> None:
    """Raise D3S2Error when no mask has a pixel of a class."""
    if not dataset.has_labels():
        raise D3S2Error(
            f"no mask of {dataset.name}/{dataset.split} has a pixel of a class, all {len(dataset)} "
            "are ignored throughout: check the ids of its masks."
        )


def _refuse_foreign_files(folder: Path, names: Mapping[str, Sequence[str]]) -> None:
    """Raise D3S2Error when an unfinished folder holds what no preparation writes there. Hidden
    files are temporary ones, perhaps of another process that prepares the same.
    """
    expected = {folder / "classes.csv", folder / PREPARED}
    for split, ids in names.items():
        for part in ("images", "labels"):
            expected |= {folder / split / part / f"{name}.png" for name in ids}
    for path in sorted(folder.rglob("*")):
        if path not in expected and not path.name.startswith(".") and not path.is_dir():
            raise D3S2Error(
                f"{folder} is not prepared to its end and holds {path.relative_to(folder)}, which "
                "is not of its making: move the file or the folder away."
            )


def _is_prepared(folder: Path) -> bool:
    return (folder / PREPARED).is_file()


def _short(parts: list[object]) -> str:
    return digest(parts)[:8]
