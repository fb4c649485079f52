"""Atomic files, keys, manifests, resuming, and the run lock: real files and real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3s2 import artifacts, sources
from d3s2.artifacts import Stage, atomic_path, code_version, digest, run_lock, write_json, write_npz
from d3s2.errors import D3S2Error

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def make_stage(run: Path, value: int = 1, **more: object) -> Stage:
    return Stage(run, "selection", {"value": value}, modules=["errors"], **more)


def finish(stage: Stage, text: str = "content") -> Stage:
    folder = stage.begin()
    with atomic_path(folder / "deep" / "data.txt") as path:
        path.write_text(text)
    stage.finish()
    return stage


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -------------------------------------------------------------------------------------------------------- files
def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert files_below(tmp_path) == {"a.txt": b"old"}


def test_the_temporary_keeps_the_suffix_and_folders_are_made(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "x" / "image.png") as path:
        assert path.suffix == ".png"
        path.write_bytes(b"1")
    assert (tmp_path / "x" / "image.png").read_bytes() == b"1"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(D3S2Error, match="disk is full"),
        atomic_path(tmp_path / "a.txt"),
        open("/dev/full", "w") as full,
    ):
        full.write("x")


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(D3S2Error, match="cannot be written"), atomic_path(tmp_path / "file" / "a.txt"):
        pass


@given(value=JSON)
def test_digest_depends_on_the_value_only(value: object) -> None:
    assert digest(value) == digest(json.loads(json.dumps(value)))
    assert digest({"a": value, "b": 1}) == digest({"b": 1, "a": value}) != digest({"a": value, "b": 2})


def test_nan_has_no_digest() -> None:
    with pytest.raises(ValueError):
        digest(float("nan"))


def test_npz_bytes_depend_on_the_arrays_only(tmp_path: Path) -> None:
    a, b = np.arange(5), np.eye(3)
    write_npz(tmp_path / "1.npz", a=a, b=b)
    time.sleep(2.1)  # zip times have a resolution of two seconds
    write_npz(tmp_path / "2.npz", b=b, a=a)
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()
    assert np.array_equal(np.load(tmp_path / "1.npz", allow_pickle=False)["b"], b)


def test_npz_refuses_objects(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'bad'"):
        write_npz(tmp_path / "1.npz", bad=np.array([{}], dtype=object))
    assert files_below(tmp_path) == {}


def test_damaged_and_missing_json_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(D3S2Error, match=r"a.json"):
        artifacts.read_json(tmp_path / "a.json")
    with pytest.raises(D3S2Error, match="missing"):
        artifacts.read_json(tmp_path / "b.json")


# ------------------------------------------------------------------------------------------------- code version
@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package with every form of import, in the place of d3s2."""
    modules = {
        "__init__": "",
        "top": "def f():\n    from d3s2.deep import leaf\n",
        "other": "import d3s2.deep.side\n",
        "relative": "from .deep.leaf import x\nfrom . import plots\nimport numpy\n",
        "plots": "",
        "deep/__init__": "",
        "deep/leaf": "from ..cycle import y\nx = 1\n",
        "deep/side": "",
        "cycle": "from d3s2 import top\ny = 1\n",
    }
    for name, text in modules.items():
        path = tmp_path / "d3s2" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sources, "PACKAGE", tmp_path / "d3s2")
    return tmp_path / "d3s2"


@pytest.mark.parametrize(
    ("edited", "stale"),
    [
        ("plots", {"relative"}),
        ("deep/leaf", {"top", "relative"}),
        ("deep/side", {"other"}),
        ("cycle", {"top", "relative"}),
        ("deep/__init__", {"top", "other", "relative"}),
        ("__init__", set()),
    ],
)
def test_an_edit_changes_the_version_of_its_importers_only(package: Path, edited: str, stale: set[str]) -> None:
    names = ("top", "other", "relative")
    before = {name: code_version(name) for name in names}
    path = package / f"{edited}.py"
    path.write_text(path.read_text() + "z = 2\n")
    assert {name for name in names if code_version(name) != before[name]} == stale


def test_an_unknown_module_is_named(package: Path) -> None:
    with pytest.raises(D3S2Error, match="no_such"):
        code_version("no_such")


# ------------------------------------------------------------------------------------------------------- stages
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
        Stage(tmp_path, "selection", {"value": 1}, modules=["artifacts"]),
        Stage(tmp_path, "other", {"value": 1}, modules=["errors"]),
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
    assert list(artifacts.read_json(folder / "manifest.json")["files"]) == ["kept.txt"]
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
    assert not stage.is_current() and not artifacts.verify(tmp_path, "selection", stage.key)
    assert finish(stage).is_current()


def test_find_opens_the_finished_stage(tmp_path: Path) -> None:
    stage = finish(make_stage(tmp_path))
    found = Stage.find(tmp_path, "selection")
    assert (found.key, found.folder, found.parameters) == (stage.key, stage.folder, {"value": 1})
    assert make_stage(tmp_path, inputs=[found]).key == make_stage(tmp_path, inputs=[stage]).key
    assert found.is_current() and artifacts.verify(tmp_path, "selection", stage.key)


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
    monkeypatch.setenv(artifacts.STAGE_LOG, str(log))
    stage = finish(make_stage(tmp_path))
    assert stage.is_current()
    assert [json.loads(line) for line in log.read_text().splitlines()] == [
        {"run_dir": str(tmp_path), "name": "selection", "key": stage.key}
    ] * 2


# --------------------------------------------------------------------------------------------------------- lock
HOLD = """
import sys, time
from d3s2.artifacts import run_lock
with run_lock(sys.argv[1]):
    print('held', flush=True)
    time.sleep(60)
"""


def test_second_run_is_refused_and_a_kill_frees_the_lock(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
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


def test_write_json_round_trip(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": "Größe"}
    write_json(tmp_path / "a.json", value)
    assert artifacts.read_json(tmp_path / "a.json") == value
    shutil.rmtree(tmp_path)
