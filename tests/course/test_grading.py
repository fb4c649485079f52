"""Grading through nbgrader: what every kind of submission gets, and what it cannot do.

All of them lie in one course and are graded in one go, as a teacher does it.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from textwrap import dedent

import nbformat
import pytest
from course_made import Made
from nbformat import NotebookNode

from d3s2.core.errors import D3S2Error
from d3s2.course import landlock
from d3s2.course.assignments import read
from d3s2.course.gradebooks import course as door
from d3s2.course.grading import Graded, autograde, export, feedback, main
from d3s2.course.grading import graded as graded_in
from d3s2.course.nursery import Limits
from d3s2.course.rebuilding import grade_id, is_answer

pytestmark = pytest.mark.processes

NAME = "selection"
TESTS = ("presence-test", "class-weights-test", "gains-test", "greedy-test", "lazy-test")
FULL = {"presence-test": 3, "class-weights-test": 3, "gains-test": 4, "greedy-test": 4}
FULL |= {"lazy-test": 4}
QUICK = Limits(cell=4, whole=40, memory=1024)


def answer(before: str = "", body: str = "return np.minimum(1, counts / 7)") -> str:
    """A wrong `presence`, with lines before it and a body."""
    lines = [f"    {line}" for line in dedent(body).strip().splitlines()]
    return "\n".join([dedent(before).strip(), "def presence(counts, tau=0.02):", *lines])


HARM = {
    "loops": answer(body="while True: pass"),
    "loops at once": answer() + "\nwhile True: pass",
    "exits": answer(body="import os; os._exit(0)"),
    "exits at once": answer() + "\nimport os; os._exit(0)",
    "leaves": answer(body="import sys; sys.exit(0)"),
    "eats memory": answer(body="return np.ones((10**6, 10**5))"),
    "prints": answer(body="for i in range(1_000_000): print(i)\nreturn counts"),
    "scores itself": answer(before="print('20/20'); 20", body="print(3)\nreturn 3"),
    "bends the tests": answer(
        """
        import builtins
        np.allclose = np.array_equal = np.isclose = lambda *_, **__: True
        builtins.AssertionError = KeyError
        class Equal(np.ndarray):
            __eq__ = __le__ = lambda *_: True
        """,
        "return counts.astype(float).view(Equal)",
    ),
    "returns an object": answer("class Any:\n    shape = (2, 3)", "return Any()"),
    "returns too much": answer(body="return np.ones((10**6, 1, 1))"),
    "is no Python": "def presence(counts, tau=0.02)\n    return counts",
    "reads the tests": answer(body="return eval(open({source!r}).read())"),
    "reads by descriptor": answer(
        body="import os\nreturn os.read(os.open({source!r}, os.O_RDONLY), 9)"
    ),
    "looks for the tests": answer(
        body="""
        import gc, sys
        frame = sys._getframe()
        while frame:
            assert "HIDDEN" not in repr(frame.f_locals) + repr(frame.f_globals)
            frame = frame.f_back
        return [each for each in gc.get_objects() if "HIDDEN" in repr(each)]
        """
    ),
    "deletes": answer(body="import shutil; shutil.rmtree({folder!r}); return counts"),
    "deletes its files": answer(body="import os, shutil; shutil.rmtree(os.getcwd())"),
    "overwrites": answer(body="open({victim!r}, 'w').write('gone')"),
    "overwrites natively": answer(
        body="import torch; torch.from_file({victim!r}, shared=True, size=9)[:] = 0"
    ),
    "kills": answer(body="import os; os.kill(os.getppid(), 9)"),
    "starts a program": answer(body="import subprocess; subprocess.run(['touch', {victim!r}])"),
    "starts one below": answer(
        body="import _posixsubprocess\n_posixsubprocess.fork_exec(['/bin/true'], [b'/bin/true'])"
    ),
    "lifts its limits": answer(
        body="import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))"
    ),
    "forges answers": answer(
        body="""
        import os
        for descriptor in range(3, 30):
            try:
                os.write(descriptor, b"\\0\\0\\0\\4true")
            except OSError:
                pass
        return counts
        """
    ),
    "fits the visible test": answer(body="return np.minimum(1, counts / 100 / tau)"),
    "imports the package": "from d3s2.selection import presence",
}
"""Each takes the place of the answer `presence` in a solved notebook: that costs these three points
and no others.
"""


def emptied(made: Made) -> NotebookNode:
    return made.release(NAME)


def without_tests(made: Made) -> NotebookNode:
    """Solved, with all tests deleted: they come back."""
    notebook = made.solved(NAME)
    notebook.cells = [cell for cell in notebook.cells if grade_id(cell) not in TESTS]
    return notebook


def with_easy_tests(made: Made) -> NotebookNode:
    """Not solved, with tests that are always true and worth more, and names that are."""
    notebook = made.release(NAME)
    for cell in notebook.cells:
        if grade_id(cell) in TESTS:
            cell.source = "100"
            cell.metadata.nbgrader.points = 100
    return notebook


def doubled(made: Made) -> NotebookNode:
    """Every cell twice, in the opposite order."""
    notebook = made.solved(NAME)
    again = deepcopy(notebook.cells[::-1])
    for cell in again:
        cell.id += "-again"
    notebook.cells = [*again, *notebook.cells]
    return notebook


def unnamed(made: Made) -> NotebookNode:
    """Solved, but no cell has its name."""
    notebook = made.solved(NAME)
    for cell in notebook.cells:
        cell.metadata.pop("nbgrader", None)
    return notebook


def chatty(made: Made) -> NotebookNode:
    """Solved, with cells of the student's own: magics, an error, a helper, a picture."""
    notebook = made.solved(NAME)
    own = ["%matplotlib inline\n!ls", "1 / 0", "share = 0.02", "display(share)"]
    for number, text in enumerate(own):
        notebook.cells.insert(3 + number, nbformat.v4.new_code_cell(text))
    for cell in notebook.cells:
        if grade_id(cell) == "presence":
            cell.source = cell.source.replace("tau=0.02", "tau=share")
    return notebook


