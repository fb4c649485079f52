"""Linux's Landlock: a process gives up files, the network and signals for good, compiled code too.

It asks for no rights and no container; kernels have it from 5.13 on, the network from 6.7 and
signals from 6.12. Numbers are those of the kernel's `linux/landlock.h`, the same on every machine.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable

CREATE, ADD, RESTRICT = 444, 445, 446
NO_NEW_PRIVILEGES = 38
EXECUTE, WRITE_FILE, READ_FILE, READ_FOLDER, TRUNCATE = (1 << bit for bit in (0, 1, 2, 3, 14))
READING = EXECUTE | READ_FILE | READ_FOLDER
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
ALL_OF_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many kinds of access to files a kernel's version of Landlock knows."""


class Beneath(ctypes.Structure):
    """A rule: what is allowed below an open folder, or with an open file."""

    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("descriptor", ctypes.c_int32))


class Rules(ctypes.Structure):
    """What is forbidden, but for the rules: files, TCP, and reaching processes outside."""

    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


def version() -> int:
    """What this kernel has of it; 0 = nothing."""
    if sys.platform != "linux":
        return 0
    found = ctypes.CDLL(None, use_errno=True).syscall(CREATE, None, 0, 1)
    return max(0, int(found))


def keep_to(reading: Iterable[str], writing: Iterable[str]) -> bool:
    """Hold this process, and all that it starts, to these folders and files, for good.

    Whoever may write a place may read it. Returns whether the kernel can do it. Raises OSError when
    it can and does not.
    """
    found = version()
    if not found:
        return False
    everything = (1 << ALL_OF_VERSION.get(found, 16)) - 1
    rules = Rules(everything, 3 if found >= 4 else 0, 3 if found >= 6 else 0)
    size = 8 if found < 4 else 16 if found < 6 else 24
    library = ctypes.CDLL(None, use_errno=True)
    ruleset = _checked(library.syscall(CREATE, ctypes.byref(rules), size, 0))
    for places, allowed in ((reading, READING), (writing, everything)):
        for place in places:
            _allow(library, ruleset, place, allowed & everything)
    _checked(library.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _checked(library.syscall(RESTRICT, ruleset, 0))
    os.close(ruleset)
    return True


def _allow(library: ctypes.CDLL, ruleset: int, place: str, allowed: int) -> None:
    """Add one place; one that there is not needs no rule."""
    try:
        descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    here = allowed if os.path.isdir(place) else allowed & OF_A_FILE
    rule = Beneath(here, descriptor)
    _checked(library.syscall(ADD, ruleset, 1, ctypes.byref(rule), 0))
    os.close(descriptor)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "Landlock: " + os.strerror(ctypes.get_errno()))
    return result
