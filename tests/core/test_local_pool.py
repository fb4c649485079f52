"""Work by several processes of this machine: the same results, the first error, no orphans."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from cluster_work import die, power, refuse

from d3s2.core import parallel
from d3s2.core.errors import D3S2Error
from d3s2.core.local_pool import spread

pytestmark = pytest.mark.processes


def process_of(item: int) -> int:
    """Which process did it."""
    time.sleep(0.02)
    return os.getpid()


def test_results_come_in_order_from_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(parallel.SCHEDULER, raising=False)
    assert list(spread(power, range(20), 3, processes=2)) == [3**n for n in range(20)]
    there = set(spread(process_of, range(20), processes=2))
    assert len(there) == 2 and os.getpid() not in there
    for items, processes in ((range(20), 1), (range(1), 2), (range(0), 2)):
        assert set(spread(process_of, items, processes=processes)) <= {os.getpid()}


def test_the_first_error_in_order_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(parallel.SCHEDULER, raising=False)
    with pytest.raises(D3S2Error, match="item 3"):
        list(spread(refuse, range(3, 20), processes=2))


def test_a_process_that_dies_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(parallel.SCHEDULER, raising=False)
    with pytest.raises(D3S2Error, match="want of memory"):
        list(spread(die, range(4), processes=2))


def test_no_process_outlives_the_one_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom d3s2.core.local_pool import spread\n"
        "if __name__ == '__main__':\n    list(spread(time.sleep, [60, 60], processes=2))\n"
    )
    (tmp_path / "work.py").write_text(code)
    parent = subprocess.Popen([sys.executable, tmp_path / "work.py"])
    end = time.monotonic() + 60
    while len(below := psutil.Process(parent.pid).children(recursive=True)) < 3:
        assert time.monotonic() < end  # two workers, and multiprocessing's own keeper of resources
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs(below, timeout=30)
    assert len(gone) >= 3 and not alive
