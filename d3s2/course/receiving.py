"""What students hand in, read with care: a notebook of theirs, or the empty one with a remark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

LARGEST = 20 * 2**20
"""Bytes of a submitted notebook, pictures and all."""


class Unreadable(Exception):
    """Why a submission cannot be read, as a sentence for whoever handed it in."""


def submissions(course: Path, name: str) -> dict[str, Path]:
    """{student: the folder `submitted/<student>/<name>/`} of a course, sorted."""
    found = sorted((course / "submitted").glob(f"*/{name}"))
    return {folder.parent.name: folder for folder in found if folder.is_dir()}


def receive(folder: Path, name: str, release: NotebookNode) -> NotebookNode:
    """The notebook in a submitted folder, with nothing but the sources of its cells and their
    names; `metadata.remarks` says what was wrong.

    One that cannot be read becomes the release itself: nothing is written in it.
    """
    try:
        path, remarks = find(folder, name)
        notebook = sources_only(path)
    except Unreadable as error:
        notebook = nbformat.from_dict(release)
        remarks = [str(error)]
    notebook.metadata["remarks"] = remarks
    return notebook


def find(folder: Path, name: str) -> tuple[Path, list[str]]:
    """The notebook of a folder, and a remark when it has another name. Raises Unreadable."""
    path = folder / f"{name}.ipynb"
    remarks = []
    if not path.is_file():
        others = [other for other in folder.glob("*.ipynb") if other.is_file()]
        if len(others) != 1:
            raise Unreadable(f"There is no {name}.ipynb, and {len(others)} other notebooks.")
        (path,) = others
        remarks = [f"The notebook is called {path.name}; it was read as {name}.ipynb."]
    if path.is_symlink():
        raise Unreadable(f"{path.name} is a link: hand in the file itself.")
    if path.stat().st_size > LARGEST:
        raise Unreadable(f"{path.name} has more than {LARGEST >> 20} MB: clear its outputs.")
    return path, remarks


def sources_only(path: Path) -> NotebookNode:
    """A notebook's cells without outputs and all metadata but the names. Raises Unreadable."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        cells = [_cell(cell) for cell in said["cells"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise Unreadable(f"{path.name} is no notebook: {type(error).__name__}.") from None
    notebook = nbformat.v4.new_notebook(cells=cells)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    return notebook


def _cell(said: dict[str, Any]) -> NotebookNode:
    source = said["source"]
    text = source if isinstance(source, str) else "".join(source)
    kinds = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}
    cell = kinds.get(said["cell_type"], nbformat.v4.new_raw_cell)(text)
    marked = said.get("metadata", {}).get("nbgrader", {})
    if isinstance(marked, dict) and isinstance(marked.get("grade_id"), str):
        cell.metadata["nbgrader"] = {"grade_id": marked["grade_id"]}
    return cell
