"""The runner with tiny notebooks, through real papermill, real kernels and the real command
line.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import pytest
from notebook_maker import SLOW, Sequence, stage_cell, write_notebook
from PIL import Image

from d3s2.core import places
from d3s2.core.errors import D3S2Error
from d3s2.data.scenes import scenes_classes
from d3s2.plots.house_style import reduce_colors
from d3s2.runs import config, runner
from d3s2.runs import notebooks as published_notebooks
from d3s2.runs.execution import execute
from d3s2.runs.notebooks import publish, read_cells, read_chapter, read_chapters
from d3s2.runs.runner import Plan
from d3s2.runs.stages import verify

pytestmark = pytest.mark.processes


@pytest.fixture
def sequence(tmp_path: Path) -> Sequence:
    return Sequence(tmp_path / "Ein Ordner {mit} Klammern")


def test_everything_runs_once_and_is_then_up_to_date(sequence: Sequence) -> None:
    assert sequence.run() == ["00", "01", "02"]
    assert json.loads((sequence.run_dir / "selection" / "data.json").read_text())["seed"] == 0
    assert sequence.run() == []
    record = json.loads((sequence.run_dir / "executed" / "02_second.json").read_text())
    assert [stage["name"] for stage in record["stages"]] == ["selection"]
    assert record["seconds"] > 0
    assert [name for name, _, _ in runner.timings(sequence.run_dir)] == [
        "00_start",
        "01_first",
        "02_second",
    ]


def test_a_stage_elsewhere_is_no_part_of_the_run(sequence: Sequence) -> None:
    elsewhere = stage_cell("example").replace(
        "settings.run_dir, 'example'", "folder.name, 'example'"
    )
    play = f"import tempfile\nfolder = tempfile.TemporaryDirectory()\n{elsewhere}\nfolder.cleanup()"
    write_notebook(
        sequence.notebooks / "00_start.ipynb",
        play.replace("    folder = stage", "    inside = stage").replace("folder / ", "inside / "),
    )
    assert sequence.run() == ["00", "01", "02"]
    assert sequence.run() == []
    assert json.loads((sequence.run_dir / "executed" / "00_start.json").read_text())["stages"] == []


def test_a_parameter_makes_the_notebooks_that_take_it_stale(sequence: Sequence) -> None:
    sequence.run()
    assert sequence.run(beta=0.25) == ["02"]
    assert sequence.run(beta=0.25, threads=1) == []
    assert sequence.run(beta=0.25, seed=1) == ["00", "01", "02"]
    assert json.loads((sequence.run_dir / "selection" / "data.json").read_text())["seed"] == 1
    assert json.loads((sequence.run_dir / "run.json").read_text())["settings"]["beta"] == 0.25
    assert len(list((sequence.run_dir / "superseded").iterdir())) == 2


def test_source_and_artefacts_decide(sequence: Sequence) -> None:
    sequence.run()
    before = sequence.artefacts()
    write_notebook(sequence.notebooks / "01_first.ipynb", stage_cell("statistics"), "1 + 1")
    assert sequence.run() == ["01", "02"]
    (sequence.run_dir / "selection" / "data.json").write_text("{}")
    assert sequence.run() == ["02"]
    (sequence.run_dir / "statistics" / "manifest.json").unlink()
    assert sequence.run() == ["01"]
    (sequence.run_dir / "executed" / "00_start.json").write_text("{")
    assert sequence.run() == ["00"]
    assert sequence.artefacts() == before


def test_an_executed_notebook_or_record_that_changed_is_made_again(sequence: Sequence) -> None:
    """What somebody wrote into the notebook is kept; the record of a run cannot be edited."""
    sequence.run()
    for _ in range(2):
        copy = sequence.run_dir / "executed" / "01_first.ipynb"
        copy.write_text(copy.read_text() + "\n")
        changed = copy.read_text()
        assert sequence.run() == ["01"]
        assert copy.read_text() != changed
    kept = sorted(path.name for path in (sequence.run_dir / "superseded").iterdir())
    assert kept == ["01_first-2.ipynb", "01_first.ipynb"]
    assert (sequence.run_dir / "superseded" / kept[0]).read_text() == changed
    record = sequence.run_dir / "executed" / "00_start.json"
    record.write_text(record.read_text().replace('"seconds"', '"secondz"'))
    assert [name for name, _, _ in runner.timings(sequence.run_dir)] == ["01_first", "02_second"]
    assert sequence.run() == ["00"]


def test_the_comparison_is_no_part_of_a_run(sequence: Sequence) -> None:
    for name in ("05_compare.ipynb", "A1_more.ipynb"):
        write_notebook(sequence.notebooks / name, "raise SystemExit")
    assert [chapter.number for chapter in read_chapters(sequence.notebooks)] == [0, 1, 2]
    shipped = read_chapters(places.notebooks_folder())
    assert [chapter.number for chapter in shipped] == [0, 1, 2, 3, 4]


def test_only_the_modules_that_a_notebook_imports_make_it_stale(
    sequence: Sequence, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_notebook(
        sequence.notebooks / "01_first.ipynb",
        "from d3s2.plots.charts import *\nimport d3s2.data.scenes",
    )
    read = read_chapters(sequence.notebooks)
    assert read[1].modules == (
        "d3s2.data.scenes",
        "d3s2.plots.charts",
        "d3s2.runs",
        "d3s2.runs.config",
    )
    settings = config.resolve({"run_dir": str(sequence.run_dir)})
    before = runner.chapter_keys(read, settings)

    monkeypatch.setattr(
        runner, "code_version", lambda *modules: f"edited {'d3s2.plots.charts' in modules}"
    )
    edited = runner.chapter_keys(read, settings)
    monkeypatch.setattr(runner, "code_version", lambda *modules: "edited False")
    other = runner.chapter_keys(read, settings)
    assert edited["00_start"] == other["00_start"] != before["00_start"]
    assert edited["01_first"] != other["01_first"] and edited["02_second"] != other["02_second"]


def test_from_until_force(sequence: Sequence) -> None:
    assert sequence.run(Plan(last=1)) == ["00", "01"]
    with pytest.raises(D3S2Error, match="00_start is missing or out of date"):
        sequence.run(Plan(first=2), seed=3)
    assert json.loads((sequence.run_dir / "run.json").read_text())["settings"]["seed"] == 0
    write_notebook(sequence.notebooks / "01_first.ipynb", stage_cell("statistics"), "1 + 1")
    with pytest.raises(D3S2Error, match="01_first is missing or out of date"):
        sequence.run(Plan(first=2))
    assert sequence.run(Plan(first=1)) == ["01", "02"]
    before = sequence.artefacts()
    assert not (sequence.run_dir / "superseded").exists()
    assert sequence.run(Plan(force=True)) == ["00", "01", "02"]
    assert sequence.artefacts() == before
    assert len(list((sequence.run_dir / "superseded").iterdir())) == 2
    for plan in (Plan(first=7), Plan(last=9), Plan(first=2, last=1)):
        with pytest.raises(D3S2Error, match="--"):
            sequence.run(plan)


def test_command_line_says_what_happens(sequence: Sequence) -> None:
    report = sequence.run_dir / "report"
    body = "(folder / 'results.md').write_text('| set | mIoU |')"
    write_notebook(sequence.notebooks / "03_third.ipynb", stage_cell("report", body))
    done = sequence.cli("-p", "seed=2", "--until", "03")
    assert done.returncode == 0, done.stderr
    for text in (
        "profile smoke",
        "02_second: 0:0",
        "| set | mIoU |",
        str(report),
        str(sequence.run_dir / "executed"),
    ):
        assert text in done.stdout
    assert "up to date" in sequence.cli("-p", "seed=2").stdout
    stopped = sequence.cli("-p", "seed=3", "--until", "01").stdout
    assert "of other parameters" in stopped and "mIoU" not in stopped
    results = subprocess.run(
        [sys.executable, "-m", "d3s2.runs.cli", "results", "--run-dir", str(sequence.run_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (results.returncode, results.stdout) == (0, "| set | mIoU |\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "sede=1"], "no parameter 'sede': did you mean 'seed'"),
        (["-p", "seed=one"], "seed is 'one': give a whole number from 0"),
        (["-p", "seed=-1"], "seed is -1"),
        (["-p", "seed"], "-p seed has no value"),
        (["--from", "09"], "--from 09"),
        (["--run-dir", "{file}/run"], "cannot be written"),
        (["--notebooks", "{file}"], "no notebooks"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_runs(
    sequence: Sequence, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "file").write_text("")
    done = sequence.cli(*(text.replace("{file}", str(tmp_path / "file")) for text in arguments))
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not sequence.run_dir.exists()


def test_a_failing_notebook_keeps_its_executed_part(sequence: Sequence) -> None:
    broken = ["print('before the error')", "x = 1\ny = x / 0", "print('never reached')"]
    write_notebook(sequence.notebooks / "01_first.ipynb", *broken)
    done = sequence.cli()
    assert done.returncode == 1
    assert (
        "01_first failed in cell [5]: `y = x / 0` raised ZeroDivisionError: division by zero"
        in done.stderr
    )
    assert "Traceback" not in done.stderr
    partial = nbformat.read(sequence.run_dir / "executed" / "01_first.ipynb", as_version=4)
    outputs = [
        output for cell in partial.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    assert any("before the error" in output.get("text", "") for output in outputs)
    assert any(output.output_type == "error" for output in outputs)
    assert not any("never reached" in output.get("text", "") for output in outputs)
    with pytest.raises(D3S2Error, match="ended in an error"):
        publish(sequence.run_dir / "executed" / "01_first.ipynb", sequence.notebooks / "x.ipynb")

    write_notebook(sequence.notebooks / "01_first.ipynb", stage_cell("statistics"))
    assert sequence.run() == ["01", "02"]  # 00 was kept


def test_a_kernel_that_dies_is_a_sentence(sequence: Sequence) -> None:
    write_notebook(sequence.notebooks / "01_first.ipynb", "import os; os.kill(os.getpid(), 9)")
    done = sequence.cli()
    assert done.returncode == 1
    assert (
        "01_first failed because its Python process died" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_a_kernel_that_dies_while_it_starts_is_a_sentence(
    sequence: Sequence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dies").mkdir()
    dies = "import os, sys\nif 'ipykernel_launcher' in sys.orig_argv:\n    os._exit(1)\n"
    (tmp_path / "dies" / "sitecustomize.py").write_text(dies)
    path = os.pathsep.join(filter(None, [str(tmp_path / "dies"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PYTHONPATH", path)
    done = sequence.cli()
    assert done.returncode == 1
    assert "00_start failed because" in done.stderr and "while it started" in done.stderr
    assert "Traceback" not in done.stderr
    monkeypatch.undo()
    assert sequence.run() == ["00", "01", "02"]


def test_kill_in_the_middle_then_resume_gives_the_same_bytes(
    sequence: Sequence, tmp_path: Path
) -> None:
    write_notebook(sequence.notebooks / "01_first.ipynb", stage_cell("statistics", SLOW))
    killed = subprocess.Popen(sequence.command(), stdout=subprocess.DEVNULL, start_new_session=True)
    items = sequence.run_dir / "statistics"
    _wait_until(lambda: len(list(items.glob("item*.json"))) >= 5)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (items / "manifest.json").exists()
    assert not list(sequence.run_dir.glob("kernel-ipc*"))  # its sockets lie elsewhere
    kept = {path.name: path.stat().st_mtime_ns for path in items.glob("item*.json")}
    assert sequence.run() == ["01", "02"]
    assert all((items / name).stat().st_mtime_ns == stamp for name, stamp in kept.items())

    resumed = sequence.artefacts()
    shutil.rmtree(sequence.run_dir)
    sequence.run()
    assert sequence.artefacts() == resumed


def test_two_runs_in_one_folder(sequence: Sequence) -> None:
    waits = "import time\n    while not (folder / 'go').exists():\n        time.sleep(0.1)"
    write_notebook(sequence.notebooks / "01_first.ipynb", stage_cell("statistics", waits))
    first = subprocess.Popen(sequence.command(), stdout=subprocess.PIPE, text=True)
    _wait_until((sequence.run_dir / "statistics").exists)
    second = sequence.cli()
    assert second.returncode == 2 and f"Another run (process {first.pid})" in second.stderr
    assert first.poll() is None
    (sequence.run_dir / "statistics" / "go").touch()
    first.communicate(timeout=240)
    assert first.returncode == 0


def test_a_task_that_ends_in_an_interrupt_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The race of the next test, lost: the kernel's interrupt comes back when nobody waits."""

    async def cell() -> None:
        raise RuntimeError("interrupted in the kernel")

    def lose_the_race() -> asyncio.Task[None]:
        loop = asyncio.new_event_loop()
        task = loop.create_task(cell())
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        return task

    def interrupted(*_: object, **__: object) -> None:
        # A thread of its own: a browser's test before this one leaves a loop running in pytest's
        with ThreadPoolExecutor(1) as thread:
            task = thread.submit(lose_the_race).result()
        assert task.done()  # and nobody asks for its result
        raise KeyboardInterrupt

    monkeypatch.setattr("papermill.execute_notebook", interrupted)
    asked = logging.getLogger("asyncio")
    before = asked.level
    try:
        with pytest.raises(KeyboardInterrupt):
            execute(tmp_path / "a.ipynb", tmp_path / "b.ipynb", {}, tmp_path)
        gc.collect()
        assert "never retrieved" not in caplog.text
    finally:
        asked.setLevel(before)