NOTEBOOKS: dict[str, tuple[Callable[[Made], NotebookNode | str], int]] = {
    "a honest": (lambda made: made.solved(NAME), 18),
    "nothing": (emptied, 0),
    "no tests": (without_tests, 18),
    "easy tests": (with_easy_tests, 0),
    "doubled": (doubled, 18),
    "unnamed": (unnamed, 0),
    "chatty": (chatty, 18),
    "no json": (lambda made: '{"cells": [', 0),
    "no notebook": (lambda made: '{"cells": [{"cell_type": 7}, 3]}', 0),
    "deep": (lambda made: "[" * 100_000, 0),
    "zz honest": (lambda made: made.solved(NAME), 18),
}
"""Whole submissions, and the points they get."""


@pytest.fixture(scope="module")
def graded(course: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Graded]:
    """Every submission, graded at once."""
    victim = tmp_path_factory.mktemp("others") / "victim"
    victim.write_text("still there")
    places = {
        "source": str(course.folder / "source" / NAME / f"{NAME}.ipynb"),
        "folder": str(course.folder),
        "victim": str(victim),
    }
    for student, code in HARM.items():
        aimed = re.sub(r"\{(\w+)!r\}", lambda found: repr(places[found[1]]), code)
        course.submit(student, NAME, course.solved(NAME, presence=aimed))
    for student, (make, _) in NOTEBOOKS.items():
        course.submit(student, NAME, make(course))
    linked = course.folder / "submitted" / "linked" / NAME / f"{NAME}.ipynb"
    linked.parent.mkdir(parents=True)
    linked.symlink_to(course.folder / "submitted" / "a honest" / NAME / f"{NAME}.ipynb")
    course.submit("named", NAME, course.solved(NAME))
    file = course.folder / "submitted" / "named" / NAME / f"{NAME}.ipynb"
    file.rename(file.with_name("selection (1).ipynb"))
    found = {one.student: one for one in autograde(course.folder, NAME, limits=QUICK)}
    assert victim.read_text() == "still there"
    return found


