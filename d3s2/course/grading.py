"""Grade what a class handed in, with nbgrader and without a look at each.

    python -m d3s2.course.grading autograde selection --course runs/course
    python -m d3s2.course.grading feedback selection --course runs/course
    python -m d3s2.course.grading export selection --course runs/course

`autograde` reads `submitted/<student>/<assignment>/`, judges every notebook apart from the others
and writes `autograded/` and the gradebook; `feedback` writes a page for each student, without the
hidden tests; `export` a table, `scores/<assignment>.csv`. What is damaged, never ends or does harm
costs its own points and stops nobody else's.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

from d3s2.core.errors import D3S2Error, exit_code
from d3s2.core.files import write_csv
from d3s2.course.assignments import NAMES, read
from d3s2.course.gradebooks import course, settings
from d3s2.course.nursery import Limits
from d3s2.course.rebuilding import remarks_in
from d3s2.course.receiving import receive, submissions

RECEIVED = "received"
"""Folder of the notebooks as they were read, from which nbgrader takes them."""


@dataclass(frozen=True)
class Graded:
    """One submission in the gradebook.

    points: {test or question: points, None where somebody has still to look}; most: the points
    there are; remarks: what was wrong with the file.
    """

    student: str
    points: dict[str, float | None]
    most: float
    remarks: list[str] = field(default_factory=list)

    @property
    def score(self) -> float:
        """What is known of the points."""
        return sum(value or 0.0 for value in self.points.values())


# --------------------------------------------------------------------------------- the three steps
def autograde(
    folder: Path, name: str, again: bool = False, limits: Limits | None = None
) -> Iterator[Graded]:
    """Grade every submission of an assignment, one after the other.

    A submission that was graded and has not changed since is left alone, unless `again`. limits:
    instead of those in the course's settings. Raises D3S2Error for an assignment that the course
    has not, and for no submission at all.
    """
    found = submissions(folder, name)
    release = _release(folder, name)
    if not found:
        raise D3S2Error(f"Nothing was handed in: {folder}/submitted/<student>/{name}/ is missing.")
    config = copy.deepcopy(settings(folder))
    config.CourseDirectory.submitted_directory = RECEIVED
    if limits is not None:
        config.JudgeApart.cell_seconds = limits.cell
        config.JudgeApart.whole_seconds = limits.whole
        config.JudgeApart.memory = limits.memory
    api = course(folder, config)
    for student, submitted in found.items():
        if not again and _is_graded(folder, student, name, submitted):
            yield graded(api, folder, student, name)
            continue
        _receive(folder, student, name, receive(submitted, name, release))
        done = api.autograde(name, student)
        if not done["success"]:
            empty = nbformat.from_dict(release)
            why = str(done.get("error") or done.get("log")).strip().splitlines()[-1][:300]
            empty.metadata["remarks"] = [f"It could not be judged: {why}"]
            _receive(folder, student, name, empty)
            done = api.autograde(name, student)
        if not done["success"]:
            raise D3S2Error(f"nbgrader cannot grade {student}: {done.get('error')}")
        yield graded(api, folder, student, name)


def feedback(folder: Path, name: str, students: Sequence[str] | None = None) -> list[Path]:
    """A page for each graded submission, or for these: points, comments and what the tests said.

    Raises D3S2Error when nothing is graded, and where nbgrader fails.
    """
    api = course(folder)
    pages = []
    for student in students or _graded_students(folder, name):
        done = api.generate_feedback(name, student)
        if not done["success"]:
            raise D3S2Error(f"nbgrader made no feedback for {student}: {done.get('error')}")
        pages.append(folder / "feedback" / student / name / f"{name}.html")
    return pages


def export(folder: Path, name: str) -> Path:
    """The table of an assignment: a line a student, a column a test. Raises D3S2Error when nothing
    is graded.
    """
    api = course(folder)
    rows = [graded(api, folder, student, name) for student in _graded_students(folder, name)]
    tests = list(rows[0].points)
    header = ["student", "score", "of", "to be graded by hand", *tests, "remarks"]
    lines: list[list[object]] = [header]
    for row in rows:
        left = sum(value is None for value in row.points.values())
        values = ["" if row.points[test] is None else row.points[test] for test in tests]
        remarks = " ".join(row.remarks)
        lines.append([_harmless(row.student), row.score, row.most, left, *values, remarks])
    path = folder / "scores" / f"{name}.csv"
    write_csv(path, lines)
    return path


# ------------------------------------------------------------------------------------- their parts
def graded(api: Any, folder: Path, student: str, name: str) -> Graded:
    """What the gradebook holds of a submission, in the order of the notebook."""
    order = [
        cell.metadata.nbgrader.grade_id
        for cell in read(folder / "source" / name / f"{name}.ipynb").cells
        if cell.metadata.get("nbgrader", {}).get("grade")
    ]
    with api.gradebook as book:
        found = book.find_submission_notebook(name, name, student)
        points = {grade.name: _points(grade) for grade in found.grades}
        most = float(found.max_score)
    judged = read(folder / "autograded" / student / name / f"{name}.ipynb")
    return Graded(student, {test: points[test] for test in order}, most, remarks_in(judged))


def _points(grade: Any) -> float | None:
    """A human's points if there are any, else the machine's."""
    if grade.manual_score is not None:
        return float(grade.manual_score + (grade.extra_credit or 0.0))
    return None if grade.auto_score is None else float(grade.auto_score)


def _release(folder: Path, name: str) -> nbformat.NotebookNode:
    path = folder / "release" / name / f"{name}.ipynb"
    if not path.is_file():
        raise D3S2Error(
            f"The course in {folder} has no assignment {name!r}: use {', '.join(NAMES)}, and make "
            "it with `python -m d3s2.course.assignments`."
        )
    return read(path)


def _receive(folder: Path, student: str, name: str, notebook: nbformat.NotebookNode) -> None:
    path = folder / RECEIVED / student / name / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def _is_graded(folder: Path, student: str, name: str, submitted: Path) -> bool:
    """Whether the graded notebook is younger than all that was handed in."""
    done = folder / "autograded" / student / name / f"{name}.ipynb"
    if not done.is_file():
        return False
    times = [path.lstat().st_mtime for path in (submitted, *submitted.glob("*.ipynb"))]
    return done.stat().st_mtime > max(times)


def _graded_students(folder: Path, name: str) -> list[str]:
    found = sorted((folder / "autograded").glob(f"*/{name}/{name}.ipynb"))
    if not found:
        raise D3S2Error(f"Nothing of {name!r} is graded in {folder}: begin with `autograde`.")
    return [path.parent.parent.name for path in found]


def _harmless(text: str) -> str:
    """A name as a spreadsheet shows it: one that begins like a formula gets a quote before it."""
    return f"'{text}" if text[:1] in "=+-@" else text


def main(arguments: Sequence[str] | None = None) -> int:
    """The commands of the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m d3s2.course.grading", description="Grade what a class handed in."
    )
    parser.add_argument("step", choices=("autograde", "feedback", "export"))
    parser.add_argument("name", help=f"of the assignment: {', '.join(NAMES)}")
    parser.add_argument("--course", type=Path, default=Path("runs/course"), help="its folder")
    parser.add_argument("--again", action="store_true", help="grade also what is graded already")
    options = parser.parse_args(arguments)

    def work() -> None:
        if options.step == "autograde":
            for one in autograde(options.course, options.name, options.again):
                left = sum(value is None for value in one.points.values())
                hand = f", {left} to be graded by hand" if left else ""
                said = " ".join(one.remarks)
                print(f"{one.student:20} {one.score:4g} of {one.most:g}{hand} {said}", flush=True)
        elif options.step == "feedback":
            print(
                f"{len(feedback(options.course, options.name))} pages in {options.course}/feedback"
            )
        else:
            print(export(options.course, options.name))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
