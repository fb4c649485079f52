"""Chapter 04: the process that trainings on a CPU are forked from.

To import mmsegmentation takes longer than many a small training does. So one process, the nursery,
imports it, once for all trainings of a call, and forks one for each: every training begins with the
same memory and leaves nothing behind for the next. Nothing has computed there before the fork, so
no thread and no random draw is shared. A GPU does not outlive a fork, and only Linux forks safely
after such imports: elsewhere each training is started as a process of its own.

`Forks` is the side of the caller; `python -m d3s2.training.forking` the other. A line of JSON
each way: `[log, argument, ...]` asks for a training, `[pid]` answers, `[pid, exit code]` tells its
end.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from d3s2.core.errors import D3S2Error
from d3s2.core.processes import PARENT
from d3s2.training import students

POLL_SECONDS = 0.05
COMMON = ("d3s2.training.mask2former",)
"""What every training imports."""
LOST = -signal.SIGKILL
"""The exit code of a training whose nursery was killed: it ends with it."""


# ------------------------------------------------------------------------------ the caller's side
class Forked:
    """A training that a nursery has forked, with what `subprocess.Popen` has of a process.

    pid: its number; returncode: None while it runs.
    """

    def __init__(self, nursery: Forks, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code (negative: the signal that ended it); None while it runs."""
        if self.returncode is None:
            self._nursery.listen()
            self.returncode = self._nursery.ended.get(self.pid)
        return self.returncode

    def wait(self) -> int:
        """The same, once it has ended."""
        while (code := self.poll()) is None:
            time.sleep(POLL_SECONDS)
        return code

    def terminate(self) -> None:
        """Ask it to end."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)


class Forks:
    """A process from which trainings are forked; ends with `close`, or with this process.

    environment: its own and that of all trainings. ended: exit codes by process number.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.ended: dict[int, int] = {}
        self._process = subprocess.Popen(
            _command(),
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._started: list[int] = []
        self._rest = b""
        self._is_gone = False

    @property
    def pid(self) -> int:
        """Its own number."""
        return self._process.pid

    def start(self, arguments: Sequence[str], log: Path) -> Forked:
        """A training with these arguments of `students.main`, logged there; waits for the imports.

        Raises D3S2Error where the nursery has ended.
        """
        count = len(self._started)
        request = json.dumps([str(log), *arguments]) + "\n"
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(request.encode())
            self._process.stdin.flush()
        while len(self._started) == count:
            self.listen(POLL_SECONDS)
            if self._is_gone:
                raise D3S2Error(
                    "The process that trainings are forked from has ended (killed, or short of "
                    "memory?). Run the same again: finished trainings are kept, others go on."
                )
        return Forked(self, self._started[-1])

    def listen(self, seconds: float = 0) -> None:
        """Take what it has said; wait so long for the first word."""
        answers = self._process.stdout
        while not self._is_gone and select.select([answers], [], [], seconds)[0]:
            said = os.read(answers.fileno(), 2**16)
            if not said:
                self._is_gone = True
                lost = (pid for pid in self._started if pid not in self.ended)
                self.ended |= dict.fromkeys(lost, LOST)
            *lines, self._rest = (self._rest + said).split(b"\n")
            for line in lines:
                self._take(*json.loads(line))
            seconds = 0

    def _take(self, pid: int, code: int | None = None) -> None:
        if code is None:
            self._started.append(pid)
        else:
            self.ended[pid] = code

    def close(self) -> None:
        """End it, and with it what still runs."""
        with contextlib.suppress(BrokenPipeError):  # of a request that it never read
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _command() -> list[str]:
    """What a nursery is started with."""
    return [sys.executable, "-P", "-m", "d3s2.training.forking"]


# ------------------------------------------------------------------------------- the nursery's side
def serve(requests: int, answers: int) -> None:
    """Fork a training for each line of one descriptor and tell the other how each ends, until the
    first is closed.
    """
    running: set[int] = set()
    rest = b""
    while True:
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.remove(pid)
                _say(answers, pid, os.waitstatus_to_exitcode(status))
        if not select.select([requests], [], [], POLL_SECONDS)[0]:
            continue
        said = os.read(requests, 2**16)
        if not said:
            break
        *lines, rest = (rest + said).split(b"\n")
        for line in lines:
            log, *arguments = json.loads(line)
            running.add(pid := _fork(log, arguments))
            _say(answers, pid)
    for pid in running:
        os.kill(pid, signal.SIGTERM)


def _say(answers: int, *numbers: int) -> None:
    os.write(answers, json.dumps(numbers).encode() + b"\n")


def _fork(log: str, arguments: Sequence[str]) -> int:
    """The number of a new process, which runs one training and ends."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _take_over(log)
        os.environ[PARENT] = str(parent)
        code = students.main(arguments)
    except BaseException:  # noqa: BLE001 - nothing may leave but an exit code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # never back into the loop above


def _take_over(log: str) -> None:
    """Make this process's streams those of a training, and let Ctrl-C end it."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> int:
    """The nursery: import, then serve. What fails to be imported here fails in each training again,
    which says why in its own log.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    answers = os.dup(1)
    os.dup2(2, 1)  # some packages print while they are imported
    for module in COMMON:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    serve(0, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
