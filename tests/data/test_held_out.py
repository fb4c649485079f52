"""The third split of scenes: written when asked for, unlike the others, and the same everywhere."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json
from d3s2.data import held_out, scenes, splits
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.folder import open_folder
from d3s2.data.held_out import ScenesOnly, main, open_test
from d3s2.data.opening import open_dataset
from d3s2.data.splits import count_splits, open_splits

FEW = ScenesOnly(train_images=40, val_images=30)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, and a split of thirty."""
    monkeypatch.setenv("D3S2_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(held_out, "TEST_SCENES", 30)
    return tmp_path / "home"


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def hashes(dataset: SegmentationDataset) -> set[str]:
    return {
        hashlib.sha256(read(index).tobytes()).hexdigest()
        for index in range(len(dataset))
        for read in (dataset.read_image, dataset.read_labels)
    }


def test_no_run_writes_it_and_it_changes_nothing_of_a_run(home: Path) -> None:
    train, val = open_splits(FEW, progress=False)
    before = files(train.root)
    assert sorted(path.name for path in train.root.iterdir()) == [
        "classes.csv",
        "prepared.json",
        "train",
        "val",
    ]
    made = open_test(FEW, progress=False)
    after = files(train.root)
    assert before.items() <= after.items() and len(after) == len(before) + 61
    again = open_splits(FEW, progress=False)
    assert [data.fingerprint() for data in again] == [train.fingerprint(), val.fingerprint()]
    assert splits.SPLITS == ("train", "val") and count_splits(FEW) == (40, 30)
    assert splits.left_unfinished() == []
    for found in (open_folder(train.root, "test"), open_dataset("folder", train.root, "test")):
        assert (found.ids, len(found)) == (made.ids, 30) and found.split == "test"


def test_none_of_its_scenes_is_one_of_the_others(home: Path) -> None:
    train, val = open_splits(FEW, progress=False)
    test = open_test(FEW, progress=False)
    sets = [hashes(data) for data in (train, val, test)]
    assert [len(found) for found in sets] == [80, 60, 60]
    assert not sets[0] & sets[2] and not sets[1] & sets[2]
    assert len(set(scenes.SPLITS.values())) == 3  # the random generators' own numbers
    for index in (0, 7):
        image, labels = scenes.draw_scene(splits.SCENES_SEED, "test", index)
        np.testing.assert_array_equal(test.read_image(index), image)
        np.testing.assert_array_equal(test.read_labels(index), labels)


def test_it_is_the_same_beside_other_numbers_and_by_the_command(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = open_test(FEW, progress=False)
    assert main(["--train-images", "3", "--val-images", "2"]) == 0
    said = capsys.readouterr().out.strip()
    (other,) = {path.parent for path in (home / "data").glob("*/test")} - {made.root}
    assert said == f"30 scenes: {other / 'test'}"
    assert files(other / "test") == files(made.root / "test")
    assert read_json(other / held_out.VOUCHED) == {"test": made.fingerprint()}


def test_there_are_five_hundred_beside_those_of_the_default_run() -> None:
    assert held_out.TEST_SCENES == 500
    assert (ScenesOnly().train_images, ScenesOnly().val_images) == (4000, 500)


def test_a_broken_off_split_goes_on_and_a_changed_one_is_refused(home: Path) -> None:
    made = open_test(FEW, progress=False)
    whole = files(made.root)
    (made.root / held_out.VOUCHED).unlink()
    for name in ("images/00003.png", "labels/00029.png"):
        (made.root / "test" / name).unlink()
    open_test(FEW, progress=False)
    assert files(made.root) == whole
    (made.root / "test" / "images" / "00003.png").write_bytes(
        (made.root / "test" / "images" / "00004.png").read_bytes()
    )
    with pytest.raises(D3S2Error) as caught:
        open_test(FEW, progress=False)
    assert str(caught.value) == (
        f"{made.root / 'test'} is not the split that was drawn, or was changed: move it and "
        f"{made.root / held_out.VOUCHED} away, and it will be drawn again."
    )


def test_foreign_files_are_refused_before_they_are_vouched_for(home: Path) -> None:
    made = open_test(FEW, progress=False)
    (made.root / held_out.VOUCHED).unlink()
    for part in ("images", "labels"):
        source = made.root / "test" / part / "00000.png"
        (made.root / "test" / part / "mine.png").write_bytes(source.read_bytes())
    with pytest.raises(D3S2Error, match="is not the split that was drawn"):
        open_test(FEW, progress=False)
    assert not (made.root / held_out.VOUCHED).exists()


def test_other_data_have_their_own(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(D3S2Error, match=r"data_format is 'camvid', but only scenes .*'test'\)"):
        open_test(replace(FEW, data_format="camvid"))
    assert main(["--train-images", "-1"]) == 2
    assert "train_images and val_images are (-1, 0)" in capsys.readouterr().err
