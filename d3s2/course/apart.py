"""The process in which a submission runs while it is graded, apart from the tests.

    python -m d3s2.course.apart

is started by `nursery.Nursery` and speaks through its standard input, a socket. It loads what
submissions need once, and forks for each of them: a fresh process costs milliseconds. The child
runs cells and calls functions as it is told, and answers in plain values (`wire`); it is never
shown a test.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from d3s2.course import fence, wire

SHOWN = 20_000
"""Letters that are kept of what one cell prints."""


# ------------------------------------------------------------------------------------- the children
class Printed(io.TextIOBase):
    """Keeps the first letters and forgets the rest: a million lines cost nothing."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.room = SHOWN

    def write(self, text: str) -> int:
        """Keep what there is room for."""
        if self.room > 0:
            self.parts.append(text[: self.room])
            self.room -= len(text)
        return len(text)

    def take(self) -> str:
        """What was kept since the last time."""
        said = "".join(self.parts) + ("\n... and more" if self.room < 0 else "")
        self.parts, self.room = [], SHOWN
        return said


class Silent:
    """Stands for IPython's shell: takes every magic and does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def plain_python(code: str) -> str:
    """A cell without IPython's own syntax: `%matplotlib inline` becomes a call."""
    from IPython.core.inputtransformer2 import TransformerManager

    return TransformerManager().transform_cell(code)


def _told(error: BaseException) -> dict[str, str]:
    """The error as the reader of a notebook would see it, in short."""
    text, kind = traceback.format_exception_only(error)[-1], type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "cell" in frame[0]]
    place = f" (line {frames[-1].lineno} of the cell)" if frames else ""
    return {"kind": kind, "text": text.strip()[:500] + place}


def answer(order: Mapping[str, Any], names: dict[str, Any], printed: Printed) -> dict[str, Any]:
    """What the child says to one order: {"run": code} or {"call": name, "arguments": …}."""
    try:
        if "run" in order:
            exec(compile(plain_python(order["run"]), "<cell>", "exec"), names)  # noqa: S102
            return {"said": printed.take()}
        function = names[order["call"]]
        given, named = wire.decode(order["arguments"])
        return {"value": wire.encode(function(*given, **named))}
    except KeyError as error:
        if order.get("call") in names:
            return {"error": _told(error), "said": printed.take()}
        return {"error": {"kind": "NameError", "text": f"there is no function {order['call']}"}}
    except BaseException as error:  # noqa: BLE001 - a submission may raise anything
        return {"error": _told(error), "said": printed.take()}


def serve(descriptor: int, job: Mapping[str, Any]) -> None:
    """A child's life: take orders and answer them until nobody asks any more."""
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.chdir(job["folder"])
    os.environ |= dict.fromkeys(("HOME", "TMPDIR", "MPLCONFIGDIR"), job["folder"])
    os.environ["MPLBACKEND"] = "agg"
    for module in job["closed"]:
        sys.modules[module] = None
    printed = Printed()
    sys.stdout = sys.stderr = printed
    names: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
    names |= {"get_ipython": Silent, "display": lambda *_, **__: None}
    fence.limit(int(job["memory"]), int(job["seconds"]))
    fence.close(job["folder"])
    while True:
        reply = answer(wire.read(descriptor), names, printed)
        try:
            wire.write(descriptor, reply)
        except wire.Broken as error:
            wire.write(descriptor, {"error": {"kind": "ValueError", "text": str(error)}})


# --------------------------------------------------------------------------------------- their home
def load() -> None:
    """What submissions import, once for all of them."""
    import scipy.sparse
    import torch

    import d3s2.data.scenes

    plain_python("%time")
    torch.set_num_threads(1)
    assert scipy.sparse and d3s2.data.scenes


def main() -> int:
    """Fork a child for every socket that arrives, and say its number; end when nobody asks."""
    load()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended children need not be waited for
    control = socket.socket(fileno=os.dup(0))
    control.sendall(b"ready\n")
    while True:
        told, descriptors, _, _ = socket.recv_fds(control, 2**16, 1)
        if not descriptors:
            return 0
        number = os.fork()
        if not number:
            control.close()
            _live(descriptors[0], json.loads(told))
        os.close(descriptors[0])
        control.sendall(f"{number}\n".encode())


def _live(descriptor: int, job: Mapping[str, Any]) -> None:
    """Serve, and leave without a look back: the rest of this process belongs to the parent."""
    try:
        serve(descriptor, job)
    finally:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
