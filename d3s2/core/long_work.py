"""How far long work is, and how long it will still take: the one door.

On a terminal it is a bar. In a log, where a bar would be debris, it is a line once the work has
taken some seconds, and then at most one a minute. In the kernel of a notebook nothing is printed,
so that its outputs stay as they are: under `d3s2 run` the state goes into a file (`FILE`), which
the run shows.

Nothing here decides a byte of any result, so that no stage's key covers it
(`code_version.ONLOOKERS`).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self, TextIO, TypeVar

from tqdm import tqdm

FILE = "D3S2_PROGRESS"
"""Environment variable: where the kernel of a run notes how far it is."""
QUIET = 10.0
"""Seconds of work of which a log says nothing."""
PAUSE = 60.0
"""Least seconds between two lines of a log."""
FLASH = 1.0
"""Seconds after which a bar appears on a terminal."""
OFTEN = 0.5
"""Least seconds between two notes in `FILE`."""
_KILO = 1000
Part = TypeVar("Part")


class State(NamedTuple):
    """How far a piece of work is: `done` of `total` (0 = nobody knows), of which `kept` were there
    before it began; seconds: since it began. unit: "" for things that are counted, "B" for bytes.
    """

    label: str
    done: int
    total: int
    kept: int
    seconds: float
    unit: str = ""

    def left(self) -> float | None:
        """Seconds to the end at the speed so far; None where that is not known yet."""
        made = self.done - self.kept
        if made <= 0 or not self.total:
            return None
        return self.seconds / made * (self.total - self.done)

    def __str__(self) -> str:
        number = _size if self.unit == "B" else str
        of = f" of {number(self.total)}" if self.total else ""
        text = f"{self.label}: {number(self.done)}{of}"
        made = self.done - self.kept
        if made > 0 and self.seconds > 0:
            text += f", {_speed(made, self.seconds, self.unit)}"
        left = self.left()
        return text if left is None else f"{text}, {duration(left)} left"


class Steps:
    """Long work in steps, shown as this module says.

        with Steps("painting", 202) as steps:
            steps.skip(12)  # lay there
            steps.add(8)

    shown: False is silent everywhere. stream: where bars and lines go, by default stderr.
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str = "",
        shown: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self._state = State(label, 0, total, 0, 0.0, unit)
        self._stream = stream or sys.stderr
        self._shown = shown
        self._bar: Any = None

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._next = self._began + QUIET
        self._file = Path(os.environ.get(FILE, "")) if self._shown else Path()
        if self._shown and self._stream.isatty():
            label, _, total, *_, unit = self._state
            self._bar = tqdm(
                total=total or None,
                desc=label,
                leave=False,
                delay=FLASH,
                unit=unit or "it",
                unit_scale=unit == "B",
                file=self._stream,
            )
        self._note(self._began)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._file.name:
            with suppress(OSError):
                self._file.unlink(missing_ok=True)

    def add(self, count: int = 1) -> None:
        """So many more are done."""
        self._move(count, 0)

    def skip(self, count: int) -> None:
        """So many were there before: they count, but say nothing of the speed."""
        self._move(count, count)

    def _move(self, count: int, kept: int) -> None:
        now = time.monotonic()
        state = self._state
        self._state = state._replace(
            done=state.done + count, kept=state.kept + kept, seconds=now - self._began
        )
        if self._bar is not None:
            self._bar.update(count)
        elif self._shown:
            self._tell(now)

    def _tell(self, now: float) -> None:
        """A note or a line, when it is time for one."""
        if now < self._next:
            return
        if self._file.name:
            self._note(now)
        elif not in_kernel():
            self._next = now + PAUSE
            print(self._state, file=self._stream, flush=True)

    def _note(self, now: float) -> None:
        """Write the state whole, or not at all: that it cannot be written is no reason to stop."""
        if not self._file.name:
            return
        self._next = now + OFTEN
        partial = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        with suppress(OSError):
            partial.write_text(json.dumps([*self._state]), encoding="utf-8")
            os.replace(partial, self._file)


def over(parts: Iterable[Part], total: int, label: str, shown: bool = True) -> Iterator[Part]:
    """The parts, each of them a step of `total`."""
    with Steps(label, total, shown=shown) as steps:
        for part in parts:
            yield part
            steps.add()


def noted(path: Path) -> State | None:
    """The state that the kernel of a run has noted; None where there is none."""
    try:
        return State(*json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # not there, or half written where nothing is atomic
        return None


def in_kernel() -> bool:
    """Whether what is printed becomes the output of a notebook's cell."""
    return type(sys.stderr).__module__.startswith("ipykernel")


def duration(seconds: float) -> str:
    """About so long, in words: "45 s", "12 min", "3.4 h", "2.1 days"."""
    for limit, size, unit in ((90, 1, "s"), (90 * 60, 60, "min")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def _speed(made: int, seconds: float, unit: str) -> str:
    if unit == "B":
        return f"{_size(made / seconds)}/s"
    return f"{made / seconds:.1f}/s" if made > seconds else f"{seconds / made:.1f} s each"


def _size(count: float) -> str:
    """Bytes in words, as disks are sold: "19.3 GB"."""
    for unit in ("B", "KB", "MB"):
        if count < _KILO:
            return f"{count:.0f} {unit}"
        count /= _KILO
    return f"{count:.1f} GB"
