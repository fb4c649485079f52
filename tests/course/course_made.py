"""A course in a temporary folder, and submissions for it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from d3s2.course.assignments import build, read
from d3s2.course.rebuilding import grade_id, is_answer

YEAR = 7


class Made:
    """A course that was built into `folder` with the seed `YEAR`."""

    def __init__(self, folder: Path):
        self.folder = folder
        build(folder, YEAR)

    def source(self, name: str) -> NotebookNode:
        """The source of an assignment, with this year's seed."""
        return read(self.folder / "source" / name / f"{name}.ipynb")

    def release(self, name: str) -> NotebookNode:
        """What is handed out."""
        return read(self.folder / "release" / name / f"{name}.ipynb")

    def solved(self, name: str, **answers: str) -> NotebookNode:
        """The release with every answer written, some of them by other code (`_` for `-`)."""
        notebook = self.release(name)
        known = {grade_id(cell): cell.source for cell in self.source(name).cells if grade_id(cell)}
        known |= {cell.replace("_", "-"): code for cell, code in answers.items()}
        for cell in notebook.cells:
            if is_answer(cell):
                cell.source = known[grade_id(cell)]
        return notebook

    def submit(self, student: str, name: str, notebook: NotebookNode | str) -> None:
        """Lay a notebook, or whatever text, where students' work lies."""
        path = self.folder / "submitted" / student / name / f"{name}.ipynb"
        path.parent.mkdir(parents=True)
        if isinstance(notebook, str):
            path.write_text(notebook, encoding="utf-8")
        else:
            nbformat.write(notebook, path)


def as_judged(solved: NotebookNode, source: NotebookNode) -> NotebookNode:
    """A solved notebook with the hidden tests back in it."""
    hidden = {grade_id(cell): cell for cell in source.cells if grade_id(cell)}
    notebook = deepcopy(solved)
    for cell in notebook.cells:
        if grade_id(cell) and not is_answer(cell):
            cell.source = hidden[grade_id(cell)].source
    return notebook
