"""The notebooks as files: their order, their parameters, what they depend on, and how executed ones
are published.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from d3s2.core.code_version import is_module
from d3s2.core.errors import D3S2Error
from d3s2.core.files import atomic_path, digest

if TYPE_CHECKING:  # with all it imports, a second: who only asks what is done waits for nothing
    import nbformat

MOST_BYTES = 950_000
"""Above this a published notebook gets photographs in fewer colours: a repository's web view loads
no megabytes.
"""
_FILE_NAME = re.compile(r"(\d\d)_\w+\.ipynb")
LAST_OF_A_RUN = 4
"""Chapter 05 compares what other methods distil, which is hours of work and no stage of a run: it
is opened by itself, as the appendices are.
"""


class Cell(NamedTuple):
    """What a notebook says in a cell."""

    is_code: bool
    source: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Chapter:
    """One notebook of the sequence.

    parameters: names assigned in the cell tagged `parameters`, in its order.
    modules: modules of d3s2 that its cells import, in full.
    source_digest: over the source of all cells; outputs and metadata do not count.
    """

    path: Path
    parameters: tuple[str, ...]
    modules: tuple[str, ...]
    source_digest: str

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def number(self) -> int:
        return int(self.path.name[:2])


def read_chapters(folder: str | Path) -> list[Chapter]:
    """The `NN_name.ipynb` of a folder that make a run, in order. Raises D3S2Error when there are
    none, or one is damaged.
    """
    found = [(path, _FILE_NAME.fullmatch(path.name)) for path in Path(folder).glob("*.ipynb")]
    paths = sorted(path for path, name in found if name and int(name[1]) <= LAST_OF_A_RUN)
    if not paths:
        raise D3S2Error(
            f"There are no notebooks NN_name.ipynb in {folder}: run this in a clone of the "
            "repository."
        )
    return [read_chapter(path) for path in paths]


def read_chapter(path: Path) -> Chapter:
    """Read one notebook. Raises D3S2Error when it is damaged or has not exactly one parameters
    cell.
    """
    cells = read_cells(path)
    tagged = [cell for cell in cells if "parameters" in cell.tags]
    if len(tagged) != 1:
        raise D3S2Error(
            f"{path.name} has {len(tagged)} cells tagged 'parameters': it must have exactly one."
        )
    imports = {name for cell in cells if cell.is_code for name in _imports(cell.source)}
    source = digest([cell.source for cell in cells])
    return Chapter(path, tuple(assigned_names(tagged[0].source)), tuple(sorted(imports)), source)


def read_cells(path: Path) -> list[Cell]:
    """The cells of a notebook file, by its JSON; of another format than 4 by nbformat. Raises
    D3S2Error when it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        cells = found["cells"] if found["nbformat"] == 4 else read_notebook(path).cells
        return [_cell(cell) for cell in cells]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise D3S2Error(f"{path} is no readable notebook: {error!r}") from error


def _cell(cell: Any) -> Cell:
    source = "".join(cell["source"])  # a string, or a list of lines
    return Cell(cell["cell_type"] == "code", source, tuple(cell["metadata"].get("tags", ())))


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook file as format 4. Raises D3S2Error when it is none."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises many kinds
        raise D3S2Error(f"{path} is no readable notebook: {error}") from error


def assigned_names(source: str) -> list[str]:
    """Names that a cell assigns at its top level, annotated or not, in order."""
    names = []
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def publish(executed: Path, target: Path) -> None:
    """Write an executed notebook to `target` as it is committed: with its outputs, without a trace
    of the run.

    The injected parameters, papermill's metadata (paths, times) and the timing of cells go, and the
    cells count from 1. Raises D3S2Error for a notebook that failed or was not run to its end, and
    where the target has other cells: it was edited since, or the run is somebody else's.
    """
    import nbformat

    notebook = read_notebook(executed)
    if any(output.output_type == "error" for cell in _code(notebook) for output in cell.outputs):
        raise D3S2Error(
            f"{executed} ended in an error: mend it and run again before publishing it."
        )
    notebook.cells = [
        cell
        for cell in notebook.cells
        if "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    sources = [cell.source for cell in notebook.cells]
    if target.exists() and [cell.source for cell in read_notebook(target).cells] != sources:
        raise D3S2Error(
            f"{target} has other cells than {executed}: run it again before publishing it, or "
            "publish to another folder."
        )
    if any(cell.execution_count is None and cell.source.strip() for cell in _code(notebook)):
        raise D3S2Error(f"{executed} was not run to its end: run it again before publishing it.")
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict(
            {key: cell.metadata[key] for key in ("tags",) if cell.metadata.get(key)}
        )
    for count, cell in enumerate(_code(notebook), 1):
        cell.execution_count = count
        cell.outputs = _joined(cell.outputs)
        for output in cell.outputs:
            output.pop("id", None)
            if output.output_type == "execute_result":
                output.execution_count = count
    language = {"name": "python", "version": "3.11"}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": language})
    _number_ids(notebook)
    if len(nbformat.writes(notebook)) > MOST_BYTES:
        _shrink_pictures(notebook)
    nbformat.validate(notebook)
    with atomic_path(target) as temporary:
        nbformat.write(notebook, temporary)


def _joined(outputs: Sequence[Any]) -> list[Any]:
    """The outputs, with what a cell printed in one piece: how it was cut depended on the clock."""
    found: list[Any] = []
    for output in outputs:
        before = found[-1] if found else None
        printed = output.output_type == "stream" and before is not None
        if printed and before.output_type == "stream" and before.name == output.name:
            before.text += output.text
        else:
            found.append(output)
    return found


def _shrink_pictures(notebook: nbformat.NotebookNode) -> None:
    """Photographs of large pictures in 64 colours; colours of classes stay exact."""
    for cell in _code(notebook):
        for output in cell.outputs:
            data = output.get("data", {})
            if len(data.get("image/png", "")) > 40_000:
                data["image/png"] = _smaller(data["image/png"])


def _smaller(picture: str) -> str:
    """A PNG, base64, in fewer colours; as it was where that does not help, and where it is none."""
    from d3s2.plots.house_style import exact_colors, reduce_colors  # imports matplotlib

    small = io.BytesIO()
    try:
        whole = Image.open(io.BytesIO(base64.b64decode(picture)), formats=["PNG"])
        fewer = reduce_colors(whole, photograph=64, exact=exact_colors(whole))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return picture
    fewer.save(small, "PNG", optimize=True)
    encoded = base64.b64encode(small.getvalue()).decode() + "\n"
    return min(encoded, picture, key=len)


def _code(notebook: nbformat.NotebookNode) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _number_ids(notebook: nbformat.NotebookNode) -> None:
    """Plain cell ids, so that executing again changes no line that says nothing."""
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"


def _imports(source: str) -> set[str]:
    """Modules of d3s2 that a cell imports; lines with IPython magics are passed over."""
    lines = ["" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines()]
    try:
        tree = ast.parse("\n".join(lines))
    except SyntaxError:
        return set()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if is_module(name)}
