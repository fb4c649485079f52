"""A grid of runs: one folder a run, what failed does not stop the rest, one table over the seeds,
one report.

A sweep's folder holds one run folder for each point of the grid, named by its parameters;
`sweep.json` with the grid and how every run ended; `table.csv` and `table.md`; `report.html`. The
same command again runs only what is not finished.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from d3s2.core import parallel
from d3s2.core.errors import D3S2Error
from d3s2.core.files import digest, write_json
from d3s2.core.processes import bound_environment
from d3s2.runs import runner, sweep_report
from d3s2.runs.config import resolve
from d3s2.runs.locks import run_lock
from d3s2.runs.parameters import parse
from d3s2.runs.progress import clock

RECORD, LOG = "sweep.json", "run.log"
LONGEST_NAME = 120
FINISHED, FAILED, WAITING = "finished", "failed", "waiting"


@dataclass(frozen=True)
class Point:
    """One run: the values of the grid's parameters there, and the name of its folder."""

    name: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What a worker needs for one run; it must see the same folders."""

    names: dict[str, Any]
    notebooks: str | None
    run_dir: str


@dataclass(frozen=True)
class Outcome:
    """How a run ended: FINISHED or FAILED, after how many seconds, and why it failed."""

    state: str
    seconds: float
    message: str = ""


def sweep(
    fixed: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    folder: str | Path,
    scheduler: str = "",
    notebooks: str | Path | None = None,
    tell: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Run every point of the grid that is not finished; returns the records of all runs, as in
    `sweep.json`.

    fixed: parameters of all runs; grid: name -> values. scheduler: "" = one run after the other,
    else see `clusters`.
    Raises D3S2Error for bad parameters before anything runs, for seeds whose runs would share
    trainings, and where another sweep uses the folder.
    """
    folder, points = Path(folder).absolute(), list(expand(grid))
    jobs = [_job(fixed, point, folder, notebooks) for point in points]
    done = [
        runner.is_finished(job.names, job.notebooks) for job in jobs
    ]  # finds bad parameters too
    _refuse_shared_trainings(points, jobs)
    with run_lock(folder):
        states = [FINISHED if whole else WAITING for whole in done]
        records = [
            _record(point, Outcome(state, 0.0)) for point, state in zip(points, states, strict=True)
        ]
        _write(folder, fixed, grid, records)
        for record in records:
            if record["state"] == FINISHED:
                tell(f"{record['name']}: up to date")
        waiting = [place for place, whole in enumerate(done) if not whole]
        for number, outcome in parallel.each(
            run_one, [jobs[place] for place in waiting], scheduler=scheduler
        ):
            place = waiting[number]
            records[place] = _record(points[place], outcome)
            _write(folder, fixed, grid, records)
            reason = f" - {outcome.message}" if outcome.message else ""
            tell(f"{points[place].name}: {outcome.state} after {clock(outcome.seconds)}{reason}")
        sweep_report.write(folder, grid, records)
    return records


def expand(grid: Mapping[str, Sequence[Any]]) -> Iterator[Point]:
    """All combinations, the last parameter changing fastest."""
    for values in product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        yield Point(folder_name(chosen), chosen)


def _refuse_shared_trainings(points: Sequence[Point], jobs: Sequence[Job]) -> None:
    """Raise D3S2Error where runs that differ in nothing but their seeds have them nearer than
    `train_seeds`: those train with seed, seed + 1, ..., so that some of their trainings are the
    same, and the table's deviation would be too small.
    """
    seeds: dict[str, list[int]] = {}
    for point, job in zip(points, jobs, strict=True):
        settings = resolve(job.names, remember=False)
        others = digest({name: value for name, value in point.values.items() if name != "seed"})
        near = [seed for seed in seeds.setdefault(others, []) if seed != settings.seed]
        shared = [seed for seed in near if abs(seed - settings.seed) < settings.train_seeds]
        if shared:
            raise D3S2Error(
                f"seed {shared[0]} and {settings.seed} with train_seeds {settings.train_seeds} "
                "share trainings, so that their deviation says too little: give seeds at least "
                f"{settings.train_seeds} apart, or train_seeds=1."
            )
        seeds[others].append(settings.seed)


