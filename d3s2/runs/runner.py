"""Run the notebooks in order through papermill: progress, resuming, and an answer when one fails.

A notebook is *current* when its record in `<run_dir>/executed/NN_name.json` has the key that
follows from its source, its parameters, the modules it imports and the notebook before it, and the
stages it finished, and the executed notebook itself, still have their bytes. Current notebooks are
skipped; so the same command again goes on where the last one ended or was killed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from d3s2.core import long_work, parallel, places
from d3s2.core.code_version import code_version
from d3s2.core.errors import D3S2Error, NotebookFailed
from d3s2.core.files import digest, sha256, write_json
from d3s2.runs import config
from d3s2.runs.execution import execute, variable
from d3s2.runs.locks import RUN, run_lock
from d3s2.runs.notebooks import Chapter, publish, read_chapters
from d3s2.runs.parameters import DECIDING, Settings, require_known
from d3s2.runs.progress import Display, Meter, clock
from d3s2.runs.refusals import refuse_early
from d3s2.runs.stages import IN_PROGRESS, STAGE_LOG, SUPERSEDED, Stage, supersede, verify

EXECUTED = "executed"


@dataclass(frozen=True)
class Plan:
    """Which notebooks are wanted: numbers of the first and last one, and whether all that is there
    is made anew.
    """

    first: int | None = None
    last: int | None = None
    force: bool = False


def run(
    names: Mapping[str, Any],
    plan: Plan = Plan(),
    notebooks: str | Path | None = None,
    scheduler: str = "",
) -> Settings:
    """Execute the notebooks that are not current; returns the settings of the run.

    Args:
        names: parameters that were set; all others have the profile's value.
        plan: see `Plan`. Those before `first` must be current; from it on, every notebook is
        executed.
        notebooks: another folder of notebooks.
        scheduler: where the work on single images is done, see `parallel`; `threads` is then 1
        unless it was set.

    Raises D3S2Error for bad parameters before anything runs, NotebookFailed when a notebook ends in
    an error.
    """
    if scheduler:
        names = {"threads": 1} | dict(names)
    chapters, settings = _resolve(names, notebooks)
    _check_plan(plan, chapters)
    refuse_early(settings)
    told = json.dumps(asdict(settings))  # whatever is noted in run.json meanwhile
    with (
        run_lock(settings.run_dir),
        variable(parallel.SCHEDULER, scheduler),
        variable(config.PARAMETERS, told),
        variable(RUN, str(os.getpid())),
    ):
        _run_all(chapters, settings, plan)
    return settings


def is_finished(names: Mapping[str, Any], notebooks: str | Path | None = None) -> bool:
    """True when `run` with these parameters has nothing to do. Raises D3S2Error for bad
    parameters.
    """
    chapters, settings = _resolve(names, notebooks)
    keys = chapter_keys(chapters, settings)
    return all(is_current(chapter, settings, keys) for chapter in chapters)


def _resolve(
    names: Mapping[str, Any], notebooks: str | Path | None
) -> tuple[list[Chapter], Settings]:
    require_known(names)
    settings = config.resolve(names, remember=False)
    return read_chapters(notebooks or places.notebooks_folder()), settings


def _run_all(chapters: list[Chapter], settings: Settings, plan: Plan) -> None:
    keys = chapter_keys(chapters, settings)
    for chapter in chapters:
        if (
            plan.first is not None
            and chapter.number < plan.first
            and not is_current(chapter, settings, keys)
        ):
            raise D3S2Error(
                f"Notebook {chapter.name} is missing or out of date for these parameters: run from "
                "it on, or leave --from away."
            )
    display = Display()
    display.line(f"profile {settings.profile}, run folder {settings.run_dir}")
    config.note(settings)
    for chapter in chapters:
        if plan.last is not None and chapter.number > plan.last:
            break
        wanted = plan.force if plan.first is None else chapter.number >= plan.first
        if wanted or not is_current(chapter, settings, keys):
            _execute(chapter, settings, keys[chapter.name], plan.force, display)
        else:
            display.line(f"{chapter.name}: up to date")


# --------------------------------------------------------------------------------------------- keys
def chapter_keys(chapters: list[Chapter], settings: Settings) -> dict[str, str]:
    """By name, the digest of all that decides what a notebook gives.

    That is its cells, parameters and modules, the data and weights the run is given, and the
    notebooks before it.
    """
    declared = {name for chapter in chapters for name in chapter.parameters}
    rest = [name for name in DECIDING if name not in declared]
    keys, previous = {}, _outside_key(settings, rest)
    for chapter in chapters:
        parameters = [name for name in chapter.parameters if name in DECIDING]
        decides = {
            "source": chapter.source_digest,
            "parameters": settings.subset("profile", *parameters),
            "code": code_version(*chapter.modules),
            "previous": previous,
        }
        previous = keys[chapter.name] = digest(decides)
    return keys


def _outside_key(settings: Settings, rest: Sequence[str]) -> str:
    """Digest of what belongs to no notebook alone: parameters that none declares, and the data and
    weights that the run is given (not those it makes), by names, sizes and times of files.

    Raises D3S2Error when the run's folder is the data's folder itself.
    """
    files: list[list[Any]] = []
    shipped = str(settings.weights_folder) if settings.data_format == "scenes" else ""
    made = [Path(settings.run_dir), *(places.home() / name for name in ("runs", "data", "cache"))]
    for root in filter(None, (settings.data_root, shipped)):
        if os.path.realpath(root) == os.path.realpath(settings.run_dir):
            raise D3S2Error(f"run_dir and data_root are both {root}: choose another run_dir.")
        files += _files_below(Path(root), {os.path.realpath(path) for path in made})
    return digest([settings.data_format, files, settings.subset(*rest)])


def _files_below(root: Path, made: set[str]) -> Iterator[list[Any]]:
    """[name, size, time] of every file below a folder, behind links too.

    A folder that several names lead to, as in a circle of links, is walked once, by the first of
    them; the others say which. What runs make (their folders hold a `run.json`) is left out, and
    the folders in `made`.
    """
    first = {os.path.realpath(root): "."}
    for folder, inner, names in os.walk(root, followlinks=True):
        kept = []
        for path in (Path(folder, name) for name in sorted(inner)):
            real, name = os.path.realpath(path), path.relative_to(root).as_posix()
            if real in made or (path / config.RUN_FILE).is_file():
                continue
            if real in first:
                yield [name, "the folder", first[real]]
            else:
                first[real] = name
                kept.append(path.name)
        inner[:] = kept
        for path in (Path(folder, name) for name in sorted(names)):
            if path.is_file():
                status = path.stat()
                name = path.relative_to(root).as_posix()
                yield [name, status.st_size, status.st_mtime_ns]


def is_current(chapter: Chapter, settings: Settings, keys: Mapping[str, str]) -> bool:
    """True when the notebook was executed with its key, and what it wrote is whole."""
    run_dir = settings.run_dir
    record = _read_record(_record_path(chapter, run_dir))
    return (
        record.get("key") == keys[chapter.name]
        and _is_as_executed(_copy_path(chapter, run_dir), record)
        and all(verify(run_dir, stage["name"], stage["key"]) for stage in record["stages"])
    )


def _record_path(chapter: Chapter, run_dir: str) -> Path:
    return Path(run_dir) / EXECUTED / f"{chapter.name}.json"


def _copy_path(chapter: Chapter, run_dir: str) -> Path:
    return Path(run_dir) / EXECUTED / f"{chapter.name}.ipynb"


# ---------------------------------------------------------------------------------------- execution
def _execute(chapter: Chapter, settings: Settings, key: str, force: bool, display: Display) -> None:
    """Run one notebook and record it; a failed or killed one leaves no record, but its executed
    part.
    """
    record, log = _record_path(chapter, settings.run_dir), _stage_log(chapter, settings.run_dir)
    inner = log.with_suffix(".progress")
    copy = _copy_path(chapter, settings.run_dir)
    if force:
        _supersede_stages(record, settings.run_dir)
    if copy.is_file() and (earlier := _read_record(record)) and not _is_as_executed(copy, earlier):
        _put_aside(copy, settings.run_dir)
    for old in (record, log, inner):
        old.unlink(missing_ok=True)
    record.parent.mkdir(parents=True, exist_ok=True)
    values = asdict(settings)
    parameters = {name: values[name] for name in chapter.parameters if name in values}
    started = time.perf_counter()
    noting = variable(long_work.FILE, str(inner))
    with Meter(display.tick) as meter, variable(STAGE_LOG, str(log)), noting:
        display.begin(chapter.name, inner)
        try:
            execute(chapter.path, copy, parameters, cwd=settings.run_dir, on_cell=display.cells)
        except NotebookFailed as error:
            display.end("failed")
            raise NotebookFailed(
                _failure(error, chapter, settings.run_dir, meter.peak_mb)
            ) from error
    seconds = time.perf_counter() - started
    display.end(f"{clock(seconds)}, at most {meter.peak_mb} MB")
    facts = {
        "key": key,
        "stages": _stages(log, settings.run_dir),
        "notebook": sha256(copy),
        "seconds": round(seconds, 1),
        "peak_memory_mb": meter.peak_mb,
    }
    write_json(record, facts | {"digest": digest(facts)})
    for used in (log, inner):
        used.unlink(missing_ok=True)


def _failure(error: NotebookFailed, chapter: Chapter, run_dir: str, peak_mb: int) -> str:
    return (
        f"Notebook {chapter.name} failed {error}\n"
        f"What was executed is in {_copy_path(chapter, run_dir)} (it had taken {peak_mb} MB of "
        "memory).\n"
        "The same command goes on from here."
    )


# ------------------------------------------------------------------------------------------ records
def _stage_log(chapter: Chapter, run_dir: str) -> Path:
    return Path(run_dir) / EXECUTED / f".{chapter.name}.stages"


def _read_record(path: Path) -> dict[str, Any]:
    """What is recorded of a notebook; empty where the record is missing, damaged or was edited."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        facts = {name: value for name, value in record.items() if name != "digest"}
        return facts if record["digest"] == digest(facts) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _is_as_executed(copy: Path, record: Mapping[str, Any]) -> bool:
    """Whether the executed notebook has the bytes that its record says."""
    return copy.is_file() and sha256(copy) == record.get("notebook")


