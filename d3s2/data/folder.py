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
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from d3s2.core.errors import D3S2Error
from d3s2.core.files import write_csv, write_png, write_text
from d3s2.data.dataset import IGNORE, BadFile, ClassInfo, MaskCode, SegmentationDataset
from d3s2.data.pairing import Tell, checked_size, existing_folder, pair_up, refuse

CLASS_HEADER = ["id", "name", "red", "green", "blue"]
_IGNORE_NAMES = ("ignore", "void")


def open_folder(
    root: Path | str, split: str, size: tuple[int, int] | None = None, tell: Tell = refuse
) -> SegmentationDataset:
    """Open one split. Lists and pairs files; pixels are read (and checked) one by one later.

    size: (H, W) to resize to while reading. Raises D3S2Error for a missing folder or split and a
    classes.csv that cannot be read, and tells of an image without a mask and the reverse, two
    images of one id, and every faulty line of classes.csv.
    """
    root = existing_folder(root)
    classes, code = read_classes(root / "classes.csv", tell)
    pairs = pair_up(root / split / "images", root / split / "labels", tell)
    return SegmentationDataset(
        root.resolve().name, split, classes, *pairs, code, checked_size(size)
    )


def complete_png(path: Path, pixels: np.ndarray, compress_level: int = 6) -> None:
    """Write pixels as PNG unless the file is there and holds them; one that cannot be read, as the
    loss of power leaves it, is written again.

    Raises D3S2Error for a file of other pixels: it is somebody else's, or was edited.
    """
    if path.exists():
        with suppress(OSError, SyntaxError, ValueError), Image.open(path) as found:
            if np.array_equal(np.array(found), pixels):
                return
            raise D3S2Error(
                f"{path} is there and holds other pixels than are to be written: move the folder "
                f"{path.parents[2]} away, or choose an empty one."
            )
    write_png(path, pixels, sync=False, compress_level=compress_level)


def read_classes(path: Path, tell: Tell = refuse) -> tuple[tuple[ClassInfo, ...], MaskCode]:
    """Classes in train-id order, and how the masks write them.

    Raises D3S2Error for a file that cannot be read or lists no class, and tells of faulty lines.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            header, rows = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise D3S2Error(
            f"cannot read {path} ({error}): it must list the classes, header "
            f"{','.join(CLASS_HEADER)}, one line each."
        ) from error
    missing = [column for column in CLASS_HEADER if column not in header]
    if missing:
        raise D3S2Error(
            f"{path} lacks the column {missing[0]!r}: its header must be {','.join(CLASS_HEADER)}."
        )
    to_train, colors, classes = [-1] * 256, {}, []
    to_train[IGNORE] = IGNORE
    for line, row in enumerate(rows, start=2):
        try:
            number, color = _class_row(path, line, row)
        except D3S2Error as error:
            tell(error)
            continue
        name = (row["name"] or "").strip()
        if fault := _fault_of_name(path, line, name, classes):
            tell(fault)  # who goes on nevertheless knows the id and the colour
            name = f"line {line}"
        ignored = name.lower() in _IGNORE_NAMES
        taken = {
            f"id {number}": to_train[number] >= 0 and not (ignored and number == IGNORE),
            f"colour {color}": color in colors,
        }
        if again := [what for what, used in taken.items() if used]:
            tell(_used_again(path, line, again[0]))
            continue
        to_train[number] = colors[color] = IGNORE if ignored else len(classes)
        if not ignored:
            classes.append(ClassInfo(name, color))
    if not classes:
        raise D3S2Error(f"{path} lists no class: add a line for each, as in '0,sky,70,130,180'.")
    return tuple(classes), MaskCode(tuple(to_train), colors, path.name)


def write_image_folder(split: Path, ids: Iterable[str]) -> None:
    """Write what makes a split an image folder of Hugging Face's `datasets` with a column `image`
    and a column `mask`. Without it both folders of files become images, named by their folder.
    """
    rows = [
        {"file_name": f"images/{name}.png", "mask_file_name": f"labels/{name}.png"} for name in ids
    ]
    write_text(split / "metadata.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))


def write_classes(path: Path, classes: Sequence[ClassInfo]) -> None:
    """Write classes.csv with ids 0 .. C-1. Raises D3S2Error when the file lists other classes, or
    the same with other ids.
    """
    lines = [CLASS_HEADER] + [
        [str(i), info.name, *map(str, info.color)] for i, info in enumerate(classes)
    ]
    if path.exists():
        listed, code = read_classes(path)
        other = range(len(classes), IGNORE)
        ids = (*range(len(classes)), *[-1 for _ in other], IGNORE)
        if (listed, code.to_train) != (tuple(classes), ids):
            raise D3S2Error(
                f"{path} lists other classes or ids than the data to be written: choose an empty "
                "folder."
            )
        return
    write_csv(path, lines)


def _class_row(path: Path, line: int, row: dict[str, str]) -> tuple[int, tuple[int, int, int]]:
    values = []
    for column in ("id", "red", "green", "blue"):
        text = (row[column] or "").strip()
        if not text.isdecimal() or len(text) > 9 or int(text) > 255:  # int() wants no thousands
            why = " (masks hold 8 bits a pixel: 255 classes at most)" if column == "id" else ""
            raise BadFile(
                f"line with a wrong {column}",
                f"{path} line {line}: {column} is {text!r}, it must be a whole number from 0 to "
                f"255{why}.",
            )
        values.append(int(text))
    return values[0], (values[1], values[2], values[3])


def _fault_of_name(
    path: Path, line: int, name: str, classes: Sequence[ClassInfo]
) -> D3S2Error | None:
    if not name:
        return BadFile(
            "line without a name",
            f"{path} line {line}: the class has no name, write one in the column 'name'.",
        )
    if name in [info.name for info in classes]:
        return _used_again(path, line, f"name {name!r}")
    return None


def _used_again(path: Path, line: int, what: str) -> D3S2Error:
    return BadFile(
        f"line with a {what.partition(' ')[0]} that is used",
        f"{path} line {line} uses {what} again: each class needs its own (255 always means "
        "ignore).",
    )
