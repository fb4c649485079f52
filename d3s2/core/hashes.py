"""SHA-256 of big files that are asked for often and seldom change, remembered in a folder.

What is remembered is believed as long as a file's size, times and inode are those of the moment it
was read. A file that changed within the last seconds is read again: a second change in the same
tick of the clock would leave its times as they are. The memory only saves time; damaged, missing or
in a folder that cannot be written, it is done without.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from d3s2.core.errors import D3S2Error
from d3s2.core.files import digest, hash_files, read_json, sha256, unreadable, write_json
from d3s2.core.long_work import over

SMALL = 64 * 1024
"""Bytes up to which reading a file is as quick as remembering it."""
SETTLED = 5.0
"""Seconds after its last change from which a file's times tell it from its next version."""


def remembered_hashes(cache: Path, paths: Sequence[Path]) -> list[str]:
    """Hex SHA-256 of each file's bytes, from the memory in `cache` where that can be trusted.

    One file of memory stands for one folder of data. It is written whole or not at all, and joined
    with what other processes wrote: of two that write at once, one loses entries, never their
    truth. Raises D3S2Error for a file that cannot be read.
    """
    memories: dict[Path, _Memory] = {}
    found = []
    for path in over(paths, len(paths), "reading files"):
        memory = memories.get(path.parent)
        if memory is None:
            memory = memories[path.parent] = _Memory(cache, path.parent)
        found.append(memory.sha256(path))
    for memory in memories.values():
        memory.save()
    return found


class _Memory:
    """What is known of the files of one folder: {name: [size, times, inode, SHA-256]}."""

    def __init__(self, cache: Path, folder: Path) -> None:
        name = digest(os.path.realpath(folder))[:24]
        self.path = cache / "sha256" / f"{name}.json"
        self.known: dict[str, list[Any]] | None = None
        self.new: dict[str, list[Any]] = {}

    def sha256(self, path: Path) -> str:
        """Hex SHA-256 of a file of the folder."""
        try:
            before = _identity(path)
            if before[0] <= SMALL or not _settled(before):
                return hash_files([path])[0]
            if self.known is None:
                self.known = _read(self.path)
            entry = self.known.get(path.name)
            if entry is not None and entry[:-1] == before:
                return entry[-1]
            found = sha256(path)
            if _identity(path) == before:
                self.new[path.name] = [*before, found]
            return found
        except OSError as error:
            raise unreadable(error, path) from error

    def save(self) -> None:
        """Join what is new with what the file holds by now."""
        if not self.new:
            return
        files = _read(self.path) | self.new
        with suppress(OSError, D3S2Error):
            write_json(self.path, {"files": files, "digest": digest(files)})


def _identity(path: Path) -> list[int]:
    """[size, time of the last write, time of the last change of any kind, inode]."""
    status = path.stat()
    return [
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
    ]


def _settled(identity: list[int]) -> bool:
    return max(identity[1:3]) < time.time_ns() - SETTLED * 1e9


def _read(path: Path) -> dict[str, list[Any]]:
    """The entries of a memory; none when it is missing or damaged."""
    try:
        content = read_json(path)
        if content["digest"] == digest(content["files"]):
            return content["files"]
    except (D3S2Error, KeyError, TypeError, ValueError, RecursionError):
        pass
    return {}