def machine(one: Graded) -> dict[str, float | None]:
    return {test: one.points[test] for test in TESTS}


@pytest.mark.parametrize("student", HARM)
def test_harm_costs_its_own_points_and_no_others(graded: dict[str, Graded], student: str) -> None:
    if student == "overwrites natively" and not landlock.version():
        pytest.skip("this kernel has no Landlock")
    assert machine(graded[student]) == FULL | {"presence-test": 0}


@pytest.mark.parametrize("student", NOTEBOOKS)
def test_whatever_is_handed_in_is_graded(graded: dict[str, Graded], student: str) -> None:
    assert graded[student].score == NOTEBOOKS[student][1]
    assert graded[student].most == 20


def test_what_was_put_back_is_said(graded: dict[str, Graded]) -> None:
    assert not graded["a honest"].remarks and not graded["chatty"].remarks
    assert len(graded["no tests"].remarks) == 5 == len(graded["easy tests"].remarks)
    assert "presence-test was missing" in graded["no tests"].remarks[0]
    assert "presence-test was changed" in graded["easy tests"].remarks[0]
    assert graded["no json"].remarks == ["selection.ipynb is no notebook: JSONDecodeError."]
    assert "is a link" in graded["linked"].remarks[0] and graded["linked"].score == 0
    assert "(1).ipynb" in graded["named"].remarks[0] and graded["named"].score == 18


def test_words_wait_for_a_human_and_no_words_have_no_points(graded: dict[str, Graded]) -> None:
    assert graded["a honest"].points["guarantee"] is None
    assert graded["nothing"].points["guarantee"] == 0


def judged(course: Made, student: str) -> NotebookNode:
    return read(course.folder / "autograded" / student / NAME / f"{NAME}.ipynb")


def said(course: Made, student: str, cell: str = "presence-test") -> str:
    """What the grading wrote below a cell."""
    (found,) = [each for each in judged(course, student).cells if grade_id(each) == cell]
    return " ".join(output.get("evalue", output.get("text", "")) for output in found.outputs)


@pytest.mark.parametrize(
    ("student", "why"),
    [
        ("loops", "took too long"),
        ("exits", "its process ended"),
        ("leaves", "SystemExit"),
        ("eats memory", "Unable to allocate"),
        ("returns an object", "a Any was returned"),
        ("returns too much", "KB were returned"),
        ("reads the tests", "may not open"),
        ("reads by descriptor", "may not open"),
        ("looks for the tests", "gc.get_objects"),
        ("deletes", "may not open"),
        ("overwrites", "may not open"),
        ("kills", "os.kill"),
        ("starts a program", "subprocess.Popen"),
        ("starts one below", "may not start a process"),
        ("lifts its limits", "resource.setrlimit"),
        ("forges answers", "cannot be read"),
        ("bends the tests", "1 % is half of tau"),
    ],
)
def test_the_reason_is_said(
    course: Made, graded: dict[str, Graded], student: str, why: str
) -> None:
    assert why in said(course, student)


def test_a_cell_that_is_no_python_says_so(course: Made, graded: dict[str, Graded]) -> None:
    assert "SyntaxError: expected ':'" in said(course, "is no Python", "presence")


def test_what_is_printed_is_bounded(course: Made, graded: dict[str, Graded]) -> None:
    size = (course.folder / "autograded" / "prints" / NAME / f"{NAME}.ipynb").stat().st_size
    assert size < 200_000


