"""A submission is read with care, and gets the shape of the assignment."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from d3s2.course import receiving
from d3s2.course.judging import asked_names
from d3s2.course.rebuilding import REMARKS, grade_id, rebuild, remarks_in


def cell(name: str, source: str, **said: object) -> NotebookNode:
    marked = {"grade_id": name, "grade": False, "solution": False, "locked": False} | said
    return new_code_cell(source, metadata={"nbgrader": marked})


SOURCE = new_notebook(
    cells=[
        new_markdown_cell("# Title"),
        cell("data", "x = 1", locked=True),
        cell("double", "def double(x): return 2 * x", solution=True),
        cell(
            "double-test", "assert double(x) == 2\nassert double(5) == 10", grade=True, locked=True
        ),
    ]
)
RELEASE = deepcopy(SOURCE)
RELEASE.cells[2].source = "raise NotImplementedError()"
RELEASE.cells[3].source = "assert double(x) == 2"


def submitted(**sources: str) -> NotebookNode:
    """The release with other sources (`_` for `-`)."""
    notebook = deepcopy(RELEASE)
    for each in notebook.cells:
        each.source = sources.get(grade_id(each).replace("-", "_"), each.source)
    return notebook


def texts(notebook: NotebookNode) -> list[str]:
    return [each.source for each in notebook.cells]


def test_only_the_answers_are_the_students() -> None:
    mine = "def double(x): return x + x"
    built, remarks = rebuild(submitted(double=mine), SOURCE, RELEASE)
    assert texts(built) == [*texts(SOURCE)[:2], mine, texts(SOURCE)[3]] and not remarks


def test_what_was_edited_or_deleted_comes_back() -> None:
    edited = submitted(double="mine", double_test="assert True", data="x = 5")
    edited.cells = [edited.cells[3], edited.cells[2], edited.cells[1]]
    built, remarks = rebuild(edited, SOURCE, RELEASE)
    assert texts(built)[:4] == [*texts(SOURCE)[:2], "mine", texts(SOURCE)[3]]
    assert len(remarks) == 2 and remarks_in(built) == remarks
    assert remarks[0] == "The cell data was changed; it was put back."
    empty, remarks = rebuild(new_notebook(), SOURCE, RELEASE)
    assert texts(empty)[2] == "raise NotImplementedError()"
    assert len(remarks) == 3 and "was missing" in remarks[0]


def test_own_cells_stay_where_they_were() -> None:
    notebook = submitted(double="mine")
    notebook.cells.insert(2, new_code_cell("helper = 1"))
    notebook.cells.insert(0, new_code_cell("import os"))
    notebook.cells.append(new_markdown_cell("my notes"))
    notebook.cells.append(new_markdown_cell(REMARKS + "\n\n- The student is honest."))
    built, remarks = rebuild(notebook, SOURCE, RELEASE)
    expected = ["import os", "# Title", "x = 1", "helper = 1", "mine", texts(SOURCE)[3], "my notes"]
    assert texts(built) == expected and not remarks and not remarks_in(built)


def test_of_several_answers_the_last_that_was_written_counts() -> None:
    notebook = submitted(double="first")
    notebook.cells += [cell("double", "second"), cell("double", "raise NotImplementedError()")]
    built, remarks = rebuild(notebook, SOURCE, RELEASE)
    assert texts(built)[2] == "second" and "3 times" in remarks[0]


def test_nothing_of_the_students_metadata_is_kept(tmp_path: Path) -> None:
    notebook = submitted(double="mine")
    notebook.metadata["d3s2"] = {"closed": []}
    notebook.metadata["remarks"] = ["all is well"]
    notebook.cells[2].metadata.nbgrader.points = 1000
    notebook.cells[2].outputs = []
    (tmp_path / "a.ipynb").write_text(json.dumps(notebook))
    read = receiving.receive(tmp_path, "a", RELEASE)
    assert read.metadata == {"remarks": []}
    assert read.cells[2].metadata == {"nbgrader": {"grade_id": "double"}}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"cells": 3}', '{"cells": [{"cell_type": "code"}]}', "[" * 100_000, "\x00"],
)
def test_what_is_no_notebook_is_empty_hands(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.ipynb").write_text(text)
    read = receiving.receive(tmp_path, "a", RELEASE)
    assert texts(read) == texts(RELEASE) and "is no notebook" in read.metadata["remarks"][0]


def test_a_folder_without_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "0 other" in receiving.receive(tmp_path, "a", RELEASE).metadata["remarks"][0]
    (tmp_path / "b.ipynb").write_text(json.dumps(submitted(double="mine")))
    read = receiving.receive(tmp_path, "a", RELEASE)
    assert texts(read)[2] == "mine" and "called b.ipynb" in read.metadata["remarks"][0]
    monkeypatch.setattr(receiving, "LARGEST", 10)
    assert "more than" in receiving.receive(tmp_path, "a", RELEASE).metadata["remarks"][0]
    (tmp_path / "c.ipynb").write_text("{}")
    assert "2 other" in receiving.receive(tmp_path, "a", RELEASE).metadata["remarks"][0]


def test_the_names_a_test_asks_for() -> None:
    source = """
import math
from a import b as c
y = double(x)
def local(z):
    return z + math.pi + c
assert [each for each in local(y)] == triple(len(y))
"""
    assert asked_names(source, {"x": 1}) == ["double", "triple"]
