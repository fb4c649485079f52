"""Datasets: real files in, checked arrays out, and a sentence for every kind of bad input."""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_scenes import small_scenes

from d3s2.core.errors import D3S2Error
from d3s2.data import preparing, scenes
from d3s2.data.dataset import IGNORE, BadFile, ClassInfo
from d3s2.data.folder import complete_png, read_classes, write_classes, write_image_folder
from d3s2.data.opening import open_dataset
from d3s2.data.pairing import pairs
from d3s2.data.preparing import materialise
from d3s2.data.scenes import scenes_classes
from d3s2.data.splits import open_splits, parse_size

CLASSES = "id,name,red,green,blue\n3,sky,10,20,30\n7,road,40,50,60\n9,void,0,0,0\n"
RNG = np.random.default_rng(0)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two 6x8 pairs with ids 3, 7, 9 (void) and 255."""
    (tmp_path / "classes.csv").write_text(CLASSES)
    for name in ("a", "b"):
        save(tmp_path / f"train/images/{name}.png", RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        labels = np.full((6, 8), 3, np.uint8)
        labels[3:], labels[0, 0], labels[0, 1] = 7, 9, 255
        save(tmp_path / f"train/labels/{name}.png", labels)
    return tmp_path


def test_ids_become_train_ids(root: Path) -> None:
    data = open_dataset("folder", root, "train")
    labels = data.read_labels(1)
    assert (data.ids, data.class_names, data.num_classes, len(data)) == (
        ("a", "b"),
        ("sky", "road"),
        2,
        2,
    )
    assert labels.dtype == np.uint8 and data.read_image(0).shape == (6, 8, 3)
    assert labels[1, 1] == 0 and labels[5, 5] == 1 and labels[0, 0] == labels[0, 1] == IGNORE
    assert data.palette.tolist() == [[10, 20, 30], [40, 50, 60]] and data.palette.dtype == np.uint8


def test_colours_and_indexed_masks_mean_the_same_as_ids(root: Path) -> None:
    data = open_dataset("folder", root, "train")
    expected = data.read_labels(0)
    colors = np.zeros((6, 8, 3), np.uint8)
    colors[expected == 0], colors[expected == 1] = (10, 20, 30), (40, 50, 60)
    save(data.label_paths[0], colors)
    assert (data.read_labels(0) == expected).all()
    indexed = Image.open(data.label_paths[1])
    indexed = Image.fromarray(np.array(indexed)).convert("L")
    indexed.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tobytes())
    assert indexed.mode == "P"
    indexed.save(data.label_paths[1])
    assert (data.read_labels(1) == expected).all()


def test_jpeg_images_pair_by_stem(root: Path) -> None:
    (root / "train/images/a.png").unlink()
    save(root / "train/images/a.JPG", np.zeros((6, 8, 3), np.uint8))
    (root / "train/images/.hidden.png").write_text("no image")
    (root / "train/images/notes.txt").write_text("no image")
    data = open_dataset("folder", root, "train")
    assert data.ids == ("a", "b") and data.read_image(0).shape == (6, 8, 3)


def test_size_resizes_image_and_mask(root: Path) -> None:
    data = open_dataset("folder", root, "train", size=(3, 4))
    assert data.read_image(0).shape == (3, 4, 3) and data.read_labels(0).shape == (3, 4)
    assert set(np.unique(data.read_labels(0))) <= {0, 1, IGNORE}
    larger = open_dataset("folder", root, "train", size=(12, 24))
    whole = open_dataset("folder", root, "train").read_labels(0)
    assert np.array_equal(larger.read_labels(0), whole.repeat(2, 0).repeat(3, 1))  # nearest
    flat = np.zeros((6, 8, 3), np.uint8)
    flat[:, 4:] = 255
    save(data.image_paths[0], flat)
    row = open_dataset("folder", root, "train", size=(6, 2)).read_image(0)[0, :, 0]
    assert 0 < row[0] < 100 and 155 < row[1] < 255  # bilinear with antialiasing: a little of both
    save(data.image_paths[0], flat // 255 * 100 + 50)
    for size in ((6, 2), (6, 4), (12, 48), (48, 64)):
        between = open_dataset("folder", root, "train", size=size).read_image(0)
        assert 50 <= between.min() and between.max() <= 150  # bicubic would overshoot


def test_the_root_is_the_folder_of_the_ordinary_layout_and_of_no_other(root: Path) -> None:
    data = open_dataset("folder", root, "train")
    assert data.root == root and data.subset([1]).root == root
    elsewhere = (root / "train" / "a.png", root / "val" / "images" / "a.png")
    for paths in ((), *[(path,) for path in elsewhere], (elsewhere[0], *data.image_paths)):
        with pytest.raises(D3S2Error) as caught:
            _ = replace(data, image_paths=paths).root
        assert str(caught.value) == (
            f"{root.name}/train does not lie in a folder of the ordinary layout: write it there "
            "with `data.preparing.materialise`."
        )


def test_subset_keeps_order(root: Path) -> None:
    data = open_dataset("folder", root, "train")
    assert data.subset([1]).ids == ("b",) and data.subset(np.array([1, 0])).ids == ("b", "a")
    for index in (2, -1):
        with pytest.raises(D3S2Error) as caught:
            data.subset([0, index])
        assert str(caught.value) == (
            f"index {index} is outside {root.name}/train: it has 2 images."
        )
    for part in (data.subset([1, 0]), data.subset([1, 1, 0])):
        places = [data.ids.index(name) for name in part.ids]
        assert part.image_paths == tuple(data.image_paths[place] for place in places)
        assert part.label_paths == tuple(data.label_paths[place] for place in places)


def test_a_data_set_has_labels_when_a_single_pixel_has_one(root: Path) -> None:
    data = open_dataset("folder", root, "train")
    for value in (9, 255):
        for path in data.label_paths:
            save(path, np.full((6, 8), value, np.uint8))
        assert not data.has_labels()
    labels = np.full((6, 8), 255, np.uint8)
    labels[5, 7] = 3
    save(data.label_paths[1], labels)
    assert data.has_labels() and not data.subset([0]).has_labels()
    assert not data.subset([]).has_labels()


def test_fingerprint_sees_content_but_not_place(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = open_dataset("folder", root, "train")
    before = data.fingerprint()
    other = tmp_path_factory.mktemp("elsewhere") / "moved"
    root.rename(other)
    moved = open_dataset("folder", other, "train")
    assert moved.fingerprint() == before
    assert moved.subset([0]).fingerprint() != before
    assert open_dataset("folder", other, "train", size=(3, 4)).fingerprint() != before
    labels = np.array(Image.open(moved.label_paths[0]))
    labels[2, 2] = 7
    save(moved.label_paths[0], labels)
    assert moved.fingerprint() != before


@dataclass(frozen=True)
class Bad:
    """A way to spoil the dataset; what it has in common with others, and what is said of it."""

    kind: str
    spoil: object
    sentence: str


def write_mask(array: np.ndarray) -> object:
    return lambda root: save(root / "train/labels/a.png", array)


def truncate(path: str) -> object:
    def cut(root: Path) -> None:
        content = (root / path).read_bytes()
        (root / path).write_bytes(content[: len(content) * 2 // 3])

    return cut


def four_bit_grey(root: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", 8, 6, 4, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x33" * 4) * 6)
    content = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    (root / "train/labels/a.png").write_bytes(content)


REFUSED = "has pixel format {}: save it as 8-bit ids (grey or indexed) or RGB colours."
MASK = "{root}/train/labels/a.png"
IMAGE = "{root}/train/images/a.png"

UNEVEN = "16-bit I;16, not all values 257 times one of 8 bits"
DAMAGED = "the file is damaged or of a kind that is not read here, save or copy it again."
BAD_PIXELS = [
    Bad(
        "mask with an unknown id",
        write_mask(np.arange(48, dtype=np.uint8).reshape(6, 8) + 40),
        f"mask {MASK} holds id 40, 41, 42, 43, 44 and 43 more, which classes.csv does not list: "
        "add the class there, or write 255 (ignore) in the mask.",
    ),
    Bad(
        "mask with an unknown colour",
        write_mask(np.full((6, 8, 3), (77, 78, 79), np.uint8)),
        f"mask {MASK} holds colour (77, 78, 79), which classes.csv does not list: add the colour "
        "there.",
    ),
    Bad(
        "image and mask of different sizes",
        write_mask(np.full((5, 8), 3, np.uint8)),
        f"{MASK} is 8x5 pixels but its image a.png is 8x6: save both at one size.",
    ),
    Bad(
        f"mask in pixel format {UNEVEN}",
        write_mask(np.full((6, 8), 3, np.uint16)),
        f"mask {MASK} {REFUSED.format(UNEVEN)}",
    ),
    Bad(
        "mask in pixel format RGBA with transparency",
        write_mask(np.full((6, 8, 4), 3, np.uint8)),
        f"mask {MASK} {REFUSED.format('RGBA with transparency')}",
    ),
    Bad(
        "mask in pixel format LA with transparency",
        lambda root: Image.new("LA", (8, 6)).save(root / "train/labels/a.png"),
        f"mask {MASK} {REFUSED.format('LA with transparency')}",
    ),
    Bad(
        "mask in pixel format 1-bit black and white",
        lambda root: Image.new("1", (8, 6)).save(root / "train/labels/a.png"),
        f"mask {MASK} {REFUSED.format('1-bit black and white')}",
    ),
    Bad(
        "mask in pixel format 4-bit greyscale",
        four_bit_grey,
        f"mask {MASK} {REFUSED.format('4-bit greyscale')}",
    ),
    Bad(
        "damaged mask",
        truncate("train/labels/a.png"),
        f"cannot read mask {MASK} (image file is truncated): {DAMAGED}",
    ),
    Bad(
        "damaged mask",
        lambda root: (root / "train/labels/a.png").write_text("hello"),
        f"cannot read mask {MASK} (cannot identify image file '{MASK}'): {DAMAGED}",
    ),
    Bad(
        "gone",
        lambda root: (root / "train/labels/a.png").unlink(),
        f"mask {MASK} is gone: put it back or prepare the data again.",
    ),
]
BAD_IMAGES = [
    Bad(
        "damaged image",
        truncate("train/images/a.png"),
        f"cannot read image {IMAGE} (image file is truncated): {DAMAGED}",
    ),
    Bad(
        "image in pixel format RGBA with transparency",
        lambda root: Image.new("RGBA", (8, 6)).save(root / "train/images/a.png"),
        f"image {IMAGE} has pixel format RGBA with transparency: save it as 8-bit RGB or "
        "greyscale.",
    ),
    Bad(
        f"image in pixel format {UNEVEN}",
        lambda root: save(root / "train/images/a.png", np.full((6, 8), 300, np.uint16)),
        f"image {IMAGE} has pixel format {UNEVEN}: save it as 8-bit RGB or greyscale.",
    ),
    Bad(
        "gone",
        lambda root: (root / "train/images/a.png").unlink(),
        f"image {IMAGE} is gone: put it back or prepare the data again.",
    ),
]


@pytest.mark.parametrize("bad", BAD_PIXELS, ids=lambda bad: bad.kind)
def test_bad_masks(root: Path, bad: Bad) -> None:
    data = open_dataset("folder", root, "train")
    bad.spoil(root)
    with pytest.raises(BadFile) as caught:
        data.read_labels(0)
    assert (caught.value.kind, str(caught.value)) == (bad.kind, bad.sentence.format(root=root))


@pytest.mark.parametrize("bad", BAD_IMAGES, ids=lambda bad: bad.kind)
def test_bad_images(root: Path, bad: Bad) -> None:
    data = open_dataset("folder", root, "train")
    bad.spoil(root)
    with pytest.raises(BadFile) as caught:
        data.read_image(0)
    assert (caught.value.kind, str(caught.value)) == (bad.kind, bad.sentence.format(root=root))


MANY = "Where colours are many and not meant, the mask was smoothed or was a JPEG once: make it "


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 20, 21, 40])
def test_so_many_unknown_ids_and_colours_are_said_in_one_sentence(root: Path, count: int) -> None:
    data = open_dataset("folder", root, "train")
    values = (np.arange(48, dtype=np.uint8) % count).reshape(6, 8) + 100
    save(data.label_paths[0], values)
    save(data.label_paths[1], np.stack([values, values, 0 * values], axis=2))
    said = []
    for index in range(2):
        with pytest.raises(BadFile) as caught:
            data.read_labels(index)
        said.append(str(caught.value).partition(" holds ")[2])
    first = ", ".join(str(100 + number) for number in range(min(count, 5)))
    assert said == [
        f"id {first}{f' and {count - 5} more' if count > 5 else ''}, which classes.csv does not "
        "list: add the class there, or write 255 (ignore) in the mask.",
        f"colour (100, 100, 0){f' (one of {count} unknown)' if count > 1 else ''}, which "
        "classes.csv does not list: add the colour there."
        + (f" {MANY}anew." if count > 20 else ""),
    ]


def test_what_stands_for_nothing_is_counted(root: Path) -> None:
    data = open_dataset("folder", root, "train")
    ids = np.full((6, 8), 3, np.uint8)
    ids[0, :5], ids[2] = 200, 5
    save(data.label_paths[0], ids)
    colors = np.full((6, 8, 3), (10, 20, 30), np.uint8)
    colors[0, 0], colors[1:3, 2] = (255, 2, 3), (0, 0, 9)
    save(data.label_paths[1], colors)
    for index, unknown in enumerate([{200: 5, 5: 8}, {(0, 0, 9): 2, (255, 2, 3): 1}]):
        with pytest.raises(BadFile) as caught:
            data.read_labels(index)
        assert caught.value.unknown == unknown
    assert "holds colour (0, 0, 9) (one of 2 unknown)" in str(caught.value)


def append(line: str) -> object:
    return lambda root: (root / "classes.csv").write_text(f"{CLASSES}{line}\n")


def again(what: str) -> str:
    return (
        f"{{root}}/classes.csv line 5 uses {what} again: each class needs its own (255 always "
        "means ignore)."
    )


MOST = " (masks hold 8 bits a pixel: 255 classes at most)"


def number(column: str, text: str, why: str = "") -> str:
    return (
        f"{{root}}/classes.csv line 5: {column} is {text!r}, it must be a whole number from 0 to "
        f"255{why}."
    )


HEADER = "id,name,red,green,blue"
BAD_LAYOUT = [
    (
        lambda root: (root / "train/labels/b.png").unlink(),
        "image {root}/train/images/b.png has no mask (1 such): add {root}/train/labels/b.png or "
        "take the image away.",
    ),
    (
        lambda root: [path.unlink() for path in (root / "train/images").iterdir()],
        "mask {root}/train/labels/a.png has no image (2 such): add {root}/train/images/a.png (or "
        ".jpg) or take the mask away.",
    ),
    (
        lambda root: save(root / "train/images/a.jpg", np.zeros((6, 8, 3), np.uint8)),
        "{root}/train/images/a.png and a.jpg have the same id 'a': keep one of them.",
    ),
    (
        lambda root: (root / "classes.csv").unlink(),
        "cannot read {root}/classes.csv ([Errno 2] No such file or directory: "
        f"'{{root}}/classes.csv'): it must list the classes, header {HEADER}, one line each.",
    ),
    (
        lambda root: (root / "classes.csv").write_text("id,name\n0,sky\n"),
        f"{{root}}/classes.csv lacks the column 'red': its header must be {HEADER}.",
    ),
    (
        lambda root: (root / "classes.csv").write_text(""),
        f"{{root}}/classes.csv lacks the column 'id': its header must be {HEADER}.",
    ),
    (
        lambda root: (root / "classes.csv").write_text(f"{HEADER}\n9,void,0,0,0\n"),
        "{root}/classes.csv lists no class: add a line for each, as in '0,sky,70,130,180'.",
    ),
    (append("3,tree,1,1,1"), again("id 3")),
    (append("9,tree,1,1,1"), again("id 9")),
    (append("7,void,1,1,1"), again("id 7")),
    (append("4,sky,1,1,1"), again("name 'sky'")),
    (append("4,tree,10,20,30"), again("colour (10, 20, 30)")),
    (append("255,tree,1,1,1"), again("id 255")),
    (append("256,tree,1,1,1"), number("id", "256", MOST)),
    (append("-1,tree,1,1,1"), number("id", "-1", MOST)),
    (append("4,tree,x,1,1"), number("red", "x")),
    (append("4,tree,1,1.5,1"), number("green", "1.5")),
    (append("4,tree,1,1"), number("blue", "")),
    (append(f"4,tree,1,1,{'9' * 5000}"), number("blue", "9" * 5000)),
    (
        append("4, ,1,1,1"),
        "{root}/classes.csv line 5: the class has no name, write one in the column 'name'.",
    ),
    (
        lambda root: (root / "train/images").rename(root / "train/pictures"),
        "folder {root}/train/images does not exist: check data_root and the layout of the data. "
        "{root}/train holds the folders labels, pictures.",
    ),
]


@pytest.mark.parametrize(("spoil", "sentence"), BAD_LAYOUT, ids=range(len(BAD_LAYOUT)))
def test_bad_layout(root: Path, spoil: object, sentence: str) -> None:
    spoil(root)
    with pytest.raises(D3S2Error) as caught:
        open_dataset("folder", root, "train")
    assert str(caught.value) == sentence.format(root=root)


@pytest.mark.parametrize(
    ("line", "what"),
    [("3,tree,1,1,1", "id"), ("4,sky,1,1,1", "name"), ("4,tree,10,20,30", "colour")],
)
def test_lines_that_use_the_same_again_are_one_kind(root: Path, line: str, what: str) -> None:
    append(f"{line}\n{line}")(root)
    told: list[D3S2Error] = []
    open_dataset("folder", root, "train", tell=told.append)
    assert [error.kind for error in told][:2] == [f"line with a {what} that is used"] * 2


@pytest.mark.parametrize("count", [0, 1, 8, 9])
def test_a_folder_that_is_missing_names_eight_of_those_that_are_there(
    root: Path, count: int
) -> None:
    for part in ("images", "labels"):
        (root / "train" / part).rename(root / f"{part} elsewhere")
    (root / "train/.hidden").mkdir()
    (root / "train/file.txt").write_text("no folder")
    for number in range(count):
        (root / f"train/part {number}").mkdir()
    listed = ", ".join(f"part {number}" for number in range(min(count, 8)))
    with pytest.raises(D3S2Error) as caught:
        open_dataset("folder", root, "train")
    assert str(caught.value) == (
        f"folder {root}/train/images does not exist: check data_root and the layout of the data."
        + (f" {root}/train holds the folders {listed}." if count else "")
    )


def test_an_image_has_no_mask_where_there_is_no_folder_of_masks_at_all(root: Path) -> None:
    """As in the benchmarks, whose images and masks are listed rather than looked for."""
    images, labels = root / "train/images", root / "nowhere"
    with pytest.raises(D3S2Error) as caught:
        pairs({"a": images / "a.png"}, {}, images, labels)
    assert str(caught.value) == (
        f"image {images}/a.png has no mask (1 such): add {labels}/a.png or take the image away."
    )


def test_empty_split_and_unknown_names(root: Path) -> None:
    for part in ("images", "labels"):
        (root / "empty" / part).mkdir(parents=True)
    formats = "'folder', 'camvid', 'ade20k', 'cocostuff', 'voc2012', 'voc2012aug'"
    for sentence, format, place, split in (
        (
            f"{root}/empty/images holds no image: put files such as 0001.png there, or check the "
            "split's name.",
            "folder",
            root,
            "empty",
        ),
        (f"unknown data format 'voc': use {formats}.", "voc", root, "train"),
        (
            f"data folder {root}/nowhere does not exist: check data_root.",
            "folder",
            root / "nowhere",
            "train",
        ),
    ):
        with pytest.raises(D3S2Error) as caught:
            open_dataset(format, place, split)
        assert str(caught.value) == sentence
    for size in ((0, 4), (4, 0), (4,), (4, 4, 4), ()):
        with pytest.raises(D3S2Error) as caught:
            open_dataset("folder", root, "train", size=size)
        assert str(caught.value) == (
            f"image size {size} is not a pair of positive numbers: give (height, width)."
        )
    assert open_dataset("folder", root, "train", size=(1, 1)).read_labels(0).shape == (1, 1)


def test_what_is_told_is_left_out_and_the_rest_is_opened(root: Path) -> None:
    """Every fault is told once, and none hides the lines and files after it."""
    for name in ("c.bmp", "c.png", "c.tiff", "d.png", "e.webp"):
        (root / "train/images" / name).write_text("no picture")
    for name in ("d.PNG", "e.jpg", "f.png", "g.PNG", "g.png"):
        (root / "train/labels" / name).write_text("no picture")
    lines = ["300,x,1,1,1", "3,y,2,2,2", "4,tree,3,3,3", "5,,4,4,4", "6,grass,5,5,5"]
    append("\n".join(lines))(root)
    told: list[D3S2Error] = []
    data = open_dataset("folder", root, "train", tell=told.append)
    assert data.ids == ("a", "b", "d") and data.class_names == (
        "sky",
        "road",
        "tree",
        "line 8",
        "grass",
    )
    assert [path.name for path in data.image_paths] == ["a.png", "b.png", "d.png"]
    assert [path.name for path in data.label_paths] == ["a.png", "b.png", "d.PNG"]
    said = [str(error).replace(f"{root}/", "") for error in told]
    assert said[:3] == [
        number("id", "300", MOST).replace("{root}/", ""),
        again("id 3").replace("{root}/", "").replace("line 5", "line 6"),
        "classes.csv line 8: the class has no name, write one in the column 'name'.",
    ]
    assert said[3:] == [
        "train/images/c.png and c.bmp have the same id 'c': keep one of them.",
        "train/images/c.tiff and c.bmp have the same id 'c': keep one of them.",
        "train/labels/g.png and g.PNG have the same id 'g': keep one of them.",
        "image train/images/c.bmp has no mask (2 such): add train/labels/c.png or take the image "
        "away. There is 'e.jpg': the names must be the same, letter by letter, and a mask be a "
        ".png.",
        "mask train/labels/f.png has no image (2 such): add train/images/f.png (or .jpg) or take "
        "the mask away.",
    ]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"])
def test_images_have_any_of_the_usual_suffixes(root: Path, suffix: str) -> None:
    (root / "train/images/a.png").unlink()
    save(root / f"train/images/a{suffix.upper()}", np.full((6, 8, 3), 90, np.uint8))
    assert open_dataset("folder", root, "train").read_image(0).shape == (6, 8, 3)


def test_a_data_set_has_the_name_of_its_folder(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path_factory.mktemp("links") / "link"
    link.symlink_to(root, target_is_directory=True)
    monkeypatch.chdir(root)
    for place in (root, str(root), link, "."):
        data = open_dataset("folder", place, "train")
        assert (data.name, data.split, data.size) == (root.name, "train", None)


def test_ids_and_colours_of_the_classes_are_those_of_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    path.write_text(f"{HEADER}\n254,b,0,255,7\n1,Void,9,9,9\n0,a,1,2,3\n255,IGNORE,8,8,8\n")
    classes, code = read_classes(path)
    assert classes == (ClassInfo("b", (0, 255, 7)), ClassInfo("a", (1, 2, 3)))
    assert code.to_train == (1, IGNORE, *[-1] * 252, 0, IGNORE)
    colors = {(0, 255, 7): 0, (9, 9, 9): IGNORE, (1, 2, 3): 1, (8, 8, 8): IGNORE}
    assert (code.colors, code.source, code.remedy) == (colors, "classes.csv", "")


def test_classes_are_utf_8_and_fields_keep_their_line_ends(
    tmp_path: Path, ascii_locale: None
) -> None:
    path = tmp_path / "classes.csv"
    path.write_bytes(f'{HEADER}\r\n0,"Bäume\r\nund mehr",1,2,3\r\n'.encode())
    assert [info.name for info in read_classes(path)[0]] == ["Bäume\r\nund mehr"]
    path.write_bytes(f"{HEADER}\n0,B\xe4ume,1,2,3\n".encode("latin-1"))
    with pytest.raises(D3S2Error, match=r"cannot read .*it must list the classes"):
        read_classes(path)


def test_classes_that_are_written_are_read_again(tmp_path: Path) -> None:
    classes = tuple(ClassInfo(f"class {k}", (k, 255 - k, 7)) for k in range(255))
    for count in (1, 3, 255):
        path = tmp_path / f"{count}.csv"
        write_classes(path, classes[:count])
        found, code = read_classes(path)
        assert found == classes[:count]
        assert code.to_train == (*range(count), *[-1] * (255 - count), IGNORE)
        write_classes(path, classes[:count])
    assert (tmp_path / "1.csv").read_bytes() == f"{HEADER}\n0,class 0,0,255,7\n".encode()
    with pytest.raises(D3S2Error) as caught:
        write_classes(tmp_path / "3.csv", classes[:2])
    assert str(caught.value) == (
        f"{tmp_path}/3.csv lists other classes or ids than the data to be written: choose an empty "
        "folder."
    )


def test_an_image_folder_has_a_line_for_each_image_with_its_mask(tmp_path: Path) -> None:
    """Numbers read as such and other letters come back as they were; nothing is left out."""
    names = ["0001", "b/c", 'Fl\u00fcsse "1"']
    write_image_folder(tmp_path / "val", iter(names))
    text = (tmp_path / "val" / "metadata.jsonl").read_text(encoding="utf-8")
    assert text.endswith("}\n") and text.splitlines()[0] == (
        '{"file_name": "images/0001.png", "mask_file_name": "labels/0001.png"}'
    )
    assert [json.loads(line) for line in text.splitlines()] == [
        {"file_name": f"images/{name}.png", "mask_file_name": f"labels/{name}.png"}
        for name in names
    ]
    write_image_folder(tmp_path / "val", [])
    assert (tmp_path / "val" / "metadata.jsonl").read_bytes() == b""


def test_classes_file_of_a_spreadsheet(tmp_path: Path) -> None:
    """Byte-order mark, CRLF, blanks after commas, an ignore row with id 255."""
    text = "\ufeffid, name, red, green, blue\r\n0, sky, 1, 2, 3\r\n255, ignore, 0, 0, 0\r\n"
    (tmp_path / "classes.csv").write_bytes(text.encode())
    classes, code = read_classes(tmp_path / "classes.csv")
    assert classes == (ClassInfo("sky", (1, 2, 3)),) and code.colors[(0, 0, 0)] == IGNORE


def test_materialise_writes_what_was_read(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = open_dataset("folder", root, "train")
    out = tmp_path_factory.mktemp("out")
    written = materialise(data, out, progress=False)
    assert written.ids == data.ids and written.classes == data.classes
    for index in range(len(data)):
        assert (written.read_image(index) == data.read_image(index)).all()
        assert (written.read_labels(index) == data.read_labels(index)).all()


@pytest.mark.processes
def test_several_processes_write_the_same_bytes_and_name_the_file_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = replace(small_scenes(tmp_path / "scenes", count=12), size=(32, 48))
    monkeypatch.setattr(preparing, "WORTHWHILE", 2)
    monkeypatch.setattr(preparing, "PIECE", 2)
    written = []
    for processes in (1, 2):
        materialise(data, tmp_path / str(processes), progress=False, processes=processes)
        files = sorted((tmp_path / str(processes)).rglob("*.*"))
        written.append([path.read_bytes() for path in files])
    assert written[0] == written[1] and len(written[0]) == 2 * 12 + 1
    data.image_paths[7].write_bytes(b"no image")
    (tmp_path / "2" / "train" / "images" / f"{data.ids[3]}.png").unlink()
    with pytest.raises(BadFile, match=f"{data.ids[7]}.png .cannot identify"):
        materialise(data, tmp_path / "2", progress=False, processes=2)
    assert (tmp_path / "2" / "train" / "images" / f"{data.ids[3]}.png").is_file()


def test_materialise_resumes_and_refuses_a_foreign_folder(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = open_dataset("folder", root, "train")
    out = tmp_path_factory.mktemp("out")
    written = materialise(data, out, progress=False)
    before, stamp = written.fingerprint(), written.image_paths[0].stat().st_mtime_ns
    written.label_paths[1].unlink()
    again = materialise(data, out, progress=False)
    assert again.fingerprint() == before and again.image_paths[0].stat().st_mtime_ns == stamp
    with pytest.raises(D3S2Error) as caught:
        materialise(data.subset([0]), out, progress=False)
    assert str(caught.value) == (
        f"{out / 'train'} also holds 1 images of something else, such as ['b']: choose an empty "
        "folder."
    )
    write_classes(out / "other" / "classes.csv", [ClassInfo("cat", (1, 1, 1))])
    with pytest.raises(D3S2Error, match="other classes"):
        materialise(data, out / "other", progress=False)


def broken_png(pixels: np.ndarray, place: int, content: bytes) -> bytes:
    """A PNG of grey pixels, with some of its bytes replaced."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    whole = stream.getvalue()
    return whole[:place] + content + whole[place + len(content) :]


