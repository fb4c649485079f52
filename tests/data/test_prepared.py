"""Prepared data: vouched for to the byte, finished after an interruption, refused when foreign."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d3s2.core import hashes
from d3s2.core.errors import D3S2Error
from d3s2.core.files import hash_files
from d3s2.data import folder, splits
from d3s2.data.dataset import ClassInfo
from d3s2.data.folder import materialise, read_classes, write_classes
from d3s2.data.opening import open_dataset
from d3s2.data.splits import open_splits
from d3s2.runs import readiness

CLASSES = "id,name,red,green,blue\n3,sky,10,20,30\n7,road,40,50,60\n9,void,0,0,0\n"


@dataclass
class Wanted:
    """The data fields of the run's settings."""

    data_format: str = "folder"
    data_root: str = ""
    image_size: str = "16x24"
    train_images: int = 0
    val_images: int = 0


def pair(root: Path, split: str, name: str, labels: np.ndarray) -> None:
    """Write an image of noise and its mask."""
    for part in ("images", "labels"):
        (root / split / part).mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(name)).integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / split / "images" / f"{name}.png")
    Image.fromarray(labels).save(root / split / "labels" / f"{name}.png")


@pytest.fixture
def wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wanted:
    """Two training pairs and one to validate, and a home to prepare them in."""
    monkeypatch.setenv("D3S2_HOME", str(tmp_path / "home"))
    root = tmp_path / "mine"
    labels = np.full((20, 30), 3, np.uint8)
    labels[10:] = 7
    for split, name in (("train", "a"), ("train", "bb"), ("val", "ccc")):
        pair(root, split, name, labels)
    (root / "classes.csv").write_text(CLASSES)
    return Wanted(data_root=str(root))


def prepared(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "home" / "data").iterdir()
    return found


def invert(path: Path) -> None:
    """Edit a picture, of the same size and format."""
    Image.fromarray(255 - np.array(Image.open(path))).save(path)


# --------------------------------------------------------------------------------- what is prepared
@pytest.mark.parametrize(
    "name", ["train/images/a.png", "train/labels/bb.png", "val/images/ccc.png"]
)
@pytest.mark.parametrize("data_format", ["folder", "scenes"])
def test_an_altered_copy_is_told(
    wanted: Wanted, tmp_path: Path, name: str, data_format: str
) -> None:
    if data_format == "scenes":
        wanted = Wanted("scenes", "", "64x64", 2, 1)
        name = str(Path(name).with_stem("00000"))
    open_splits(wanted, progress=False)
    open_splits(wanted, progress=False)
    where = prepared(tmp_path)
    invert(where / name)
    with pytest.raises(
        D3S2Error, match=r"was changed after it was prepared .*move it away"
    ) as caught:
        open_splits(wanted, progress=False)
    assert str(where) in str(caught.value) and f"its {name.split('/')[0]} images" in str(
        caught.value
    )
    where.rename(tmp_path / "away")
    open_splits(wanted, progress=False)


def test_altered_classes_are_told(wanted: Wanted, tmp_path: Path) -> None:
    open_splits(wanted, progress=False)
    path = prepared(tmp_path) / "classes.csv"
    path.write_text(path.read_text().replace("road", "street"))
    with pytest.raises(D3S2Error, match="was changed after it was prepared"):
        open_splits(wanted, progress=False)


@pytest.mark.parametrize("content", ["[]", "{}", '{"train": 2, "val": 1}'])
def test_a_record_that_vouches_for_nothing_is_not_believed(
    wanted: Wanted, tmp_path: Path, content: str
) -> None:
    open_splits(wanted, progress=False)
    (prepared(tmp_path) / splits.PREPARED).write_text(content)
    with pytest.raises(D3S2Error, match="was changed after it was prepared"):
        open_splits(wanted, progress=False)