def test_interrupt_says_how_to_go_on(sequence: Sequence) -> None:
    write_notebook(sequence.notebooks / "01_first.ipynb", stage_cell("statistics", SLOW))
    running = subprocess.Popen(
        sequence.command(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - a shell's background job has it ignored
    )
    _wait_until((sequence.run_dir / "statistics" / "item3.json").exists)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=240)
    assert running.returncode == 130 and "goes on from here" in errors and "Traceback" not in errors


def test_published_notebook_keeps_outputs_and_no_trace_of_the_run(
    sequence: Sequence, tmp_path: Path
) -> None:
    sequence.run(seed=7)
    runner.publish_run(sequence.run_dir, tmp_path / "out")
    text = (tmp_path / "out" / "01_first.ipynb").read_text()
    assert "statistics done" in text
    for trace in ("papermill", "injected", str(sequence.run_dir), "execution"):
        assert trace not in text.replace("execution_count", "")
    notebook = nbformat.read(tmp_path / "out" / "01_first.ipynb", as_version=4)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == [1, 2, 3]
    source = nbformat.read(sequence.notebooks / "01_first.ipynb", as_version=4)
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in source.cells]
    assert read_chapter(tmp_path / "out" / "01_first.ipynb").parameters == (
        "profile",
        "run_dir",
        "seed",
    )

    runner.publish_run(
        sequence.run_dir, sequence.notebooks
    )  # in place: outputs are no reason to run again
    assert sequence.run(seed=7) == []


