"""Atomic files, digests, arrays: real files."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3s2.core.errors import D3S2Error
from d3s2.core.files import atomic_path, digest, read_json, write_json, write_npz

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
