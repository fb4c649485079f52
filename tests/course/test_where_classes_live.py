"""What a Binder and a development container are told: it can be read, is the project's own, and is
enough. Neither service was at hand: nothing was built from these files.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import nbformat
import pytest

from d3s2.core.code_version import sources
from d3s2.runs import cli

ROOT = Path(__file__).resolve().parents[2]
BINDER = ROOT / ".binder"
CHAPTERS = sorted((ROOT / "notebooks").glob("0[0-3]_*.ipynb"))
ONLY_REAL = {"mmengine", "mmdet", "mmseg", "mmcv"}
"""What only published proxies and trainings need, imported late."""


CALLED = {"PIL": "pillow", "yaml": "pyyaml", "IPython": "ipython"}
"""Distributions with another name than what they bring."""


def plain(name: str) -> str:
    """A distribution's name as all of its spellings give it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def asked() -> list[str]:
    lines = (BINDER / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and line[0] not in "#-"]


def closure(names: list[str]) -> set[str]:
    """The named distributions that are installed here, and all that these need."""
    found: set[str] = set()
    todo = [plain(name) for name in names]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # another system's
        found.add(name)
        todo += [plain(re.match(r"[\w.-]+", need)[0]) for need in needs if "extra ==" not in need]
    return found


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
            yield from (f"{node.module}.{each.name}" for each in node.names)


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_binder_asks_for_what_the_project_asks_for_at_its_versions() -> None:
    whole = (ROOT / "requirements.in").read_text()
    lock = (ROOT / "constraints.txt").read_text()
    assert "-c ../constraints.txt" in (BINDER / "requirements.txt").read_text().splitlines()
    for name in asked():
        assert re.search(rf"^{name}==", whole, re.M) and re.search(rf"^{name}==", lock, re.M), name
    assert (BINDER / "runtime.txt").read_text() == "python-3.11\n"


def test_binder_has_all_that_chapters_00_to_03_import() -> None:
    names: set[str] = {"d3s2.runs.runner"}
    outside: set[str] = set()
    for path in CHAPTERS:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                names |= set(imported(ast.parse(cell.source)))
    own = {name for name in names if name.startswith("d3s2.") and is_module(name)}
    outside |= {name for name in names if not name.startswith("d3s2")}
    for name in sources(*own):
        path = ROOT / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        outside |= set(imported(ast.parse(path.read_text(encoding="utf-8"))))
    tops = {name.split(".")[0] for name in outside} - set(sys.stdlib_module_names)
    there = closure(asked())
    lacking = {
        top for top in tops - {"d3s2"} - ONLY_REAL if plain(CALLED.get(top, top)) not in there
    }
    assert lacking == set() and {"torch", "numpy", "diffusers"} <= tops


@pytest.mark.processes
def test_binders_script_is_one_and_calls_what_there_is() -> None:
    script = BINDER / "postBuild"
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", script], check=True)
    lines = [line for line in script.read_text().splitlines() if line and line[0] != "#"]
    assert lines[:2] == ["set -eu", "pip install --no-cache-dir --no-deps --editable ."]
    for line in lines[2:]:
        cli._parser().parse_args(line.removeprefix("d3s2 ").split())


def test_the_development_container_is_the_image() -> None:
    path = ROOT / ".devcontainer" / "devcontainer.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    known = "name build remoteUser overrideCommand containerEnv forwardPorts customizations"
    assert said.keys() == set(known.split())
    build = said["build"]
    assert build.keys() == {"dockerfile", "context"}
    assert (path.parent / build["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert (path.parent / build["context"]).resolve() == ROOT
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"--create-home {said['remoteUser']};" in dockerfile
    assert all(f"EXPOSE {port}" in dockerfile for port in said["forwardPorts"])
    python = said["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert f"python3 -m venv {Path(python).parents[1]}" in dockerfile
