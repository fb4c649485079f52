"""Two runs, and notebooks by hand beside a run, in one folder: the second is refused at once and
told by whom, and what the first one writes is whole.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from notebook_maker import Sequence, stage_cell, write_notebook

from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json, write_json
from d3s2.runs import config
from d3s2.runs.locks import RUN, run_lock
from d3s2.runs.stages import Stage

pytestmark = pytest.mark.processes

WRITER = """
import sys
from pathlib import Path
from d3s2.core.files import atomic_path
from d3s2.runs.stages import Stage
stage = Stage(sys.argv[1], "distilled", {"value": 1}, modules=["core.errors"])
with atomic_path(stage.begin() / "image.txt") as partial:
    partial.write_text("whole")
    print("writing", flush=True)
    sys.stdin.readline()
stage.finish()
print("finished", flush=True)
sys.stdin.readline()
"""
HOLDER = """
import sys
from d3s2.runs.locks import run_lock
with run_lock(sys.argv[1]):
    print("writing", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def running(source: str, run_dir: Path, **environment: str) -> Iterator[subprocess.Popen]:
    """A process that holds a run folder, until it reads a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", source, str(run_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | environment,
        text=True,
    )
    try:
        assert process.stdout.readline() == "writing\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def go_on(process: subprocess.Popen) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def a_stage(run_dir: Path, name: str = "distilled", value: int = 1, **more: object) -> Stage:
    return Stage(run_dir, name, {"value": value}, modules=["core.errors"], **more)


def ended_process() -> str:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return str(process.pid)


# --------------------------------------------------------------------------------- who may write
@pytest.mark.parametrize("of", ["a notebook by hand", "a run that works"])
def test_one_process_writes_in_a_run_folder(tmp_path: Path, of: str) -> None:
    """Neither the same stage nor another one is begun beside it, nor a run; its part stays."""
    environment = {} if of == "a notebook by hand" else {RUN: str(os.getpid())}
    with running(WRITER, tmp_path, **environment) as writer:
        by_hand = rf"process {writer.pid}\) is writing distilled .*shut its kernel down"
        of_run = rf"d3s2 run \(process {os.getpid()}\) is using"
        message = of_run if environment else by_hand
        for stage in (a_stage(tmp_path), a_stage(tmp_path, value=2), a_stage(tmp_path, "other")):
            with pytest.raises(D3S2Error, match=message):
                stage.begin()
        with pytest.raises(D3S2Error, match=message), run_lock(tmp_path):
            pass
        assert not (tmp_path / "superseded").exists() and not (tmp_path / "other").exists()
        go_on(writer)
        assert writer.stdout.readline() == "finished\n"
        assert a_stage(tmp_path).is_current()
        a_stage(tmp_path, "other").begin()  # it lives, and has finished
        a_stage(tmp_path, "other").finish()
        with run_lock(tmp_path):
            pass


def test_a_killed_writer_holds_nothing(tmp_path: Path) -> None:
    with running(WRITER, tmp_path) as writer:
        writer.kill()
        writer.wait()
        a_stage(tmp_path).begin()
        a_stage(tmp_path).finish()
        with run_lock(tmp_path):
            pass


def test_beside_a_run_only_its_own_notebooks_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(HOLDER, tmp_path) as run:
        for other in ("", ended_process()):
            monkeypatch.setenv(RUN, other)
            with pytest.raises(D3S2Error, match=rf"d3s2 run \(process {run.pid}\) is using"):
                a_stage(tmp_path).begin()
            assert not (tmp_path / "distilled").exists()
        monkeypatch.setenv(RUN, str(run.pid))
        with running(WRITER, tmp_path) as writer:  # what was refused holds nothing
            go_on(writer)
            assert writer.stdout.readline() == "finished\n"
        a_stage(tmp_path, "other").begin()
        a_stage(tmp_path, "other").finish()


def test_what_a_killed_run_leaves_behind_is_waited_for(tmp_path: Path) -> None:
    """A notebook whose `d3s2 run` was killed ends a moment later: the next run does not fail."""
    with running(WRITER, tmp_path, **{RUN: ended_process()}) as orphan:
        command = [sys.executable, "-c", HOLDER, str(tmp_path)]
        run = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(5)
        orphan.kill()
        assert run.stdout.readline() == b"writing\n"
        assert run.communicate(b"\n")[1] == b"" and run.returncode == 0


def test_a_folder_that_was_deleted_is_held_again(tmp_path: Path) -> None:
    stage = a_stage(tmp_path / "run")
    stage.begin()
    shutil.rmtree(tmp_path / "run")
    stage.begin()
    command = [sys.executable, "-c", WRITER, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, input="\n\n", check=False)
    assert f"process {os.getpid()}) is writing distilled" in done.stderr
    stage.finish()


# ------------------------------------------------------------------------- what belongs together
def test_a_stage_of_another_input_is_not_opened(tmp_path: Path) -> None:
    """As after a notebook by hand, with another value, between two others: a table over both would
    compare what has nothing to do with each other.
    """

    def make(stage: Stage) -> Stage:
        write_json(stage.begin() / "data.json", stage.parameters)
        stage.finish()
        return stage

    first = make(a_stage(tmp_path, "selection"))
    make(a_stage(tmp_path, "distilled", inputs=[first]))
    assert Stage.find(tmp_path, "distilled").parameters == {"value": 1}
    other = a_stage(tmp_path, "selection", value=2)
    for step in (other.begin, other.finish):
        step()
        with pytest.raises(D3S2Error, match=r"'distilled' was made from another 'selection'.*03_"):
            Stage.find(tmp_path, "distilled")
    make(a_stage(tmp_path, "selection"))
    assert Stage.find(tmp_path, "distilled").parameters == {"value": 1}


# ------------------------------------------------------------------------------ whole notebooks
WAITING = """import pathlib, time
    write_json(folder / "item.json", 1)
    waits = 0
    while not pathlib.Path(settings.run_dir, "go").exists():
        time.sleep(0.05)
        waits += 1
        assert waits < 4000"""


@pytest.fixture
def slow(tmp_path: Path) -> Sequence:
    """Its notebook 01 waits for a file `go`, 02 says what it sees."""
    sequence = Sequence(tmp_path)
    write_notebook(sequence.notebooks / "01_first.ipynb", stage_cell("statistics", WAITING))
    path = sequence.notebooks / "02_second.ipynb"
    look = "open(f'{settings.run_dir}/seen', 'w').write(str(settings.delta))"
    write_notebook(path, stage_cell("selection", inputs="statistics"), look)
    return sequence


def by_hand(sequence: Sequence, name: str, seed: int, output: Path) -> list[str]:
    """The command that executes a notebook without `d3s2 run`."""
    parameters = ["-p", "run_dir", str(sequence.run_dir), "-p", "seed", str(seed)]
    notebook = sequence.notebooks / f"{name}.ipynb"
    kernel = ["-k", "python3", "-l", "python"]
    return [sys.executable, "-m", "papermill", str(notebook), str(output), *kernel, *parameters]


def wait_for(there: Callable[[], bool], process: subprocess.Popen) -> None:
    while not there():
        assert process.poll() is None
        time.sleep(0.05)


def test_a_notebook_by_hand_beside_a_run(slow: Sequence, tmp_path: Path) -> None:
    """It is refused, also with the run's own parameters, and what it noted changes nothing."""
    run = subprocess.Popen(slow.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for((slow.run_dir / "statistics" / "item.json").exists, run)
    values = {"run_dir": str(slow.run_dir), "delta": 7.0}
    config.note(config.resolve(values))
    done = subprocess.run(
        by_hand(slow, "01_first", 5, tmp_path / "hand.ipynb"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode and f"d3s2 run (process {run.pid}) is using" in done.stderr
    (slow.run_dir / "go").touch()
    assert b"Traceback" not in run.communicate()[0] and run.returncode == 0
    assert not (slow.run_dir / "superseded").exists()
    assert float((slow.run_dir / "seen").read_text()) == 1.0
    assert read_json(slow.run_dir / "selection" / "data.json")["seed"] == 0
    assert slow.run() == []


def test_a_run_and_a_notebook_beside_a_notebook_by_hand(slow: Sequence, tmp_path: Path) -> None:
    first = subprocess.Popen(
        by_hand(slow, "01_first", 5, tmp_path / "first.ipynb"), stderr=subprocess.PIPE
    )
    wait_for((slow.run_dir / "statistics" / "item.json").exists, first)
    second = subprocess.run(
        by_hand(slow, "01_first", 6, tmp_path / "second.ipynb"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode and "is writing statistics" in second.stderr
    whole = slow.cli()
    assert whole.returncode == 2 and "is writing statistics" in whole.stderr
    (slow.run_dir / "go").touch()
    assert first.wait() == 0
    first.stderr.close()
    assert read_json(slow.run_dir / "statistics" / "data.json")["seed"] == 5
    assert slow.run() == ["00", "01", "02"]
    kept = list((slow.run_dir / "superseded").glob("statistics-*/data.json"))
    assert [read_json(path)["seed"] for path in kept] == [5]
