"""Turns and ratios, with work whose seconds are known."""

from __future__ import annotations

import itertools

import pytest

from d3s2.studies import turns
from d3s2.studies.turns import beside, fastest, in_turns, ratio


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A processor on which "short" takes one second and "long" three; what was done, in order."""
    now, done = [0.0], []
    monkeypatch.setattr(turns.time, "process_time", lambda: now[0])

    def work(name: str, seconds: float) -> None:
        done.append(name)
        now[0] += seconds

    done.append(work)
    return done


def test_work_takes_turns_back_and_forth_and_the_first_round_does_not_count(clock: list) -> None:
    work = clock.pop()
    lengths = {"short": itertools.count(100, -33), "long": itertools.count(3)}
    works = {name: (lambda n=name: work(n, next(lengths[n]))) for name in lengths}
    seconds = in_turns(works, 3)
    assert clock == ["short", "long", "long", "short", "short", "long", "long", "short"]
    assert seconds == {"short": [67, 34, 1], "long": [4, 5, 6]}


def test_a_ratio_is_taken_round_by_round() -> None:
    """The machine became slower meanwhile: the ratios of its medians would be another number."""
    found = ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0])
    assert found == (3.0, 2.0, 4.0) and str(found) == " 3.00 (2.00 to 4.00)"


def test_the_fastest_and_the_lines() -> None:
    seconds = {"a": [4.0, 4.0, 4.0], "b": [1.0, 2.0, 90.0], "c": [1.0, 1.0, 1.0]}
    assert fastest(seconds, ("a", "b")) == "b"
    first, second, _ = beside(seconds, "a", 8, "a mask").splitlines()
    assert first.split() == ["a", "500.00", "ms", "a", "mask", "1.00", "(1.00", "to", "1.00)"]
    assert second.split()[1] == "250.00" and "0.50 (0.25 to 22.50)" in second
