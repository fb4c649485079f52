"""What is said of long work: on a terminal, in a log, in the kernel of a run."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from d3s2.core import long_work
from d3s2.core.code_version import code_version, sources
from d3s2.core.long_work import State, Steps, duration, noted, over


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(long_work.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.delenv(long_work.FILE, raising=False)
    return Clock(monkeypatch)


def test_a_log_has_a_line_after_some_seconds_and_then_at_most_one_a_minute(clock: Clock) -> None:
    log = io.StringIO()
    with Steps("painting", 100, stream=log) as steps:
        for _ in range(90):
            clock.now += 2
            steps.add()
    assert log.getvalue().splitlines() == [
        "painting: 5 of 100, 2.0 s each, 3 min left",
        "painting: 35 of 100, 2.0 s each, 2 min left",
        "painting: 65 of 100, 2.0 s each, 70 s left",
    ]


@pytest.mark.parametrize("why", ["short", "hidden"])
def test_a_log_says_nothing_of_short_work_or_where_nobody_asked(clock: Clock, why: str) -> None:
    log = io.StringIO()
    with Steps("painting", 4, shown=why != "hidden", stream=log) as steps:
        for _ in range(4):
            clock.now += 2 if why == "short" else 200
            steps.add()
    assert log.getvalue() == ""


def test_what_lay_there_says_nothing_of_the_speed(clock: Clock) -> None:
    log = io.StringIO()
    with Steps("fetching", 20 * 10**9, "B", stream=log) as steps:
        steps.skip(10 * 10**9)
        clock.now += 100
        steps.add(10**9)
    assert log.getvalue() == "fetching: 11.0 GB of 20.0 GB, 10 MB/s, 15 min left\n"
    assert State("x", 5, 10, 5, 3.0).left() is None
    assert str(State("x", 5, 0, 0, 1.0)) == "x: 5, 5.0/s"


def test_the_parts_come_through_each_in_its_place(clock: Clock) -> None:
    log = io.StringIO()
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", log)
        for part in over("abc", 3, "letters"):
            clock.now += 100
            found.append(part)
    assert found == ["a", "b", "c"]
    assert log.getvalue().startswith("letters: 1 of 3")


def test_a_kernel_notes_the_state_in_a_file_and_prints_nothing(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, log = tmp_path / ".03.progress", io.StringIO()
    monkeypatch.setenv(long_work.FILE, str(path))
    with Steps("painting", 4, stream=log) as steps:
        assert noted(path) == State("painting", 0, 4, 0, 0.0)
        for _ in range(2):
            clock.now += 100
            steps.add()
        assert noted(path) == State("painting", 2, 4, 0, 200.0)
    assert list(tmp_path.iterdir()) == [] and noted(path) is None and log.getvalue() == ""
    monkeypatch.setenv(long_work.FILE, str(tmp_path / "no" / "folder"))
    with Steps("painting", 4) as steps:
        steps.add()  # that nothing can be noted stops nobody


def test_a_kernel_without_a_run_is_silent(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cell(io.StringIO):
        """As Jupyter's own stream."""

    Cell.__module__ = "ipykernel.iostream"
    monkeypatch.setattr(sys, "stderr", Cell())
    with Steps("painting", 4) as steps:
        clock.now += 100
        steps.add()
    assert sys.stderr.getvalue() == ""


def test_durations_in_words() -> None:
    seconds = (0.4, 89, 91, 89 * 60, 91 * 60, 47 * 3600, 49 * 3600)
    words = ["0 s", "89 s", "2 min", "89 min", "1.5 h", "47.0 h", "2.0 days"]
    assert [duration(each) for each in seconds] == words


def test_no_stage_is_made_anew_for_another_word_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "d3s2.core.parallel" in sources("statistics.pixels")
    assert "d3s2.core.long_work" not in sources("statistics.pixels")
    before = code_version("statistics.pixels")
    monkeypatch.setattr(sys.modules["d3s2.core.code_version"], "ONLOOKERS", ())
    assert code_version("statistics.pixels") != before
