"""A submission in the shape of the assignment: its answers, and everything else from the source.

Whatever was deleted, doubled, edited or moved, the notebook that is judged has the teacher's cells,
each once and in their order.
"""

from __future__ import annotations

from collections import defaultdict
from copy import deepcopy

import nbformat
from nbformat import NotebookNode

REMARKS = "**Remarks of the grading**"
"""How the cell begins that says what was put back."""


def grade_id(cell: NotebookNode) -> str:
    """The cell's name in the assignment; "" for one that has none."""
    said = cell.metadata.get("nbgrader")
    found = said.get("grade_id", "") if isinstance(said, dict) else ""
    return found if isinstance(found, str) else ""


def is_answer(cell: NotebookNode) -> bool:
    """Whether the reader writes it: code that is asked for, or a text that is graded by hand."""
    return bool(cell.metadata.get("nbgrader", {}).get("solution"))


def rebuild(
    submitted: NotebookNode, source: NotebookNode, release: NotebookNode
) -> tuple[NotebookNode, list[str]]:
    """The notebook to judge, and what had to be put back, in sentences.

    The reader's own code cells stay behind the cell of the assignment that they followed; texts of
    their own stay too. Of an answer that is there several times the last one that was written
    counts; one that is missing is as it was handed out.
    """
    stubs = {grade_id(cell): cell for cell in release.cells if grade_id(cell)}
    answers, own = _taken_apart(submitted, stubs, {cell.source for cell in release.cells})
    told = submitted.metadata.get("remarks", [])
    remarks = [str(remark) for remark in told] + _changes(submitted, stubs)
    cells = list(own[""])
    for cell in source.cells:
        name = grade_id(cell)
        fresh = deepcopy(cell)
        if is_answer(cell):
            fresh.source = answers.get(name, stubs[name].source)
        cells += [fresh, *(own[name] if name else [])]
    if remarks:
        said = "\n".join([REMARKS, "", *(f"- {remark}" for remark in remarks)])
        cells.append(nbformat.v4.new_markdown_cell(said, id="remarks"))
    built = deepcopy(source)
    built.cells = cells
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    return built, remarks


def remarks_in(notebook: NotebookNode) -> list[str]:
    """What `rebuild` had to say of it."""
    said = [cell.source for cell in notebook.cells if cell.source.startswith(REMARKS)]
    return [line[2:] for text in said for line in text.splitlines() if line.startswith("- ")]


def _taken_apart(
    submitted: NotebookNode, stubs: dict[str, NotebookNode], handed_out: set[str]
) -> tuple[dict[str, str], dict[str, list[NotebookNode]]]:
    """The answers by name, and the reader's own cells by the name of the cell before them."""
    answers: dict[str, str] = {}
    own: dict[str, list[NotebookNode]] = defaultdict(list)
    before = ""
    for cell in submitted.cells:
        name = grade_id(cell)
        if name in stubs:
            before = name
            if is_answer(stubs[name]) and (cell.source != stubs[name].source):
                answers[name] = cell.source
        elif cell.cell_type == "code" and cell.source.strip():
            own[before].append(nbformat.v4.new_code_cell(cell.source))
        elif cell.cell_type == "markdown" and cell.source not in handed_out:
            if cell.source.startswith(REMARKS):
                continue
            own[before].append(nbformat.v4.new_markdown_cell(cell.source))
    return answers, own


def _changes(submitted: NotebookNode, stubs: dict[str, NotebookNode]) -> list[str]:
    """A sentence for each locked cell that is not as it was handed out, and for missing answers."""
    there: dict[str, list[NotebookNode]] = defaultdict(list)
    for cell in submitted.cells:
        there[grade_id(cell)].append(cell)
    remarks = []
    for name, stub in stubs.items():
        found = there.get(name, [])
        if not found:
            remarks.append(f"The cell {name} was missing and was put back as it was handed out.")
        elif not is_answer(stub) and any(cell.source != stub.source for cell in found):
            remarks.append(f"The cell {name} was changed; it was put back.")
        elif len(found) > 1:
            remarks.append(f"The cell {name} is there {len(found)} times; the last answer counts.")
    return remarks
