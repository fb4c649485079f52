"""Every notebook keeps the contract, runs under nbval, and the whole sequence runs; test_faults.py
breaks it.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from notebook_contract import code_cells, problems
from smoke_run import CELL_TIMEOUT, SmokeRun

from d3s2.plots.overview import read_example
from d3s2.runs import config
from d3s2.runs.profiles import PROFILES

ROOT = Path(__file__).resolve().parent.parent
NAMES = (
    "00_start_here",
    "01_data_statistics",
    "02_mask_selection",
    "03_guided_sampling",
    "04_train_mask2former",
)
BY_THEMSELVES = (  # not part of `d3s2 run`
    "05_compare_methods",
    "A1_what_pays",
    "A2_runs_and_stages",
    "B1_unidd",
    "B2_diver",
    "B3_sfm",
    "B4_edits",
)


def notebook_path(name: str) -> Path:
    return ROOT / "notebooks" / f"{name}.ipynb"


def test_the_sequence_is_complete() -> None:
    assert (
        tuple(sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")))
        == NAMES + BY_THEMSELVES
    )


@pytest.mark.parametrize("name", NAMES + BY_THEMSELVES)
def test_contract(name: str) -> None:
    assert problems(notebook_path(name)) == []


def printed(name: str, mark: str) -> str:
    """What the first cell of a committed notebook prints that prints this."""
    cells = code_cells(nbformat.read(notebook_path(name), as_version=4))
    texts = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
    return next(text for text in texts if mark in text)


def test_the_first_table_is_that_of_the_committed_run() -> None:
    """Files, notebook 00 and notebook 04 say the same; else `python -m d3s2.plots.overview` was
    forgotten after a run was published.
    """
    rows = read_example().record["rows"]
    table, first = printed("04_train_mask2former", "| d3s2 |"), printed(NAMES[0], "training set")
    for row in rows:
        mean = sum(row["miou"]) / len(row["miou"])
        line = next(line for line in table.splitlines() if line.startswith(f"| {row['set']} |"))
        assert f" {mean:.1f}" in line.rsplit("|", 2)[1], line
        assert all(f"{miou:.1f}" in first for miou in row["miou"]), first


# ------------------------------------------------------------------------- the contract's own tests
def drop_all_outputs(notebook: Any) -> None:
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None


def add_output(notebook: Any, **output: Any) -> None:
    code_cells(notebook)[3].outputs.append(nbformat.from_dict(output))


def edit(notebook: Any, old: str, new: str) -> None:
    for cell in notebook.cells:
        cell.source = cell.source.replace(old, new)


def tagged(notebook: Any) -> Any:
    """The cell of the parameters."""
    cells = code_cells(notebook)
    return next(cell for cell in cells if "parameters" in cell.metadata.get("tags", []))


def set_parameters(notebook: Any, source: str) -> None:
    tagged(notebook).source = source


STREAM = {"output_type": "stream", "name": "stdout"}
PROFILE = "profile: str = 'scenes'  # a set of values\nrun_dir: str = None  # a folder"
MANY = "from d3s2.guidance import losses\nfrom d3s2.models import load"
BREAKS: dict[str, tuple[Callable[[Any], None], str]] = {
    "outputs": (drop_all_outputs, "not executed in order"),
    "stderr": (lambda nb: add_output(nb, **STREAM | {"name": "stderr", "text": "x"}), "stderr"),
    "bar": (
        lambda nb: add_output(nb, **STREAM, text=" 10%|#    | 3/30 [00:01, 12.1it/s]"),
        "progress",
    ),
    "path": (lambda nb: add_output(nb, **STREAM, text=f"in {'/'}home/ann/d3s2"), "machine's path"),
    "long": (lambda nb: add_output(nb, **STREAM, text="x\n" * 200), "200 lines"),
    "two cells": (
        lambda nb: nb.cells.append(copy.deepcopy(tagged(nb))),
        "2 cells are tagged",
    ),
    "unknown": (
        lambda nb: set_parameters(nb, PROFILE + "\nthing: int = 1  # something"),
        "not in Settings",
    ),
    "undocumented": (lambda nb: set_parameters(nb, PROFILE + "\nseed: int = 1"), "without meaning"),
    "no scalar": (
        lambda nb: set_parameters(nb, PROFILE + "\nseed: int = [1]  # of all"),
        "no scalar",
    ),
    "union": (
        lambda nb: set_parameters(nb, PROFILE + "\nseed: int | None = None  # of all"),
        "papermill reads",
    ),
    "profile": (lambda nb: set_parameters(nb, "seed: int = 1  # of all"), "no parameter profile"),
    "cell count": (lambda nb: nb.cells.extend(code_cells(nb) * 2), "code cells"),
    "long cell": (lambda nb: setattr(code_cells(nb)[4], "source", "x = 1\n" * 50), "50 lines"),
    "words": (lambda nb: edit(nb, " the ", " the " * 40), "words"),
    "quiz": (lambda nb: edit(nb, "<details>", ""), "hidden answers"),
    "summary": (lambda nb: edit(nb, "Summary", "Done"), "no section 'Summary'"),
    "next": (lambda nb: edit(nb, "(01_data_statistics.ipynb)", "(x.ipynb)"), "does not link to 01"),
    "symbols": (
        lambda nb: edit(nb, "../docs/notation.md", "../docs/protocol.md"),
        "no link to the table of symbols",
    ),
    "check": (
        lambda nb: [cell.metadata.update(tags=[]) for cell in code_cells(nb)[1:]],
        "nbval-check-output",
    ),
    "dead link": (
        lambda nb: edit(nb, "(01_data_statistics.ipynb)", "(x.ipynb)"),
        "x.ipynb leads nowhere",
    ),
    "rooms": (
        lambda nb: edit(nb, "from d3s2 import plots", "from d3s2 import plots, guidance\n" + MANY),
        "other rooms",
    ),
    "not opened": (lambda nb: edit(nb, "open_run(", "opened("), "is not called"),
    "written anew": (
        lambda nb: setattr(code_cells(nb)[-1], "source", "for outline in range(3):\n    pass"),
        "outline is written anew below the control",
    ),
    "pip": (lambda nb: edit(nb, "import", "!pip install x\nimport"), "reaches outside"),
    "random": (
        lambda nb: edit(nb, "import numpy as np", "import numpy as np\nnp.random.rand()"),
        "without a seed",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_contract_is_found(name: str, tmp_path: Path) -> None:
    breaking, message = BREAKS[name]
    notebook = nbformat.read(notebook_path(NAMES[0]), as_version=4)
    breaking(notebook)
    notebook.cells = [
        nbformat.from_dict(cell | {"id": f"c{number}"})
        for number, cell in enumerate(notebook.cells)
    ]
    for neighbour in NAMES[1:]:
        (tmp_path / f"{neighbour}.ipynb").touch()
    nbformat.write(notebook, tmp_path / f"{NAMES[0]}.ipynb")
    assert any(message in problem for problem in problems(tmp_path / f"{NAMES[0]}.ipynb"))


# --------------------------------------------------------------------------------- running them all
PAINTS_UNCHECKED = ("05_compare_methods", "A1_what_pays", "B4_edits")
"""Notebooks that paint and have no tagged cell whose output depends on it. They come last: a run
notes what it was given.
"""


@pytest.fixture(scope="module")
def nbval_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nbval")


@pytest.mark.notebooks
@pytest.mark.parametrize(
    "name", sorted(NAMES + BY_THEMSELVES, key=lambda name: name in PAINTS_UNCHECKED)
)
def test_nbval_in_the_default_profile(name: str, nbval_home: Path) -> None:
    """Every cell runs, in a home of its own; tagged cells give the committed output.

    No tagged cell says a score, so the trainings are a tenth as long as the profile's; where none
    depends on what is painted, that is done in few steps.
    """
    shorter = {"iterations": PROFILES["scenes"]["iterations"] // 10}
    if name in PAINTS_UNCHECKED:
        shorter["steps"] = 10
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--nbval-lax",
            "--nbval-current-env",
            f"--nbval-cell-timeout={CELL_TIMEOUT}",
            "--nbval-kernel-startup-timeout=300",
            str(notebook_path(name)),
        ],
        cwd=ROOT,
        env=os.environ
        | {"D3S2_HOME": str(nbval_home), "D3S2_HEADLESS": "1"}
        | {config.PARAMETERS: json.dumps(shorter)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.notebooks
def test_the_sequence_ends_with_a_table(smoke: tuple[SmokeRun, str]) -> None:
    run, printed = smoke
    for name in NAMES:
        assert f"{name}: running" in printed
        assert (run.folder / "executed" / f"{name}.ipynb").is_file()
    for text in (
        "mIoU",
        "random",
        "d3s2",
        "full",
        str(run.folder / "distilled"),
        str(run.folder / "executed"),
    ):
        assert text.lower() in printed.lower()
    assert json.loads((run.folder / "report" / "results.json").read_text())
    assert (run.folder / "report" / "results.csv").read_text().strip()


@pytest.mark.notebooks
def test_the_second_call_has_nothing_to_do(smoke: tuple[SmokeRun, str]) -> None:
    run, _ = smoke
    before = run.files("statistics", "selection", "distilled", "training", "report")
    assert run.finish().count("up to date") == len(NAMES)
    assert run.files("statistics", "selection", "distilled", "training", "report") == before
