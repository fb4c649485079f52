"""Processes that must not outlive the one that started them, also when that one is killed with
SIGKILL.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping

PARENT = "D3S2_PARENT"
"""Environment variable: the process whose end ends this one too."""


def bound_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment (default: this process's) for a child that calls `end_with_parent`."""
    return dict(os.environ if environment is None else environment) | {PARENT: str(os.getpid())}


def end_with_parent(interval: float = 0.5) -> None:
    """From now on end this process, at the latest after `interval` seconds, once the one that
    started it is gone.

    A killed parent cannot tell its children, so a thread looks who the parent is: when it ends, the
    system gives its children another one. The id comes from the parent itself, so one that ended
    before this call is noticed as well. Linux's own signal for this (PR_SET_PDEATHSIG) would come
    when the parent's *thread* ends. Does nothing in a process that was started without
    `bound_environment`.
    """
    parent = os.environ.pop(PARENT, "")
    if parent.isdecimal():
        threading.Thread(
            target=_watch, args=(int(parent), interval), daemon=True, name="parent"
        ).start()


def _watch(parent: int, interval: float) -> None:
    while os.getppid() == parent:
        time.sleep(interval)
    os._exit(1)
