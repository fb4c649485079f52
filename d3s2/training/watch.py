"""What is said of a training in another process: how far it is, how long it will take, and that
it stands still.

It is read from the `progress.json` that the training writes; the lines go where the caller says,
into a log as well as to a terminal.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from d3s2.core.long_work import duration

SAY_EVERY = 180.0
"""Seconds between two lines of one training, at most."""
STALLED_AFTER = 600.0
"""Seconds without progress after which that is said, and again each time they have passed."""


class Watch:
    """One training's lines.

    logs: where `progress.json` and `train.log` lie; process: its number; clock: seconds, from any
    beginning.
    """

    def __init__(
        self,
        name: str,
        iterations: int,
        logs: Path,
        process: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.iterations = iterations
        self.logs = logs
        self.process = process
        self.clock = clock
        self._quarter = 0
        self._said = self._moved = self._warned = clock()
        self._state: dict[str, Any] = {}
        self._first: tuple[int, float] | None = None

    def news(self) -> str:
        """The line that is due now; "" when there is none.

        One is due at each quarter of the way, when `SAY_EVERY` has passed since the last one, and
        when nothing has moved for `STALLED_AFTER`.
        """
        now = self.clock()
        self._look(now)
        if now - max(self._moved, self._warned) >= STALLED_AFTER:
            self._warned = self._said = now
            return self._stalled(now)
        if not self._state:
            return ""
        quarter = 4 * self._state["iteration"] // self.iterations
        is_new = self._quarter < quarter < 4
        is_time = now - self._said >= SAY_EVERY and self._moved > self._said
        self._quarter = max(self._quarter, quarter)
        if not (is_new or is_time):
            return ""
        self._said = now
        return f"{self.name}: {self._place()}{self._left(now)}"

    def _look(self, now: float) -> None:
        """Take what the training has written since the last time."""
        try:
            state = json.loads((self.logs / "progress.json").read_text())
        except (OSError, ValueError):  # not there yet, or half written
            return
        if state == self._state:
            return
        self._state = state
        self._moved = now
        if self._first is None:
            self._first = (state["iteration"], now)

    def _place(self) -> str:
        """Where it is, in words."""
        state = self._state
        done = f"{state['iteration']} of {self.iterations} iterations"
        if "judged" in state:
            done = "trained" if state["iteration"] == self.iterations else done
            return f"{done}, judged {state['judged']} of {state['batches']} batches"
        return f"{done}, loss {state['loss']:.1f}"

    def _left(self, now: float) -> str:
        """How long the iterations to come will take at the pace of those that were watched; what a
        checkpoint had done already is no evidence.
        """
        start, since = self._first
        done = self._state["iteration"] - start
        to_come = self.iterations - self._state["iteration"]
        if not done or not to_come:
            return ""
        return f", {duration(to_come * (self._moved - since) / done)} left"

    def _stalled(self, now: float) -> str:
        where = self._place() if self._state else "before its first ten iterations"
        return (
            f"{self.name}: no progress for {duration(now - self._moved)} ({where}); its process "
            f"{self.process} is alive and goes on. Look at {self.logs / 'train.log'}, whether the "
            "process computes (top, nvidia-smi) and whether the disk answers; ended, it goes on "
            "from its checkpoint when run again."
        )
