"""What a notebook needs to be a page: alternative texts, answers that are set as text, and links
into the code. Nothing that it says or shows is changed.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator
from typing import Any

import nbformat
from sources import Links

Notebook = Any

KINDS = {
    "show_pairs": "images above their masks",
    "image_rows": "rows of images",
    "panels": "a row of pictures",
    "heat_row": "heat maps",
    "lines": "a line chart",
    "class_bars": "bars for every class",
    "class_legend": "the colours of all classes",
    "class_distribution": "bars for every class",
    "co_occurrence_map": "a matrix, class by class",
    "distance_map": "a matrix, class by class",
    "class_feature_map": "a matrix of classes and channels",
    "gains_curve": "a curve of gains",
    "coverage_curves": "curves over the budget",
    "loss_curves": "curves of the loss",
    "matching_matrix": "a matrix, query by segment",
    "query_masks": "the masks of single queries",
    "iou_by_rarity": "IoU of every class, by rarity",
    "sampled_points": "points on a map",
    "score_dots": "scores as dots",
    "convergence": "scores over training",
    "differences": "differences with their intervals",
    "cost_and_score": "scores over cost",
    "new_figure": "a chart",
}
"""What the functions of d3s2.plots draw, in a word."""


def readable(notebook: Notebook, links: Links) -> Notebook:
    """The notebook as a page of the book; the given one stays as it is."""
    made, cells, section, before = copy.deepcopy(notebook), [], "", ""
    made.metadata.pop("widgets", None)  # live controls need a kernel: the still picture stands
    for cell in made.cells:
        cells.append(cell)
        if cell.cell_type == "markdown":
            before = cell.source
            section = [section, *re.findall(r"^#+ (.+)$", without_code(before), re.M)][-1]
            cell.source = linked(open_answers(cell.source), links)
        elif cell.cell_type == "code":
            describe(cell, section, before)
            cells += defined_where(cell, links)
            before = ""
    made.cells = cells
    return made


# -------------------------------------------------------------------------------- alternative texts
def describe(cell: Any, section: str, before: str) -> None:
    """Give the pictures of a cell the alternative text that its metadata has (`"alt"`), or one
    made of what stands there: section, kind of picture, the names in the drawing call, the
    sentence that leads to it.
    """
    if any("image/png" in output.get("data", {}) for output in cell.outputs):
        text = cell.metadata.get("alt") or alternative(cell.source, section, before)
        cell.metadata.setdefault("mystnb", {})["image"] = {"alt": text}


def alternative(source: str, section: str, before: str) -> str:
    """The text of a picture that its author gave none."""
    kind, names = drawn(source)
    title = re.sub(r"^\d+(\.| ·) ", "", plain(section))
    text = f"{title} {kind}" if title[-1:] in "?!" else f"{title}: {kind}"
    text += f" ({', '.join(names)})." if names else "."
    paragraph = plain(before.strip().split("\n\n")[-1])
    if not re.match(r"[#|$<`]", before.strip().split("\n\n")[-1]) and paragraph:
        sentences = re.split(r"(?<=[.?!]) +(?=[A-Z(])", paragraph)
        short = len(sentences[-1]) < 40 and len(sentences) > 1
        leads = " ".join(sentences[-2 if short else -1 :]).rstrip(":")
        text += f" {leads}{'' if leads[-1] in '.?!)' else '.'}"
    return text


def drawn(source: str) -> tuple[str, list[str]]:
    """(kind of picture, texts in it) of the last call of a function that draws."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [(node, getattr(node.func, "attr", "")) for node in calls]
    drawing = [(node, name) for node, name in named if name in KINDS]
    if not drawing:
        return "a picture", []
    node, name = max(drawing, key=lambda pair: pair[0].lineno)
    if name == "new_figure":  # drawn by hand: what its axes are called
        labelled = [node for node, name in named if name in ("style", "set_title", "set_ylabel")]
        return KINDS[name], [text for node in labelled for text in _texts(node)]
    return KINDS[name], list(_texts(node))


def _texts(call: ast.Call) -> Iterator[str]:
    """What a call says in so many words: its labels, and the keys of what it shows."""
    for part in [*call.args, *(keyword.value for keyword in call.keywords)]:
        for each in part.keys if isinstance(part, ast.Dict) else [part]:
            if isinstance(each, ast.Constant) and isinstance(each.value, str) and each.value:
                yield plain(each.value)


def plain(text: str) -> str:
    """Markdown as words: without marks, links and dollar signs."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"[`*]|<[^>]+>", "", text)
    return " ".join(text.replace("$", "").split())


# ------------------------------------------------------------------------------------------ answers
def open_answers(source: str) -> str:
    """Blank lines within <details>, so that what it hides is set as text: marks and equations."""
    source = re.sub(r"^( *<details>.*?</summary>)[ \n]*", r"\1\n\n", source, flags=re.M | re.S)
    return re.sub(r"\n*^( *</details>)", r"\n\n\1\n", source, flags=re.M)


# -------------------------------------------------------------------------------------------- links
def without_code(text: str) -> str:
    """A text without its blocks of code, in which # is no heading."""
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def linked(text: str, links: Links) -> str:
    """The text with a link wherever it names a module or a definition between backticks."""

    def link(found: re.Match) -> str:
        if found["span"] is None:
            return found[0]
        anchor = links.of_span(found["span"])
        return f"[`{found['span']}`](#{anchor})" if anchor else found[0]

    kept = r"^ *```.*?^ *```|\[[^]]*\]\([^)]*\)|``.+?``"  # blocks, and what is a link already
    return re.sub(rf"(?:{kept})|`(?P<span>[^`\n]+)`", link, text, flags=re.M | re.S)


def defined_where(cell: Any, links: Links) -> list[Any]:
    """A line below a cell that imports from d3s2: where that is defined; else nothing."""
    found = {}
    for node in ast.walk(ast.parse(_without_magics(cell.source))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "d3s2":
            for each in node.names:
                anchor = links.to(node.module, each.name)
                found |= {each.name: anchor} if anchor else {}
    if not found:
        return []
    names = " · ".join(f"[`{name}`](#{anchor})" for name, anchor in found.items())
    line = f":::{{container}} d3s2-defined\nDefined in d3s2: {names}\n:::"
    return [nbformat.v4.new_markdown_cell(line.replace(":::", "```"))]


def _without_magics(source: str) -> str:
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith("%"))