def _put_aside(copy: Path, run_dir: str) -> None:
    """Move an executed notebook that was damaged, or that somebody wrote into, out of the way."""
    folder = Path(run_dir) / SUPERSEDED
    target = folder / copy.name
    number = 1
    while target.exists():
        number += 1
        target = folder / f"{copy.stem}-{number}{copy.suffix}"
    folder.mkdir(exist_ok=True)
    os.replace(copy, target)


def _stages(log: Path, run_dir: str) -> list[dict[str, str]]:
    """Stages of the run that a notebook finished or found current, as its kernel noted; the last
    word on each counts.

    Those that it made elsewhere, to show how a stage works, are its own business.
    """
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    entries = [entry for entry in map(json.loads, lines) if entry["run_dir"] == run_dir]
    latest = {entry["name"]: entry["key"] for entry in entries}
    return [{"name": name, "key": key} for name, key in sorted(latest.items())]


def _supersede_stages(record: Path, run_dir: str) -> None:
    """Before a forced run: move what the notebook wrote, and what any notebook left unfinished, out
    of the way.
    """
    names = {path.parent.name for path in Path(run_dir).glob(f"*/{IN_PROGRESS}")}
    names |= {stage["name"] for stage in _read_record(record).get("stages", [])}
    for name in sorted(names):
        supersede(run_dir, name)