SQUARE = RNG.integers(0, 256, (9, 9), dtype=np.uint8)
BROKEN = {
    "nothing": b"",
    "a beginning": broken_png(SQUARE, 0, b"")[:60],
    "a head too short (ValueError)": broken_png(SQUARE, 11, b"\0"),
    "pixels that end early (SyntaxError)": broken_png(SQUARE, 36, b"\x05"),
    "zeros": bytes(90),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_png_that_is_broken_is_written_again(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(BROKEN[name])
    complete_png(path, SQUARE)
    assert path.read_bytes() == broken_png(SQUARE, 0, b"")


@pytest.mark.parametrize("level", [None, 0, 1, 6, 9])
def test_a_png_has_the_bytes_of_its_compression_and_keeps_them(
    tmp_path: Path, level: int | None
) -> None:
    """The bytes are in the fingerprints of whatever is made of them."""
    path, expected = tmp_path / "data/train/images/a.png", io.BytesIO()
    pixels = np.arange(90, dtype=np.uint8).repeat(70).reshape(70, 90) // 7
    Image.fromarray(pixels).save(expected, "PNG", compress_level=6 if level is None else level)
    options = {} if level is None else {"compress_level": level}
    for _ in range(2):
        complete_png(path, pixels, **options)
        assert path.read_bytes() == expected.getvalue()
    stamp = (path.stat().st_ino, path.stat().st_mtime_ns)
    complete_png(path, pixels, compress_level=2)
    assert path.read_bytes() == expected.getvalue()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == stamp
    with pytest.raises(D3S2Error) as caught:
        complete_png(path, pixels + 1, **options)
    assert str(caught.value) == (
        f"{path} is there and holds other pixels than are to be written: move the folder "
        f"{tmp_path / 'data'} away, or choose an empty one."
    )
    assert path.read_bytes() == expected.getvalue()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == stamp


def test_scenes_open_as_an_ordinary_folder(tmp_path: Path) -> None:
    scenes.write_split(tmp_path, "train", 3)
    write_classes(tmp_path / "classes.csv", scenes_classes())
    data = open_dataset("folder", tmp_path, "train")
    image, labels = scenes.draw_scene(0, "train", 2)
    assert (data.read_image(2) == image).all() and (data.read_labels(2) == labels).all()
    assert data.class_names == tuple(scenes.CLASSES)


@dataclass
class Wanted:
    """The data fields of the run's settings."""

    data_format: str = "scenes"
    data_root: str = ""
    image_size: str = "64x64"
    train_images: int = 5
    val_images: int = 2


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("D3S2_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_open_splits_draws_scenes_once(home: Path) -> None:
    train, val = open_splits(Wanted(), progress=False)
    assert (len(train), len(val), train.name, train.split, val.split) == (
        5,
        2,
        "scenes",
        "train",
        "val",
    )
    stamp = train.image_paths[0].stat().st_mtime_ns
    again, _ = open_splits(Wanted(), progress=False)
    assert again == train and again.fingerprint() == train.fingerprint()
    assert again.image_paths[0].stat().st_mtime_ns == stamp
    more, _ = open_splits(Wanted(train_images=6), progress=False)
    assert len(more) == 6 and more.image_paths[0].parent != train.image_paths[0].parent
    assert len(list((home / "data").iterdir())) == 2


def test_open_splits_reads_your_own_folder(home: Path, root: Path) -> None:
    (root / "val").symlink_to(root / "train", target_is_directory=True)
    train, val = open_splits(Wanted("folder", str(root), "16x24", 0, 1), progress=False)
    assert (len(train), len(val)) == (2, 1) and train.read_image(0).shape == (16, 24, 3)
    assert train.class_names == ("sky", "road") and home in train.image_paths[0].parents


COUNTS = "train_images and val_images are {}: give numbers of images, 0 = all."
SIZE = "image_size is {!r}: give height x width from 16 to 4096, such as 96x128."


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (Wanted(image_size="32x64"), "image_size is 32x64 but scenes are drawn at 64x64."),
        (Wanted(image_size="big"), SIZE.format("big")),
        (
            Wanted("camvid"),
            "data_format 'camvid' reads a folder of yours: name it with -p "
            "data_root=/path/to/data.",
        ),
        (Wanted(train_images=-1), COUNTS.format("(-1, 2)")),
        (Wanted(val_images=-1), COUNTS.format("(5, -1)")),
    ],
)
def test_open_splits_refuses(home: Path, wanted: Wanted, sentence: str) -> None:
    with pytest.raises(D3S2Error) as caught:
        open_splits(wanted, progress=False)
    assert str(caught.value) == sentence


def test_open_splits_refuses_more_images_than_there_are(home: Path, root: Path) -> None:
    with pytest.raises(D3S2Error) as caught:
        open_splits(Wanted("folder", str(root), "16x24", 3, 0), progress=False)
    assert str(caught.value) == (f"3 train images are asked for but {root.name} has 2: 0 = all.")


def test_parse_size() -> None:
    for text, size in {
        "96x128": (96, 128),
        "16X4096": (16, 4096),
        "4096x16": (4096, 16),
    }.items():
        assert parse_size(text) == size
    texts = ("", "96", "96x", "x96", "-9x96", "96x128x3", "15x64", "64x15", "64x4097", "4097x64")
    for text in (*texts, f"96x{'9' * 5000}"):
        with pytest.raises(D3S2Error) as caught:
            parse_size(text)
        assert str(caught.value) == SIZE.format(text)


def camvid_root() -> Path:
    named = os.environ.get("D3S2_CAMVID")
    folder = Path(named) if named else Path(__file__).parents[3] / "shared/data/camvid"
    if not (folder / "train").is_dir():
        pytest.skip(
            f"no CamVid at {folder}: set D3S2_CAMVID to a folder in the SegNet layout to run this"
        )
    return folder


def test_camvid_is_what_it_should_be() -> None:
    root = camvid_root()
    sizes = [len(open_dataset("camvid", root, split)) for split in ("train", "val", "test")]
    assert sizes == [367, 101, 233]
    data = open_dataset("camvid", root, "train", size=(96, 128))
    labels = np.stack([data.read_labels(index) for index in range(0, 367, 40)])
    assert labels.shape == (10, 96, 128) and data.num_classes == 11
    assert set(np.unique(labels)) <= {*range(11), IGNORE} and (labels == IGNORE).any()
    shares = [
        (labels == data.class_names.index(name)).mean()
        for name in ("road", "building", "bicyclist")
    ]
    assert shares[0] > 0.2 and shares[1] > 0.1 and shares[2] < 0.05


def test_camvid_splits_are_materialised_at_their_size(home: Path) -> None:
    wanted = Wanted("camvid", str(camvid_root()), "48x64", 4, 2)
    train, val = open_splits(wanted, progress=False)
    assert (len(train), len(val), train.name) == (4, 2, "camvid")
    assert train.read_labels(0).shape == (48, 64) and train.image_paths[0].suffix == ".png"
