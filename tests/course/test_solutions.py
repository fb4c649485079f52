"""The solutions: one notebook a chapter, which answers everything that it asks, and runs."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from notebook_contract import Notebook, code_cells, outputs, prose, reproducible
from smoke_run import SmokeRun

from d3s2.runs.execution import execute

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
CHAPTERS = sorted(path.stem for path in NOTEBOOKS.glob("0[0-9]_*.ipynb"))
MAX_BYTES, MAX_CELLS, MAX_LINES = 300_000, 14, 40
TRY_THIS = re.compile(r"(?:\*\*Try this|\*Try this:).*", re.DOTALL)


def read(name: str, folder: Path = NOTEBOOKS / "solutions") -> Notebook:
    return nbformat.read(folder / f"{name}.ipynb", as_version=4)


def words(text: str) -> str:
    return " ".join(text.split())


def asked(chapter: Notebook) -> list[str]:
    """Every "Try this" and every exercise of a chapter, in its words."""
    text = "\n\n".join(prose(chapter))
    tries = [found[0] for part in text.split("\n\n") if (found := TRY_THIS.search(part))]
    exercises = text.partition("## Exercises")[2].partition("\n## ")[0]
    return [words(item) for item in [*tries, *re.split(r"\n\d+\. ", exercises)[1:]]]


def test_every_chapter_has_its_solutions_and_nothing_else_has() -> None:
    assert CHAPTERS
    assert sorted(path.stem for path in (NOTEBOOKS / "solutions").iterdir()) == CHAPTERS


@pytest.mark.parametrize("name", CHAPTERS)
def test_whatever_is_asked_is_quoted_and_answered(name: str) -> None:
    """A question in the chapter's own words, code below it, and a sentence on what came out."""
    cells = read(name).cells
    quoted = {
        words(cell.source.partition("> ")[2]): number
        for number, cell in enumerate(cells)
        if cell.cell_type == "markdown" and "\n> " in cell.source
    }
    questions = asked(read(name, NOTEBOOKS))
    assert len(questions) >= 5
    assert sorted(quoted) == sorted(questions)
    for number in quoted.values():
        kinds = [cell.cell_type for cell in cells[number + 1 : number + 4]]
        assert kinds[:2] == ["code", "markdown"] or kinds == ["code", "code", "markdown"]


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_and_solutions_link_to_each_other(name: str) -> None:
    exercises = "\n".join(prose(read(name, NOTEBOOKS))).partition("## Exercises")[2]
    assert f"(solutions/{name}.ipynb)" in exercises.partition("\n## ")[0]
    assert f"(../{name}.ipynb)" in prose(read(name))[0]


@pytest.mark.parametrize("name", CHAPTERS)
def test_they_are_few_celled_and_committed_with_clean_outputs(name: str) -> None:
    path, notebook = NOTEBOOKS / "solutions" / f"{name}.ipynb", read(name)
    found = [*outputs(path, notebook), *reproducible(path, notebook)]
    assert [problem for problem in found if problem != "no picture"] == []
    assert len(code_cells(notebook)) <= MAX_CELLS and path.stat().st_size < MAX_BYTES
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= MAX_LINES
        if "parameters" not in cell.metadata.get("tags", []) and "run = " not in cell.source:
            assert cell.outputs, cell.source


@pytest.mark.notebooks
@pytest.mark.parametrize("name", CHAPTERS)
def test_they_run_on_the_smoke_profile(
    name: str,
    smoke: tuple[SmokeRun, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = smoke[0].folder
    monkeypatch.setenv("D3S2_HOME", str(folder.parents[1]))
    monkeypatch.setenv("D3S2_HEADLESS", "1")
    given = {"profile": "smoke", "run_dir": str(folder)}
    before = smoke[0].files("statistics", "selection", "distilled", "training", "report")
    execute(NOTEBOOKS / "solutions" / f"{name}.ipynb", tmp_path / "out.ipynb", given, cwd=tmp_path)
    done = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert not [o for cell in code_cells(done) for o in cell.outputs if o.get("name") == "stderr"]
    after = smoke[0].files("statistics", "selection", "distilled", "training", "report")
    assert after == before  # an answer reads a run, and writes nothing into it
