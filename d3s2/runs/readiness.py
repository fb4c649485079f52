"""What `d3s2 check` says: what is installed, which device, and what of a profile's data and models
is missing.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json, sha256
from d3s2.core.machine import device_name, memory_mb, pick_device, pinned, require_gpus, versions
from d3s2.data.benchmarks import FORMATS, count_note, fetching
from d3s2.data.examining import Examination, class_table, examine, lines_to_add
from d3s2.data.splits import left_unfinished
from d3s2.runs import estimate
from d3s2.runs.network_choice import missing_backbone
from d3s2.runs.parameters import Settings
from d3s2.training.tracking import missing_tracker

OLDEST_PYTHON = (3, 11)
NEWEST_PYTHON = (3, 13)
NEEDED_MEMORY_MB = 4096
NEEDED_DISK_MB = 1000
LOOKED_INTO = 300
"""Images of each split of a public benchmark that are read; of your own data it is every one."""


# -------------------------------------------------------------------------------------------- check
@dataclass(frozen=True)
class Check:
    """One line of `d3s2 check`."""

    ok: bool
    text: str

    def __str__(self) -> str:
        return f"[{'OK' if self.ok else 'FAIL'}] {self.text}"


def check(settings: Settings) -> Iterator[Check]:
    """What is installed, which device, and what of the profile's data and weights is missing; one
    `Check` a line.
    """
    version = platform.python_version()
    fits = OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON
    needed = " to ".join(f"{major}.{minor}" for major, minor in (OLDEST_PYTHON, NEWEST_PYTHON))
    yield Check(fits, f"Python {version} ({needed} is needed)")
    yield from _check_versions()
    yield _check_mmseg()
    try:
        if pick_device(settings.device) == "cuda":
            require_gpus(settings.gpus)
        yield Check(True, f"device: {device_name(settings.device)}")
    except D3S2Error as error:
        yield Check(False, str(error))
    memory = memory_mb()
    yield Check(
        memory >= NEEDED_MEMORY_MB, f"memory: {memory} MB ({NEEDED_MEMORY_MB} MB are enough)"
    )
    yield _check_folder(settings.run_dir)
    yield from _check_unfinished()
    yield from _check_data(settings)
    yield from _check_weights(settings)
    yield from _check_estimate(settings)
    yield from _check_tracker(settings)


def _check_versions() -> Iterator[Check]:
    pins = pinned()
    for name, found in versions().items():
        pin = pins.get(name, found)
        if name == "python":
            continue
        fits = found.split("+")[0] == pin
        yield Check(
            fits, f"{name} {found}" + ("" if fits else f", but {pin} is pinned: run make run again")
        )


def _check_mmseg() -> Check:
    try:
        from d3s2.models import mmcv_ops

        stand_in = mmcv_ops.install()
        import mmcv.ops  # noqa: F401 - importing is the test
        import mmseg.models  # noqa: F401
    except Exception as error:  # noqa: BLE001 - whatever it is, it becomes a line of the report
        return Check(
            False, f"mmsegmentation cannot be imported ({error}): delete .venv, then make run"
        )
    return Check(
        True,
        "mmsegmentation imports "
        f"({'operations in plain PyTorch' if stand_in else 'compiled operations'})",
    )


def _check_estimate(settings: Settings) -> Iterator[Check]:
    """What a run with pretrained models will take, and of what there is too little here."""
    if not estimate.wants(settings):
        return
    for sentence in estimate.shortages(settings):
        if "is pinned" not in sentence:  # said above
            yield Check(False, sentence)
    yield Check(True, "\n".join(estimate.lines(settings)))


def _check_tracker(settings: Settings) -> Iterator[Check]:
    """Whether the library that trainings are to be tracked with is installed."""
    if settings.tracking != "none":
        sentence = missing_tracker(settings.tracking)
        yield Check(not sentence, sentence or f"tracking: {settings.tracking} is installed")


def _check_folder(run_dir: str) -> Check:
    existing = next(path for path in (Path(run_dir), *Path(run_dir).parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        return Check(False, f"run folder {run_dir} cannot be written: choose another with run_dir")
    free = shutil.disk_usage(existing).free // 2**20
    return Check(free >= NEEDED_DISK_MB, f"run folder {run_dir} can be written, {free} MB free")


def _check_unfinished() -> Iterator[Check]:
    """Data folders that are in nobody's way, but take room."""
    for folder in left_unfinished():
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 2**20
        yield Check(
            True,
            f"data: {folder} ({size} MB) was not prepared to its end: the run that began it goes "
            "on there; if none will, delete it",
        )


