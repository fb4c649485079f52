"""From the sources of the assignments to what students get: `make assignments`.

    python -m d3s2.course.assignments --out runs/course --year 2026

makes a course's folder for nbgrader: the sources with this year's seed, its settings, the release
version of each and the gradebook. Then it looks at what it made: no solution and no hidden test is
in a release; the solutions have all points that a machine gives; what is handed out has none, and
fails only where it is not written yet.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from d3s2.core.errors import D3S2Error, exit_code
from d3s2.core.files import read_json, write_json
from d3s2.core.places import PACKAGE
from d3s2.course.judging import HIDDEN, judge, kind_of
from d3s2.course.nursery import GENEROUS, Limits, Nursery
from d3s2.course.rebuilding import grade_id, is_answer

NAMES = ("statistics", "selection", "guidance", "evaluation", "comparison")
"""The assignments, in the order of the chapters 01 to 05."""
CONFIG = "nbgrader_config.py"
SEED = re.compile(r"^seed = \d+", re.MULTILINE)
MARKS = (*HIDDEN, "BEGIN SOLUTION", "END SOLUTION", "Rubric")
"""What no student may read."""
NOT_WRITTEN = "NotImplementedError"


def sources_folder() -> Path:
    """The checkout's `assignments/`. Raises D3S2Error where only the package is installed."""
    found = PACKAGE.parent / "assignments"
    if not found.is_dir():
        raise D3S2Error(f"{found} is missing: make assignments in a checkout of the repository.")
    return found


def read(path: Path) -> NotebookNode:
    """A notebook. Raises D3S2Error for a file that is missing or none."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:
        raise D3S2Error(f"{path} is no notebook: {str(error)[:200]}") from error


def seeded(notebook: NotebookNode, seed: int) -> NotebookNode:
    """The notebook with this year's seed in its cell `seed`: other scenes, other hidden inputs."""
    (cell,) = [cell for cell in notebook.cells if grade_id(cell) == "seed"]
    cell.source, changed = SEED.subn(f"seed = {seed}", cell.source)
    if changed != 1:
        raise D3S2Error("The cell `seed` of an assignment must hold one line `seed = <number>`.")
    return notebook


# --------------------------------------------------------------------------------------- the course
def build(out: Path, seed: int, names: Sequence[str] = NAMES) -> None:
    """Make the course's folder, or make the release versions in it anew.

    Raises D3S2Error when it was made with another seed: a gradebook belongs to one year's tests.
    """
    note = out / "course.json"
    if note.is_file() and read_json(note)["seed"] != seed:
        raise D3S2Error(
            f"{out} was made with seed {read_json(note)['seed']}, not {seed}: another year, "
            "another folder (--out)."
        )
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(sources_folder() / CONFIG, out / CONFIG)
    for name in names:
        folder = out / "source" / name
        folder.mkdir(parents=True, exist_ok=True)
        notebook = seeded(read(sources_folder() / "source" / name / f"{name}.ipynb"), seed)
        nbformat.write(notebook, folder / f"{name}.ipynb")
    write_json(note, {"seed": seed})
    from d3s2.course.gradebooks import course

    api = course(out)
    for name in names:
        made = api.generate_assignment(name)
        if not made["success"]:
            raise D3S2Error(f"nbgrader could not make {name}: {made.get('error') or made['log']}")


# ------------------------------------------------------------------------------------------- checks
def leaks(source: NotebookNode, release: NotebookNode) -> list[str]:
    """What of solutions and hidden tests a release shows, in sentences; [] as it should be.

    A line of a hidden test counts when the source has it nowhere outside.
    """
    shown = "\n".join(cell.source for cell in release.cells)
    found = [f"{mark!r} is in the release" for mark in MARKS if mark in shown]
    secret = {line for cell in source.cells for line in secret_lines(cell.source)}
    lines = {line.strip() for line in shown.splitlines()}
    open_lines = {line.strip() for cell in source.cells for line in open_lines_of(cell.source)}
    return found + [f"{line!r} is in the release" for line in (secret - open_lines) & lines]


