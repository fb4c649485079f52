"""Trainings that are forked from one process: they begin alike, end alone, and tell how."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from training_jobs import make_job, wait_for

from d3s2.core.errors import D3S2Error
from d3s2.core.processes import PARENT
from d3s2.training import forking, side_by_side
from d3s2.training.forking import LOST, Forked, Forks

PLAIN = """
import os, sys, time
from d3s2.core.processes import end_with_parent
from d3s2.training import forking, students

def main(arguments):
    end_with_parent()
    print("argument", *arguments)
    print("input", repr(sys.stdin.read()), file=sys.stderr)
    if arguments[0] == "fails":
        raise ValueError("on purpose")
    if arguments[0] == "stays":
        sys.stdout.flush()
        time.sleep(600)
    return int(arguments[1])

students.main = main
forking.COMMON = ("no.such.module",)
sys.exit(forking.main())
"""


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forks]:
    """A nursery of processes that train nothing."""
    (tmp_path / "plain.py").write_text(PLAIN)
    monkeypatch.setattr(forking, "_command", lambda: [sys.executable, str(tmp_path / "plain.py")])
    found = Forks(os.environ | {PARENT: "1"})
    yield found
    found.close()


def said(log: Path) -> bool:
    return log.exists() and bool(log.read_text())


def ended(training: Forked) -> bool:
    return not psutil.pid_exists(training.pid)


@pytest.mark.processes
def test_each_is_a_process_of_its_own_with_its_own_log(plain: Forks, tmp_path: Path) -> None:
    trainings = [plain.start(["ends", str(code)], tmp_path / f"{code}.txt") for code in (0, 3)]
    assert [training.wait() for training in trainings] == [0, 3]
    assert len({plain.pid, os.getpid(), *(training.pid for training in trainings)}) == 4
    for code in (0, 3):
        lines = (tmp_path / f"{code}.txt").read_text().splitlines()
        assert sorted(lines) == [f"argument ends {code}", "input ''"]


@pytest.mark.processes
def test_what_fails_says_so_in_its_log_and_stops_nobody(plain: Forks, tmp_path: Path) -> None:
    failed = plain.start(["fails"], tmp_path / "failed.txt")
    stays = plain.start(["stays"], tmp_path / "stays.txt")
    assert failed.wait() == 1 and stays.poll() is None
    assert (tmp_path / "failed.txt").read_text().endswith("ValueError: on purpose\n")
    stays.terminate()
    assert stays.wait() == -signal.SIGTERM
    stays.terminate()  # it has ended: nobody else is hit
    assert plain.start(["ends", "0"], tmp_path / "later.txt").wait() == 0


@pytest.mark.processes
def test_closing_ends_what_still_runs(plain: Forks, tmp_path: Path) -> None:
    stays = plain.start(["stays"], tmp_path / "stays.txt")
    wait_for(lambda: said(tmp_path / "stays.txt"), 20)
    plain.close()
    wait_for(lambda: ended(stays), 20)


@pytest.mark.processes
def test_a_killed_nursery_takes_its_trainings_along(plain: Forks, tmp_path: Path) -> None:
    stays = plain.start(["stays"], tmp_path / "stays.txt")
    wait_for(lambda: said(tmp_path / "stays.txt"), 20)
    os.kill(plain.pid, signal.SIGKILL)
    assert stays.wait() == LOST
    wait_for(lambda: ended(stays), 20)
    with pytest.raises(D3S2Error, match="Run the same again"):
        plain.start(["ends", "0"], tmp_path / "later.txt")


@pytest.mark.processes
def test_nothing_computes_before_the_fork(tmp_path: Path) -> None:
    """A thread would be missing in every training, a draw would be the same in all."""
    found = Forks(side_by_side._environment(make_job(tmp_path, tmp_path)))
    try:
        failing = found.start([str(tmp_path / "no.json"), "0"], tmp_path / "log.txt")
        assert failing.wait() == 1 and "no.json" in (tmp_path / "log.txt").read_text()
        assert psutil.Process(found.pid).num_threads() == 1
    finally:
        found.close()


@pytest.mark.parametrize(
    ("changes", "forked"), [({}, True), ({"device": "cuda"}, False), ({"processes": 2}, False)]
)
def test_only_one_process_on_a_cpu_is_forked(tmp_path, monkeypatch, changes, forked) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    job = make_job(tmp_path, tmp_path, **changes)
    assert side_by_side._is_forked(job) is forked
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not side_by_side._is_forked(job)
