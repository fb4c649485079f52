"""Stages: keys, manifests, resuming, and the run lock: real files and real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
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
    (folder / ".half.123.part.png").write_text("rubbish")
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
