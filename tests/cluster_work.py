"""Functions that workers of the tests' clusters import; this module is quick to import."""

from __future__ import annotations

import os
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


def die(item: int) -> None:
    os._exit(1)
