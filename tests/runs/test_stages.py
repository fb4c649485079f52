"""Stages: keys, manifests, resuming, and the run lock: real files and real processes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import pytest

from d3s2.core.code_version import code_version, library_versions
from d3s2.core.errors import D3S2Error
from d3s2.core.files import atomic_path, digest, read_json
from d3s2.runs import locks, stages
from d3s2.runs.stages import STAGE_LOG, Stage, run_lock, supersede, verify


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


# ------------------------------------------------------------------------ markers, names, sentences
def test_a_manifest_says_what_the_stage_is_made_of_and_its_key_is_the_digest(
    tmp_path: Path,
) -> None:
    first = finish(make_stage(tmp_path))
    stage = Stage(
        tmp_path,
        "other",
        {"b": (1, None), "a": {"x": 0.5}},
        inputs=[first],
        modules=["plots.widgets", "core.errors"],
        external={"dataset": "abc"},
    )
    made_of = {
        "schema": 1,
        "name": "other",
        "parameters": {"a": {"x": 0.5}, "b": [1, None]},
        "inputs": {"selection": first.key},
        "code": code_version("plots.widgets", "core.errors"),
        "libraries": library_versions("plots.widgets", "core.errors"),
        "external": {"dataset": "abc"},
    }
    assert stage.key == digest(made_of) and stage.parameters == made_of["parameters"]
    assert stage.begin() == tmp_path / "other" == stage.folder
    assert read_json(stage.folder / "in_progress.json") == made_of | {"key": stage.key}
    (stage.folder / "a.txt").write_text("12345")
    stage.finish()
    entry = {"bytes": 5, "sha256": hashlib.sha256(b"12345").hexdigest()}
    manifest = read_json(stage.folder / "manifest.json")
    assert manifest == made_of | {"key": stage.key, "files": {"a.txt": entry}}
    found = Stage.find(str(tmp_path), "other")
    assert (found.run_dir, found.name) == (tmp_path, "other")
    assert found.begin() == stage.folder
    assert read_json(stage.folder / "in_progress.json") == made_of | {"key": stage.key}


def test_everything_is_listed_but_logs_markers_and_what_is_hidden(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    folder = stage.begin()
    kept = ["deep/in_progress.json", "deep/manifest.json", "b.txt", "a/logs", "a/log.txt", "a/x/y"]
    left = ["logs/x/y.txt", "a/b/logs/z.txt", "train.log", "a/z.log", ".x", "a/.b/c.txt"]
    for name in [*left, *kept]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    stage.finish()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert list(manifest["files"]) == sorted(kept) and stage.is_current()
    (folder / "a/logs").unlink()
    with pytest.warns(UserWarning, match="a/logs is missing"):
        assert not stage.is_current()


def test_a_missing_or_unfinished_stage_says_what_to_run(tmp_path: Path) -> None:
    for name, fix in {
        "selection": "run notebook 02_mask_selection first",
        "statistics": "run notebook 01_data_statistics first",
        "mine": "run the notebook that writes it first",
    }.items():
        for state in ("missing", "unfinished"):
            with pytest.raises(D3S2Error) as caught:
                Stage.find(tmp_path, name)
            assert str(caught.value) == f"The stage {name!r} is {state} in {tmp_path}: {fix}."
            Stage(tmp_path, name, {}).begin()


FAULTS = {
    "is missing": lambda folder: (folder / "deep/data.txt").unlink(),
    "is not what was written": lambda folder: (folder / "deep/data.txt").write_text("CONTENT"),
    "was edited: its key is not that of what it says": lambda folder: (
        folder / "manifest.json"
    ).write_text((folder / "manifest.json").read_text().replace('"value": 1', '"value": 2')),
    "is incomplete": lambda folder: edit_folder(folder, lambda manifest: manifest.pop("files")),
}


def edit_folder(folder: Path, change) -> None:
    manifest = read_json(folder / "manifest.json")
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_stage_is_named_with_its_file(tmp_path: Path, fault: str) -> None:
    stage = finish(make_stage(tmp_path))
    FAULTS[fault](stage.folder)
    file = "deep/data.txt" if "written" in fault or "missing" in fault else "manifest.json"
    damage = f"{stage.folder / file} {fault}"
    with pytest.raises(D3S2Error) as caught:
        Stage.find(tmp_path, "selection")
    assert str(caught.value) == (
        f"The stage 'selection' is damaged ({damage}): run notebook 02_mask_selection first again, "
        "it will be made anew."
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert not stage.is_current()
    assert [str(warning.message) for warning in said] == [
        f"the stage 'selection' will be made again: {damage}"
    ]
    assert said[0].filename != stages.__file__  # but where it was asked
    assert not verify(tmp_path, "selection", stage.key)


def test_verify_wants_the_key_too(tmp_path: Path) -> None:
    stage = finish(make_stage(tmp_path))
    assert verify(tmp_path, "selection", stage.key)
    assert not verify(tmp_path, "selection", "0" * 64)
    assert not verify(tmp_path, "statistics", stage.key)


def test_strangers_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    stage = finish(make_stage(tmp_path))
    for name in ("z.txt", "b.txt"):
        (stage.folder / name).write_text("mine")
    with pytest.raises(D3S2Error) as caught:
        stage.is_current()
    assert str(caught.value) == (
        f"The stage 'selection' holds {stage.folder / 'b.txt'}, which it did not write (2 such): "
        "move it out of the run folder, then run again."
    )


def test_a_stage_that_was_taken_over_is_told_whose_turn_it_is(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    with pytest.raises(D3S2Error) as caught:
        stage.finish()
    assert str(caught.value) == (
        f"The stage 'selection' in {tmp_path} was begun again by another notebook while this one "
        "wrote it: run one at a time, then this notebook again."
    )


def test_a_manifest_that_is_an_edited_one_of_another_key_is_not_finished(tmp_path: Path) -> None:
    stage = finish(make_stage(tmp_path))
    edit_folder(stage.folder, lambda manifest: manifest.update(key="0" * 64))
    assert not stage.is_current()
    with pytest.raises(D3S2Error, match="begun again"):
        stage.finish()


def test_what_is_superseded_is_numbered_and_says_where_it_went(tmp_path: Path) -> None:
    assert supersede(tmp_path, "selection") is None
    (tmp_path / "selection").mkdir()
    assert supersede(tmp_path, "selection") is None and (tmp_path / "selection").is_dir()
    stage = make_stage(tmp_path)
    for number in ("", "-2", "-3"):
        if number == "-2":
            stage.begin()  # unfinished
        else:
            finish(stage)
        target = tmp_path / "superseded" / f"selection-{stage.key[:8]}{number}"
        assert supersede(tmp_path, "selection") == target
        assert target.is_dir() and not stage.folder.exists()
    for damage in ("{}", "[]", ""):
        finish(stage)
        for marker in ("manifest.json", "in_progress.json"):
            (stage.folder / marker).write_text(damage)
        target = supersede(tmp_path, "selection")
        assert target is not None and target.name.startswith("selection-unknown")
    finish(stage)
    (stage.folder / "in_progress.json").write_text('{"key": "another one"}')
    assert supersede(tmp_path, "selection").name.startswith(f"selection-{stage.key[:8]}-")


def test_a_stage_that_cannot_be_moved_is_a_sentence(tmp_path: Path) -> None:
    finish(make_stage(tmp_path))
    (tmp_path / "superseded").write_text("a file in its place")
    with pytest.raises(D3S2Error, match=f"^{tmp_path} cannot be written .*another folder"):
        make_stage(tmp_path, 2).begin()
    assert make_stage(tmp_path).is_current()


def test_a_stage_is_noted_by_its_full_path_and_names_may_be_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ascii_locale: None
) -> None:
    log = tmp_path / "stages.jsonl"
    monkeypatch.setenv(STAGE_LOG, str(log))
    monkeypatch.chdir(tmp_path)
    stage = finish(Stage("run", "selection", {"value": "Größe"}))
    assert json.loads(log.read_text()) == {
        "run_dir": str(tmp_path / "run"),
        "name": "selection",
        "key": stage.key,
    }
    assert stage.is_current() and verify("run", "selection", stage.key)


# --------------------------------------------------------------------------------------- versions
LIBRARIES = {
    "torch": {"guidance.painting", "training.worker"},
    "numpy": {"selection", "guidance.painting", "training.worker"},
    "pillow": {"selection", "guidance.painting", "training.worker"},
    "scipy": {"selection", "training.worker"},
    "diffusers": {"guidance.painting"},
    "onedl-mmsegmentation": {"training.worker"},
    "psutil": set(),
    "tqdm": set(),
    "dask": set(),
}


def test_the_libraries_of_the_chapters_are_those_they_compute_with() -> None:
    chapters = ("selection", "guidance.painting", "training.worker")
    found = {name: library_versions(name) for name in chapters}
    for library, expected in LIBRARIES.items():
        assert {name for name in chapters if library in found[name]} == expected, library


def test_a_key_follows_the_libraries_that_its_modules_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`plots.widgets` imports nothing else of d3s2."""

    def stage() -> Stage:
        return Stage(tmp_path, "x", {}, modules=["plots.widgets"])

    real, before = metadata.version, stage()
    for library, stale in (("numpy", True), ("ipywidgets", True), ("torch", False)):
        with monkeypatch.context() as patch:
            patch.setattr(
                metadata, "version", lambda name, new=library: "99" if name == new else real(name)
            )
            assert (stage().key != before.key) == stale
    before.begin()
    before.finish()
    libraries = read_json(before.folder / "manifest.json")["libraries"]
    assert libraries == {name: real(name) for name in ("ipywidgets", "numpy", "pillow")}


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


