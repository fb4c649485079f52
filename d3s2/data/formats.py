"""The layouts on disk that can be opened, and the one layout that is written.

The ordinary layout, "folder", is what every chapter reads and writes, and what your own data should look
like:

    <root>/classes.csv                      header id,name,red,green,blue
    <root>/<split>/images/<id>.png|jpg|...  8-bit RGB or greyscale
    <root>/<split>/labels/<id>.png          8-bit ids, or RGB in the colours of classes.csv

The ids of classes.csv are those in the mask files and may have gaps; the train id of a class is its place in
the file. Rows named `ignore` or `void` become IGNORE, as does id 255.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from d3s2.data import scenes
from d3s2.data.base import IGNORE, ClassInfo, MaskCode, SegmentationDataset
from d3s2.errors import D3S2Error

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
CLASS_HEADER = ["id", "name", "red", "green", "blue"]
_IGNORE_NAMES = ("ignore", "void")

CAMVID_CLASSES = (
    ClassInfo("sky", (128, 128, 128)), ClassInfo("building", (128, 0, 0)), ClassInfo("pole", (192, 192, 128)),
    ClassInfo("road", (128, 64, 128)), ClassInfo("pavement", (0, 0, 192)), ClassInfo("tree", (128, 128, 0)),
    ClassInfo("sign_symbol", (192, 128, 128)), ClassInfo("fence", (64, 64, 128)),
    ClassInfo("car", (64, 0, 128)), ClassInfo("pedestrian", (64, 64, 0)),
    ClassInfo("bicyclist", (0, 128, 192)),
)
_CAMVID_VOID = 11


def open_dataset(
    format: str, root: Path | str, split: str, size: tuple[int, int] | None = None
) -> SegmentationDataset:
    """Open one split of a dataset on disk. Lists and pairs files; pixels are read (and checked) one by one
    later.

    format: "folder" (see the module's text), "camvid" (SegNet layout: <split>/, <split>annot/, 11 = void), or one of
    `public.FORMATS`.
    size: (H, W) to resize to while reading. Raises D3S2Error for an unknown format, a missing folder or
    split, an image without a mask and the reverse, two images of one id, and a faulty classes.csv.
    """
    root = Path(root)
    from d3s2.data import public

    if format not in ("folder", "camvid", *public.FORMATS):
        raise D3S2Error(f"unknown data format {format!r}: use 'folder', 'camvid', {', '.join(map(repr, public.FORMATS))}.")
    if not root.is_dir():
        raise D3S2Error(f"data folder {root} does not exist: check data_root.")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise D3S2Error(f"image size {size} is not a pair of positive numbers: give (height, width).")
    if format in public.FORMATS:
        return public.open_public(format, root, split, size)
    if format == "camvid":
        classes, code = CAMVID_CLASSES, _camvid_code()
        images, labels = root / split, root / f"{split}annot"
    else:
        classes, code = read_classes(root / "classes.csv")
        images, labels = root / split / "images", root / split / "labels"
    ids, image_paths, label_paths = pairs(files_by_stem(images, IMAGE_SUFFIXES), files_by_stem(labels, (".png",)), images, labels)
    return SegmentationDataset(root.resolve().name, split, classes, ids, image_paths, label_paths, code, size)


def materialise(
    dataset: SegmentationDataset, folder: Path | str, progress: bool = True
) -> SegmentationDataset:
    """Write a dataset (at its `size`) in the ordinary layout, as lossless PNG, and open what was written.

    Every file appears whole or not at all, and files that are there are kept: a broken run goes on where it
    stopped. Raises D3S2Error when the folder already holds other classes or other ids.
    """
    folder = Path(folder)
    write_classes(folder / "classes.csv", dataset.classes)
    for part in ("images", "labels"):
        (folder / dataset.split / part).mkdir(parents=True, exist_ok=True)
    label = f"writing {folder.name}/{dataset.split}"
    names = tqdm(dataset.ids, desc=label, disable=None if progress else True)
    for index, name in enumerate(names):
        _write_png(folder / dataset.split / "images" / f"{name}.png", lambda i=index: dataset.read_image(i))
        _write_png(folder / dataset.split / "labels" / f"{name}.png", lambda i=index: dataset.read_labels(i))
    written = open_dataset("folder", folder, dataset.split)
    if written.ids != dataset.ids:
        extra = sorted(set(written.ids) - set(dataset.ids))
        raise D3S2Error(
            f"{folder / dataset.split} also holds {len(extra)} images of something else, such as "
            f"{extra[:1]}: "
            "choose an empty folder."
        )
    return replace(written, name=dataset.name)


def read_classes(path: Path) -> tuple[tuple[ClassInfo, ...], MaskCode]:
    """Classes in train-id order, and how the masks write them. Raises D3S2Error for a faulty file."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            header, rows = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise D3S2Error(
            f"cannot read {path} ({error}): it must list the classes, header {','.join(CLASS_HEADER)}."
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
            what = f"id {number}" if taken else f"colour {color}" if color in colors else f"name {name!r}"
            raise D3S2Error(
                f"{path} line {line} uses {what} again: each class needs its own (255 always means ignore)."
            )
        to_train[number] = colors[color] = IGNORE if ignored else len(classes)
        if not ignored:
            classes.append(ClassInfo(name, color))
    if not classes:
        raise D3S2Error(f"{path} lists no class: add a line for each, as in '0,sky,70,130,180'.")
    return tuple(classes), MaskCode(tuple(to_train), colors, path.name)


def scenes_classes() -> tuple[ClassInfo, ...]:
    """The classes of the embedded data, in train-id order."""
    return tuple(ClassInfo(name, color) for name, color in scenes.CLASSES.items())


def write_classes(path: Path, classes: Sequence[ClassInfo]) -> None:
    """Write classes.csv with ids 0 .. C-1. Raises D3S2Error when the file lists other classes."""
    lines = [CLASS_HEADER] + [[str(i), info.name, *map(str, info.color)] for i, info in enumerate(classes)]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        if read_classes(path)[0] != tuple(classes):
            raise D3S2Error(
                f"{path} lists other classes than the data to be written: choose an empty folder."
            )
        return
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows(lines)
    os.replace(temporary, path)


def _class_row(path: Path, line: int, row: dict[str, str]) -> tuple[int, str, tuple[int, int, int]]:
    values = []
    for column in ("id", "red", "green", "blue"):
        text = (row[column] or "").strip()
        if not text.isdecimal() or int(text) > 255:
            raise D3S2Error(
                f"{path} line {line}: {column} is {text!r}, it must be a whole number from 0 to 255."
            )
        values.append(int(text))
    name = (row["name"] or "").strip()
    if not name:
        raise D3S2Error(f"{path} line {line}: the class has no name, write one in the column 'name'.")
    return values[0], name, (values[1], values[2], values[3])


def _camvid_code() -> MaskCode:
    table = [*range(len(CAMVID_CLASSES)), *[-1] * (256 - len(CAMVID_CLASSES))]
    table[_CAMVID_VOID] = table[IGNORE] = IGNORE
    return MaskCode(tuple(table), {}, "CamVid's list of 11 classes and void")


def pairs(image_files: dict[str, Path], label_files: dict[str, Path], images: Path, labels: Path) -> tuple[
        tuple[str, ...], tuple[Path, ...], tuple[Path, ...]]:
    """(ids, image paths, mask paths), sorted by id. Raises D3S2Error where one lacks the other, naming both folders."""
    if not image_files and not label_files:
        raise D3S2Error(
            f"{images} holds no image: put files such as 0001.png there, or check the split's name."
        )
    alone = sorted(image_files.keys() - label_files.keys())
    if alone:
        raise D3S2Error(
            f"image {image_files[alone[0]]} has no mask ({len(alone)} such): "
            f"add {labels / (alone[0] + '.png')} or take the image away."
        )
    alone = sorted(label_files.keys() - image_files.keys())
    if alone:
        raise D3S2Error(
            f"mask {label_files[alone[0]]} has no image ({len(alone)} such): "
            f"add {images / alone[0]}.png (or .jpg) or take the mask away."
        )
    ids = tuple(sorted(image_files))
    return ids, tuple(image_files[name] for name in ids), tuple(label_files[name] for name in ids)


def files_by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """The files of a folder by their names without suffix. Raises D3S2Error for two of one name, and no folder."""
    if not folder.is_dir():
        raise D3S2Error(f"folder {folder} does not exist: check data_root and the layout of the data.")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in suffixes:
            continue
        if path.stem in files:
            raise D3S2Error(
                f"{path} and {files[path.stem].name} have the same id {path.stem!r}: keep one of them."
            )
        files[path.stem] = path
    return files


def _write_png(path: Path, read: Callable[[], np.ndarray]) -> None:
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    Image.fromarray(read()).save(temporary, format="PNG")
    os.replace(temporary, path)
