"""The contract that every notebook of the sequence keeps; `problems` lists what one of them
breaks.
"""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
from papermill import inspect_notebook

from d3s2.runs.notebooks import assigned_names
from d3s2.runs.parameters import FIELDS

MAX_BYTES = 1_000_000
MAX_PARAMETERS = 15
CODE_CELLS = range(20, 41)
WORDS = range(1500, 3001)
LINES_AS_A_RULE, LINES_MEDIAN, LINES_NEVER_OVER = 15, 10, 40
MAX_OUTPUT_LINES = 100
MACHINE_PATH = re.compile(
    r"(?<![\w.~>])/(?:home|root|work|tmp|Users|mnt|opt|var|data\d*)/\w|\b[A-Z]:\\\\?\w"
)
PROGRESS = re.compile(r"\r|\d+%\|| ?\d+(\.\d+)?(it/s|s/it)")
OUTSIDE = re.compile(
    r"^\s*[!%]\s*(pip|conda|wget|curl)|\b(requests|urllib|httpx)\b|\.cuda\(\)", re.MULTILINE
)
UNSEEDED = re.compile(
    r"\bnp\.random\.(?!default_rng\(\w|Generator|SeedSequence\(\w)|default_rng\(\)"
    r"|^\s*import random\b",
    re.MULTILINE,
)
CLOSING = ("Summary", "Quiz", "Exercises", "Further reading")
NOTATION = ("00", "01", "02", "03", "04", "05", "A1", "A2", "B1", "B2", "B3", "B4")
"""Notebooks that use the one table of symbols and link to it."""

Notebook = Any


def problems(path: Path) -> list[str]:
    """What in this notebook breaks the contract; empty when it keeps it."""
    notebook = nbformat.read(path, as_version=4)
    return [problem for rule in RULES for problem in rule(path, notebook)]


def code_cells(notebook: Notebook) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook: Notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def header(path: Path, notebook: Notebook) -> Iterator[str]:
    """The first cell: title, aim, links, the measured table."""
    first = notebook.cells[0]
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        yield "the first cell is no title"
        return
    for word in ("you will do", "you will learn", "you need"):
        if word not in first.source.lower():
            yield f"the first cell does not say what {word}"
    if not re.search(
        r"^\|.*(time|seconds).*\|.*memory.*\|", first.source, re.MULTILINE | re.IGNORECASE
    ):
        yield "the first cell has no table of time and memory"
    names = sorted(
        other.name for other in path.parent.glob("[0-9AB][0-9]_*.ipynb")
    )  # appendices come last: A1, A2, then B, of one method each
    place = names.index(path.name)
    for neighbour in (
        names[place - 1] if place else None,
        names[place + 1] if place + 1 < len(names) else None,
    ):
        if neighbour and f"({neighbour})" not in first.source:
            yield f"the first cell does not link to {neighbour}"


def links(path: Path, notebook: Notebook) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", "\n".join(prose(notebook))):
        if (
            "://" not in target
            and not target.startswith("attachment:")
            and not (path.parent / target).exists()
        ):
            yield f"the link {target} leads nowhere"