def test_a_lock_is_held_by_one_and_names_its_holder(tmp_path: Path) -> None:
    run = tmp_path / "two" / "new"
    for owner, content in ((str(os.getpid()), None), ("unknown", ""), ("12345", "12345 ")):
        with run_lock(run):
            assert (run / ".lock").read_text() == str(os.getpid())
            if content is not None:
                (run / ".lock").write_text(content)
            with pytest.raises(D3S2Error) as caught, run_lock(str(run)):
                pass
            assert str(caught.value) == (
                f"Another run (process {owner}) is using {run}: wait for it, or choose another "
                "run_dir."
            )
        (run / ".lock").write_text("9" * 40)  # of an earlier run


def test_a_lock_in_no_place_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(D3S2Error) as caught, run_lock(tmp_path / "file"):
        pass
    assert str(caught.value) == (
        f"{tmp_path}/file cannot be written (File exists): choose another folder with run_dir."
    )


def test_a_stage_made_from_another_input_is_refused(tmp_path: Path) -> None:
    first = finish(Stage(tmp_path, "statistics", {"value": 1}, modules=["core.errors"]))
    finish(make_stage(tmp_path, inputs=[first]))
    assert Stage.find(tmp_path, "selection").name == "selection"
    other = Stage(tmp_path, "statistics", {"value": 2}, modules=["core.errors"])
    other.begin()
    sentence = (
        "The stage 'selection' was made from another 'statistics' than the one in "
        f"{tmp_path}: run notebook 02_mask_selection first again, or all with d3s2 run."
    )
    for end in (lambda: None, other.finish):  # while it is made, and once it is there
        end()
        with pytest.raises(D3S2Error) as caught:
            Stage.find(tmp_path, "selection")
        assert str(caught.value) == sentence
    supersede(tmp_path, "statistics")
    assert Stage.find(tmp_path, "selection").name == "selection"  # nothing speaks against it


def test_a_finished_stage_is_given_back_to_others(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    stage.begin()
    assert str(tmp_path / locks.WRITER) in locks._written
    stage.finish()
    assert str(tmp_path / locks.WRITER) not in locks._written
