"""Small sets and runs to export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training_jobs import write_data

from d3s2.core.files import write_json
from d3s2.runs import config
from d3s2.runs.stages import Stage

CARD = {
    "name": "rectangles-d3s2",
    "source": "rectangles/train",
    "images": 6,
    "of": 60,
    "recipe": {"method": "d3s2", "seed": 3, "steps": 5},
}


def make_set(folder: Path, **more: Any) -> Path:
    """A finished set of six rectangles."""
    write_data(folder, "train", 6, (32, 48), 0)
    write_json(folder / "card.json", CARD | more)
    return folder


def quick(**more: Any) -> config.Settings:
    return config.resolve({"profile": "smoke", "batch_size": 2} | more, remember=False)


def make_run(folder: Path, **parameters: Any) -> Path:
    """The folder of a run whose distilled stage is finished."""
    settings = config.resolve({"profile": "smoke", "run_dir": str(folder)} | parameters)
    config.note(settings, {})
    stage = Stage(folder, "distilled", {}, modules=["selection"])
    make_set(stage.begin())
    stage.finish()
    return folder