def test_an_interrupted_preparation_is_finished(wanted: Wanted, tmp_path: Path) -> None:
    train, _ = open_splits(wanted, progress=False)
    where, before = prepared(tmp_path), train.fingerprint()
    kept = (where / "train/images/a.png").stat().st_mtime_ns
    (where / splits.PREPARED).unlink()
    (where / "train/labels/bb.png").unlink()
    (where / "val/images/ccc.png").write_bytes(b"")  # as the loss of power leaves it
    (where / "train/images/.half.1.part.png").write_bytes(b"of a process that was killed")
    again, _ = open_splits(wanted, progress=False)
    assert again.fingerprint() == before
    assert (where / "train/images/a.png").stat().st_mtime_ns == kept


def test_what_is_left_of_an_interrupted_preparation_is_known(
    wanted: Wanted, tmp_path: Path
) -> None:
    """With other parameters nothing goes on there."""
    open_splits(wanted, progress=False)
    begun = prepared(tmp_path)
    (begun / splits.PREPARED).unlink()
    wanted.image_size = "24x24"
    open_splits(wanted, progress=False)
    (tmp_path / "home" / "data" / "camvid").mkdir()  # somebody's own
    assert splits.left_unfinished() == [begun]
    (said,) = readiness._check_unfinished()
    assert said.ok and str(begun) in said.text and "delete it" in said.text
    wanted.image_size = "16x24"
    open_splits(wanted, progress=False)
    assert splits.left_unfinished() == []


@pytest.mark.parametrize("data_format", ["folder", "scenes"])
def test_an_unfinished_folder_with_foreign_files_is_refused(
    wanted: Wanted, tmp_path: Path, data_format: str
) -> None:
    if data_format == "scenes":
        wanted = Wanted("scenes", "", "64x64", 2, 1)
    open_splits(wanted, progress=False)
    where = prepared(tmp_path)
    (where / splits.PREPARED).unlink()
    (where / "notes.txt").write_text("mine")
    with pytest.raises(D3S2Error, match=r"holds notes\.txt, which is not of its making") as caught:
        open_splits(wanted, progress=False)
    assert str(where) in str(caught.value)
    (where / "notes.txt").unlink()
    edited = sorted((where / "train/images").iterdir())[0]
    invert(edited)
    with pytest.raises(D3S2Error, match="other pixels than are to be written") as caught:
        open_splits(wanted, progress=False)
    assert str(edited) in str(caught.value) and f"folder {where} away" in str(caught.value)


def test_another_version_of_the_readers_prepares_anew(
    wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_splits(wanted, progress=False)
    monkeypatch.setattr(splits, "code_version", lambda *modules: f"newer {modules}")
    open_splits(wanted, progress=False)
    assert len(list((tmp_path / "home" / "data").iterdir())) == 2


# ---------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_labelled_pixel_is_refused_before_anything_is_written(
    wanted: Wanted, tmp_path: Path, split: str
) -> None:
    for path in (Path(wanted.data_root) / split / "labels").iterdir():
        Image.fromarray(np.full((20, 30), 255, np.uint8)).save(path)
    with pytest.raises(D3S2Error, match=f"no mask of mine/{split} has a pixel of a class"):
        open_splits(wanted, progress=False)
    assert not (tmp_path / "home" / "data").exists()


def test_one_mask_that_is_ignored_throughout_is_kept(wanted: Wanted) -> None:
    path = Path(wanted.data_root) / "train/labels/a.png"
    Image.fromarray(np.full((20, 30), 9, np.uint8)).save(path)
    train, _ = open_splits(wanted, progress=False)
    assert (train.read_labels(0) == 255).all() and (train.read_labels(1) != 255).any()


