"""Chapter 04: trainings that were finished before, here or in a run's older stages.

They are believed by the hashes that a training writes last, never by what a result says of itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from d3s2.core.files import explained, read_json, remove_abandoned, write_json
from d3s2.training.job import FINISHED, RESULT, TrainingJob, finished_key, write_finished


def still_to_train(
    jobs: Sequence[TrainingJob], keys: Sequence[str], reuse: Path | None = None
) -> list[TrainingJob]:
    """The jobs of these keys that have no finished training in their folders, after those that lie
    in `reuse` (at any depth) have been copied from there.
    """
    pairs = zip(jobs, keys, strict=True)
    missing = [(job, key) for job, key in pairs if finished_key(job.work_dir) != key]
    places = [] if reuse is None else [path.parent for path in sorted(reuse.rglob(FINISHED))]
    for place in places:
        found = finished_key(place) if missing else ""
        for job, key in list(missing):
            if key == found and copy_training(place, job, key):
                missing.remove((job, key))
    return [job for job, _ in missing]


def copy_training(source: Path, job: TrainingJob, key: str) -> bool:
    """Copy a finished training into the job's folder under the job's name, whole or not at all: to
    beside it first, where the hashes are checked again. False when they are not those.

    What lay in the folder, which is no finished training of this job, is deleted.
    """
    target = Path(job.work_dir)
    remove_abandoned(target.parent, f".{target.name}.*.part")
    copy, before = _beside(target, "copy"), _beside(target, "before")
    try:
        with explained(target):
            shutil.copytree(source, copy)
        if finished_key(copy) != key:
            return False
        write_json(copy / RESULT, {**read_json(copy / RESULT), "name": job.name})
        write_finished(copy, key)
        if target.exists():
            os.replace(target, before)  # until the next line, nothing has its name
        os.replace(copy, target)
        return True
    finally:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def _beside(folder: Path, word: str) -> Path:
    """A temporary folder's path, hidden and with this process's number like a temporary file's."""
    return folder.with_name(f".{folder.name}.{word}.{os.getpid()}.part")