def _check_plan(plan: Plan, chapters: list[Chapter]) -> None:
    numbers = [chapter.number for chapter in chapters]
    for option, number in (("--from", plan.first), ("--until", plan.last)):
        if number is not None and number not in numbers:
            raise D3S2Error(
                f"{option} {number:02d}: there is no such notebook, only {numbers[0]:02d} to "
                f"{numbers[-1]:02d}."
            )
    if None not in (plan.first, plan.last) and plan.first > plan.last:
        raise D3S2Error(f"--from {plan.first:02d} comes after --until {plan.last:02d}.")


# ------------------------------------------------------------------------------------------ results
def results(run_dir: str | Path) -> str:
    """The result table of a finished run, as text. Raises D3S2Error when there is none yet, and
    when the report was damaged or is not of the trainings beside it.
    """
    path = Path(run_dir) / "report" / "results.md"
    if not path.is_file():
        raise D3S2Error(
            f"There are no results in {run_dir} yet: run the notebooks to the end with d3s2 run."
        )
    return (Stage.find(run_dir, "report").folder / path.name).read_text(encoding="utf-8").strip()


def timings(run_dir: str | Path) -> list[tuple[str, float, int]]:
    """(notebook, seconds, peak MB) of every recorded notebook, as measured when it was executed."""
    paths = sorted((Path(run_dir) / EXECUTED).glob("*.json"))
    records = [(path.stem, record) for path in paths if (record := _read_record(path))]
    return [(name, record["seconds"], record["peak_memory_mb"]) for name, record in records]


def publish_run(run_dir: str | Path, target: str | Path | None = None) -> list[Path]:
    """Publish every executed notebook of a run into `target`, by default the checkout's
    `notebooks/`.
    """
    folder = Path(target or places.notebooks_folder())
    executed = sorted((Path(run_dir) / EXECUTED).glob("*.ipynb"))
    if not executed:
        raise D3S2Error(f"There are no executed notebooks in {run_dir}: run d3s2 run first.")
    for path in executed:
        publish(path, folder / path.name)
    return [folder / path.name for path in executed]
