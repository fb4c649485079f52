"""Stages: keys, manifests, resuming, and the run lock: real files and real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from d3s2.core.errors import D3S2Error
from d3s2.core.files import atomic_path, read_json
from d3s2.runs.stages import STAGE_LOG, Stage, run_lock, verify


def make_stage(run: Path, value: int = 1, **more: object) -> Stage:
    return Stage(run, "selection", {"value": value}, modules=["core.errors"], **more)


def finish(stage: Stage, text: str = "content") -> Stage:
    folder = stage.begin()
    with atomic_path(folder / "deep" / "data.txt") as path:
        path.write_text(text)
    stage.finish()
    return stage


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# ------------------------------------------------------------------------------------------- stages
def test_finished_stage_is_current_until_a_byte_changes(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    assert not stage.is_current()
    finish(stage)
    assert make_stage(tmp_path).is_current()
    data = stage.folder / "deep" / "data.txt"
    data.write_text("CONTENT")
    with pytest.warns(UserWarning, match="data.txt is not what was written"):
        assert not stage.is_current()
    data.unlink()
    with pytest.warns(UserWarning, match="missing"):
        assert not stage.is_current()


def test_key_depends_on_all_that_decides_the_bytes(tmp_path: Path) -> None:
    base = make_stage(tmp_path)
    variants = [
        make_stage(tmp_path, 2),
        make_stage(tmp_path, external={"dataset": "abc"}),
        make_stage(tmp_path, inputs=[base]),
        make_stage(tmp_path, inputs=[make_stage(tmp_path, 2)]),
        Stage(tmp_path, "selection", {"value": 1}, modules=["core.files"]),
        Stage(tmp_path, "other", {"value": 1}, modules=["core.errors"]),
    ]
    assert len({base.key, *(stage.key for stage in variants)}) == 7
    assert base.key == make_stage(tmp_path / "elsewhere").key


def test_equal_runs_write_equal_bytes(tmp_path: Path) -> None:
    for run in ("a", "b"):
        stage = finish(make_stage(tmp_path / run))
        (stage.folder / "late.log").write_text(run)
    first, second = files_below(tmp_path / "a"), files_below(tmp_path / "b")
    assert first.pop("selection/late.log") != second.pop("selection/late.log")
    assert first == second and str(tmp_path).encode() not in b"".join(first.values())


def test_logs_are_outside_the_manifest(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    folder = stage.begin()
    (folder / "logs").mkdir()
    for name in ("train.log", "logs/x.txt", "kept.txt"):
        (folder / name).write_text("1")
    stage.finish()
    assert list(read_json(folder / "manifest.json")["files"]) == ["kept.txt"]
    (folder / "train.log").write_text("2")
    assert stage.is_current()


def test_interrupted_stage_keeps_its_items(tmp_path: Path) -> None:
    folder = make_stage(tmp_path).begin()
    (folder / "done.txt").write_text("1")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (folder / f".half.{ended.pid}.part.png").write_text("rubbish")
    (folder / ".half.part").write_text("of nobody")
    (folder / f".training.{ended.pid}.part").mkdir()
    (folder / f".training.{ended.pid}.part" / "result.json").write_text("rubbish")
    assert not make_stage(tmp_path).is_current()
    assert make_stage(tmp_path).begin() == folder
    assert (folder / "done.txt").exists() and not list(folder.glob(".*.part*"))


def test_stage_of_other_parameters_is_moved_never_deleted(tmp_path: Path) -> None:
    old = finish(make_stage(tmp_path))
    before = files_below(old.folder)
    for value in (2, 3):  # 2 is left unfinished, and superseded too
        make_stage(tmp_path, value).begin()
    finish(make_stage(tmp_path, 3))
    kept = tmp_path / "superseded"
    assert files_below(kept / f"selection-{old.key[:8]}") == before
    assert len(list(kept.iterdir())) == 2
    finish(make_stage(tmp_path))
    finish(make_stage(tmp_path, 4))
    assert files_below(kept / f"selection-{old.key[:8]}-2") == before


def test_foreign_folder_is_moved(tmp_path: Path) -> None:
    (tmp_path / "selection").mkdir()
    (tmp_path / "selection" / "thesis.txt").write_text("mine")
    finish(make_stage(tmp_path))
    assert (tmp_path / "superseded" / "selection-unknown" / "thesis.txt").read_text() == "mine"


def test_damaged_stage_is_made_anew(tmp_path: Path) -> None:
    stage = finish(make_stage(tmp_path))
    before = files_below(stage.folder)
    (stage.folder / "deep" / "data.txt").write_text("xxx")
    finish(stage)
    assert files_below(stage.folder) == before


@pytest.mark.parametrize("text", ["", "[]", "{", "{}"])
def test_damaged_manifest_is_not_current(tmp_path: Path, text: str) -> None:
    stage = finish(make_stage(tmp_path))
    (stage.folder / "manifest.json").write_text(text)
    assert not stage.is_current() and not verify(tmp_path, "selection", stage.key)
    assert finish(stage).is_current()


def test_find_opens_the_finished_stage(tmp_path: Path) -> None:
    stage = finish(make_stage(tmp_path))
    found = Stage.find(tmp_path, "selection")
    assert (found.key, found.folder, found.parameters) == (stage.key, stage.folder, {"value": 1})
    assert make_stage(tmp_path, inputs=[found]).key == make_stage(tmp_path, inputs=[stage]).key
    assert found.is_current() and verify(tmp_path, "selection", stage.key)


def test_find_says_which_notebook_is_missing(tmp_path: Path) -> None:
    with pytest.raises(D3S2Error, match=r"missing.*02_mask_selection"):
        Stage.find(tmp_path, "selection")
    make_stage(tmp_path).begin()
    with pytest.raises(D3S2Error, match="unfinished"):
        Stage.find(tmp_path, "selection")
    stage = finish(make_stage(tmp_path))
    (stage.folder / "deep" / "data.txt").write_text("xxx")
    for damaged in (stage.folder / "deep" / "data.txt", stage.folder / "manifest.json"):
        with pytest.raises(D3S2Error, match="damaged"):
            Stage.find(tmp_path, "selection")
        damaged.write_text("{}")


def test_parameters_must_be_json(tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError)):
        Stage(tmp_path, "x", {"value": float("nan")})
    with pytest.raises(TypeError):
        Stage(tmp_path, "x", {"value": {1, 2}})


def test_used_stages_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "stages.jsonl"
    monkeypatch.setenv(STAGE_LOG, str(log))
    stage = finish(make_stage(tmp_path))
    assert stage.is_current()
    assert [json.loads(line) for line in log.read_text().splitlines()] == [
        {"run_dir": str(tmp_path), "name": "selection", "key": stage.key}
    ] * 2


# ----------------------------------------------------------------------------- meddled with by hand
def test_a_file_that_somebody_put_beside_the_others_is_found(tmp_path: Path) -> None:
    stage = finish(make_stage(tmp_path))
    stranger = stage.folder / "deep" / "more.txt"
    stranger.write_text("mine")
    assert not verify(tmp_path, "selection", stage.key)
    for look in (stage.is_current, lambda: Stage.find(tmp_path, "selection")):
        with pytest.raises(D3S2Error, match=r"more\.txt, which it did not write.*move it out"):
            look()
    stranger.unlink()
    for harmless in (".DS_Store", "deep/.ipynb_checkpoints/x.txt", "deep/logs/late.txt", "x.log"):
        (stage.folder / harmless).parent.mkdir(exist_ok=True)
        (stage.folder / harmless).write_text("of the desktop")
    assert stage.is_current() and verify(tmp_path, "selection", stage.key)
    assert Stage.find(tmp_path, "selection").key == stage.key


def edit_manifest(stage: Stage, change) -> None:
    path = stage.folder / "manifest.json"
    manifest = read_json(path)
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["parameters"].update(value=2),
        lambda manifest: manifest["inputs"].update(statistics="0" * 64),
        lambda manifest: manifest.update(note="made with care"),
        lambda manifest: manifest.pop("code"),
    ],
)
def test_an_edited_manifest_is_found(tmp_path: Path, change) -> None:
    stage = finish(make_stage(tmp_path))
    edit_manifest(stage, change)
    with pytest.raises(D3S2Error, match="was edited"):
        Stage.find(tmp_path, "selection")
    with pytest.warns(UserWarning, match="was edited"):
        assert not stage.is_current()
    assert not verify(tmp_path, "selection", stage.key)
    assert finish(stage).is_current()


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("key"),
        lambda manifest: manifest.pop("parameters"),
        lambda manifest: manifest.pop("files"),
        lambda manifest: manifest.update(files=["deep/data.txt"]),
        lambda manifest: manifest["files"].update({"deep/data.txt": {}}),
        lambda manifest: manifest["files"].update({"deep/data.txt": None}),
        lambda manifest: manifest["files"].clear(),
    ],
)
def test_a_manifest_without_fields_is_a_sentence(tmp_path: Path, change) -> None:
    stage = finish(make_stage(tmp_path))
    edit_manifest(stage, change)
    with pytest.raises(D3S2Error, match=r"incomplete|not what was written|did not write"):
        Stage.find(tmp_path, "selection")
    assert not verify(tmp_path, "selection", stage.key)


def test_a_list_is_no_manifest(tmp_path: Path) -> None:
    stage = finish(make_stage(tmp_path))
    (stage.folder / "manifest.json").write_text("[]")
    with pytest.raises(D3S2Error, match="incomplete"):
        Stage.find(tmp_path, "selection")


def test_a_second_notebook_leaves_the_first_ones_files_alone(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    with atomic_path(stage.begin() / "big.npz") as partial:
        partial.write_text("half")
        make_stage(tmp_path).begin()
        assert partial.exists()
    stage.finish()
    make_stage(tmp_path).finish()  # both wrote the same
    assert make_stage(tmp_path).is_current()


def test_a_folder_that_another_notebook_took_is_not_finished(tmp_path: Path) -> None:
    stage, other = make_stage(tmp_path), make_stage(tmp_path, 2)
    stage.begin()
    other.begin()
    with pytest.raises(D3S2Error, match="begun again by another notebook"):
        stage.finish()
    other.finish()
    with pytest.raises(D3S2Error, match="begun again by another notebook"):
        stage.finish()
    assert other.is_current()


def test_an_unfinished_folder_of_an_edited_marker_is_not_gone_on_with(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    marker = stage.begin() / "in_progress.json"
    marker.write_text(marker.read_text().replace('"value": 1', '"value": 2'))
    (stage.folder / "item.txt").write_text("of other parameters")
    assert list(stage.begin().iterdir()) == [marker]


# --------------------------------------------------------------------------------------- versions
@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    """Call it to make another version of a library the installed one."""
    real = metadata.version

    def install(name: str, version: str) -> None:
        monkeypatch.setattr(
            metadata, "version", lambda asked: version if asked == name else real(asked)
        )

    return install


@pytest.mark.parametrize(
    ("library", "stale"),
    [
        ("torch", {"d3s2.guidance.painting", "d3s2.training.worker"}),
        ("numpy", {"d3s2.selection", "d3s2.guidance.painting", "d3s2.training.worker"}),
        ("pillow", {"d3s2.selection", "d3s2.guidance.painting", "d3s2.training.worker"}),
        ("scipy", {"d3s2.selection", "d3s2.training.worker"}),
        ("diffusers", {"d3s2.guidance.painting"}),
        ("onedl-mmsegmentation", {"d3s2.training.worker"}),
        ("psutil", set()),
        ("tqdm", set()),
        ("dask", set()),
    ],
)
def test_a_key_follows_the_libraries_that_its_modules_import(
    tmp_path: Path, installed, library: str, stale: set[str]
) -> None:
    names = ("d3s2.selection", "d3s2.guidance.painting", "d3s2.training.worker")

    def keys() -> dict[str, str]:
        return {name: Stage(tmp_path, "x", {}, modules=[name]).key for name in names}

    before = keys()
    installed(library, "99.0")
    assert {name for name, key in keys().items() if key != before[name]} == stale


def test_a_build_for_another_device_is_the_same_version(tmp_path: Path, installed) -> None:
    keys = []
    for version in ("2.13.0+cpu", "2.13.0+cu130", "2.13.0", "2.13.1"):
        installed("torch", version)
        keys.append(Stage(tmp_path, "x", {}, modules=["d3s2.guidance.painting"]).key)
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_a_manifest_names_its_libraries(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "x", {}, modules=["d3s2.selection"])
    stage.begin()
    stage.finish()
    libraries = read_json(stage.folder / "manifest.json")["libraries"]
    assert sorted(libraries) == ["numpy", "pillow", "scipy"]


# --------------------------------------------------------------------------------------------- lock
HOLD = """
import sys, time
from d3s2.runs.stages import run_lock
with run_lock(sys.argv[1]):
    print('held', flush=True)
    time.sleep(60)
"""


def test_second_run_is_refused_and_a_kill_frees_the_lock(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(D3S2Error, match=f"process {holder.pid}"), run_lock(tmp_path):
            pass
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    with run_lock(tmp_path):
        pass
    with run_lock(tmp_path):
        pass


def test_lock_in_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(D3S2Error, match="cannot be written"), run_lock(tmp_path / "file" / "run"):
        pass
