"""The ordinary layout, "folder": what every chapter reads and writes, and what your own data should
look like.

    <root>/classes.csv                      header id,name,red,green,blue
    <root>/<split>/images/<id>.png|jpg|...  8-bit RGB or greyscale
    <root>/<split>/labels/<id>.png          8-bit ids, or RGB in the colours of classes.csv

The ids of classes.csv are those in the mask files and may have gaps; the train id of a class is its
place in the file. Rows named `ignore` or `void` become IGNORE, as does id 255.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from d3s2.core.errors import D3S2Error
from d3s2.core.files import write_csv, write_png
from d3s2.data.dataset import IGNORE, ClassInfo, MaskCode, SegmentationDataset
from d3s2.data.pairing import checked_size, existing_folder, pair_up

CLASS_HEADER = ["id", "name", "red", "green", "blue"]
_IGNORE_NAMES = ("ignore", "void")


def open_folder(
    root: Path | str, split: str, size: tuple[int, int] | None = None
) -> SegmentationDataset:
    """Open one split. Lists and pairs files; pixels are read (and checked) one by one later.

    size: (H, W) to resize to while reading. Raises D3S2Error for a missing folder or split, an
    image without a mask and the reverse, two images of one id, and a faulty classes.csv.
    """
    root = existing_folder(root)
    classes, code = read_classes(root / "classes.csv")
    pairs = pair_up(root / split / "images", root / split / "labels")
    return SegmentationDataset(
        root.resolve().name, split, classes, *pairs, code, checked_size(size)
    )


def materialise(
    dataset: SegmentationDataset, folder: Path | str, progress: bool = True
) -> SegmentationDataset:
    """Write a dataset (at its `size`) in the ordinary layout, as lossless PNG, and open what was
    written.

    Every file appears whole or not at all, and files that are there are kept: a broken run goes on
    where it stopped. Raises D3S2Error when the folder already holds other classes or other ids.
    """
    folder = Path(folder)
    write_classes(folder / "classes.csv", dataset.classes)
    label = f"writing {folder.name}/{dataset.split}"
    names = tqdm(dataset.ids, desc=label, disable=None if progress else True)
    for index, name in enumerate(names):
        for part, read in (("images", dataset.read_image), ("labels", dataset.read_labels)):
            path = folder / dataset.split / part / f"{name}.png"
            if not path.exists():
                write_png(path, read(index), sync=False)
    written = open_folder(folder, dataset.split)
    if written.ids != dataset.ids:
        extra = sorted(set(written.ids) - set(dataset.ids))
        raise D3S2Error(
            f"{folder / dataset.split} also holds {len(extra)} images of something else, such as "
            f"{extra[:1]}: choose an empty folder."
        )
    return replace(written, name=dataset.name)


def read_classes(path: Path) -> tuple[tuple[ClassInfo, ...], MaskCode]:
    """Classes in train-id order, and how the masks write them. Raises D3S2Error for a faulty
    file.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            header, rows = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise D3S2Error(
            f"cannot read {path} ({error}): it must list the classes, header "
            f"{','.join(CLASS_HEADER)}."
        ) from error
    missing = [column for column in CLASS_HEADER if column not in header]
    if missing:
        raise D3S2Error(
            f"{path} lacks the column {missing[0]!r}: its header must be {','.join(CLASS_HEADER)}."
        )
    to_train, colors, classes = [-1] * 256, {}, []
    to_train[IGNORE] = IGNORE
    for line, row in enumerate(rows, start=2):
        number, name, color = _class_row(path, line, row)
        ignored = name.lower() in _IGNORE_NAMES
        taken = to_train[number] >= 0 and not (ignored and number == IGNORE)
        if taken or color in colors or name in [info.name for info in classes]:
            what = (
                f"id {number}"
                if taken
                else f"colour {color}"
                if color in colors
                else f"name {name!r}"
            )
            raise D3S2Error(
                f"{path} line {line} uses {what} again: each class needs its own (255 always means "
                "ignore)."
            )
        to_train[number] = colors[color] = IGNORE if ignored else len(classes)
        if not ignored:
            classes.append(ClassInfo(name, color))
    if not classes:
        raise D3S2Error(f"{path} lists no class: add a line for each, as in '0,sky,70,130,180'.")
    return tuple(classes), MaskCode(tuple(to_train), colors, path.name)


def write_classes(path: Path, classes: Sequence[ClassInfo]) -> None:
    """Write classes.csv with ids 0 .. C-1. Raises D3S2Error when the file lists other classes."""
    lines = [CLASS_HEADER] + [
        [str(i), info.name, *map(str, info.color)] for i, info in enumerate(classes)
    ]
    if path.exists():
        if read_classes(path)[0] != tuple(classes):
            raise D3S2Error(
                f"{path} lists other classes than the data to be written: choose an empty folder."
            )
        return
    write_csv(path, lines)


def _class_row(path: Path, line: int, row: dict[str, str]) -> tuple[int, str, tuple[int, int, int]]:
    values = []
    for column in ("id", "red", "green", "blue"):
        text = (row[column] or "").strip()
        if not text.isdecimal() or int(text) > 255:
            raise D3S2Error(
                f"{path} line {line}: {column} is {text!r}, it must be a whole number from 0 to "
                "255."
            )
        values.append(int(text))
    name = (row["name"] or "").strip()
    if not name:
        raise D3S2Error(
            f"{path} line {line}: the class has no name, write one in the column 'name'."
        )
    return values[0], name, (values[1], values[2], values[3])