def test_class_colours_are_exact_in_a_published_notebook_that_is_too_large(tmp_path: Path) -> None:
    colors = np.array([info.color for info in scenes_classes()], np.uint8)
    drawn = np.random.default_rng(0).integers(0, 256, (700, 600, 3), dtype=np.uint8)
    drawn[:40] = colors[:, None].repeat(2, 0).repeat(600, 1)
    drawn[:40][drawn[:40, :, 0] == colors[13, 0]] = 0
    drawn[50, 50] = colors[13]  # of one class a single pixel
    stream = io.BytesIO()
    Image.fromarray(drawn).save(stream, "PNG")
    output = nbformat.v4.new_output(
        "display_data", {"image/png": base64.b64encode(stream.getvalue()).decode()}
    )
    cell = nbformat.v4.new_code_cell("1", outputs=[output], execution_count=1)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "00_a.ipynb")
    publish(tmp_path / "00_a.ipynb", tmp_path / "out.ipynb")
    assert (tmp_path / "out.ipynb").stat().st_size < 600_000
    published = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[0].outputs[0].data
    picture = Image.open(io.BytesIO(base64.b64decode(published["image/png"]))).convert("RGB")
    exact = np.isin(_packed(drawn), _packed(colors))
    assert len(np.unique(_packed(drawn)[exact])) == 20
    assert np.array_equal(np.asarray(picture)[exact], drawn[exact])


