"""What holds a submission while it is graded: limits of the system, an audit hook of Python, and
Landlock where the kernel has it.

The hook cannot be taken away again from Python code, but does not see what compiled code does;
Landlock does. What neither holds is said in docs/teaching.md.
"""

from __future__ import annotations

import _posixsubprocess
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from d3s2.core.places import PACKAGE
from d3s2.course import landlock

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
LARGEST_FILE = 64 * 2**20
REFUSED = (
    "ctypes.",
    "gc.",
    "os.exec",
    "os.fork",
    "os.kill",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pty.",
    "resource.",
    "signal.pthread_kill",
    "socket.",
    "sqlite3.",
    "subprocess.",
    "sys._current_frames",
    "sys.setprofile",
    "sys.settrace",
    "syslog.",
)
"""Beginnings of the names of events: other processes, the network, its own limits."""
CHANGING = {
    "os.chflags": 1,
    "os.chmod": 1,
    "os.chown": 1,
    "os.link": 2,
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.utime": 1,
    "os.setxattr": 1,
    "os.removexattr": 1,
}
"""Events that change files, and how many paths they name."""
LOOKING = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "glob.glob", "pathlib.Path.glob")


def limit(memory: int, seconds: int) -> None:
    """Hold this process to `memory` more bytes than it has, and to `seconds` of computing.

    The memory is bounded where the system says how much there is (Linux).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    statm = Path("/proc/self/statm")
    if statm.exists():
        held = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))


def close(folder: str) -> None:
    """From here on this process reads Python, d3s2 and `folder`, writes `folder`, starts no other.

    All else raises PermissionError, for as long as the process lives.
    """
    own = os.path.realpath(folder)
    places = {sys.prefix, sys.base_prefix, str(PACKAGE), "/usr", "/lib", "/lib64", "/etc"}
    roots = tuple(sorted(os.path.realpath(place) for place in places))
    devices = ("/dev/null", "/dev/urandom")
    landlock.keep_to((*roots, "/dev/urandom"), (own, "/dev/null"))
    inside = _inside

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, int):
                return
            writes = bool((flags or 0) & WRITING) or bool(set(mode or "") & set("wax+"))
            found = _real(path)
            if inside(found, (own,)) or found in devices or (not writes and inside(found, roots)):
                return
            raise PermissionError(f"a submission may not open {path!r}")
        if event in CHANGING:
            for path in arguments[: CHANGING[event]]:
                if isinstance(path, int) or not inside(_real(path), (own,)):
                    raise PermissionError(f"a submission may not change {path!r}")
        elif event in LOOKING:
            if arguments[0] is not None and not inside(_real(arguments[0]), (own, *roots)):
                raise PermissionError(f"a submission may not look into {arguments[0]!r}")
        elif event.startswith(REFUSED):
            raise PermissionError(f"a submission may not do this: {event}")

    _posixsubprocess.fork_exec = _refuse
    subprocess._fork_exec = _refuse
    sys.addaudithook(watch)


def _real(path: Any) -> str:
    return os.path.realpath(os.fsdecode(path))


def _inside(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(root + os.sep) for root in roots)


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise PermissionError("a submission may not start a process")