def test_the_same_names_with_other_ids_are_other_classes(wanted: Wanted, tmp_path: Path) -> None:
    data = open_dataset("folder", wanted.data_root, "train")
    out = tmp_path / "out"
    out.mkdir()
    for text in (
        "id,name,red,green,blue\n1,sky,10,20,30\n0,road,40,50,60\n",
        "id,name,red,green,blue\n0,sky,10,20,30\n2,road,40,50,60\n",
        "id,name,red,green,blue\n0,sky,10,20,30\n1,road,40,50,60\n9,void,0,0,0\n",
    ):
        (out / "classes.csv").write_text(text)
        assert read_classes(out / "classes.csv")[0] == data.classes or "1,sky" in text
        with pytest.raises(D3S2Error, match="other classes or ids"):
            materialise(data, out, progress=False)


def test_a_field_without_end_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    path.write_text(f'id,name,red,green,blue\n0,"{"x" * 131_073}",1,2,3\n')
    with pytest.raises(D3S2Error, match=r"cannot read .*classes.csv .*one line each"):
        read_classes(path)


def test_an_id_of_any_length_is_prepared(wanted: Wanted) -> None:
    name = "n" * 250
    pair(Path(wanted.data_root), "train", name, np.full((20, 30), 3, np.uint8))
    train, _ = open_splits(wanted, progress=False)
    assert train.ids == ("a", "bb", name) and train.read_labels(2).shape == (16, 24)


# ------------------------------------------------------------------------------------- fingerprints
def test_a_fingerprint_covers_every_byte(wanted: Wanted) -> None:
    root = Path(wanted.data_root)
    Image.new("RGB", (300, 200)).save(root / "train/images/a.bmp")
    (root / "train/images/a.png").unlink()
    data = open_dataset("folder", root, "train")
    path = data.image_paths[0]
    assert path.stat().st_size > 2 * hashes.SMALL
    for position in (60, 90_000, path.stat().st_size - 1):
        before, content = data.fingerprint(), bytearray(path.read_bytes())
        content[position] ^= 1
        path.write_bytes(content)
        assert data.fingerprint() != before


def test_a_fingerprint_covers_what_void_looks_like(wanted: Wanted) -> None:
    path = Path(wanted.data_root) / "classes.csv"
    before = open_dataset("folder", wanted.data_root, "train").fingerprint()
    path.write_text(CLASSES.replace("9,void,0,0,0", "9,void,1,1,1"))
    assert open_dataset("folder", wanted.data_root, "train").fingerprint() != before
    path.write_text(CLASSES)
    assert open_dataset("folder", wanted.data_root, "train").fingerprint() == before


def test_a_run_remembers_big_files_and_sees_them_change(
    wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "SETTLED", -60)
    monkeypatch.setattr(hashes, "SMALL", 10)
    train, val = open_splits(wanted, progress=False)
    assert len(list((tmp_path / "home" / "cache" / "sha256").iterdir())) == 8
    plain = replace(train, hashes=hash_files)
    before = plain.fingerprint()
    assert train == plain and train.fingerprint() == before
    with monkeypatch.context() as patch:
        read: list[Path] = []
        patch.setattr(hashes, "sha256", read.append)
        assert train.fingerprint() == before and val.fingerprint() and not read
    invert(train.image_paths[1])
    assert train.fingerprint() == plain.fingerprint() != before


def test_complete_png_keeps_writes_and_refuses(tmp_path: Path) -> None:
    path, pixels = tmp_path / "data/train/images/a.png", np.full((4, 4), 7, np.uint8)
    for before in (None, b"", b"\x89PNG\r\n\x1a\n"):
        if before is not None:
            path.write_bytes(before)
        folder.complete_png(path, pixels)
        assert np.array_equal(np.array(Image.open(path)), pixels)
    with pytest.raises(D3S2Error, match=f"folder {tmp_path / 'data'} away"):
        folder.complete_png(path, pixels + 1)
    write_classes(tmp_path / "classes.csv", [ClassInfo("sky", (1, 2, 3))])
    write_classes(tmp_path / "classes.csv", [ClassInfo("sky", (1, 2, 3))])
