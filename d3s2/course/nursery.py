"""The processes in which submissions run, seen from the side of the tests.

A `Nursery` is one process that has loaded what submissions import (`apart`); it forks a `Child` for
each of them. What a child says is read as plain data, and never believed to be well formed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from d3s2.core.errors import D3S2Error
from d3s2.core.processes import bound_environment
from d3s2.course import wire


@dataclass(frozen=True)
class Limits:
    """What a submission may take.

    cell: seconds of a cell, or of one call of a function; whole: seconds of the submission; memory:
    MB beside what Python and its libraries hold.
    """

    cell: float = 20.0
    whole: float = 120.0
    memory: int = 1024


GENEROUS = Limits()


class Stopped(Exception):
    """The submission's process ended, or was ended."""


class Child:
    """One process of a submission, with one end of the socket to it."""

    def __init__(self, number: int, end: socket.socket):
        self.number = number
        self.end = end

    def ask(self, order: dict[str, Any], until: float) -> dict[str, Any]:
        """Its answer to one order. Raises Stopped when there is none by then, or ever."""
        descriptor = self.end.fileno()
        reply = bytearray()
        length = 4
        try:
            self.end.settimeout(max(0.1, until - time.monotonic()))
            self.end.sendall(wire.pack(order))  # one that does not read is as one that does not end
            while len(reply) < length:
                left = until - time.monotonic()
                if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                    raise Stopped("it took too long and was stopped")
                part = os.read(descriptor, 2**20)
                if not part:
                    raise Stopped("its process ended")
                reply += part
                if len(reply) >= 4:
                    length = 4 + int.from_bytes(reply[:4])
                    if length > wire.LONGEST:
                        raise Stopped("it sent too much")
            return _message(bytes(reply[4:length]))
        except (OSError, Stopped) as error:
            self.kill()
            why = str(error) if isinstance(error, Stopped) else "its process ended"
            raise Stopped(why) from None

    def kill(self) -> None:
        """End it, and all that it started in its session."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.number, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self.number, signal.SIGKILL)
        self.end.close()


def _message(text: bytes) -> dict[str, Any]:
    """A reply as a dict. Raises Stopped for what is none: it was forged."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Stopped("its answer cannot be read")
    return found


class Nursery:
    """Starts processes for submissions; itself one process, to be closed in the end."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair()
        environment = bound_environment() | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "d3s2.course.apart"]
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=subprocess.DEVNULL, env=environment
        )
        theirs.close()
        self._line()

    def child(self, folder: str, limits: Limits, closed: Sequence[str]) -> Child:
        """A fresh process with this working folder; modules in `closed` cannot be imported."""
        ours, theirs = socket.socketpair()
        job = {"folder": folder, "memory": limits.memory * 2**20, "closed": list(closed)}
        job["seconds"] = int(limits.whole) + 1
        socket.send_fds(self.control, [json.dumps(job).encode()], [theirs.fileno()])
        theirs.close()
        return Child(int(self._line()), ours)

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            part = self.control.recv(1)
            if not part:
                raise D3S2Error(
                    "The process that runs submissions could not start: see the lines above."
                )
            line += part
        return line

    def close(self) -> None:
        """End it; children that still live are nobody's and lose their socket."""
        self.control.close()
        self.process.wait()
