"""What a run shows while it works: one live line on a terminal, plain lines elsewhere; and the
memory it takes.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self, TextIO

import psutil

from d3s2.core import long_work

_WIDTH = 24


class Display:
    """Progress of one notebook after the other.

    On a terminal the line of the running notebook is redrawn in place, every second; elsewhere (a
    log file, CI) its beginning and end are written and, of long work inside it, at most a line a
    minute (`long_work`).
    """

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
        self.name, self.done, self.total = "", 0, 0
        self.inner: Path | None = None
        self.started = self.began = time.perf_counter()
        self._said: tuple[str, int] = ("", 0)
        self._next = 0.0
        self._lock = threading.Lock()

    def line(self, text: str) -> None:
        """Write one line that stays."""
        with self._lock:
            self.stream.write(f"\r\x1b[K{text}\n" if self.live else f"{text}\n")
            self.stream.flush()

    def begin(self, name: str, inner: Path | None = None) -> None:
        """A notebook starts. inner: the file in which its kernel notes how far long work is."""
        self.name, self.done, self.total, self.began = name, 0, 0, time.perf_counter()
        self.inner = inner
        self.tick() if self.live else self.line(f"{name}: running")

    def cells(self, done: int, total: int) -> None:
        """So many of its cells are done."""
        self.done, self.total = done, total
        self.tick()

    def tick(self) -> None:
        """Redraw the live line, or write one of the log when it is time."""
        now = time.perf_counter()
        state = long_work.noted(self.inner) if self.inner else None
        if not self.live:
            self._log(state, now)
            return
        cells = f"{self.done}/{self.total or '?'} cells  {clock(now - self.began)}"
        filled = _WIDTH * self.done // self.total if self.total else 0
        bar = f"[{'#' * filled + '.' * (_WIDTH - filled)}] "
        total = f"  (total {clock(now - self.started)})"
        inner = (bar, total) if state is None else ("", f"  {state}")  # there is one line for all
        text = f"{self.name:<24.24} {inner[0]}{cells}{inner[1]}"
        columns = shutil.get_terminal_size().columns
        with self._lock:
            self.stream.write(f"\r\x1b[K{text[: columns - 1]}")
            self.stream.flush()

    def _log(self, state: long_work.State | None, now: float) -> None:
        """A line where long work has come further since the last one."""
        if state is None:
            return
        if state.label != self._said[0]:  # other work begins, which may be short
            self._said = (state.label, -1)
            self._next = max(self._next, now + long_work.QUIET)
        if now < self._next or self._said[1] == state.done:
            return
        self._next = now + long_work.PAUSE
        self._said = (state.label, state.done)
        self.line(f"{self.name}: {state}")

    def end(self, text: str) -> None:
        """The notebook is over."""
        self.line(f"{self.name}: {text}")


class Meter:
    """Samples the memory of the processes below this one, where the notebooks' kernels are, while a
    block runs.

    tick is called after every sample. peak_mb: largest sum so far, in MiB; of the proportional
    share of shared pages where the system tells it, else of the resident size.
    """

    def __init__(self, tick: Callable[[], None] | None = None, interval: float = 0.5):
        self.peak_mb = 0
        self._tick, self._interval = tick, interval
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_over, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample_until_over(self) -> None:
        while not self._over.wait(self._interval):
            self.peak_mb = max(self.peak_mb, sum(map(_memory, _below())) // 2**20)
            if self._tick:
                self._tick()


def clock(seconds: float) -> str:
    """Minutes and seconds: 75.2 -> "1:15"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _below() -> list[psutil.Process]:
    try:
        return psutil.Process().children(recursive=True)
    except psutil.Error:
        return []


def _memory(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
        return getattr(full, "pss", 0) or full.rss
    except (psutil.Error, OSError):
        return 0  # it ended meanwhile
