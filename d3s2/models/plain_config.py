"""Configurations of mmsegmentation that hold nothing but values.

They are Python, and reading one runs it; and a model in it can name any function of any module as
its `type`. So a file from elsewhere could do whatever the user may do. What mmsegmentation ships
needs little of Python, and that little is all that is let through here, before anything runs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from d3s2.core.errors import D3S2Error

_VALUES = (
    *(ast.Module, ast.Assign, ast.Expr, ast.Constant, ast.Name, ast.Load, ast.Store, ast.keyword),
    *(ast.List, ast.Tuple, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.comprehension),
    *(ast.UnaryOp, ast.USub, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv),
    *(ast.JoinedStr, ast.FormattedValue, ast.Starred, ast.Call, ast.Subscript),
)
_CALLS = ("dict", "list", "tuple", "sum", "range", "enumerate", "len", "int", "float")
_MMENGINES = {"_base_", "fileDirname", "fileBasename", "fileBasenameNoExtension", "fileExtname"}
"""Names that mmengine replaces."""
_FROM_ENVIRONMENT = re.compile(r"\{\{[^}]*\$")
_TYPE = re.compile(r"((mmseg|mmdet|mmpretrain)\.)?[A-Za-z]\w*")


def require_plain(path: Path) -> None:
    """Raise D3S2Error, naming the line, for a config or one of its bases that holds more than
    values. Nothing is run.
    """
    waiting, done = [path.resolve()], set()
    while waiting:
        here = waiting.pop()
        if here not in done:
            done.add(here)
            waiting += _bases(here, _parsed(here))


def require_plain_types(part: Any) -> None:
    """Raise D3S2Error for a `type` that is no name of a part of mmsegmentation or mmdetection: as
    `os.system`, it would be looked for in all of Python.
    """
    if isinstance(part, dict):
        kind = part.get("type", "")
        if kind and not (isinstance(kind, str) and _TYPE.fullmatch(kind)):
            raise D3S2Error(
                f"The model has a part of type {kind!r}, which is none of mmsegmentation or "
                "mmdetection: do not trust it."
            )
    inner = part.values() if isinstance(part, dict) else part
    for value in inner:
        if isinstance(value, (dict, list, tuple)):
            require_plain_types(value)


def _parsed(path: Path) -> ast.Module:
    try:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise D3S2Error(f"{path} is no configuration that can be read ({error}).") from error
    wrong = next(_faults(tree), None)
    if path.suffix != ".py" or wrong is not None or _FROM_ENVIRONMENT.search(text):
        line = getattr(wrong, "lineno", 1)
        shown = (text.splitlines() or [""])[line - 1].strip()[:80]
        raise D3S2Error(
            f"{path} holds more than values, which could run anything (line {line}: {shown!r}). "
            "Where you trust it, let mmengine write its values out, and name that file: "
            f"Config.fromfile({path.name!r}).dump('plain.py')"
        )
    return tree


def _faults(tree: ast.Module) -> Iterator[ast.AST]:
    """What is more than a value, or a name of this file."""
    named = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    own = {node.id for node in named if isinstance(node.ctx, ast.Store)}
    known = (own | _MMENGINES) - set(_CALLS)
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            plain = node.id in (_CALLS if node in called else known) and node.id[:2] != "__"
        elif isinstance(node, ast.Attribute):
            plain = node.attr == "update" if node in called else node.attr[:1] != "_"
        else:
            plain = isinstance(node, _VALUES) and (node not in called)
        if not plain:
            yield node


def _bases(path: Path, tree: ast.Module) -> Iterator[Path]:
    """The files that `_base_` names, which mmengine reads too."""
    named = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "_base_"]
    stored = [node for node in named if isinstance(node.ctx, ast.Store)]
    at_the_top = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets == stored[:1]
    ]
    for value in at_the_top:
        for part in value.elts if isinstance(value, (ast.List, ast.Tuple)) else [value]:
            name = getattr(part, "value", None)
            if not isinstance(name, str) or "::" in name or "://" in name:
                raise D3S2Error(f"{path}: its `_base_` must be files beside it, by their names.")
            yield (path.parent / name).resolve()
    if len(stored) != len(at_the_top):
        raise D3S2Error(f"{path}: its `_base_` must be written once, at the top.")
