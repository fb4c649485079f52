"""A child ends with its parent, whenever and however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from d3s2.core import processes

pytestmark = pytest.mark.processes

CHILD = """
import sys, time
time.sleep(float(sys.argv[2]))
from d3s2.core.processes import end_with_parent
end_with_parent(0.05)
open(sys.argv[1], 'w').close()
time.sleep(60)
"""
PARENT = """
import subprocess, sys
from d3s2.core.processes import bound_environment
child = subprocess.Popen([sys.executable, '-c', *sys.argv[1:]], env=bound_environment())
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.parametrize("delay", [0.0, 1.0])  # killed after the child looks, and before
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path, delay: float) -> None:
    mark = tmp_path / "mark"
    command = [sys.executable, "-c", PARENT, CHILD, str(mark), str(delay)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    while not delay and not mark.exists():
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    _, alive = psutil.wait_procs([child], timeout=10)
    assert not alive


def test_without_a_parent_named_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(processes.PARENT, raising=False)
    code = (
        "from d3s2.core.processes import end_with_parent as e; e(0); import threading; "
        "print(threading.active_count())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "1"
    assert processes.bound_environment({}) == {processes.PARENT: str(os.getpid())}
