"""A class that does not exist hands in an assignment, and is graded: how long does it take?

    python -m d3s2.course.pretend_class selection --students 30

Two in three have solved it, one in six hands in what was handed out, one in ten never ends, and one
is no notebook. A teacher goes the whole way with it before a class does.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat

from d3s2.core.errors import D3S2Error, exit_code
from d3s2.course.assignments import NAMES, build, read
from d3s2.course.grading import autograde, export, feedback
from d3s2.course.rebuilding import grade_id, is_answer

ENDLESS = "\n\nwhile True:\n    pass\n"


def hand_in(course: Path, name: str, students: int) -> None:
    """Lay a submission for each student into a course's folder."""
    release = read(course / "release" / name / f"{name}.ipynb")
    source = read(course / "source" / name / f"{name}.ipynb")
    answers = {grade_id(cell): cell.source for cell in source.cells if is_answer(cell)}
    for number in range(students):
        notebook = nbformat.from_dict(release)
        written = [cell for cell in notebook.cells if is_answer(cell) and number % 6 != 1]
        for cell in written:
            cell.source = answers[grade_id(cell)]
        if number % 10 == 2:
            written[0].source += ENDLESS
        folder = course / "submitted" / f"student-{number:02d}" / name
        folder.mkdir(parents=True)
        nbformat.write(notebook, folder / f"{name}.ipynb")
        if number == 3:
            (folder / f"{name}.ipynb").write_text('{"cells": [')


def rehearse(out: Path, name: str, students: int) -> str:
    """Build, hand in, grade, write feedback and the table; a line that says the seconds.

    Raises D3S2Error when the folder is there already.
    """
    if out.exists():
        raise D3S2Error(f"{out} is there already: give an --out that is not, or remove it.")
    build(out, 1, [name])
    hand_in(out, name, students)
    began, computed = time.perf_counter(), time.process_time()
    scores = [one.score for one in autograde(out, name)]
    graded = time.perf_counter() - began
    own = time.process_time() - computed
    pages = len(feedback(out, name))
    export(out, name)
    told = time.perf_counter() - began - graded
    return (
        f"{len(scores)} submissions of {name} graded in {graded:.0f} s ({own:.0f} s of nbgrader's "
        f"own computing), {pages} pages of feedback and the table in {told:.0f} s; mean score "
        f"{sum(scores) / len(scores):.1f}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m d3s2.course.pretend_class", description="Grade a class that is not there."
    )
    parser.add_argument("name", choices=NAMES, help="the assignment")
    parser.add_argument("--students", type=int, default=30, help="how many hand in")
    parser.add_argument("--out", type=Path, default=Path("build/pretend-class"), help="its folder")
    parser.add_argument("--keep", action="store_true", help="keep the folder, to look at it")
    options = parser.parse_args(arguments)

    def work() -> None:
        if options.students < 1:
            raise D3S2Error(f"students is {options.students}: give 1 or more.")
        print(rehearse(options.out, options.name, options.students))
        if not options.keep:
            shutil.rmtree(options.out)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
