"""Datasets: real files in, checked arrays out, and a sentence for every kind of bad input."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d3s2.core.errors import D3S2Error
from d3s2.data import scenes
from d3s2.data.dataset import IGNORE, ClassInfo
from d3s2.data.folder import materialise, read_classes, write_classes
from d3s2.data.opening import open_dataset
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
    assert data.palette.tolist() == [[10, 20, 30], [40, 50, 60]]


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


def test_the_root_is_the_folder_of_the_ordinary_layout_and_of_no_other(root: Path) -> None:
    data = open_dataset("folder", root, "train")
    assert data.root == root and data.subset([1]).root == root
    for path in (root / "train" / "a.png", root / "val" / "images" / "a.png"):
        with pytest.raises(D3S2Error, match="ordinary layout"):
            _ = replace(data, image_paths=(path,)).root
    with pytest.raises(D3S2Error, match="ordinary layout"):
        _ = data.subset([]).root


def test_subset_keeps_order(root: Path) -> None:
    data = open_dataset("folder", root, "train")
    assert data.subset([1]).ids == ("b",) and data.subset(np.array([1, 0])).ids == ("b", "a")
    with pytest.raises(D3S2Error, match="index 2 is outside"):
        data.subset([2])


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
    """A way to spoil the dataset, and words that the error must hold."""

    name: str
    spoil: object
    words: tuple[str, ...]


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


BAD_PIXELS = [
    Bad(
        "id outside",
        write_mask(np.full((6, 8), 5, np.uint8)),
        ("a.png", "id 5", "classes.csv", "add the class"),
    ),
    Bad(
        "colour",
        write_mask(np.full((6, 8, 3), 77, np.uint8)),
        ("a.png", "(77, 77, 77)", "add the colour"),
    ),
    Bad("size", write_mask(np.full((5, 8), 3, np.uint8)), ("a.png", "8x5", "8x6", "one size")),
    Bad("16 bit", write_mask(np.full((6, 8), 3, np.uint16)), ("a.png", "16-bit", "save it as")),
    Bad("rgba", write_mask(np.full((6, 8, 4), 3, np.uint8)), ("a.png", "RGBA", "save it as")),
    Bad(
        "grey and alpha",
        lambda root: Image.new("LA", (8, 6)).save(root / "train/labels/a.png"),
        ("LA",),
    ),
    Bad(
        "bilevel",
        lambda root: Image.new("1", (8, 6)).save(root / "train/labels/a.png"),
        ("format 1",),
    ),
    Bad("4-bit grey", four_bit_grey, ("4-bit greyscale",)),
    Bad("truncated", truncate("train/labels/a.png"), ("a.png", "damaged")),
    Bad(
        "no png",
        lambda root: (root / "train/labels/a.png").write_text("hello"),
        ("a.png", "damaged"),
    ),
    Bad("gone", lambda root: (root / "train/labels/a.png").unlink(), ("a.png", "gone")),
]


@pytest.mark.parametrize("bad", BAD_PIXELS, ids=lambda bad: bad.name)
def test_bad_masks(root: Path, bad: Bad) -> None:
    data = open_dataset("folder", root, "train")
    bad.spoil(root)
    with pytest.raises(D3S2Error) as caught:
        data.read_labels(0)
    for word in bad.words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate("train/images/a.png"), ("a.png", "damaged")),
        (
            lambda root: Image.new("RGBA", (8, 6)).save(root / "train/images/a.png"),
            ("RGBA", "save it as 8-bit RGB"),
        ),
        (
            lambda root: save(root / "train/images/a.png", np.full((6, 8), 300, np.uint16)),
            ("16-bit",),
        ),
    ],
)
def test_bad_images(root: Path, spoil: object, words: tuple[str, ...]) -> None:
    data = open_dataset("folder", root, "train")
    spoil(root)
    with pytest.raises(D3S2Error) as caught:
        data.read_image(0)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda root: (root / "train/labels/b.png").unlink(),
            ("b.png", "has no mask", "take the image away"),
        ),
        (
            lambda root: (root / "train/images/b.png").unlink(),
            ("b.png", "has no image", "take the mask away"),
        ),
        (
            lambda root: save(root / "train/images/a.jpg", np.zeros((6, 8, 3), np.uint8)),
            ("same id 'a'",),
        ),
        (lambda root: (root / "classes.csv").unlink(), ("classes.csv", "id,name,red,green,blue")),
        (
            lambda root: (root / "classes.csv").write_text("id,name\n0,sky\n"),
            ("lacks the column 'red'",),
        ),
        (
            lambda root: (root / "classes.csv").write_text(CLASSES + "3,tree,1,1,1\n"),
            ("line 5", "id 3"),
        ),
        (
            lambda root: (root / "classes.csv").write_text(CLASSES + "4,sky,1,1,1\n"),
            ("line 5", "name 'sky'"),
        ),
        (
            lambda root: (root / "classes.csv").write_text(CLASSES + "4,tree,10,20,30\n"),
            ("colour (10, 20, 30)",),
        ),
        (
            lambda root: (root / "classes.csv").write_text(CLASSES + "300,tree,1,1,1\n"),
            ("'300'", "0 to 255"),
        ),
        (
            lambda root: (root / "classes.csv").write_text(CLASSES + "4,tree,x,1,1\n"),
            ("line 5", "red", "'x'"),
        ),
        (lambda root: (root / "classes.csv").write_text(CLASSES + "255,tree,1,1,1\n"), ("id 255",)),
        (lambda root: (root / "classes.csv").write_text(CLASSES + "4,,1,1,1\n"), ("no name",)),
        (
            lambda root: (root / "classes.csv").write_text(CLASSES.splitlines()[0] + "\n"),
            ("lists no class",),
        ),
        (
            lambda root: (root / "train/images").rename(root / "train/pictures"),
            ("train/images", "does not exist"),
        ),
    ],
)
def test_bad_layout(root: Path, spoil: object, words: tuple[str, ...]) -> None:
    spoil(root)
    with pytest.raises(D3S2Error) as caught:
        open_dataset("folder", root, "train")
    for word in words:
        assert word in str(caught.value)


def test_empty_split_and_unknown_names(root: Path) -> None:
    for part in ("images", "labels"):
        (root / "empty" / part).mkdir(parents=True)
    with pytest.raises(D3S2Error, match="holds no image"):
        open_dataset("folder", root, "empty")
    with pytest.raises(D3S2Error, match="unknown data format 'voc'"):
        open_dataset("voc", root, "train")
    with pytest.raises(D3S2Error, match="does not exist: check data_root"):
        open_dataset("folder", root / "nowhere", "train")
    with pytest.raises(D3S2Error, match="image size"):
        open_dataset("folder", root, "train", size=(0, 4))


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
    with pytest.raises(D3S2Error, match="something else"):
        materialise(data.subset([0]), out, progress=False)
    write_classes(out / "other" / "classes.csv", [ClassInfo("cat", (1, 1, 1))])
    with pytest.raises(D3S2Error, match="other classes"):
        materialise(data, out / "other", progress=False)


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


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Wanted(image_size="32x32"), "scenes are drawn at 64x64"),
        (Wanted(image_size="big"), "such as 96x128"),
        (Wanted("camvid"), "-p data_root="),
        (Wanted(train_images=-1), "0 = all"),
    ],
)
def test_open_splits_refuses(home: Path, wanted: Wanted, words: str) -> None:
    with pytest.raises(D3S2Error, match=words):
        open_splits(wanted, progress=False)


def test_open_splits_refuses_more_images_than_there_are(home: Path, root: Path) -> None:
    with pytest.raises(D3S2Error, match="3 train images are asked for"):
        open_splits(Wanted("folder", str(root), "16x24", 3, 0), progress=False)


def test_parse_size() -> None:
    assert parse_size("96x128") == (96, 128)
    for text in ("", "96", "96x", "x96", "-9x96", "96x128x3", "8x64", "64x5000"):
        with pytest.raises(D3S2Error):
            parse_size(text)


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
