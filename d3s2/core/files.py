"""Files that are whole or not there: the one way in which d3s2 writes, and how it reads back.

Everything goes through `atomic_path`, which syncs to disk before a file takes its name.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d3s2.core.errors import D3S2Error, DiskFull

if TYPE_CHECKING:  # the command line answers without them
    import numpy as np


# -------------------------------------------------------------------------------------------- files
@contextmanager
def atomic_path(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """Give a temporary path with the same suffix in the same folder; on success it becomes `path`,
    synced to disk.

    A reader, or a run that is killed, sees the whole old file or the whole new one. On an exception
    the temporary file is removed. sync: False for thousands of small files, after which the caller
    syncs once (3 ms a file).
    Raises D3S2Error where the folder cannot be written or the disk is full.
    """
    path = Path(path)
    # Short whatever the name is: a name may have 255 bytes, and of those `path` may use every one
    short = hashlib.sha256(path.name.encode(errors="surrogateescape")).hexdigest()[:12]
    temporary = path.with_name(f".{short}.{os.getpid()}.part{path.suffix[:20]}")
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if sync:
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        remove(temporary)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """A block that writes `path`: what goes wrong becomes the sentence of `explain` where there is
    one. PyTorch, safetensors and shutil hide why a write failed, so after their errors their words
    are read, and the disk itself is asked.
    """
    try:
        yield
    except D3S2Error:
        raise
    except Exception as error:
        said = explain(error, path) if isinstance(error, OSError) else error
        if said is error and (os.strerror(errno.ENOSPC) in str(error) or _is_full(path.parent)):
            said = explain(OSError(errno.ENOSPC, ""), path)
        if said is error:
            raise
        raise said from error


def _is_full(folder: Path) -> bool:
    """Whether a folder's disk has no room for another 64 KB."""
    probe = folder / f".room.{os.getpid()}.part"
    try:
        probe.write_bytes(bytes(2**16))
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    finally:
        remove(probe)
    return False


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` atomically, keys sorted, one item a line. NaN and infinity are refused
    (ValueError).
    """
    write_text(
        path,
        json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n",
    )


def read_json(path: str | Path) -> Any:
    """Read a JSON file. Raises D3S2Error for one that is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise D3S2Error(f"{path} is missing.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise D3S2Error(f"{path} cannot be read ({error}): move it away and run again.") from error


def write_npz(path: str | Path, **arrays: np.ndarray) -> None:
    """Write arrays atomically as an uncompressed .npz: the same arrays give the same bytes. No
    object arrays.
    """
    import numpy as np

    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise TypeError(f"array {name!r} holds Python objects, which only a pickle could store")
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **dict(sorted(arrays.items())))


def write_png(
    path: str | Path, pixels: np.ndarray, sync: bool = True, compress_level: int = 6
) -> None:
    """Write uint8[H, W] or uint8[H, W, 3] atomically as PNG. sync: see `atomic_path`."""
    from PIL import Image

    with atomic_path(path, sync) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=compress_level)


def write_csv(path: str | Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows atomically as CSV in UTF-8, one line each, ended by a line feed everywhere."""
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as stream,
    ):
        csv.writer(stream, lineterminator="\n").writerows(rows)


def write_text(path: str | Path, text: str) -> None:
    """Write text atomically in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_npz(path: Path, required: Sequence[str]) -> dict[str, np.ndarray]:
    """All arrays of a file. Raises D3S2Error when it is missing, damaged, holds Python objects or
    lacks a required one.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            data = {name: archive[name] for name in archive.files}
    except Exception as error:  # a header that was made to harm raises many kinds
        raise D3S2Error(
            f"cannot read {path} ({error}): run notebook 01 again to write it."
        ) from error
    missing = [name for name in required if name not in data]
    if missing:
        raise D3S2Error(f"{path} lacks {', '.join(missing)}: run notebook 01 again to write it.")
    return data


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(paths: Sequence[Path]) -> list[str]:
    """Hex SHA-256 of each file's bytes. Raises D3S2Error for one that cannot be read."""
    return [_hash_file(path) for path in paths]


def _hash_file(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise unreadable(error, path) from error


def unreadable(error: OSError, path: Path) -> D3S2Error:
    """The sentence for a file of the data that cannot be read."""
    return D3S2Error(
        f"cannot read {path} ({error.strerror}): put the file back or prepare the data again."
    )


def digest(value: Any) -> str:
    """Hex SHA-256 of a value's canonical JSON; tuples count as lists, and NaN is refused
    (ValueError).
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def explain(error: OSError, path: Path) -> OSError | D3S2Error:
    """A sentence for a full disk, a folder that cannot be written and a name that is too long;
    every other error as it is.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"The disk is full: {path} could not be written. Free some space, then run the same "
            "again."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return D3S2Error(
            f"{path.parent} cannot be written ({error.strerror}): choose another folder with "
            "run_dir."
        )
    if error.errno == errno.ENAMETOOLONG:
        return D3S2Error(f"The name of {path} is too long for this disk: give it a shorter one.")
    return error


def remove(path: Path) -> None:
    """Delete a file if it is there and can be deleted."""
    with suppress(OSError):  # replaced already, or its folder cannot be written at all
        path.unlink()


def remove_abandoned(folder: Path, pattern: str = "**/.*.part*") -> None:
    """Delete the temporary files and folders in a folder, and below it, whose process has ended
    (killed, or without power); another process that still writes keeps its own.
    """
    for path in folder.glob(pattern):
        if _is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)
            remove(path)


def _is_abandoned(path: Path) -> bool:
    """Whether a temporary file, named as `atomic_path` does, belongs to no running process."""
    import psutil  # the command line answers without it

    *_, process, _ = f"{path.name.partition('.part')[0]}.".split(".")
    return not (process.isdecimal() and psutil.pid_exists(int(process)))