def test_feedback_shows_no_hidden_test(course: Made, graded: dict[str, Graded]) -> None:
    assert "hidden test, with other inputs: share of" in said(course, "fits the visible test")
    students = ("a honest", "fits the visible test", "easy tests")
    made = feedback(course.folder, NAME, students)
    pages = {path.parent.parent.name: path.read_text() for path in made}
    assert pages.keys() == set(students)
    for student in students:
        text = re.sub(r"<[^>]+>", "", pages[student])
        assert "naive_greedy" not in text and "HIDDEN" not in text and "seed + 100" not in text
    assert "was changed; it was put back" in pages["easy tests"]


def test_the_table_has_everybody(course: Made, graded: dict[str, Graded]) -> None:
    with open(export(course.folder, NAME), newline="", encoding="utf-8") as stream:
        rows = {row["student"]: row for row in csv.DictReader(stream)}
    assert rows.keys() == graded.keys()
    assert rows["a honest"]["score"] == "18.0" and rows["a honest"]["of"] == "20.0"
    assert rows["a honest"]["to be graded by hand"] == "1" and rows["a honest"]["guarantee"] == ""
    assert rows["loops"]["presence-test"] == "0.0" and rows["loops"]["greedy-test"] == "4.0"
    assert "no notebook" in rows["no json"]["remarks"]


def test_what_is_graded_is_left_alone_until_it_changes(
    course: Made, graded: dict[str, Graded]
) -> None:
    places = {student: course.folder / "autograded" / student / NAME for student in graded}
    before = {student: place.stat().st_mtime_ns for student, place in places.items()}
    file = course.folder / "submitted" / "zz honest" / NAME / f"{NAME}.ipynb"
    os.utime(file)
    assert {one.student for one in autograde(course.folder, NAME, limits=QUICK)} == graded.keys()
    after = {student: place.stat().st_mtime_ns for student, place in places.items()}
    assert {student for student in graded if before[student] != after[student]} == {"zz honest"}


def test_what_is_missing_is_named(
    course: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(D3S2Error, match="Nothing was handed in"):
        next(autograde(course.folder, "guidance"))
    with pytest.raises(D3S2Error, match="has no assignment 'selektion'"):
        next(autograde(course.folder, "selektion"))
    with pytest.raises(D3S2Error, match="Nothing of 'guidance' is graded"):
        export(course.folder, "guidance")
    assert main(["export", NAME, "--course", str(tmp_path)]) == 2
    assert "is no course's folder" in capsys.readouterr().err


def test_an_answer_by_hand_counts(course: Made, graded: dict[str, Graded]) -> None:
    with door(course.folder).gradebook as book:
        grade = book.find_grade("guarantee", NAME, NAME, "a honest")
        grade.manual_score = 1.5
        book.db.commit()
    with open(export(course.folder, NAME), newline="", encoding="utf-8") as stream:
        rows = {row["student"]: row for row in csv.DictReader(stream)}
    assert rows["a honest"]["score"] == "19.5" and rows["a honest"]["guarantee"] == "1.5"
    assert any(is_answer(cell) for cell in judged(course, "a honest").cells)


def test_nbgraders_own_command_does_the_same(course: Made) -> None:
    """`nbgrader autograde` in the course's folder reads its settings: the tests stay apart."""
    name = "statistics"
    wrong = "def class_shares(masks, num_classes):\n    np.allclose = lambda *_: True\n    return 1"
    course.submit("by nbgrader", name, course.solved(name, shares=wrong))
    command = [sys.executable, "-m", "nbgrader", "autograde", name, "--student=by nbgrader"]
    done = subprocess.run(
        command, cwd=course.folder, capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 0, done.stderr
    found = graded_in(door(course.folder), course.folder, "by nbgrader", name)
    assert found.points["shares-test"] == 0 and found.score == 15


def environment() -> dict[str, str]:
    """With this environment's programs before all others: nbgrader calls them by name."""
    programs = str(Path(sys.executable).parent)
    return os.environ | {"PATH": os.pathsep.join([programs, os.environ["PATH"]])}
