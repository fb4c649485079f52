"""Tiny notebooks for the tests of everything that handles notebooks."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMETERS = "profile = 'smoke'  # values\nrun_dir = None  # folder\nseed = None  # any"
HEADER = "from d3s2 import config\nsettings = config.resolve(globals())"


def stage_cell(name: str, body: str = "pass", inputs: str = "") -> str:
    """Code of a cell that writes a stage of one file, holding the seed, if it is not current."""
    return f"""
from d3s2.artifacts import Stage, write_json
inputs = [Stage.find(settings.run_dir, name) for name in {inputs.split()!r}]
stage = Stage(settings.run_dir, {name!r}, settings.subset("seed"), inputs=inputs, modules=["errors"])
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
