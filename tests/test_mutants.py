"""What `make mutants` does before and after mutmut: sources prepared, verdicts read."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import mutants
import pytest

ROOT = Path(__file__).resolve().parent.parent

DECORATED = '''\
import functools
from contextlib import contextmanager


@functools.cache
def twice(number):
    """A docstring."""
    return [number, number]


class Room:
    def __init__(self):
        self.left = []

    @property
    def name(self):
        return "room"

    @staticmethod
    def height():
        return 3

    @contextmanager
    def opened(self):
        yield self.name
        self.left.append(True)
'''


def test_spelled_out_decorators_do_what_decorators_do() -> None:
    spelled = mutants.spell_out_decorators(DECORATED)
    assert "@functools.cache" not in spelled and "@property" not in spelled
    assert "@staticmethod" in spelled  # mutmut can do these
    space: dict[str, object] = {}
    exec(compile(spelled, "spelled", "exec"), space)  # noqa: S102
    assert space["twice"](2) is space["twice"](2)
    room = space["Room"]()
    with room.opened() as name:
        assert name == room.name == "room" and room.left == []
    assert room.left == [True] and room.height() == 3


@pytest.mark.parametrize("room", mutants.ROOMS.values(), ids=mutants.ROOMS)
def test_the_modules_and_tests_of_a_room_exist_and_can_be_prepared(room: mutants.Room) -> None:
    for test in room.tests.split():
        assert (ROOT / "tests" / test).exists()
    for module in room.modules.split():
        source = (ROOT / "d3s2" / module).read_text()
        names = [
            {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
            for text in (source, mutants.spell_out_decorators(source))
        ]
        assert names[0] == names[1]


MUTATED = """\
def x_larger__mutmut_orig(a, b):
    if a > b:
        return a
    return b


def x_larger__mutmut_1(a, b):
    if a >= b:
        return a
    return b


def x_larger__mutmut_2(a, b):
    if a < b:
        return a
    return b
"""


def test_a_report_counts_and_names_what_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "selection" / "mutants" / "d3s2"
    folder.mkdir(parents=True)
    (folder / "selection.py").write_text(MUTATED)
    codes = {f"d3s2.selection.x_larger__mutmut_{i}": code for i, code in ((1, 0), (2, 1))}
    codes |= {f"d3s2.selection.x_larger__mutmut_{i}": -24 for i in range(3, 9)}
    codes["d3s2.selection.x_larger__mutmut_9"] = None
    (folder / "selection.py.meta").write_text(json.dumps({"exit_code_by_key": codes}))
    monkeypatch.setattr(mutants, "WORK", tmp_path)
    monkeypatch.setattr(mutants, "REASONS", tmp_path / "mutants.md")
    assert mutants.report(["selection"]) == 1
    said = capsys.readouterr().out
    line = "d3s2/selection.py larger: if a > b:  ->  if a >= b:"
    assert line in said and "87.5 %" in said and "if a < b:" not in said
    (tmp_path / "mutants.md").write_text(f"Equal numbers are equal.\n{line}\n")
    assert mutants.report(["selection"]) == 0
    assert line not in capsys.readouterr().out


def test_survivors_are_forgotten_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = tmp_path / "mutants" / "d3s2" / "selection.py.meta"
    meta.parent.mkdir(parents=True)
    verdicts = {"killed": 1, "endless": -24, "survived": 0, "untested": 33, "new": None}
    meta.write_text(json.dumps({"exit_code_by_key": verdicts, "durations_by_key": {}}))
    monkeypatch.setattr(mutants.subprocess, "run", lambda *_, **__: None)
    mutants.run(tmp_path, [], 1)
    kept = json.loads(meta.read_text())
    assert kept["exit_code_by_key"] == verdicts | {"survived": None, "untested": None}
    assert kept["durations_by_key"] == {}
    meta.write_text(json.dumps({"exit_code_by_key": verdicts}))
    mutants.run(tmp_path, ["surv*"], 1)
    assert json.loads(meta.read_text())["exit_code_by_key"] == verdicts | {"survived": None}


def test_a_score_of_a_sample_has_wilsons_interval() -> None:
    assert mutants.interval(45, 50, 400) == " 78.6 to 95.7 %"
    assert mutants.interval(50, 50, 50) == mutants.interval(0, 0, 50) == ""


def test_a_sample_is_the_same_each_time_and_never_more_than_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(mutants, "run", lambda folder, only, children: asked.append(only))
    for module, count in (("a", 20), ("b", 3)):
        path = tmp_path / "mutants" / f"{module}.py.meta"
        path.parent.mkdir(exist_ok=True)
        names = {f"{module}.{number}": None for number in range(count)}
        path.write_text(json.dumps({"exit_code_by_key": names}))
    found = mutants.drawn(tmp_path, 5, 1)
    assert found == mutants.drawn(tmp_path, 5, 1) != mutants.drawn(tmp_path, 5, 2)
    assert len(set(found)) == 8 and sum(name.startswith("a.") for name in found) == 5
    assert asked == [["none.of.them"]] * 3  # written, not tried
