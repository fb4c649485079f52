"""Which image belongs to which mask: files of two folders, paired by their names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from d3s2.core.errors import D3S2Error

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
MASK_SUFFIXES = (".png",)


Tell = Callable[[D3S2Error], None]
"""What is done about a fault of the data: `refuse` it, or note it and go on with what is whole."""


def refuse(error: D3S2Error) -> None:
    """Raise the error."""
    raise error


def existing_folder(root: Path | str) -> Path:
    """`root` as a path. Raises D3S2Error when there is no such folder."""
    if not Path(root).is_dir():
        raise D3S2Error(f"data folder {root} does not exist: check data_root.")
    return Path(root)


def checked_size(size: tuple[int, int] | None) -> tuple[int, int] | None:
    """`size` itself. Raises D3S2Error unless it is None or two positive numbers."""
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise D3S2Error(
            f"image size {size} is not a pair of positive numbers: give (height, width)."
        )
    return size


def parse_size(text: str) -> tuple[int, int]:
    """(H, W) from "HxW", e.g. "96x128". Raises D3S2Error for anything else, and for sides under 16
    or over 4096.
    """
    found = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text.lower())
    if found is None or not all(16 <= int(side) <= 4096 for side in found.groups()):
        raise D3S2Error(
            f"image_size is {text!r}: give height x width from 16 to 4096, such as 96x128."
        )
    return int(found[1]), int(found[2])


class Pairs(NamedTuple):
    """The images of a split in the sorted order of their ids."""

    ids: tuple[str, ...]
    image_paths: tuple[Path, ...]
    label_paths: tuple[Path, ...]


def pair_up(images: Path, labels: Path, tell: Tell = refuse) -> Pairs:
    """The images of one folder and the PNG masks of another that have the same names.

    Raises D3S2Error for a missing folder, and tells of two images of one name, and whatever `pairs`
    finds.
    """
    return pairs(
        files_by_stem(images, IMAGE_SUFFIXES, tell),
        files_by_stem(labels, MASK_SUFFIXES, tell),
        images,
        labels,
        tell,
    )


def pairs(
    image_files: dict[str, Path],
    label_files: dict[str, Path],
    images: Path,
    labels: Path,
    tell: Tell = refuse,
) -> Pairs:
    """Images and masks by name, put together. Tells where one lacks the other, naming both
    folders. Raises D3S2Error where there is nothing at all.
    """
    if not image_files and not label_files:
        raise D3S2Error(
            f"{images} holds no image: put files such as 0001.png there, or check the split's name."
        )
    alone = sorted(image_files.keys() - label_files.keys())
    if alone:
        tell(
            D3S2Error(
                f"image {image_files[alone[0]]} has no mask ({len(alone)} such): add "
                f"{labels / (alone[0] + '.png')} or take the image away."
                f"{_nearly(alone, labels)}"
            )
        )
    alone = sorted(label_files.keys() - image_files.keys())
    if alone:
        tell(
            D3S2Error(
                f"mask {label_files[alone[0]]} has no image ({len(alone)} such): add "
                f"{images / alone[0]}.png (or .jpg) or take the mask away."
                f"{_nearly(alone, images)}"
            )
        )
    ids = tuple(sorted(image_files.keys() & label_files.keys()))
    return Pairs(
        ids, tuple(image_files[name] for name in ids), tuple(label_files[name] for name in ids)
    )


def _nearly(names: Iterable[str], folder: Path) -> str:
    """A sentence about a file that is there and whose name is nearly one of those that lack."""
    there = {_folded(path.stem): path.name for path in _visible(folder)}
    for name in names:
        if found := there.get(_folded(name)):
            return (
                f" There is {found!r}: the names must be the same, letter by letter, and a mask be "
                "a .png."
            )
    return ""


def _folded(name: str) -> str:
    """A name without what the eye, or another system, takes for the same."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def _visible(folder: Path) -> list[Path]:
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in there if not path.name.startswith(".")]


def files_by_stem(folder: Path, suffixes: tuple[str, ...], tell: Tell = refuse) -> dict[str, Path]:
    """The files of a folder by their names without suffix. Tells of two of one name, of which the
    first counts; raises D3S2Error for no folder.
    """
    if not folder.is_dir():
        above = next(path for path in folder.absolute().parents if path.is_dir())
        inner = [path.name for path in _visible(above) if path.is_dir()]
        listed = f" {above} holds the folders {', '.join(inner[:8])}." if inner else ""
        raise D3S2Error(
            f"folder {folder} does not exist: check data_root and the layout of the data.{listed}"
        )
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in suffixes:
            continue
        if path.stem in files:
            tell(
                D3S2Error(
                    f"{path} and {files[path.stem].name} have the same id {path.stem!r}: keep one "
                    "of them."
                )
            )
            continue
        files[path.stem] = path
    return files
