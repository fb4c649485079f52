"""Functions that workers of the tests' clusters import; this module is quick to import."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

from d3s2.core import parallel
from d3s2.core.errors import D3S2Error


def power(item: int, base: int) -> int:
    return base**item


def slow_then_write(item: int, folder: Path) -> int:
    (folder / f"{item}-{os.getpid()}").touch()
    time.sleep(0.4)
    return item


def refuse(item: int) -> int:
    raise D3S2Error(f"item {item} is no good: take another.")


def core(item: int) -> tuple[int | None, int]:
    time.sleep(0.3)  # so that every worker gets an item
    return parallel.own_core(), os.getpid()


def pages_cleared(item: int, size: int) -> int:
    """How many pages the system clears for forty blocks of this size, one after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        b"." * size
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def die(item: int) -> None:
    os._exit(1)
