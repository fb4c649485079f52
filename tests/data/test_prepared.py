"""Prepared data: vouched for to the byte, finished after an interruption, refused when foreign."""

from __future__ import annotations

import io
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d3s2.core import hashes, long_work
from d3s2.core.errors import D3S2Error
from d3s2.core.files import digest, hash_files, read_json
from d3s2.data import folder, scenes, splits
from d3s2.data.folder import read_classes
from d3s2.data.opening import open_dataset
from d3s2.data.preparing import materialise
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
    assert str(caught.value) == (
        f"{where} was changed after it was prepared (its {name.split('/')[0]} images, masks or "
        "classes.csv): move it away, it will be made again."
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
    with pytest.raises(D3S2Error) as caught:
        open_splits(wanted, progress=False)
    count = {"train": 2, "val": 1}[split]
    assert str(caught.value) == (
        f"no mask of mine/{split} has a pixel of a class, all {count} are ignored throughout: "
        "check the ids of its masks."
    )
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


@pytest.mark.parametrize("data_format", ["folder", "scenes"])
def test_a_folder_of_another_number_of_images_is_a_sentence(
    wanted: Wanted, tmp_path: Path, data_format: str
) -> None:
    if data_format == "scenes":
        wanted = Wanted("scenes", "", "64x64", 2, 1)
    open_splits(wanted, progress=False)
    where = prepared(tmp_path)
    for part in ("images", "labels"):
        sorted((where / "train" / part).iterdir())[0].unlink()
    with pytest.raises(D3S2Error) as caught:
        open_splits(wanted, progress=False)
    assert str(caught.value) == (
        f"{where} holds [1, 1] images instead of [2, 1]: move it away, it will be made again."
    )


def test_the_folders_name_is_a_digest_of_all_that_decides(wanted: Wanted, tmp_path: Path) -> None:
    train, val = open_splits(wanted, progress=False)
    sources = [open_dataset("folder", wanted.data_root, name, (16, 24)) for name in splits.SPLITS]
    prints = [source.fingerprint() for source in sources]
    decides = digest([splits.code_version("data.dataset"), *prints])
    assert prepared(tmp_path).name == f"folder-16x24-{decides[:8]}"
    assert (train.name, train.ids, val.ids) == ("folder", ("a", "bb"), ("ccc",))
    for source, found in zip(sources, (train, val), strict=True):
        for index in range(len(source)):
            assert np.array_equal(found.read_image(index), source.read_image(index))
            assert np.array_equal(found.read_labels(index), source.read_labels(index))
    vouched = read_json(prepared(tmp_path) / splits.PREPARED)
    assert vouched == {"train": train.fingerprint(), "val": val.fingerprint()}


def test_scenes_are_those_of_one_seed_as_many_as_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D3S2_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(splits, "SCENES_SEED", 3)
    monkeypatch.setattr(splits, "SCENES_COUNTS", (3, 2))
    opened = open_splits(Wanted("scenes", "", "64x64", 0, 0), progress=False)
    assert [len(data) for data in opened] == [3, 2]
    name = prepared(tmp_path).name
    assert name == f"scenes-{digest([splits.code_version('data.scenes'), 3, [3, 2]])[:8]}"
    for data in opened:
        assert data.class_names == tuple(scenes.CLASSES) and data.name == "scenes"
        for index in range(len(data)):
            image, labels = scenes.draw_scene(3, data.split, index)
            assert np.array_equal(data.read_image(index), image)
            assert np.array_equal(data.read_labels(index), labels)


def test_fewer_images_are_spread_over_the_sorted_ids(wanted: Wanted) -> None:
    root = Path(wanted.data_root)
    for number in range(5):
        pair(root, "train", f"c{number}", np.full((20, 30), 3, np.uint8))
    for count, places in ((1, [0]), (3, [0, 2, 4]), (7, range(7)), (0, range(7))):
        names = ("a", "bb", "c0", "c1", "c2", "c3", "c4")
        train, _ = open_splits(replace(wanted, train_images=count), progress=False)
        assert train.ids == tuple(names[place] for place in places)


def test_what_was_written_is_on_the_disk_before_it_is_vouched_for(
    wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def sync() -> None:
        where = prepared(tmp_path)
        seen.append(sorted(path.name for path in where.rglob("*.*")))

    monkeypatch.setattr(os, "sync", sync)
    open_splits(wanted, progress=False)
    pictures = [f"{name}.png" for name in ("a", "bb", "ccc")] * 2
    assert seen == [sorted([*pictures, "classes.csv"])]
    open_splits(wanted, progress=False)
    assert len(seen) == 1


class Terminal(io.StringIO):
    """What a person looks at."""

    def isatty(self) -> bool:
        return True


def test_a_person_at_a_terminal_sees_how_far_it_is(
    wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_work, "FLASH", 0)
    drawn = Wanted("scenes", "", "64x64", 2, 1)
    for progress in (True, False):
        monkeypatch.setenv("D3S2_HOME", str(tmp_path / f"home-{progress}"))
        monkeypatch.setattr(sys, "stderr", Terminal())
        for data in (wanted, drawn):
            open_splits(data, *([] if progress else [False]))  # shown unless asked not to
        said = sys.stderr.getvalue()
        folder = next((tmp_path / f"home-{progress}" / "data").glob("folder-*"))
        for label, count in (("train", 2), ("val", 1)):
            for line in (f"writing {folder.name}/{label}", f"drawing {label}"):
                assert (re.search(f"{line}: +0%.* 0/{count} ", said) is not None) == progress
        assert re.search("reading files: +0%.* 0/4 ", said)
        assert said.endswith("\r")  # the last bar is wiped out
    materialise(open_dataset("folder", wanted.data_root, "train"), tmp_path / "out")
    assert "writing out/train:   0%" in sys.stderr.getvalue()


def test_what_a_preparation_writes_is_not_foreign(tmp_path: Path) -> None:
    """Another process may have prepared the folder just now."""
    names = {"train": ["a"], "val": ["b", "c"]}
    kept = ["classes.csv", splits.PREPARED, ".hidden", "train/images/a.png", "val/labels/c.png"]
    for name in [*kept, "val/images/.half.png", "train/empty/.x"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    splits._refuse_foreign_files(tmp_path, names)
    for name in ("train/images/b.png", "val/images/c.jpg", "train/empty/x.txt", "val/c.png"):
        (tmp_path / name).write_text("")
        with pytest.raises(D3S2Error) as caught:
            splits._refuse_foreign_files(tmp_path, names)
        assert str(caught.value) == (
            f"{tmp_path} is not prepared to its end and holds {name}, which is not of its making: "
            "move the file or the folder away."
        )
        (tmp_path / name).unlink()


def test_a_picture_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(source: Path, target: Path) -> None:
        assert np.array_equal(np.array(Image.open(source)), np.eye(4, dtype=np.uint8))
        assert Path(source).parent == Path(target).parent == tmp_path
        raise KeyboardInterrupt

    for before in (None, b""):  # nothing there, or what the loss of power left
        if before is not None:
            (tmp_path / "a.png").write_bytes(before)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", stop)
            folder.complete_png(tmp_path / "a.png", np.eye(4, dtype=np.uint8))
        left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert left == ({} if before is None else {"a.png": before})