def folder_name(values: Mapping[str, Any]) -> str:
    """`budget=0.01,seed=0`; what a file system may not take is replaced, and a digest then keeps
    names apart.
    """
    exact = ",".join(f"{name}={value}" for name, value in values.items())
    plain = re.sub(r"[^A-Za-z0-9_.,=+-]+", "_", exact)[:LONGEST_NAME]
    return plain if plain == exact else f"{plain}-{digest(exact)[:8]}"


def parse_grid(
    texts: Sequence[str],
    fixed: Mapping[str, Any],
    lists: Mapping[str, tuple[Any, ...]] | None = None,
) -> dict[str, tuple[Any, ...]]:
    """{"budget": (0.01, 0.02)} from ["budget=0.01,0.02"]; lists: more of it, as values.

    Raises D3S2Error for an unknown parameter, a value of the wrong type, one that is named twice,
    and an empty grid.
    """
    grid: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        found = [parse(name, value.strip()) for value in values.split(",") if value.strip()]
        _add(grid, name, tuple(found), fixed)
    for name, found in (lists or {}).items():
        _add(grid, name, found, fixed)
    if not grid:
        raise D3S2Error(
            "A sweep needs a grid: give at least one -g NAME=VALUE,VALUE, for example -g "
            "seed=0,1,2, or a list in the parameter file."
        )
    return grid


def _add(
    grid: dict[str, tuple[Any, ...]], name: str, values: tuple[Any, ...], fixed: Mapping[str, Any]
) -> None:
    if name == "run_dir":
        raise D3S2Error("-g run_dir: it cannot be in the grid, every run has a folder of its own.")
    if name in grid or (name in fixed and name != "profile"):
        raise D3S2Error(f"-g {name}: it cannot be in the grid, it is given twice.")
    if len(set(values)) < max(len(values), 1):
        raise D3S2Error(
            f"-g {name}: its values must differ, and there must be one: -g {name}=VALUE,VALUE."
        )
    grid[name] = values


def _job(fixed: Mapping[str, Any], point: Point, folder: Path, notebooks: str | Path | None) -> Job:
    run_dir = str(folder / point.name)
    names = {**fixed, **point.values, "run_dir": run_dir}
    return Job(names, str(Path(notebooks).absolute()) if notebooks else None, run_dir)


def run_one(job: Job) -> Outcome:
    """Execute a run in a process of its own, which ends with this one; its words go to `run.log` in
    its folder.
    """
    started, run_dir = time.perf_counter(), Path(job.run_dir)
    _wait_for_lock(run_dir)
    profile = str(job.names.get("profile", "scenes"))
    command = [
        sys.executable,
        "-P",
        "-m",
        "d3s2.runs.cli",
        "run",
        "--profile",
        profile,
        "--run-dir",
        job.run_dir,
    ]
    for name, value in job.names.items():
        command += ["-p", f"{name}={value}"] if name not in ("profile", "run_dir") else []
    command += ["--notebooks", job.notebooks] if job.notebooks else []
    with open(run_dir / LOG, "wb") as log:
        run = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=bound_environment() | {parallel.SCHEDULER: ""},
        )
        core = parallel.own_core()
        if core is not None:
            os.sched_setaffinity(run.pid, {core})  # which all that it starts inherits
        code = run.wait()
    seconds = round(time.perf_counter() - started, 1)
    if code == 0:
        return Outcome(FINISHED, seconds)
    return Outcome(FAILED, seconds, _reason(run_dir / LOG) or f"exit code {code}")


def _reason(log: Path) -> str:
    """The sentence with which a run ended."""
    lines = [
        line
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    said = [line.removeprefix("d3s2: ") for line in lines if line.startswith("d3s2: ")]
    return (said or lines or [""])[-1]


def _wait_for_lock(run_dir: Path, seconds: float = 15) -> None:
    """Where a worker was killed, its run may take a moment to notice and end; another one must not
    start before.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            with run_lock(run_dir):
                return
        except D3S2Error:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def _record(point: Point, outcome: Outcome) -> dict[str, Any]:
    return {
        "name": point.name,
        "parameters": point.values,
        "state": outcome.state,
        "seconds": outcome.seconds,
        "message": outcome.message,
    }


def _write(
    folder: Path,
    fixed: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    records: list[dict[str, Any]],
) -> None:
    content = {
        "fixed": dict(fixed),
        "grid": {name: list(values) for name, values in grid.items()},
        "runs": records,
    }
    write_json(folder / RECORD, content)