def parameters(path: Path, notebook: Notebook) -> Iterator[str]:
    """One cell of documented scalars, all known to Settings and to papermill."""
    cells = [cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        yield f"{len(cells)} cells are tagged parameters"
        return
    names = assigned_names(cells[0].source)
    if len(names) > MAX_PARAMETERS:
        yield f"{len(names)} parameters"
    for name in {"profile", "run_dir"} - set(names):
        yield f"no parameter {name}"
    for name in set(names) - set(FIELDS):
        yield f"parameter {name} is not in Settings"
    if set(inspect_notebook(str(path))) != set(names):
        found = sorted(inspect_notebook(str(path)))
        yield (
            f"papermill reads other parameters ({found}): no '|' in annotations, no '=' in comments"
        )
    for line in filter(None, cells[0].source.splitlines()):
        if not line.startswith("#") and not re.search(r"  # \S.{5,}", line):
            yield f"parameter without meaning, unit, range: {line}"
    for node in ast.parse(cells[0].source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and not isinstance(
            node.value, ast.Constant
        ):
            yield f"parameter that is no scalar: {ast.unparse(node)}"
    begin = ", begin=True" if path.name.startswith("00") else ""
    if not any(f"open_run(globals(){begin})" in cell.source for cell in code_cells(notebook)):
        yield f"open_run(globals(){begin}) is not called"


OWN_ROOM = {
    "00": "runs",
    "01": "statistics",
    "02": "selection",
    "03": "guidance",
    "04": "training",
    "05": "methods",
    "B1": "methods",
    "B2": "methods",
    "B4": "methods",
}
"""The room of each chapter's code; appendices A have `studies`."""
MOST_OTHER_ROOMS = 3
OF_THE_READER = {"course"}
"""Rooms that judge what the reader writes: nothing of a chapter's own."""


def rooms(path: Path, notebook: Notebook) -> Iterator[str]:
    """What a chapter needs of d3s2 comes from its own room and few others."""
    found = set()
    for cell in code_cells(notebook):
        for line in cell.source.splitlines():
            if match := re.match(r"\s*from d3s2(?:\.(\w+))?[\w.]* import (\w+)", line):
                found.add(match[1] or match[2])
    others = found - {OWN_ROOM.get(path.name[:2], "studies")} - OF_THE_READER
    most = MOST_OTHER_ROOMS if path.name[0].isdigit() else 2 * MOST_OTHER_ROOMS
    if len(others) > most:
        yield f"imports from {len(others)} other rooms: {', '.join(sorted(others))}"


def measure(path: Path, notebook: Notebook) -> Iterator[str]:
    codes, texts = code_cells(notebook), prose(notebook)
    if len(codes) not in CODE_CELLS:
        yield f"{len(codes)} code cells"
    if len(texts) < len(codes):
        yield f"{len(texts)} text cells for {len(codes)} code cells"
    words = len(re.sub(r"<[^>]+>|[|`*#$-]", " ", " ".join(texts)).split())
    if words not in WORDS:
        yield f"{words} words"
    lengths = [sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in codes]
    if max(lengths) > LINES_NEVER_OVER:
        yield f"a code cell of {max(lengths)} lines"
    if statistics.median(lengths) > LINES_MEDIAN:
        yield f"the median code cell has {statistics.median(lengths)} lines"
    if sum(length > LINES_AS_A_RULE for length in lengths) > len(codes) // 5:
        yield (
            f"too many code cells over {LINES_AS_A_RULE} lines: "
            f"{[length for length in lengths if length > 15]}"
        )
    if path.stat().st_size > MAX_BYTES:
        yield f"{path.stat().st_size} bytes"


def teaching(path: Path, notebook: Notebook) -> Iterator[str]:
    """Equations, checks, experiments, what is ours, and the closing sections."""
    text, source = (
        "\n".join(prose(notebook)),
        "\n".join(cell.source for cell in code_cells(notebook)),
    )
    for what, pattern in {
        "equation": r"\$[^$]+\$",
        "'Try this'": r"[Tt]ry this",
        "'our choice'": r"[Oo]ur choice",
    }.items():
        if not re.search(pattern, text):
            yield f"no {what}"
    if source.count("assert ") < 5:
        yield "fewer than five asserts"
    tags = [tag for cell in code_cells(notebook) for tag in cell.metadata.get("tags", [])]
    if "nbval-check-output" not in tags and "NBVAL_CHECK_OUTPUT" not in source:
        yield "no cell carries nbval's tag nbval-check-output"
    if path.stem[:2] in NOTATION and "(../docs/notation.md)" not in text:
        yield "no link to the table of symbols, ../docs/notation.md"
    if text.count("<details>") < 3 or text.count("<details>") != text.count("</details>"):
        yield "fewer than three hidden answers"
    headings = [line for line in text.splitlines() if line.startswith("#")]
    for title in CLOSING:
        if not any(title in line for line in headings):
            yield f"no section {title!r}"
    titles = [line.strip("# ") for line in headings]
    if len(titles) != len(set(titles)):
        yield f"a heading occurs twice: {[title for title in titles if titles.count(title) > 1]}"


YOURS = re.compile(r"^mine = \.\.\.  # your line: \S", re.MULTILINE)
PREDICTED = re.compile(r"^\w+ = \.\.\.  # your prediction", re.MULTILINE)
CONTROL = re.compile(r"^widgets\.(flip_through|live|controls)\(", re.MULTILINE)
WIDGET = "application/vnd.jupyter.widget"


def reader(path: Path, notebook: Notebook) -> Iterator[str]:
    """A chapter has something to turn, and two lines that the reader predicts and writes, each with
    its check and a hidden answer.
    """
    if not path.name[0].isdigit():
        return
    written = [n for n, cell in enumerate(notebook.cells) if YOURS.search(cell.source)]
    if len(written) < 2:
        yield f"{len(written)} lines for the reader to write"
    for n in written:
        if "print(checks.check_" not in notebook.cells[n].source:
            yield f"cell {n}: nothing checks what the reader writes"
        if not PREDICTED.search(notebook.cells[n].source):
            yield f"cell {n}: the reader predicts nothing"
        if "Your turn" not in notebook.cells[n - 1].source:
            yield f"cell {n}: nobody asks the reader"
        if "<details><summary>Answer" not in notebook.cells[n + 1].source:
            yield f"cell {n}: no hidden answer below it"
    if not any(CONTROL.search(cell.source) for cell in code_cells(notebook)):
        yield "nothing to turn: no call of widgets"
    for cell in code_cells(notebook):
        if any(WIDGET in kind for output in cell.outputs for kind in output.get("data", {})):
            yield "a live widget in an output: its still picture belongs there"
    if f"(solutions/{path.name})" not in "\n".join(prose(notebook)):
        yield "no link to the solutions"


def lasting(path: Path, notebook: Notebook) -> Iterator[str]:
    """What a control calls is there still when the last cell has run: no cell below writes a name
    anew that the functions of the control use.
    """
    bodies: dict[str, ast.FunctionDef] = {}
    in_use: dict[str, str] = {}
    for cell in code_cells(notebook):
        try:
            tree = ast.parse(cell.source)
        except SyntaxError:  # no Python: another rule's matter
            return
        for name in sorted(_written(tree) & in_use.keys()):
            yield f"{name} is written anew below the control that uses it: {in_use[name]}"
        bodies |= {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        if control := CONTROL.search(cell.source):
            waiting = list(_read(tree) & bodies.keys())
            while waiting:
                name = waiting.pop()
                needed = {name} if name in bodies else set()
                needed |= _read(bodies[name]) - _written(bodies[name]) if name in bodies else set()
                waiting += [other for other in needed & bodies.keys() if other not in in_use]
                in_use |= dict.fromkeys(needed, control.group(0) + "...)")


def _read(tree: ast.AST) -> set[str]:
    """Names that code reads."""
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return {node.id for node in names if isinstance(node.ctx, ast.Load)}


def _written(tree: ast.Module | ast.FunctionDef) -> set[str]:
    """Names that a cell writes outside of its functions; of a function, its own."""
    own = {each.arg for each in tree.args.args} if isinstance(tree, ast.FunctionDef) else set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        else:
            names = (each for each in ast.walk(node) if isinstance(each, ast.Name))
            own |= {each.id for each in names if isinstance(each.ctx, ast.Store)}
    return own


def outputs(path: Path, notebook: Notebook) -> Iterator[str]:
    """Committed with clean outputs of one run from the first to the last cell."""
    codes = code_cells(notebook)
    if [cell.execution_count for cell in codes] != list(range(1, len(codes) + 1)):
        yield "the cells were not executed in order, once"
    results = [output for cell in codes for output in cell.outputs]
    if not any("image/png" in output.get("data", {}) for output in results):
        yield "no picture"
    for output in results:
        if output.output_type == "error" or output.get("name") == "stderr":
            yield f"an output of kind {output.get('name', 'error')}"
        text = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
        if text.count("\n") > MAX_OUTPUT_LINES:
            yield f"an output of {text.count(chr(10))} lines"
        if PROGRESS.search(text) or "Warning" in text:
            yield f"progress or a warning in an output: {text[:60]!r}"
    if "papermill" in str(notebook.metadata) or any(
        "papermill" in cell.metadata for cell in notebook.cells
    ):
        yield "papermill's metadata: use d3s2 publish"


def reproducible(path: Path, notebook: Notebook) -> Iterator[str]:
    """No path of a machine, nothing from outside, every random number from a seed."""
    for cell in notebook.cells:
        shown = [
            str(output.get("text", ""))
            + str(
                {
                    kind: value
                    for kind, value in output.get("data", {}).items()
                    if not kind.startswith("image/")
                }
            )
            for output in cell.get("outputs", [])
        ]
        for text in (cell.source, *shown):
            if found := MACHINE_PATH.search(text):
                yield f"a machine's path: {text[found.start() : found.start() + 40]!r}"
    source = "\n".join(cell.source for cell in code_cells(notebook))
    for what, pattern in {"reaches outside": OUTSIDE, "random without a seed": UNSEEDED}.items():
        if found := pattern.search(source):
            yield f"{what}: {found.group(0)!r}"


RULES: tuple[Callable[[Path, Notebook], Iterator[str]], ...] = (
    header,
    links,
    parameters,
    rooms,
    measure,
    teaching,
    reader,
    lasting,
    outputs,
    reproducible,
)
