"""Tiny notebooks, and a sequence of three, for the tests of everything that handles notebooks."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from d3s2.runs import runner
from d3s2.runs.runner import Plan

PARAMETERS = "profile = 'smoke'  # values\nrun_dir = None  # folder\nseed = None  # any"
HEADER = "from d3s2.runs import config\nsettings = config.resolve(globals())"

SLOW = """import time
    for i in range(40):
        if not (folder / f'item{i}.json').exists():
            write_json(folder / f'item{i}.json', i)
            time.sleep(0.1)"""


def stage_cell(name: str, body: str = "pass", inputs: str = "") -> str:
    """Code of a cell that writes a stage of one file, holding the seed, if it is not current."""
    return f"""
from d3s2.core.files import write_json
from d3s2.runs.stages import Stage
inputs = [Stage.find(settings.run_dir, name) for name in {inputs.split()!r}]
stage = Stage(settings.run_dir, {name!r}, settings.subset("seed"), inputs, ["core.errors"])
if not stage.is_current():
    folder = stage.begin()
    {body}
    write_json(folder / "data.json", {{"seed": settings.seed, "inputs": [s.key for s in inputs]}})
    stage.finish()
print(stage.name, "done")
""".strip()


def write_notebook(path: Path, *cells: str, parameters: str = PARAMETERS) -> Path:
    """A notebook with a title, the parameters cell, the header and these code cells."""
    parameter_cell = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    codes = [new_code_cell(source) for source in (HEADER, *cells)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Title"), parameter_cell, *codes]), path)
    return path


class Sequence:
    """Three notebooks: 00 writes nothing, 01 the stage `statistics`, 02 `selection` from it."""

    def __init__(self, folder: Path):
        self.notebooks, self.run_dir = folder / "notebooks", folder / "run"
        write_notebook(self.notebooks / "00_start.ipynb", "print('hello')")
        write_notebook(self.notebooks / "01_first.ipynb", stage_cell("statistics"))
        write_notebook(
            self.notebooks / "02_second.ipynb",
            stage_cell("selection", inputs="statistics"),
            parameters=PARAMETERS + "\nbeta: float = None  # weight\nthreads: int = None  # cores",
        )

    def elsewhere(self, run_dir: Path) -> Sequence:
        """The same notebooks with another run folder."""
        other = copy.copy(self)
        other.run_dir = run_dir
        return other

    def run(self, plan: Plan | None = None, **names: object) -> list[str]:
        """Run; returns the notebooks that were executed (not skipped)."""
        before = self.stamps()
        names = {"profile": "smoke", "run_dir": str(self.run_dir)} | names
        runner.run(names, plan or Plan(), self.notebooks)
        return [name for name, stamp in self.stamps().items() if before.get(name) != stamp]

    def stamps(self) -> dict[str, int]:
        return {
            path.stem[:2]: path.stat().st_mtime_ns
            for path in sorted(self.run_dir.glob("executed/*.ipynb"))
        }

    def command(self, *arguments: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "d3s2.runs.cli",
            "run",
            "--profile",
            "smoke",
            "--run-dir",
            str(self.run_dir),
            "--notebooks",
            str(self.notebooks),
            *arguments,
        ]

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=120, check=False
        )

    def artefacts(self) -> dict[str, bytes]:
        stages = [
            path
            for name in ("statistics", "selection")
            for path in (self.run_dir / name).rglob("*")
        ]
        return {
            str(path.relative_to(self.run_dir)): path.read_bytes()
            for path in stages
            if path.is_file()
        }
