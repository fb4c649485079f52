"""The assignments: solutions have all points, typical wrong answers fail by the test named for
them, and what is handed out shows nothing and has no points.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from course_made import YEAR, Made, as_judged
from nbclient import NotebookClient
from wrong_answers import WRONG, Wrong

from d3s2.core.errors import D3S2Error
from d3s2.course.assignments import (
    NAMES,
    build,
    check,
    failures,
    leaks,
    main,
    points,
    read,
    seeded,
    sources_folder,
)
from d3s2.course.judging import judge, kind_of
from d3s2.course.nursery import Nursery
from d3s2.course.rebuilding import grade_id

SOURCES = {name: sources_folder() / "source" / name / f"{name}.ipynb" for name in NAMES}


# ------------------------------------------------------------------------------------- the sources
@pytest.mark.parametrize("name", NAMES)
def test_a_source_is_as_the_house_has_it(name: str) -> None:
    """Every code cell has a name and no outputs; 20 points, of which tests have most; a stated
    time; a rubric for what is graded by hand.
    """
    notebook = read(SOURCES[name])
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(grade_id(cell) and not cell.outputs and not cell.execution_count for cell in code)
    names = [grade_id(cell) for cell in notebook.cells if grade_id(cell)]
    assert len(names) == len(set(names))
    assert {kind_of(cell) for cell in code} == {"setup", "answer", "test"}
    marked = [cell.metadata.nbgrader for cell in notebook.cells if grade_id(cell)]
    assert all(said.schema_version == 3 for said in marked)
    assert sum(said.get("points", 0) for said in marked) == 20
    assert 4 <= len(points(notebook)) <= 6
    questions = [cell for cell in notebook.cells if "BEGIN SOLUTION" in cell.source]
    questions = [cell for cell in questions if cell.cell_type == "markdown"]
    assert 1 <= len(questions) <= 2 and all("**Rubric.**" in cell.source for cell in questions)
    minutes = notebook.metadata.d3s2.minutes
    assert f"about {minutes} minutes" in notebook.cells[0].source
    (closed,) = notebook.metadata.d3s2.closed
    assert f"`{closed}` cannot be imported" in notebook.cells[0].source


@pytest.mark.parametrize("name", NAMES)
def test_every_test_has_a_visible_and_a_hidden_part(name: str) -> None:
    for cell in read(SOURCES[name]).cells:
        if cell.cell_type == "code" and kind_of(cell) == "test":
            visible, _, hidden = cell.source.partition("### BEGIN HIDDEN TESTS")
            assert "assert" in visible and "assert" in hidden, grade_id(cell)
            asserts = re.findall(r"^ *assert .*$", cell.source, re.MULTILINE)
            assert all(re.search(r', f?".+"$', line) for line in asserts), grade_id(cell)


def test_there_are_five_wrong_answers_for_each() -> None:
    for name in NAMES:
        cells = [one.cell for one in WRONG if one.assignment == name]
        assert len(cells) == 5 == len(set(cells))


def test_the_teachers_guide_lists_tasks_and_mistakes_as_they_are() -> None:
    guide = (sources_folder().parent / "docs" / "teaching.md").read_text(encoding="utf-8")
    for one in WRONG:
        assert f"| `{one.assignment}` | {one.mistake} | `{one.test}` |" in guide
    for name in NAMES:
        notebook = read(SOURCES[name])
        machine = int(sum(points(notebook).values()))
        row = f"| {notebook.metadata.d3s2.minutes} | {machine} | {20 - machine} |"
        assert re.search(rf"^\| `{name}` \| [^|]+ {re.escape(row)}", guide, re.MULTILINE), name


def test_another_seed_makes_other_numbers_and_no_other_text() -> None:
    for path in SOURCES.values():
        one, other = read(path), seeded(read(path), 2031)
        changed = [
            (a.source, b.source)
            for a, b in zip(one.cells, other.cells, strict=True)
            if a.source != b.source
        ]
        assert len(changed) == 1
        assert changed[0][1] == changed[0][0].replace("seed = 1 ", "seed = 2031 ")


# ------------------------------------------------------------------------------------ the releases
def test_a_leak_is_seen() -> None:
    source = read(SOURCES["selection"])
    text = "### BEGIN HIDDEN TESTS\nsecret = 1\n### END HIDDEN TESTS"
    source.cells[-1].source = text
    for shown in (text, "secret = 1", "**Rubric.** a point"):
        release = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(shown)])
        assert leaks(source, release)
    release = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("open = 1")])
    assert not leaks(source, release)


@pytest.mark.processes
@pytest.mark.parametrize("name", NAMES)
def test_solutions_have_all_points_and_what_is_handed_out_none(
    course: Made, nursery: Nursery, name: str
) -> None:
    assert " 20 points" in check(course.folder, name, nursery)
    assert f"seed = {YEAR} " in "".join(cell.source for cell in course.release(name).cells)


@pytest.mark.processes
def test_a_course_has_one_year(course: Made) -> None:
    with pytest.raises(D3S2Error, match=f"seed {YEAR}, not 8: another year, another folder"):
        build(course.folder, 8)


@pytest.mark.processes
def test_a_damaged_source_is_found(course: Made, nursery: Nursery, tmp_path: Path) -> None:
    """A solution that fails, a test that passes with nothing written, a stub that fails otherwise,
    a hidden line that is shown.
    """
    source, release = course.source("selection"), course.release("selection")
    edits = {
        "presence": ("np.minimum(1.0, ", "np.minimum(0.9, "),
        "class-weights-test": ("assert", "0 and"),
        "gains-test": ("a, w =", "assert 0, 'early'\na, w ="),
    }
    for cell in source.cells:
        if grade_id(cell) in edits:
            before, after = edits[grade_id(cell)]
            assert before in cell.source
            cell.source = cell.source.replace(before, after)
            if grade_id(cell) == "class-weights-test":
                cell.source = ""
    release.cells[-1].source += "\n**Rubric.**"
    for kind, notebook in (("source", source), ("release", release)):
        path = tmp_path / kind / "selection" / "selection.ipynb"
        path.parent.mkdir(parents=True)
        nbformat.write(notebook, path)
    with pytest.raises(D3S2Error) as found:
        check(tmp_path, "selection", nursery)
    said = str(found.value)
    assert "the solution fails presence-test" in said
    assert "class-weights-test passes with nothing written" in said
    assert "gains-test fails by AssertionError, not NotImplementedError" in said
    assert "'Rubric' is in the release" in said


def test_an_unknown_assignment_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selektion", "--out", "nowhere"]) == 2
    assert "There is no assignment 'selektion'" in capsys.readouterr().err


# ----------------------------------------------------------------------------------- wrong answers
@pytest.mark.processes
@pytest.mark.parametrize("one", WRONG, ids=lambda one: f"{one.assignment}-{one.cell}")
def test_a_wrong_answer_fails_by_the_test_named_for_it(
    course: Made, nursery: Nursery, one: Wrong
) -> None:
    solved = course.solved(one.assignment, **{one.cell: one.code})
    judged = as_judged(solved, course.source(one.assignment))
    judge(judged, nursery)
    found = failures(judged)
    assert set(found) == {one.test}, found
    assert one.said in found[one.test]


# ------------------------------------------------------------------------------- as students run it
@pytest.mark.processes
@pytest.mark.parametrize("name", NAMES)
def test_a_solved_notebook_runs_in_jupyter(course: Made, name: str) -> None:
    """The visible tests pass in a kernel, where nothing is apart."""
    notebook = course.solved(name)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    assert not failures(notebook)
