"""A page for every module of d3s2: its source, with an anchor at everything it defines."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def label(module: str, name: str = "") -> str:
    """The anchor of a module or of what it defines; letters of another case are another name."""
    marked = re.sub(r"([A-Z])", r"\1^", name)
    return f"source-{module}{'-' + marked if name else ''}"


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / "d3s2").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def defined(path: Path) -> list[tuple[list[str], int, str]]:
    """(names, first line, kind) of every statement at the top level that defines something."""
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names, kind = _names(node), "value"
        first = node.lineno
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            kind = "definition"
            first = min([first, *(each.lineno for each in node.decorator_list)])
        if names:
            found.append((names, first, kind))
    return found


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def page(module: str, path: Path) -> str:
    """The MyST page of a module: its source in pieces, each below its name.

    It stays out of the search, which would else find code before it finds an explanation.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    starts = [(first, names, kind) for names, first, kind in defined(path)]
    ends = [*(first for first, _, _ in starts[1:]), len(lines) + 1][: len(starts)]
    title = path.relative_to(ROOT).as_posix()
    parts = [f"---\norphan: true\nnosearch: true\n---\n\n({label(module)})=\n\n# `{title}`\n"]
    before = starts[0][0] if starts else len(lines) + 1
    parts.append(_code(lines, 1, before))
    for (first, names, kind), end in zip(starts, ends, strict=True):
        targets = "\n".join(f"({label(module, name)})=" for name in names)
        heading = f"## `{names[0]}`\n\n" if kind == "definition" else ""
        parts.append(f"{targets}\n\n{heading}{_code(lines, first, end)}")
    return "\n".join(parts)


def _code(lines: list[str], first: int, end: int) -> str:
    body = "\n".join(lines[first - 1 : end - 1]).rstrip()
    if not body:
        return ""
    return f"`````{{code-block}} python\n:lineno-start: {first}\n\n{body}\n`````\n"


class Links:
    """From what a text calls a piece of the code to the page that shows it."""

    def __init__(self) -> None:
        self.modules = modules()
        self.names = {
            module: {name for names, _, _ in defined(path) for name in names}
            for module, path in self.modules.items()
        }

    def to(self, module: str, name: str = "") -> str | None:
        """The anchor of `name` (a method's is its class's) in a module; None where it is neither.

        What a package only imports leads to where it is defined.
        """
        name = name.split(".")[0]
        if name and f"{module}.{name}" in self.names:
            return label(f"{module}.{name}")
        if module not in self.names:
            return None
        if not name or name in self.names[module]:
            return label(module, name)
        for node in ast.parse(self.modules[module].read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module != module:
                for each in node.names:
                    if name == (each.asname or each.name):
                        return self.to(node.module or "", each.name)
        return None

    def of_span(self, span: str) -> str | None:
        """The anchor for a span such as `d3s2/selection.py::greedy` or `d3s2.core.files`."""
        if found := re.fullmatch(r"(d3s2/[\w/]+)\.py(?:::([\w.]+))?", span):
            return self.to(found[1].replace("/", ".").removesuffix(".__init__"), found[2] or "")
        if re.fullmatch(r"d3s2(\.\w+)+", span):
            module, _, name = span.rpartition(".")
            return self.to(span) or self.to(module, name)
        return None
