"""What may happen to a run on a real machine: kills, full and read-only disks, damaged files, odd
places and clocks.

`D3S2_THOROUGH=1` kills a run of the real notebooks at 20 moments, and one with changing parameters;
otherwise runs of the short sequence are killed, once and three times.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
from notebook_maker import SLOW, Sequence, stage_cell, write_notebook
from PIL import Image
from short_run import ShortRun, short_notebooks
from smoke_run import CELL_TIMEOUT, SmokeRun

from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json
from d3s2.data import scenes
from d3s2.runs import runner
from d3s2.runs.stages import MANIFEST, Stage, verify

pytestmark = pytest.mark.processes

STAGES = ("statistics", "selection", "distilled", "training", "report")
KILLS = 20 if os.environ.get("D3S2_THOROUGH") == "1" else 3
LATEST = 5 if KILLS == 20 else 1
"""How many of the parameters that were tried last are looked at in the end, beside the first."""
SEED = 20260525

SHIFTED_CLOCK = "import time\n_now = time.time\ntime.time = lambda: _now() - 20 * 365 * 86400\n"
SETTINGS: tuple[dict[str, str], ...] = (
    {"LC_ALL": "C", "TZ": "Pacific/Kiritimati"},
    {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0", "TZ": "America/St_Johns", "PYTHONPATH": "clock"},
    {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "1", "PYTHONIOENCODING": "ascii"},
)
"""Language, time zone, year, output encoding, order of sets: with each attempt another one."""
VICTIMS = ("run", "below", "all")
CHANGES: tuple[dict[str, float], ...] = (
    {},
    {"seed": 1},
    {"budget": 5},
    {"lambda_feat": 0.0},
    {"iterations": 6},
    {"sampling_batch": 3, "iterations": 3},
)
"""Parameters of an attempt: each of them makes other notebooks stale."""


# -------------------------------------------------------------------------------------------- kills
def kill(process: psutil.Popen, victim: str, rng: random.Random) -> None:
    """SIGKILL to the run itself, to one of the processes below it, or to all of them, as when the
    power fails.
    """
    try:
        below = process.children(recursive=True)
        chosen = {
            "run": [process],
            "below": [rng.choice(below)] if below else [process],
            "all": [process, *below],
        }[victim]
    except psutil.NoSuchProcess:
        return
    for one in chosen:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue


def attempt(
    run: SmokeRun, environment: dict[str, str], victim: str, seconds: float, rng: random.Random
) -> bool:
    """Start or resume a run and kill some of it after so long; True if it had ended well before."""
    process = psutil.Popen(
        run.command,
        env=run.environment | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    ended = True
    try:
        process.wait(seconds)
    except psutil.TimeoutExpired:
        ended = False
        kill(process, victim, rng)
    said = process.communicate(timeout=CELL_TIMEOUT)[0].decode()
    print(
        f"{victim} killed after {seconds:.0f} s: exit code {process.returncode}; "
        f"{said.splitlines()[-1:]}"
    )
    assert "Traceback" not in said and (process.returncode == 0 or not ended), said
    return process.returncode == 0


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Shorts:
    """Unbroken runs of the short sequence, each made when it is asked for."""
    notebooks = short_notebooks(tmp_path_factory.mktemp("short") / "notebooks")
    return Shorts(tmp_path_factory, notebooks)


@dataclass
class Shorts:
    """By their parameters, unbroken runs and what they printed, each in a home of its own."""

    homes: pytest.TempPathFactory
    notebooks: Path
    done: dict[str, tuple[ShortRun, str]] = field(default_factory=dict)

    def new(self, name: str = "home") -> ShortRun:
        """A run that is not begun."""
        return ShortRun(self.homes.mktemp(name), self.notebooks)

    def unbroken(self, values: dict[str, float]) -> tuple[ShortRun, str]:
        """The run with these parameters."""
        if str(values) not in self.done:
            run = self.new().given(values)
            self.done[str(values)] = (run, run.finish())
        return self.done[str(values)]


@pytest.mark.notebooks
def test_kills_at_any_moment_leave_the_same_bytes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In a place with spaces and other alphabets, each attempt in another language, time zone and,
    once, another year.
    """
    short = None if KILLS == 20 else request.getfixturevalue("short")
    whole, _ = short.unbroken({}) if short else request.getfixturevalue("smoke")
    usual = sum(seconds for _, seconds, _ in runner.timings(whole.folder))
    clock = tmp_path_factory.mktemp("clock")
    (clock / "sitecustomize.py").write_text(SHIFTED_CLOCK)
    path = os.pathsep.join(filter(None, [str(clock), os.environ.get("PYTHONPATH", "")]))
    settings = [one | ({"PYTHONPATH": path} if "PYTHONPATH" in one else {}) for one in SETTINGS]
    rng, kills, wanted = random.Random(SEED), 0, KILLS if KILLS == 20 else 1
    while kills < wanted:
        place = "ein Ort für Läufe 分割 "
        run = short.new(place).given({}) if short else SmokeRun(tmp_path_factory.mktemp(place))
        over = False
        while kills < wanted and not over:
            victim = VICTIMS[(kills + kills // len(VICTIMS)) % len(VICTIMS)]
            over = attempt(
                run, settings[kills % len(settings)], victim, rng.uniform(0.05, 0.45) * usual, rng
            )
            kills += not over
        run.finish()
        assert differences(whole, run, 40 if short else 400) == []


@pytest.mark.notebooks
def test_kills_while_parameters_change_leave_no_wrong_number(short: Shorts) -> None:
    """In one folder, attempts with other parameters, each killed at a random moment: at the end
    every one of them gives the bytes and prints the numbers of its unbroken run.
    """
    whole, _ = short.unbroken({})
    usual = sum(seconds for _, seconds, _ in runner.timings(whole.folder))
    run, rng = short.new("verändert "), random.Random(SEED)
    kills, values, tried = 0, CHANGES[0], [CHANGES[0]]
    while kills < KILLS:
        if rng.random() < 0.6:  # else it goes on
            values = rng.choice([change for change in CHANGES if change != values])
        tried = [other for other in tried if other != values] + [values]
        print(f"{kills} {values}", end=": ")
        seconds = rng.uniform(0.1, 0.7) * usual
        kills += not attempt(run.given(values), {}, VICTIMS[kills % len(VICTIMS)], seconds, rng)
    for values in (CHANGES[0], *tried[-LATEST:]):
        expected, printed = short.unbroken(values)
        assert table(run.given(values).finish()) == table(printed)
        assert differences(expected, run, 40) == []
    assert len({str(table(printed)) for _, printed in short.done.values()}) == len(short.done)


def table(printed: str) -> list[str]:
    """The rows of the result table that a run printed."""
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) > 3, printed
    return rows


def differences(one: SmokeRun, other: SmokeRun, least: int = 400) -> list[str]:
    """Names of artefacts (stages, and the data drawn for them; no logs) that are not in both runs
    or have other bytes.
    """
    homes = [run.folder.parent.parent for run in (one, other)]
    files = [
        run.files(*STAGES) | data_files(home) for run, home in zip((one, other), homes, strict=True)
    ]
    kept = [{name: data for name, data in found.items() if "/logs/" not in name} for found in files]
    assert len(kept[0]) > least  # the images of the data set are among them
    return sorted(
        name for name in kept[0].keys() | kept[1].keys() if kept[0].get(name) != kept[1].get(name)
    )


def data_files(home: Path) -> dict[str, bytes]:
    paths = [
        path
        for path in (home / "data").rglob("*")
        if path.is_file() and not path.name.endswith(".part")
    ]
    return {str(path.relative_to(home)): path.read_bytes() for path in paths}


DRAW = (
    "import sys\nfrom d3s2.data import scenes\nfrom pathlib import "
    "Path\nscenes.write_split(Path(sys.argv[1]), 'val', 60, 0)"
)


def test_two_runs_draw_the_same_data_at_once(tmp_path: Path) -> None:
    """Runs in different folders share the data of their home."""
    commands = [
        [sys.executable, "-c", DRAW, str(tmp_path / folder)]
        for folder in ("shared", "shared", "shared", "own")
    ]
    drawing = [subprocess.Popen(command) for command in commands]
    assert [process.wait(120) for process in drawing] == [0, 0, 0, 0]
    found = [
        {
            str(path.relative_to(tmp_path / name)): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("shared", "own")
    ]
    assert found[0] == found[1] and len(found[0]) == 120
    for index, name in enumerate(scenes.names(60)):
        for part, drawn in zip(
            ("images", "labels"), scenes.draw_scene(0, "val", index), strict=True
        ):
            written = Image.open(tmp_path / "shared" / "val" / part / f"{name}.png")
            assert np.array_equal(np.array(written), drawn)


# -------------------------------------------------------------------------------------------- disks
ITEMS = """for i in range(30):
        write_json(folder / f'item{i}.json', list(range(i, i + 2000)))"""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Sequence:
    """Three notebooks of which the second writes half a megabyte, executed without trouble."""
    sequence = Sequence(tmp_path_factory.mktemp("unbroken"))
    write_notebook(sequence.notebooks / "01_first.ipynb", stage_cell("statistics", ITEMS))
    sequence.run()
    return sequence


@pytest.mark.parametrize("free_kb", [4, 250])
def test_a_full_disk_is_a_sentence_and_the_run_goes_on_once_there_is_room(
    small_disk: Path, unbroken: Sequence, tmp_path: Path, free_kb: int
) -> None:
    sequence = unbroken.elsewhere(small_disk / "run")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2**21 - 1024 * free_kb))
    done = sequence.cli()
    assert done.returncode in (1, 2), done.stdout
    assert "disk is full" in done.stderr and "Traceback" not in done.stderr, done.stderr
    ballast.unlink()
    sequence.run()
    assert sequence.artefacts() == unbroken.artefacts()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """As after an error of the disk, for root as well."""
    for options in (["--bind", folder, folder], ["-o", "remount,bind,ro", folder]):
        if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
            pytest.skip("only a user who may mount can make a folder read-only for root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_folder_that_becomes_read_only_is_a_sentence(tmp_path: Path) -> None:
    sequence = Sequence(tmp_path)
    write_notebook(sequence.notebooks / "01_first.ipynb", stage_cell("statistics", SLOW))
    running = subprocess.Popen(
        sequence.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + 60
        while not (sequence.run_dir / "statistics" / "item3.json").exists():
            assert time.monotonic() < end and running.poll() is None
            time.sleep(0.02)
        with read_only(sequence.run_dir / "statistics"):
            errors = running.communicate(timeout=60)[1]
        assert (
            running.returncode == 1 and "cannot be written" in errors and "Traceback" not in errors
        ), errors
    finally:
        running.kill()
        running.wait()
    with read_only(sequence.run_dir):
        again = sequence.cli()
    assert (
        again.returncode == 2
        and "cannot be written" in again.stderr
        and "Traceback" not in again.stderr
    )
    assert sequence.run() == ["01", "02"]


# ------------------------------------------------------------------------------------------- damage
@pytest.mark.notebooks
def test_a_flipped_bit_is_found_in_every_stage_and_remade(
    smoke: tuple[SmokeRun, str], tmp_path: Path
) -> None:
    home = tmp_path / "Kopie"
    shutil.copytree(smoke[0].folder.parent.parent, home)
    run, rng = SmokeRun(home), random.Random(SEED)
    for stage in STAGES:
        found = Stage.find(run.folder, stage)
        name = rng.choice(sorted(read_json(found.folder / MANIFEST)["files"]))
        good = flip_bit(found.folder / name, rng)
        assert not verify(run.folder, stage, found.key)
        with pytest.raises(D3S2Error, match=f"stage '{stage}' is damaged.*{name}"):
            Stage.find(run.folder, stage)
        (found.folder / name).write_bytes(good)
        assert verify(run.folder, stage, found.key)
    flip_bit(run.folder / "selection" / "greedy.npz", rng)
    run.command += ["--until", "02"]
    assert run.finish().count("up to date") == 2
    assert differences(smoke[0], run) == []


def flip_bit(path: Path, rng: random.Random) -> bytes:
    """Damage a file as a failing disk does, size and times unchanged; returns its good bytes."""
    good, times = path.read_bytes(), path.stat()
    place = rng.randrange(len(good))
    path.write_bytes(
        good[:place] + bytes([good[place] ^ 1 << rng.randrange(8)]) + good[place + 1 :]
    )
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return good


# ----------------------------------------------------------------------------------------- language
def test_a_terminal_that_knows_few_letters_is_no_reason_to_fail(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "größe", "report", {})
    report = stage.begin()
    (report / "results.md").write_text("| 52.9 ± 0.5 |", encoding="utf-8")
    stage.finish()
    done = subprocess.run(
        [sys.executable, "-m", "d3s2.runs.cli", "results", "--run-dir", report.parent],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0 and b"52.9" in done.stdout, done.stderr.decode()


def test_a_path_in_letters_that_the_language_setting_lacks_is_a_sentence(tmp_path: Path) -> None:
    """Python itself takes UTF-8 where no language is set; only with that switched off there is
    anything to say.
    """
    sequence = Sequence(tmp_path / "größe")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = sequence.command()
    done = subprocess.run(
        command, env=os.environ | ascii_only, capture_output=True, text=True, check=False
    )
    assert (
        done.returncode == 2
        and "set PYTHONUTF8=1" in done.stderr
        and "Traceback" not in done.stderr
    ), done.stderr
    done = subprocess.run(
        command, env=os.environ | {"LC_ALL": "C"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