def test_colours_of_ones_own_classes_stay_exact_when_a_notebook_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The palette of a figure that we drew says which they were."""
    monkeypatch.setattr(published_notebooks, "MOST_BYTES", 0)
    drawn = np.random.default_rng(0).integers(0, 256, (250, 200, 3), dtype=np.uint8)
    drawn[0, :100] = 1, 2, 3  # much here, little beside what photographs are reduced to
    stream = io.BytesIO()
    reduce_colors(Image.fromarray(drawn)).save(stream, "PNG")
    before = base64.b64encode(stream.getvalue()).decode()
    output = nbformat.v4.new_output("display_data", {"image/png": before})
    cell = nbformat.v4.new_code_cell("1", outputs=[output], execution_count=1)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "00_a.ipynb")
    publish(tmp_path / "00_a.ipynb", tmp_path / "out.ipynb")
    published = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[0].outputs[0].data
    assert len(published["image/png"]) < len(before)
    picture = Image.open(io.BytesIO(base64.b64decode(published["image/png"]))).convert("RGB")
    assert (np.asarray(picture)[0, :100] == (1, 2, 3)).all()


def _packed(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.int64) @ [65536, 256, 1]


def test_a_notebook_without_parameters_cell_is_named(sequence: Sequence) -> None:
    path = sequence.notebooks / "01_first.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].metadata = {}
    nbformat.write(notebook, path)
    with pytest.raises(D3S2Error, match=r"01_first.ipynb has 0 cells"):
        sequence.run()


def test_no_results_yet(tmp_path: Path) -> None:
    with pytest.raises(D3S2Error, match="no results"):
        runner.results(tmp_path)
    with pytest.raises(D3S2Error, match="no executed notebooks"):
        runner.publish_run(tmp_path)
    assert not verify(tmp_path, "selection", "")


def _wait_until(condition: object, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_what_a_cell_printed_is_published_in_one_piece(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("print('a'); print('b')", execution_count=3)
    say = partial(nbformat.v4.new_output, "stream")
    cell.outputs = [
        say(name="stdout", text="a\n"),
        say(name="stdout", text="b\n"),
        say(name="stderr", text="c\n"),
        nbformat.v4.new_output("display_data", data={"text/plain": "d"}),
        say(name="stdout", text="e\n"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "00_a.ipynb")
    publish(tmp_path / "00_a.ipynb", tmp_path / "out.ipynb")
    outputs = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[0].outputs
    assert [output.get("text") for output in outputs] == ["a\nb\n", "c\n", None, "e\n"]


# ------------------------------------------------------------------------------- notebooks as files
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").rglob("*.ipynb"))


def test_cells_are_those_that_nbformat_reads(tmp_path: Path) -> None:
    """Of all that are committed, and of a file of format 3."""
    old = tmp_path / "old.ipynb"
    nbformat.write(nbformat.convert(nbformat.read(NOTEBOOKS[0], 4), 3), old, version=3)
    assert json.loads(old.read_text())["nbformat"] == 3
    for path in [*NOTEBOOKS, old]:
        theirs = nbformat.read(path, as_version=4).cells
        assert [cell.source for cell in theirs] == [cell.source for cell in read_cells(path)]
        assert [
            (cell.cell_type == "code", tuple(cell.metadata.get("tags", ()))) for cell in theirs
        ] == [(cell.is_code, cell.tags) for cell in read_cells(path)]
    assert len(NOTEBOOKS) > 5


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"nbformat": 4}', '{"nbformat": 4, "cells": ["a"]}', '{"nbformat": 3}'],
)
def test_what_is_no_notebook_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "00_x.ipynb"
    path.write_text(text)
    with pytest.raises(D3S2Error, match=r"00_x\.ipynb is no readable notebook"):
        read_chapter(path)


def test_who_asks_what_is_done_waits_for_no_library_of_notebooks_or_figures() -> None:
    code = (
        "import sys\nfrom d3s2.core import places\nfrom d3s2.runs import runner\n"
        "runner.read_chapters(places.notebooks_folder())\n"
        "print([name for name in ('nbformat', 'jsonschema', 'papermill', 'matplotlib', 'torch') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
