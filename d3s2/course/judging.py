"""How a notebook is judged: its cells run in a process of their own (`apart`), the tests here.

The tests call the reader's functions by name; the call crosses into the other process and the value
comes back as plain data. So a submission never sees a hidden test, nor the namespace it runs in. A
process that ends or takes too long costs the test that met it; for the next one a fresh process
runs the cells again, without the one that does not end.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import io
import os
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from nbformat import NotebookNode
from nbformat.v4 import new_output

from d3s2.course import wire
from d3s2.course.nursery import GENEROUS, Child, Limits, Nursery, Stopped

HIDDEN = ("BEGIN HIDDEN TESTS", "END HIDDEN TESTS")


class Raised(Exception):
    """The reader's function raised this."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


# -------------------------------------------------------------------------------- a whole notebook
def kind_of(cell: NotebookNode) -> str:
    """What a code cell is: "setup" (the teacher's), "test", "answer" (asked for), "free"."""
    said = cell.metadata.get("nbgrader", {})
    if said.get("solution"):
        return "answer"
    if said.get("grade"):
        return "test"
    return "setup" if said.get("locked") else "free"


class Trial:
    """One submission before its tests: the teacher's names on this side, the reader's on the
    other.
    """

    def __init__(self, nursery: Nursery, folder: str, limits: Limits, closed: Sequence[str]):
        self.nursery = nursery
        self.folder = folder
        self.limits = limits
        self.closed = closed
        self.end = time.monotonic() + limits.whole
        self.names: dict[str, Any] = {"__name__": "tests"}
        self.done: list[str] = []
        self.child: Child | None = None

    def close(self) -> None:
        """End what still runs."""
        if self.child is not None:
            self.child.kill()

    def run(self, code: str) -> dict[str, Any]:
        """Run one of the reader's cells over there. Raises Stopped."""
        reply = self._ask({"run": code})
        self.done.append(code)
        return reply

    def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        """The value of the reader's function. Raises Raised, Stopped."""
        given = wire.encode((arguments, named))
        reply = self._ask({"call": name, "arguments": given})
        error = reply.get("error")
        if isinstance(error, dict):
            raise Raised(str(error.get("kind")), str(error.get("text"))[:600])
        try:
            return wire.decode(reply.get("value"))
        except wire.Broken as broken:
            raise Raised("ValueError", str(broken)) from None

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        child = self._living()
        until = min(self.end, time.monotonic() + self.limits.cell)
        try:
            return child.ask(order, until)
        except Stopped:
            self.child = None
            raise

    def _living(self) -> Child:
        """The process, or a fresh one in which all cells have been run that ended before."""
        if time.monotonic() >= self.end:
            raise Stopped(f"the submission's {self.limits.whole:g} seconds were over")
        if self.child is None:
            self.child = self.nursery.child(self.folder, self.limits, self.closed)
            for code in list(self.done):
                self._ask({"run": code})
        return self.child


def judge(notebook: NotebookNode, nursery: Nursery, limits: Limits = GENEROUS) -> None:
    """Execute a notebook whose locked cells are the teacher's, and write what came into its cells.

    A test that failed has an error as its output, one that passed has none, as nbgrader counts it.
    Modules in `metadata.d3s2.closed` cannot be imported by the reader.
    """
    closed = notebook.metadata.get("d3s2", {}).get("closed", [])
    with tempfile.TemporaryDirectory(prefix="submission-") as folder:
        trial = Trial(nursery, os.path.realpath(folder), limits, closed)
        try:
            cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
            for number, cell in enumerate(cells, start=1):
                cell.execution_count = number
                cell.outputs = list(_judged(cell, trial))
        finally:
            trial.close()


def _judged(cell: NotebookNode, trial: Trial) -> Iterator[NotebookNode]:
    """The outputs of one cell."""
    kind = kind_of(cell)
    if kind == "setup":
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(cell.source, "<setup>", "exec"), trial.names)  # noqa: S102 - the teacher's
    if kind == "test":
        yield from _tested(cell.source, trial)
        return
    try:
        reply = trial.run(cell.source)
    except Stopped as error:
        yield _error("Stopped", f"{error}; the rest is judged without this cell")
        return
    if reply.get("said"):
        yield new_output("stream", name="stdout", text=str(reply["said"]))
    if isinstance(reply.get("error"), dict):
        yield _error(str(reply["error"].get("kind")), str(reply["error"].get("text")))


def _tested(source: str, trial: Trial) -> Iterator[NotebookNode]:
    """An error for a test that fails. Fresh names every time: tests do not meet."""
    names = dict(trial.names)
    for name in asked_names(source, names):
        names[name] = _over_there(trial, name)
    try:
        with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
            exec(compile(source, "<test>", "exec"), names)  # noqa: S102 - the teacher's
    except Exception as error:  # noqa: BLE001 - whatever a wrong value leads to
        kind = error.kind if isinstance(error, Raised) else type(error).__name__
        said = (str(error).strip().splitlines() or ["it is not true"])[0]
        yield _error(kind, f"{_place(error, source)}: {said[:500]}")


def _over_there(trial: Trial, name: str) -> Any:
    """The reader's function of this name, as the tests call it."""

    def function(*arguments: Any, **named: Any) -> Any:
        return trial.call(name, *arguments, **named)

    return function


def asked_names(source: str, known: dict[str, Any]) -> list[str]:
    """The names that a test reads and nobody on this side has set: the reader's functions."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    own = {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
    own |= {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    own |= {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}
    own |= {node.arg for node in ast.walk(ast.parse(source)) if isinstance(node, ast.arg)}
    read = {node.id for node in nodes if isinstance(node.ctx, ast.Load)}
    return sorted(read - own - set(known) - set(dir(builtins)))


def _place(error: BaseException, source: str) -> str:
    """Where in the test it failed; of the hidden part no more than that it is hidden."""
    lines = source.splitlines()
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame[0] == "<test>"]
    line = frames[0].lineno if frames else 0
    if any(HIDDEN[0] in text for text in lines[:line]):
        return "a hidden test, with other inputs"
    return f"the test `{lines[line - 1].strip()}`" if line else "the test"


def _error(kind: str, text: str) -> NotebookNode:
    return new_output("error", ename=kind, evalue=text, traceback=[f"{kind}: {text}"])
