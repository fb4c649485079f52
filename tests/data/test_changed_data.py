"""A run sees that its data changed, behind links too, and never sees itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from d3s2.core.errors import D3S2Error
from d3s2.runs import config, runner
from d3s2.runs.parameters import Settings


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder whose training split lies elsewhere."""
    monkeypatch.setenv("D3S2_HOME", str(tmp_path / "home"))
    write(tmp_path / "elsewhere/images/a.png", "1")
    write(tmp_path / "mine/val/images/b.png", "1")
    (tmp_path / "mine/train").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    return tmp_path / "mine"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def settings(root: Path, run_dir: Path | str = "/nowhere/run") -> Settings:
    names = {"data_format": "folder", "data_root": str(root), "run_dir": str(run_dir)}
    return config.resolve({"profile": "camvid"} | names, remember=False)


def key(root: Path, run_dir: Path | str = "/nowhere/run") -> str:
    return runner._outside_key(settings(root, run_dir), [])


@pytest.mark.parametrize("name", ["train/images/a.png", "val/images/b.png"])
def test_a_changed_file_changes_the_key(root: Path, name: str) -> None:
    before = key(root)
    assert key(root) == before
    write(root / name, "22")
    assert key(root) != before


def test_a_new_and_a_linked_file_change_the_key(root: Path) -> None:
    keys = [key(root)]
    write(root / "train/images/c.png", "1")
    keys.append(key(root))
    (root / "val/images/c.png").symlink_to(root / "train/images/c.png")
    keys.append(key(root))
    write(root / "train/images/c.png", "333")
    keys.append(key(root))
    assert len(set(keys)) == 4


def test_two_names_of_one_folder_are_told_apart_from_one(root: Path, tmp_path: Path) -> None:
    keys = [key(root)]
    (root / "val2").symlink_to(root / "val", target_is_directory=True)
    keys.append(key(root))
    (root / "val2").unlink()
    (root / "val2").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    keys.append(key(root))
    assert len(set(keys)) == 3


@pytest.mark.parametrize("target", [".", "..", "val", "missing"])
def test_circles_and_dead_links_end(root: Path, target: str) -> None:
    (root / "val/loop").symlink_to(root / target)
    before = key(root)
    write(root / "train/images/a.png", "22")
    assert key(root) != before


def test_a_circle_through_two_folders_ends(root: Path) -> None:
    (root / "val/to").symlink_to(root / "train", target_is_directory=True)
    (root / "train/fro").symlink_to(root / "val", target_is_directory=True)
    assert key(root) == key(root)


def test_the_key_is_free_of_the_place(root: Path) -> None:
    before = key(root)
    os.rename(root, root.with_name("moved"))
    assert key(root.with_name("moved")) == before


def test_a_run_inside_the_data_does_not_see_itself(root: Path) -> None:
    run_dir = root / "results" / "run"
    before = key(root, run_dir)
    write(run_dir / "statistics/counts.npz", "1")
    assert key(root, run_dir) == before
    write(root / "results" / "other" / "run.json", "{}")
    assert key(root, run_dir) == before
    write(root / "results" / "image.png", "1")
    assert key(root, run_dir) != before


def test_what_the_home_holds_is_not_data(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D3S2_HOME", str(root))
    before = key(root)
    for name in (
        "runs/camvid/report.md",
        "data/folder-1/train/images/a.png",
        "cache/sha256/1.json",
    ):
        write(root / name, "1")
    assert key(root) == before


def test_a_run_in_the_data_folder_itself_is_refused(root: Path) -> None:
    with pytest.raises(D3S2Error, match="choose another run_dir"):
        key(root, root)
