"""The memory of hashes: quick, and never believed where it could be wrong."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from d3s2.core import hashes, long_work
from d3s2.core.errors import D3S2Error
from d3s2.core.files import atomic_path, hash_files
from d3s2.core.hashes import remembered_hashes

BIG = hashes.SMALL + 1


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two big files and a small one, changed long enough ago to be remembered."""
    monkeypatch.setattr(hashes, "SETTLED", -60)
    paths = [tmp_path / "data" / name for name in ("a", "b", "small")]
    paths[0].parent.mkdir()
    for path, size in zip(paths, (BIG, 2 * BIG, 10), strict=True):
        path.write_bytes(os.urandom(size))
    return paths


def read_paths(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The big files that are read from now on."""
    read: list[Path] = []
    original = hashes.sha256
    monkeypatch.setattr(hashes, "sha256", lambda path: read.append(path) or original(path))
    return read


def memory(cache: Path) -> Path:
    (found,) = (cache / "sha256").iterdir()
    return found


def test_a_big_file_is_read_once(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = read_paths(monkeypatch)
    for _ in range(2):
        assert remembered_hashes(tmp_path / "cache", files) == hash_files(files)
    assert read == files[:2]


def test_an_edit_in_the_middle_is_seen_whatever_the_times_say(
    files: list[Path], tmp_path: Path
) -> None:
    before = remembered_hashes(tmp_path / "cache", files)
    status = files[1].stat()
    with open(files[1], "r+b") as stream:
        stream.seek(BIG)
        stream.write(b"edited")
    os.utime(files[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    after = remembered_hashes(tmp_path / "cache", files)
    assert after == hash_files(files)
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True]


def test_what_changed_just_now_is_neither_remembered_nor_believed(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(hashes, "SETTLED", 60)
    remembered_hashes(cache, files)
    assert not cache.exists()
    monkeypatch.setattr(hashes, "SETTLED", -60)
    remembered_hashes(cache, files)
    monkeypatch.setattr(hashes, "SETTLED", 60)
    read = read_paths(monkeypatch)
    remembered_hashes(cache, files)
    assert read == [] and remembered_hashes(cache, files) == hash_files(files)
    content = json.loads(memory(cache).read_text())
    for entry in content["files"].values():
        entry[-1] = "0" * 64
    content["digest"] = hashes.digest(content["files"])
    memory(cache).write_text(json.dumps(content))
    assert remembered_hashes(cache, files) == hash_files(files)  # false entries, not asked


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", '{"files": {}}', '{"files": {"a": NaN}, "digest": 1}', "[" * 99_999, "flip"],
    ids=["empty", "cut", "a list", "without digest", "no number", "too deep", "flip"],
)
def test_a_damaged_memory_is_ignored(files: list[Path], tmp_path: Path, damage: str) -> None:
    cache = tmp_path / "cache"
    remembered_hashes(cache, files)
    text = memory(cache).read_text()
    known = hash_files(files)[0]
    flipped = text.replace(known, known[:-1] + ("0" if known[-1] != "0" else "1"))
    memory(cache).write_text(flipped if damage == "flip" else damage)
    assert remembered_hashes(cache, files) == hash_files(files)
    assert memory(cache).read_text() == text


@pytest.mark.parametrize("of", ["written", "changed"])
def test_both_times_must_lie_back(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    """A file's own time can be set to any; the time of the last change of any kind cannot."""
    now = time.time_ns()
    monkeypatch.setattr(hashes, "SETTLED", 60 if of == "changed" else -60)
    written = now - 10**12 if of == "changed" else now + 10**12
    for path in files:
        os.utime(path, ns=(now, written))
    remembered_hashes(tmp_path / "cache", files)
    assert not (tmp_path / "cache").exists()


def test_an_inode_is_no_time() -> None:
    assert hashes._settled([0, 0, 0, 2**63])


def test_each_folder_has_a_memory_of_its_own_whatever_the_way_to_it(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a").write_bytes(b"o" * BIG)
    (tmp_path / "link").symlink_to(files[0].parent, target_is_directory=True)
    paths = [files[0], other / "a", files[1]]
    cache = tmp_path / "cache"
    assert remembered_hashes(cache, paths) == hash_files(paths)
    assert len(list((cache / "sha256").iterdir())) == 2
    read = read_paths(monkeypatch)
    again = [tmp_path / "link" / "a", *paths]
    assert remembered_hashes(cache, again) == hash_files(again) and read == []


def test_small_files_are_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "SETTLED", -60)
    (tmp_path / "a").write_bytes(b"x" * hashes.SMALL)
    assert remembered_hashes(tmp_path / "cache", [tmp_path / "a"]) == hash_files([tmp_path / "a"])
    assert not (tmp_path / "cache").exists()


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = hashes.sha256

    def changing(path: Path) -> str:
        found = original(path)
        path.write_bytes(b"changed" * BIG)
        return found

    monkeypatch.setattr(hashes, "sha256", changing)
    remembered_hashes(tmp_path / "cache", files)
    assert not (tmp_path / "cache").exists()


def test_a_folder_in_the_place_of_the_memory_is_done_without(
    files: list[Path], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    remembered_hashes(cache, files)
    place = memory(cache)
    place.unlink()
    place.mkdir()
    assert remembered_hashes(cache, files) == hash_files(files)


def test_a_cache_that_cannot_be_written_is_done_without(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in its place")
    assert remembered_hashes(tmp_path / "cache", files) == hash_files(files)


class Terminal(io.StringIO):
    """What a person looks at."""

    def isatty(self) -> bool:
        return True


def test_a_person_at_a_terminal_sees_how_far_it_is(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for delay in (0, 1000):
        monkeypatch.setattr(long_work, "FLASH", delay)
        monkeypatch.setattr(sys, "stderr", Terminal())
        remembered_hashes(tmp_path / "cache", files)
        said = sys.stderr.getvalue()
        assert ("\rreading files:   0%|" in said and " 0/3 " in said) == (delay == 0)
        assert not said.strip("\r ") or said.endswith("\r")  # wiped out at the end
    monkeypatch.setattr(long_work, "FLASH", 0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # a log
    remembered_hashes(tmp_path / "cache", files)
    assert sys.stderr.getvalue() == ""


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    for call in (lambda path: remembered_hashes(tmp_path, [path]), lambda path: hash_files([path])):
        with pytest.raises(D3S2Error) as caught:
            call(tmp_path / "gone")
        assert str(caught.value) == (
            f"cannot read {tmp_path}/gone (No such file or directory): put the file back or "
            "prepare the data again."
        )


def ask_again_and_again(cache: Path, paths: list[Path]) -> bool:
    hashes.SETTLED = -60
    expected = hash_files(paths)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        if remembered_hashes(cache, paths) != expected:
            return False
        for path in (cache / "sha256").glob("*.json"):
            path.unlink(missing_ok=True)
    return True


@pytest.mark.processes
def test_two_processes_share_a_memory(files: list[Path], tmp_path: Path) -> None:
    with ProcessPoolExecutor(2) as pool:
        calls = [
            pool.submit(ask_again_and_again, tmp_path / "cache", part)
            for part in (files, files[::-1])
        ]
        assert all(call.result() for call in calls)


def test_two_writers_lose_no_entry_that_was_there(files: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    remembered_hashes(cache, files[:1])
    remembered_hashes(cache, files[1:])
    assert set(json.loads(memory(cache).read_text())["files"]) == {"a", "b"}


def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".png")
    with atomic_path(path) as temporary:
        assert temporary.suffix == ".png" and ".part" in temporary.name
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    with (
        pytest.raises(D3S2Error, match="too long"),
        atomic_path(tmp_path / ("x" * 252 + ".png")) as temporary,
    ):
        temporary.write_text("whole")
