"""Atomic files, digests, arrays: real files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from d3s2.core.errors import D3S2Error, DiskFull
from d3s2.core.files import (
    atomic_path,
    digest,
    explain,
    explained,
    hash_files,
    load_npz,
    read_json,
    remove_abandoned,
    sha256,
    unreadable,
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


# -------------------------------------------------------------------------------- names and folders
def test_a_temporary_file_is_its_targets_own_whatever_the_name(tmp_path: Path) -> None:
    """In the same folder, hidden, short, and known to be of this process; also for names that are
    no text, and below folders that there are not yet.
    """
    folder = tmp_path / "two" / "new"
    names = ["a.png", "b.png", "c", "d." + "x" * 250, os.fsdecode(b"\xff.txt"), "e.part"]
    seen = set()
    for name in names:
        with atomic_path(folder / name) as temporary:
            assert temporary.parent == folder and temporary.name.startswith(".")
            assert temporary.name.endswith(f".part{Path(name).suffix[:20]}")
            seen.add(temporary)
            temporary.write_text(str(len(seen)))
            remove_abandoned(tmp_path)
            assert temporary.exists()
        assert (folder / name).read_text() == str(len(seen))
    assert len(seen) == len(names) and len(files_below(tmp_path)) == len(names)
    assert files_below(tmp_path).keys() == {f"two/new/{name}" for name in names}


@pytest.fixture(scope="module")
def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_what_no_process_writes_any_more_is_deleted(tmp_path: Path, ended: int) -> None:
    mine = os.getpid()
    kept = [f".a.{mine}.part", f"x/.b.{mine}.part.png", f"x/.c.{mine}.part.part", "x/whole.png"]
    gone = [f".a.{ended}.part", f"x/y/.b.{ended}.part.png", "x/..part", ".half.part.png"]
    gone += [f".folder.{ended}.part/deep/result.json", f".c.{mine}.{ended}.part"]
    for name in [*kept, *gone]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    remove_abandoned(tmp_path, "*.part")
    assert (tmp_path / "x/..part").exists() and not (tmp_path / f".a.{ended}.part").exists()
    remove_abandoned(tmp_path)
    assert files_below(tmp_path).keys() == set(kept)
    assert not (tmp_path / f".folder.{ended}.part").exists()


# ---------------------------------------------------------------------------------------- sentences
@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        (
            ("ENOSPC", "EDQUOT"),
            "The disk is full: /x/y/a.png could not be written. Free some space, then run the "
            "same again.",
        ),
        (
            ("EACCES", "EPERM", "EROFS", "ENOTDIR", "EEXIST"),
            "/x/y cannot be written (why): choose another folder with run_dir.",
        ),
        (
            ("ENAMETOOLONG",),
            "The name of /x/y/a.png is too long for this disk: give it a shorter one.",
        ),
    ],
)
def test_what_a_disk_refuses_is_a_sentence(numbers: tuple[str, ...], sentence: str) -> None:
    for number in numbers:
        said = explain(OSError(getattr(errno, number), "why"), Path("/x/y/a.png"))
        assert isinstance(said, D3S2Error) and str(said) == sentence
    other = OSError(errno.EIO, "why")
    assert explain(other, Path("/x/y/a.png")) is other


def test_an_error_names_the_file_and_keeps_its_cause(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    gone, place = tmp_path / "gone", tmp_path / "file" / "a.txt"
    again = f"{gone} ([Errno 2] No such file or directory: '{gone}'): run notebook 01 again"
    for sentence, call in {
        f"{tmp_path}/file cannot be written (File exists): choose another folder with run_dir.": (
            lambda: write_text(place, "")
        ),
        f"{gone} is missing.": lambda: read_json(gone),
        f"cannot read {gone} (No such file or directory): put the file back or prepare the data "
        "again.": lambda: hash_files([gone]),
        f"cannot read {again} to write it.": lambda: load_npz(gone, []),
    }.items():
        with pytest.raises(D3S2Error) as caught:
            call()
        assert str(caught.value) == sentence and isinstance(caught.value.__cause__, OSError)
    assert str(unreadable(OSError(5, "why"), gone)).startswith(f"cannot read {gone} (why): put")


@pytest.mark.parametrize("content", [b"{", b'"\xff"', None])
def test_json_that_cannot_be_read_says_why(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.json"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(D3S2Error) as caught:
        read_json(path)
    why = caught.value.__cause__
    assert str(caught.value) == f"{path} cannot be read ({why}): move it away and run again."
    assert isinstance(why, (OSError, ValueError))


# ----------------------------------------------------------------------------------------- contents
def test_text_is_utf_8_on_every_machine(tmp_path: Path, ascii_locale: None) -> None:
    for name, write in {
        "text": lambda path: write_text(path, "Größe\n"),
        "csv": lambda path: write_csv(path, [["Größe"]]),
        "json": lambda path: write_json(path, "Größe"),
    }.items():
        write(tmp_path / name)
        assert (tmp_path / name).read_bytes().strip(b'"\n') == "Größe".encode()
    assert read_json(tmp_path / "json") == "Größe"


def test_csv_has_one_line_a_row_and_quotes_where_they_are_needed(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [["a", 1], ["b,c", 'say "x"'], ["two\r\nlines", None]])
    assert (tmp_path / "a.csv").read_bytes() == b'a,1\n"b,c","say ""x"""\n"two\r\nlines",\n'


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_png_is_png_whatever_its_name_and_as_small_as_asked(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape) // 16
    sizes = []
    for level in (0, 6, 9):
        path = tmp_path / f"{level}.picture"
        write_png(path, pixels, compress_level=level)
        with Image.open(path) as image:
            assert image.format == "PNG" and np.array_equal(np.array(image), pixels)
        sizes.append(path.stat().st_size)
    assert sizes[0] > sizes[1] >= sizes[2]
    write_png(tmp_path / "usual.png", pixels)
    assert (tmp_path / "usual.png").read_bytes() == (tmp_path / "6.picture").read_bytes()


