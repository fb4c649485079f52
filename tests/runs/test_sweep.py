"""Sweeps over tiny notebooks: real runs, real processes, a real browser where there is one."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import browser
import nbformat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from notebook_maker import PARAMETERS, stage_cell, write_notebook

from d3s2.core.errors import D3S2Error
from d3s2.runs import sweep, sweep_report

pytestmark = pytest.mark.processes

RESULTS = """
from pathlib import Path
score = 40 + 100 * settings.beta + settings.seed ** 2
assert not (settings.beta == 0.5 and settings.seed == 1), "this one fails"
scores = {"random": score, "d3s2": score + 5.0}
rows = [{"set": name, "images": 4, "miou_mean": value} for name, value in scores.items()]
write_json(folder / "results.json", {"rows": rows})
"""
FILES = ("table.csv", "table.md", "report.html")


class Sweep:
    """`d3s2 sweep` over beta and seed with a notebook that writes results; beta 0.5 with seed 1
    fails.
    """

    def __init__(self, folder: Path):
        self.folder, self.notebooks = folder / "ein Gitter µ", folder / "notebooks"
        write_notebook(self.notebooks / "00_start.ipynb", "print('hello')")
        body = "".join(f"    {line}\n" for line in RESULTS.splitlines())
        cell = stage_cell("report", "pass").replace("    pass\n", body)
        cell = cell.replace('settings.subset("seed")', 'settings.subset("seed", "beta")')
        write_notebook(
            self.notebooks / "01_report.ipynb",
            cell,
            parameters=PARAMETERS + "\nbeta = None  # weight",
        )

    def command(self, *arguments: str, seeds: str = "0,1,2") -> list[str]:
        return [
            sys.executable,
            "-m",
            "d3s2.runs.cli",
            "sweep",
            "--profile",
            "smoke",
            "-g",
            "beta=0.25,0.5",
            "-g",
            f"seed={seeds}",
            "--sweep-dir",
            str(self.folder),
            "--notebooks",
            str(self.notebooks),
            *arguments,
        ]

    def run(self, *arguments: str, seeds: str = "0,1,2") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments, seeds=seeds),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def records(self) -> dict[str, dict]:
        return {
            record["name"]: record
            for record in json.loads((self.folder / "sweep.json").read_text())["runs"]
        }


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Sweep, subprocess.CompletedProcess[str]]:
    made = Sweep(tmp_path_factory.mktemp("sweep"))
    return made, made.run(seeds="1,2")


def test_a_failed_run_keeps_its_notebook_and_stops_no_other(
    finished: tuple[Sweep, subprocess.CompletedProcess[str]],
) -> None:
    made, done = finished
    assert done.returncode == 1, done.stderr
    records = made.records()
    assert [record["state"] for record in records.values()] == [
        "finished",
        "finished",
        "failed",
        "finished",
    ]
    failed = records["beta=0.5,seed=1"]
    said = failed["message"] + (made.folder / "beta=0.5,seed=1" / "run.log").read_text()
    assert failed["parameters"] == {"beta": 0.5, "seed": 1} and "this one fails" in said
    partial = nbformat.read(
        made.folder / "beta=0.5,seed=1" / "executed" / "01_report.ipynb", as_version=4
    )
    assert any(
        output.output_type == "error"
        for cell in partial.cells
        for output in cell.get("outputs", [])
    )
    settings = json.loads((made.folder / "beta=0.25,seed=2" / "run.json").read_text())["settings"]
    assert (settings["beta"], settings["seed"]) == (0.25, 2)


def test_the_table_holds_mean_and_deviation(
    finished: tuple[Sweep, subprocess.CompletedProcess[str]],
) -> None:
    made, done = finished
    rows = list(csv.DictReader((made.folder / "table.csv").open()))
    found = {(row["beta"], row["training set"]): row for row in rows}
    both, one = found["0.25", "d3s2"], found["0.5", "random"]
    assert both["runs"] == "2" and math.isclose(
        float(both["mean mIoU (%)"]), statistics.fmean([71, 74])
    )
    assert math.isclose(float(both["standard deviation"]), statistics.stdev([71, 74]))
    assert (
        one["runs"] == "1" and one["standard deviation"] == "" and float(one["mean mIoU (%)"]) == 94
    )
    assert "| 0.25 | d3s2 | 4 | 2 | 72.5 | 2.1 |" in done.stdout


def test_again_only_what_is_not_finished_is_run(
    finished: tuple[Sweep, subprocess.CompletedProcess[str]],
) -> None:
    made, _ = finished
    stamps = {path: path.stat().st_mtime_ns for path in made.folder.glob("*/executed/*.json")}
    again = made.run(seeds="1,2")
    assert again.stdout.count("up to date") == 3 and again.returncode == 1
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_the_report_needs_nothing_else(
    finished: tuple[Sweep, subprocess.CompletedProcess[str]],
) -> None:
    made, _ = finished
    text = (made.folder / "report.html").read_text()
    links = re.findall(r'href="([^"]+)"', text)
    assert len(links) == 8 and all((made.folder / unquote(link)).is_file() for link in links)
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]+)"', text))
    assert "://" not in re.sub(r"data:[^\"]+", "", text) and "<script" not in text


@pytest.mark.skipif(
    not browser.CHROMIUM,
    reason="no Chromium here: install it (Debian: chromium) to look at the report in a browser",
)
def test_a_browser_shows_the_report(
    finished: tuple[Sweep, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    from PIL import Image

    made, _ = finished
    page = (made.folder / "report.html").as_uri()
    picture = tmp_path / "page.png"
    command = [
        browser.CHROMIUM,
        "--headless",
        *browser.FLAGS,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1000,1400",
        "--enable-logging=stderr",
    ]
    shown = subprocess.run(
        [*command, f"--screenshot={picture}", page],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in shown.stderr  # nothing was refused, nothing is missing
    dom = subprocess.run(
        [*command, "--dump-dom", page], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert dom.count("<tr>") == 2 + 4 + 4 and "this one fails" in dom
    with Image.open(picture) as image:
        red, _, blue = np.moveaxis(np.asarray(image.convert("RGB").resize((250, 350)), int), 2, 0)
    assert (blue > red + 60).sum() > 5, "the figure is not drawn"


# ----------------------------------------------------------------------------------------- the grid
@given(
    st.dictionaries(
        st.sampled_from(["seed", "steps", "batch_size"]),
        st.sets(st.integers(1, 9), min_size=1),
        min_size=1,
    )
)
def test_a_grid_expands_to_every_combination_once(grid: dict[str, set[int]]) -> None:
    points = list(sweep.expand({name: tuple(values) for name, values in grid.items()}))
    assert (
        len({point.name for point in points}) == len(points) == math.prod(map(len, grid.values()))
    )
    assert all(point.values[name] in grid[name] for point in points for name in grid)


def test_names_of_folders_are_safe_and_distinct() -> None:
    assert sweep.folder_name({"budget": 0.01, "seed": 3}) == "budget=0.01,seed=3"
    odd = [
        sweep.folder_name({"data_root": value})
        for value in ("/a/b", "/a_b", "../x", "ü" * 300, "ü" * 301)
    ]
    assert len(set(odd)) == len(odd) and all(
        re.fullmatch(r"[\w.,=+-]{1,140}", name, re.ASCII) for name in odd
    )


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([], "needs a grid"),
        (["sede=1,2"], "did you mean 'seed'"),
        (["seed=one"], "seed is 'one'"),
        (["seed=1,1"], "must differ"),
        (["seed="], "there must be one"),
        (["seed=1", "seed=2"], "given twice"),
        (["steps=10"], "given twice"),
        (["run_dir=a,b"], "folder of its own"),
    ],
)
def test_a_bad_grid_is_a_sentence(grid: list[str], message: str) -> None:
    with pytest.raises(D3S2Error, match=message):
        sweep.parse_grid(grid, {"profile": "smoke", "steps": 10})


def test_bad_parameters_are_found_before_anything_runs(tmp_path: Path) -> None:
    made = Sweep(tmp_path)
    done = made.run("-p", "bugdet=0.5")
    assert done.returncode == 2 and "no parameter 'bugdet'" in done.stderr
    assert not made.folder.exists()


def test_what_is_shown_is_escaped(tmp_path: Path) -> None:
    record = {
        "name": "<b>",
        "parameters": {"seed": 0},
        "state": "failed",
        "seconds": 1.0,
        "message": "<script>",
    }
    text = sweep_report.page(tmp_path, [], ["<th>"], [], [record])
    assert "<script>" not in text and "<b>" not in text and "&lt;b&gt;" in text
    assert os.sep not in sweep.folder_name({"x": "a/b"})
