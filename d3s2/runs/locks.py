"""Who may write in a run folder: one `d3s2 run`, or one notebook that is executed by hand.

Two locks of the operating system, which releases them when their process ends, even by kill -9.
`.lock` is held by `d3s2 run` as long as it works. `.writer` is held by the process that has begun a
stage, a notebook's kernel, until it has finished it: so nobody moves away what it writes or reads.
A kernel of `d3s2 run` knows its run by `RUN`; the processes below a kernel write in its name and
take no lock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from d3s2.core.errors import D3S2Error
from d3s2.core.files import explain

RUN = "D3S2_RUN"
"""Environment variable: the process of the `d3s2 run` that a notebook is executed by."""
RUN_LOCK, WRITER = ".lock", ".writer"
LOOK_SECONDS = 0.5
"""For so long may somebody hold `.lock` who only looks whether it is free."""
ORPHAN_SECONDS = 60.0
"""After that a kernel whose `d3s2 run` was killed is taken for one that works: it ends by itself,
in a second or two where the machine is not busy.
"""

_written: dict[str, tuple[TextIO, set[str]]] = {}
"""By the path of a `.writer` that this process holds: the open file, and the stages it writes."""


@contextmanager
def run_lock(run_dir: str | Path) -> Iterator[None]:
    """Hold the run folder for this process; the system releases it when the process ends, even by
    kill -9.

    Raises D3S2Error when another run holds it, a notebook writes a stage there, or the folder
    cannot be made or written.
    """
    path = Path(run_dir) / RUN_LOCK
    file = _take(path, LOOK_SECONDS)
    if file is None:
        raise D3S2Error(
            f"Another run (process {_words(path)[0]}) is using {run_dir}: wait for it, or choose "
            "another run_dir."
        )
    with file:
        _say(file, str(os.getpid()))
        if str(path.with_name(WRITER).resolve()) not in _written:
            _hold_writer(run_dir).close()
        yield


def begin_writing(run_dir: str | Path, stage: str) -> None:
    """Hold the right to write this stage until `end_writing`, or the end of this process, which may
    take it again and again.

    Raises D3S2Error, saying who, when another notebook writes a stage of the folder, or a
    `d3s2 run` that is not this process's own uses it.
    """
    path = Path(run_dir) / WRITER
    name = str(path.resolve())
    if name not in _written or not _is_file(_written[name][0], path):
        _written[name] = (_hold_writer(run_dir), set())
    file, stages = _written[name]
    owner = _run_of_others(run_dir)
    if owner:
        end_writing(run_dir, *stages)
        raise D3S2Error(
            f"d3s2 run (process {owner}) is using {run_dir}, so this notebook cannot write the "
            f"stage {stage!r} there: wait for it, or choose another run_dir."
        )
    stages.add(stage)
    _say(file, f"{os.getpid()} {os.environ.get(RUN) or 0} {' '.join(sorted(stages))}")


def end_writing(run_dir: str | Path, *stages: str) -> None:
    """These stages are written; after the last one the lock is released."""
    name = str((Path(run_dir) / WRITER).resolve())
    if name in _written:
        file, writing = _written[name]
        writing.difference_update(stages)
        if not writing:
            del _written[name]
            file.close()


def _hold_writer(run_dir: str | Path) -> TextIO:
    """The open, locked `.writer`. Raises D3S2Error when another process holds it."""
    path = Path(run_dir) / WRITER
    end = time.monotonic() + ORPHAN_SECONDS
    while True:
        file = _take(path)
        if file is not None:
            return file
        writer, run, *stages = _words(path)
        is_orphan = run.isdecimal() and int(run) > 0 and not _is_running(int(run))
        if not is_orphan or time.monotonic() > end:
            raise D3S2Error(
                f"Another notebook (process {writer}) is writing {', '.join(stages)} in {run_dir}: "
                "wait until it has finished, or shut its kernel down, then run the same again."
            )
        time.sleep(0.1)


def _run_of_others(run_dir: str | Path) -> str:
    """The process of a `d3s2 run` in this folder, unless it is this one or has started it; "" where
    there is none.
    """
    path = Path(run_dir) / RUN_LOCK
    if not path.is_file():
        return ""
    file = _take(path, shared=True)
    if file is not None:
        file.close()
        return ""
    owner = _words(path)[0]
    return "" if owner in (str(os.getpid()), os.environ.get(RUN)) else owner


def _take(path: Path, seconds: float = 0.0, shared: bool = False) -> TextIO | None:
    """The file, open and locked; None when somebody else holds it for longer than that. Where the
    disk knows no locks it is open only.

    Raises D3S2Error when it cannot be made or written.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        fcntl = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - the lock lasts as long as it is open
    except OSError as error:
        raise explain(error, path) from error
    end = time.monotonic() + seconds
    while fcntl is not None:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= end:
                file.close()
                return None
            time.sleep(0.05)
        except OSError:
            break
    return file


def _say(file: TextIO, words: str) -> None:
    """Write who holds a lock into its file; on a full disk nobody is told."""
    with suppress(OSError):
        os.ftruncate(file.fileno(), 0)
        os.pwrite(file.fileno(), words.encode(), 0)


def _words(path: Path) -> list[str]:
    """What a lock's file says: the process; for `.writer` also that of its run (0 = by hand), and
    the stages it writes.
    """
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        words = []
    return words + ["unknown", "0", "a stage"][len(words) :]


def _is_file(file: TextIO, path: Path) -> bool:
    """Whether an open file is still the one at this path: the folder may have been deleted."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _is_running(process: int) -> bool:
    """Whether a process is there, and not only its parent's memory of it."""
    import psutil  # the command line answers without it

    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