def _check_data(settings: Settings) -> Iterator[Check]:
    if settings.data_format == "scenes":
        yield Check(True, "data: scenes, drawn on first use")
    elif not settings.data_root:
        fetch = (
            f"; fetch it with: {fetching(settings.data_format)}"
            if settings.data_format in FORMATS
            else ""
        )
        yield Check(
            False,
            f"data_format {settings.data_format!r} needs your folder: -p "
            f"data_root=/path/to/data{fetch}",
        )
    else:
        yield from _check_files(settings)


def _check_files(settings: Settings) -> Iterator[Check]:
    """All that is wrong with the files of both splits, and a table of what they hold.

    Of your own data every file is read; of a public set, which its archives vouch for, some.
    """
    most = LOOKED_INTO if settings.data_format in FORMATS else 0
    examinations = []
    said: set[str] = set()
    for split in ("train", "val"):
        found = examine(settings.data_format, settings.data_root, split, most)
        examinations.append(found)
        for fault in found.faults.values():
            if str(fault) not in said:  # classes.csv is the same for both
                yield Check(False, f"data: {fault}")
            said.add(str(fault))
        if found.dataset is not None:
            yield from _check_split(settings, found)
    if settings.data_format == "folder" and (missing := lines_to_add(examinations)):
        listed = "".join(f"\n    {line}" for line in missing)
        yield Check(
            False,
            f"data: if these are classes, name them and add the lines to classes.csv:{listed}",
        )


def _check_split(settings: Settings, found: Examination) -> Iterator[Check]:
    """What a split that can be opened holds; the classes of your own data in a table."""
    dataset = found.dataset
    count, classes = len(dataset), dataset.num_classes
    read = "" if found.read == count else f"; {found.read} of them, spread evenly, were read"
    public = settings.data_format in FORMATS
    table = "" if public else "".join(f"\n    {line}" for line in class_table(found))
    yield Check(
        not found.faults, f"data: {count} {found.split} images, {classes} classes{read}{table}"
    )
    if found.empty and found.pixels.any():
        yield Check(
            True, f"data: {found.empty} {found.split} masks are ignored throughout: no use, no harm"
        )
    if note := count_note(settings.data_format, found.split, count):
        yield Check(False, f"data: {note}")


def _check_weights(settings: Settings) -> Iterator[Check]:
    from d3s2.runs.model_choice import choose_models  # imports PyTorch and diffusers: seconds

    choice = choose_models(settings)
    for name, model in choice.pretrained.items():
        problems = list(model.check())
        yield from (Check(False, f"{name}: {problem}") for problem in problems)
        if not problems:
            yield Check(True, f"{name}: {model}")
    if problem := missing_backbone(settings):
        yield Check(False, problem)
    folder = choice.folder
    own = [name for name in ("proxy", "generator") if name not in choice.pretrained]
    if not choice.shipped and not folder.exists():
        if own:
            yield Check(
                True, f"weights: {' and '.join(own)} trained on first use, in the run folder"
            )
        return
    for part in own:
        files = sorted((folder / part).rglob("*.safetensors"))
        yield Check(bool(files), f"weights: {part}" + ("" if files else f" is missing in {folder}"))
    record = folder / "weights.json"
    if record.is_file():
        files = read_json(record)["files"]
        wrong = [
            name
            for name, entry in files.items()
            if not (folder / name).is_file() or sha256(folder / name) != entry["sha256"]
        ]
        yield Check(
            not wrong,
            "weights: SHA-256 as recorded" if not wrong else f"weights: {wrong[0]} is damaged",
        )