def test_arrays_come_back_and_what_is_missing_is_named(tmp_path: Path) -> None:
    arrays = {"a": np.arange(3), "b": np.eye(2), "c": np.array("text")}
    write_npz(tmp_path / "a.npz", **arrays)
    found = load_npz(tmp_path / "a.npz", ["a", "c"])
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    with pytest.raises(D3S2Error) as caught:
        load_npz(tmp_path / "a.npz", ["d", "a", "e"])
    assert str(caught.value) == f"{tmp_path}/a.npz lacks d, e: run notebook 01 again to write it."
    with pytest.raises(TypeError) as refused:
        write_npz(tmp_path / "b.npz", a=np.zeros(1), bad=np.array([None]))
    assert str(refused.value) == "array 'bad' holds Python objects, which only a pickle could store"


def test_an_archive_that_is_damaged_or_could_run_code_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_npz(path, a=np.arange(999))
    whole = path.read_bytes()
    np.savez(tmp_path / "pickled.npz", a=np.array([None]))
    pickled = (tmp_path / "pickled.npz").read_bytes()
    for content in (b"", b"text", whole[:-30], whole[:200] + b"x" + whole[201:], pickled):
        path.write_bytes(content)
        with pytest.raises(D3S2Error, match=r"cannot read .*a\.npz \(.*\): run notebook 01 again"):
            load_npz(path, ["a"])


def test_digests_are_those_of_the_bytes(tmp_path: Path) -> None:
    """Closed forms: SHA-256 of the file, and of JSON without a blank, in ASCII, keys sorted."""
    for size in (0, 1, 1 << 20):
        (tmp_path / "a").write_bytes(b"x" * size)
        expected = hashlib.sha256(b"x" * size).hexdigest()
        assert sha256(tmp_path / "a") == expected and hash_files([tmp_path / "a"]) == [expected]
    value = {"b": None, "a": (1, "ö", {"d": 0.5, "c": True})}
    text = rb'{"a":[1,"\u00f6",{"c":true,"d":0.5}],"b":null}'
    assert digest(value) == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize(
    ("error", "number", "full"),
    [
        (RuntimeError("I/O error: No space left on device (os error 28)"), None, True),
        (RuntimeError("unexpected pos 64"), errno.ENOSPC, True),
        (RuntimeError("unexpected pos 64"), errno.EDQUOT, True),
        (RuntimeError("unexpected pos 64"), errno.EACCES, False),
        (RuntimeError("unexpected pos 64"), None, False),
    ],
)
def test_a_full_disk_is_seen_behind_another_librarys_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    number: int | None,
    full: bool,
) -> None:
    """number: what the disk answers to whoever writes 64 KB."""
    asked: list[tuple[Path, int]] = []

    def write(path: Path, content: bytes) -> int:
        asked.append((path.parent, len(content)))
        if number is not None:
            raise OSError(number, os.strerror(number))
        return len(content)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(DiskFull if full else RuntimeError) as caught, explained(tmp_path / "a.pt"):
        raise error
    assert isinstance(caught.value, DiskFull) == full
    assert set(asked) <= {(tmp_path, 2**16)}
    if full:
        assert str(caught.value) == (
            f"The disk is full: {tmp_path / 'a.pt'} could not be written. Free some space, then "
            "run the same again."
        )
