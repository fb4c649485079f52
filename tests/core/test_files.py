"""Atomic files, digests, arrays: real files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3s2.core.errors import D3S2Error
from d3s2.core.files import (
    atomic_path,
    digest,
    read_json,
    write_csv,
    write_json,
    write_npz,
    write_png,
    write_text,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# -------------------------------------------------------------------------------------------- files
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
    with (
        pytest.raises(D3S2Error, match="cannot be written"),
        atomic_path(tmp_path / "file" / "a.txt"),
    ):
        pass


@given(value=JSON)
def test_digest_depends_on_the_value_only(value: object) -> None:
    assert digest(value) == digest(json.loads(json.dumps(value)))
    assert (
        digest({"a": value, "b": 1}) == digest({"b": 1, "a": value}) != digest({"a": value, "b": 2})
    )


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
        read_json(tmp_path / "a.json")
    with pytest.raises(D3S2Error, match="missing"):
        read_json(tmp_path / "b.json")


def test_write_json_round_trip(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": "Größe"}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    shutil.rmtree(tmp_path)


# ------------------------------------------------------------- whole or not at all, and on the disk
def write_image(path: Path, number: int) -> None:
    write_png(path, np.full((9, 7, 3), number, np.uint8))


WRITERS = {
    "text": lambda path, number: write_text(path, f"{number}\n" * 99),
    "json": lambda path, number: write_json(path, [number] * 99),
    "npz": lambda path, number: write_npz(path, a=np.full(99, number)),
    "csv": lambda path, number: write_csv(path, [["a", number]] * 99),
    "png": write_image,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_writer_leaves_the_old_file_whole_until_the_new_one_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The order is: all bytes, sync, then the name; at each moment the name holds a whole file."""
    target = tmp_path / f"file.{kind}"
    WRITERS[kind](target, 1)
    old, events = target.read_bytes(), []
    real = {name: getattr(os, name) for name in ("fsync", "replace")}

    def fsync(descriptor: int) -> None:
        file = os.fstat(descriptor)
        events.append(("fsync", file.st_ino, file.st_size))
        assert target.read_bytes() == old
        real["fsync"](descriptor)

    def replace(source: Path, name: Path) -> None:
        file = os.stat(source)
        events.append(("replace", file.st_ino, file.st_size))
        assert target.read_bytes() == old and Path(name) == target
        assert Path(source).parent == target.parent  # one file system, so that it is one step
        real["replace"](source, name)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    WRITERS[kind](target, 2)
    new = os.stat(target)
    assert events == [("fsync", new.st_ino, new.st_size), ("replace", new.st_ino, new.st_size)]
    assert target.read_bytes() != old and files_below(tmp_path).keys() == {target.name}


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_writer_that_is_stopped_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, step: str
) -> None:
    target = tmp_path / f"file.{kind}"
    WRITERS[kind](target, 1)
    before = files_below(tmp_path)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, stop)
    with pytest.raises(KeyboardInterrupt):
        WRITERS[kind](target, 2)
    assert files_below(tmp_path) == before


def test_many_small_files_may_go_without_a_sync_but_not_without_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append("fsync"))
    monkeypatch.setattr(os, "replace", lambda *a: (done.append("replace"), real(*a)))
    write_png(tmp_path / "a.png", np.zeros((2, 2), np.uint8), sync=False)
    assert done == ["replace"] and (tmp_path / "a.png").is_file()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_without_a_number_is_refused_and_the_old_file_stays(
    tmp_path: Path, number: float
) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"a": 1})
    before = files_below(tmp_path)
    for value in (number, {"deep": [{"er": number}]}):
        with pytest.raises(ValueError):
            write_json(target, value)
    assert files_below(tmp_path) == before


@given(value=st.dictionaries(st.text(max_size=4), JSON, min_size=1, max_size=4))
def test_json_bytes_depend_on_the_value_not_on_the_order_of_its_keys(value: dict) -> None:
    turned = dict(reversed(value.items()))
    with tempfile.TemporaryDirectory() as name:
        first, second = Path(name) / "1.json", Path(name) / "2.json"
        write_json(first, {"a": value})
        write_json(second, {"a": turned})
        assert first.read_bytes() == second.read_bytes()
        assert read_json(first) == json.loads(json.dumps({"a": value}))


def test_json_on_disk_is_sorted_with_one_item_a_line(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1], "a": "ö"})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n "a": "ö",\n "b": [\n  1\n ]\n}\n'


def test_processes_that_write_one_file_have_a_temporary_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, number = tmp_path / "data.txt", os.getpid()
    with atomic_path(path) as mine:
        mine.write_text("mine")
        with monkeypatch.context() as another:
            another.setattr(os, "getpid", lambda: number + 1)
            with atomic_path(path) as theirs:
                theirs.write_text("theirs")
        assert path.read_text() == "theirs" and mine.read_text() == "mine"
    assert path.read_text() == "mine" and list(tmp_path.iterdir()) == [path]
