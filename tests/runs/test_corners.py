"""A whole run on a folder of one's own, with parameters in the corners of their ranges."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_scenes import small_scenes
from smoke_run import CELL_TIMEOUT

from d3s2.data.scenes import write_split

CORNERS = {
    "data_format": "folder",
    "train_images": 0,
    "val_images": 0,
    "proxy_iterations": 7,
    "generator_iterations": 6,
    "budget": 2,
    "steps": 2,
    "lambda_seg": 0,
    "lambda_feat": 0,
    "window_start": 0.5,
    "window_end": 0.5,
    "iterations": 2,
}


@pytest.mark.notebooks
def test_a_run_goes_to_its_end_and_trains_its_weights_once(tmp_path: Path) -> None:
    small_scenes(tmp_path / "mine", 24)
    write_split(tmp_path / "mine", "val", 6)
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "d3s2.runs.cli", "run", "--profile", "smoke"]
    for name, value in {**CORNERS, "data_root": tmp_path / "mine", "run_dir": run_dir}.items():
        command += ["-p", f"{name}={value}"]
    environment = os.environ | {"D3S2_HOME": str(tmp_path)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=CELL_TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (run_dir / "superseded").exists()
    for network, iterations in (("proxy", 7), ("generator", 6)):
        with open(run_dir / "weights" / network / "training_log.csv", newline="") as stream:
            assert list(csv.DictReader(stream))[-1]["iteration"] == str(iterations)
    rows = json.loads((run_dir / "report" / "results.json").read_text())["rows"]
    assert [(row["set"], row["images"], row["iterations"]) for row in rows] == [
        ("random", 2, 2),
        ("balanced", 2, 2),
        ("d3s2", 2, 2),
        ("full", 24, 2),
    ]
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.stdout.count("up to date") == 5