def secret_lines(text: str) -> list[str]:
    """The lines of a cell between its marks, without indentation and empty ones."""
    parts = re.findall(r"### BEGIN \w+[^\n]*\n(.*?)### END", text, re.DOTALL)
    return [line.strip() for part in parts for line in part.splitlines() if line.strip()]


def open_lines_of(text: str) -> list[str]:
    """The other lines of a cell."""
    return re.sub(r"### BEGIN \w+[^\n]*\n.*?### END[^\n]*", "", text, flags=re.DOTALL).splitlines()


def points(notebook: NotebookNode) -> dict[str, float]:
    """{name of a test: its points}, of the tests a machine grades."""
    return {
        grade_id(cell): float(cell.metadata.nbgrader.points)
        for cell in notebook.cells
        if cell.cell_type == "code" and kind_of(cell) == "test"
    }


def errors(notebook: NotebookNode) -> dict[str, NotebookNode]:
    """{name of a cell: the output that says its error}, of a notebook that was judged."""
    return {
        grade_id(cell): output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "error"
    }


def failures(notebook: NotebookNode) -> dict[str, str]:
    """{name of a cell: what its error says}, of a notebook that was judged."""
    return {name: error.evalue for name, error in errors(notebook).items()}


def unwritten(source: NotebookNode, release: NotebookNode) -> NotebookNode:
    """The source with the answers as they are handed out: what a machine sees of an empty hand."""
    stubs = {grade_id(cell): cell.source for cell in release.cells}
    empty = nbformat.from_dict(source)
    for cell in empty.cells:
        if is_answer(cell):
            cell.source = stubs[grade_id(cell)]
    return empty


def check(out: Path, name: str, nursery: Nursery, limits: Limits = GENEROUS) -> str:
    """Look at one assignment of a course; a line that says what it is worth.

    Raises D3S2Error, saying what is wrong, for a release that shows what it must not, a solution
    that fails, and a stub that passes or fails otherwise than by what is not written.
    """
    source, release = (read(out / kind / name / f"{name}.ipynb") for kind in ("source", "release"))
    wrong = leaks(source, release)
    solved = nbformat.from_dict(source)
    judge(solved, nursery, limits)
    wrong += [f"the solution fails {test}: {why}" for test, why in failures(solved).items()]
    empty = unwritten(source, release)
    judge(empty, nursery, limits)
    kinds = {test: error.ename for test, error in errors(empty).items()}
    wrong += [f"{test} passes with nothing written" for test in points(source) if test not in kinds]
    wrong += [
        f"{test} fails by {kind}, not {NOT_WRITTEN}, with nothing written"
        for test, kind in kinds.items()
        if kind != NOT_WRITTEN
    ]
    if wrong:
        raise D3S2Error(f"{name}: {'; '.join(wrong)}.")
    by_machine = sum(points(source).values())
    of_all = sum(cell.metadata.get("nbgrader", {}).get("points", 0) for cell in source.cells)
    return (
        f"{name:12} {of_all:3.0f} points, {by_machine:.0f} of them in {len(points(source))} tests"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m d3s2.course.assignments", description="Make the release versions."
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}; all")
    parser.add_argument("--out", type=Path, default=Path("runs/course"), help="the folder")
    parser.add_argument("--year", type=int, default=1, help="seed of the scenes and hidden inputs")
    options = parser.parse_args(arguments)
    names = options.names or NAMES

    def make() -> None:
        for name in names:
            if name not in NAMES:
                raise D3S2Error(f"There is no assignment {name!r}: use {', '.join(NAMES)}.")
        build(options.out, options.year, names)
        nursery = Nursery()
        try:
            for name in names:
                print(check(options.out, name, nursery), flush=True)
        finally:
            nursery.close()
        print(f"handed out: {options.out / 'release'}")

    return exit_code(make)


if __name__ == "__main__":
    sys.exit(main())
