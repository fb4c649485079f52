"""What is finished: by its hashes, here and in older stages; a copy is whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from training_jobs import make_job, write_finished_training

from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json
from d3s2.training import reuse, side_by_side
from d3s2.training.job import (
    FINISHED,
    PREDICTIONS,
    RESULT,
    WEIGHTS,
    finished_key,
    read_result,
    write_finished,
)
from d3s2.training.reuse import still_to_train

NAMES = (RESULT, WEIGHTS, PREDICTIONS)


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def better_score(folder: Path) -> None:
    facts = read_json(folder / RESULT)
    (folder / RESULT).write_text(json.dumps(facts | {"miou": 99.0}))


def of_another(folder: Path) -> None:
    finished = read_json(folder / FINISHED)
    (folder / FINISHED).write_text(json.dumps(finished | {"key": "k"}))


def remade(folder: Path) -> None:
    (folder / RESULT).write_text(json.dumps(read_json(folder / RESULT) | {"key": "other"}))
    write_finished(folder, "k")


DAMAGE = {
    "weights": lambda folder: flip_bit(folder / WEIGHTS),
    "predictions": lambda folder: flip_bit(folder / PREDICTIONS),
    "score": better_score,
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "no result": lambda folder: (folder / RESULT).unlink(),
    "key": of_another,
    "old": lambda folder: (folder / FINISHED).unlink(),
    "hashes": lambda folder: (folder / FINISHED).write_text('{"key": "k"}'),
    "list": lambda folder: (folder / FINISHED).write_text("[]"),
    "half": lambda folder: (folder / FINISHED).write_text("{"),
}


WORDS = {
    "weights": f"{{folder}}/{WEIGHTS} is not what the training wrote",
    "predictions": f"{{folder}}/{PREDICTIONS} is not what the training wrote",
    "score": f"{{folder}}/{RESULT} is not what the training wrote",
    "no weights": f"{{folder}}/{WEIGHTS} is not what the training wrote",
    "no result": f"{{folder}}/{RESULT} is not what the training wrote",
    "key": f"{{folder}}/{FINISHED} is of another training than {RESULT}",
    "old": "there is no finished training in {folder}",
    "hashes": f"{{folder}}/{FINISHED} cannot be read",
    "list": f"{{folder}}/{FINISHED} cannot be read",
    "half": f"{{folder}}/{FINISHED} cannot be read",
}


def test_a_finished_training_is_read(tmp_path):
    write_finished_training(tmp_path / "a", "k", miou=50.0)
    assert finished_key(tmp_path / "a") == "k" and finished_key(tmp_path / "none") == ""
    assert read_result(tmp_path / "a").miou == 50.0
    assert sorted(read_json(tmp_path / "a" / FINISHED)["files"]) == sorted(NAMES)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_trained_again_wherever_it_lies(tmp_path, damage):
    """In the training's own folder, and in a superseded stage whose result would be copied."""
    job = make_job(tmp_path, tmp_path / "training" / "a")
    for folder in (tmp_path / "training" / "a", tmp_path / "superseded" / "x" / "a"):
        write_finished_training(folder, "real")
        DAMAGE[damage](folder)
        assert finished_key(folder) != "real"
        assert still_to_train([job], ["real"], tmp_path / "superseded") == [job]
        with pytest.raises(D3S2Error) as raised:
            read_result(folder)
        words = WORDS[damage].format(folder=folder)
        assert str(raised.value) == f"{words}: run notebook 04, which trains what is missing."
        shutil.rmtree(folder)


def test_hashes_of_another_result_are_no_finish(tmp_path):
    write_finished_training(tmp_path, "real")
    remade(tmp_path)
    assert finished_key(tmp_path) == ""


def test_what_was_finished_is_copied_under_the_jobs_name(tmp_path):
    old = tmp_path / "superseded" / "training-1" / "deep" / "old"
    write_finished_training(old, "k", miou=50.0)
    before = {path.name: path.read_bytes() for path in old.iterdir() if path.is_file()}
    jobs = [make_job(tmp_path, tmp_path / "training" / name, name=name) for name in "abc"]
    assert still_to_train(jobs, ["k", "k", "l"], tmp_path / "superseded") == jobs[2:]
    for job in jobs[:2]:
        assert read_result(job.work_dir).name == job.name and finished_key(job.work_dir) == "k"
        for name in (WEIGHTS, PREDICTIONS):
            assert (Path(job.work_dir) / name).read_bytes() == before[name]
        assert read_result(job.work_dir).seconds == 3.0
    assert before == {path.name: path.read_bytes() for path in old.iterdir() if path.is_file()}
    assert sorted(path.name for path in (tmp_path / "training").iterdir()) == ["a", "b"]


def test_a_damaged_copy_does_not_hide_a_good_one(tmp_path):
    for name in "abc":
        write_finished_training(tmp_path / "superseded" / name, "k", miou=50.0)
    flip_bit(tmp_path / "superseded" / "a" / WEIGHTS)
    better_score(tmp_path / "superseded" / "c")
    job = make_job(tmp_path, tmp_path / "a")
    assert still_to_train([job], ["k"], tmp_path / "superseded") == []
    assert read_result(tmp_path / "a").miou == 50.0


def test_a_copy_that_the_disk_damages_does_not_count(tmp_path, monkeypatch):
    write_finished_training(tmp_path / "old" / "a", "k")
    real = shutil.copyfile

    def failing(source, target, **more):
        real(source, target, **more)
        if Path(target).name == WEIGHTS:
            flip_bit(Path(target))

    monkeypatch.setattr(shutil, "copyfile", failing)
    job = make_job(tmp_path, tmp_path / "new" / "a")
    assert still_to_train([job], ["k"], tmp_path / "old") == [job]
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("step", range(12))
def test_an_interrupted_copy_leaves_nothing_that_counts(tmp_path, monkeypatch, step):
    """Stopped before each of the steps of a copy, over remains of an unfinished training."""
    write_finished_training(tmp_path / "old" / "a", "k", miou=50.0)
    job = make_job(tmp_path, tmp_path / "new" / "a")
    unfinished = tmp_path / "new" / "a" / WEIGHTS
    unfinished.parent.mkdir(parents=True)
    unfinished.write_text("of a training that was killed")
    calls = iter(range(100))

    def watched(real):
        def call(*arguments, **more):
            if next(calls) == step:
                raise KeyboardInterrupt
            return real(*arguments, **more)

        return call

    with monkeypatch.context() as patched:
        for name in ("write_json", "write_finished"):
            patched.setattr(reuse, name, watched(getattr(reuse, name)))
        for module, name in ((shutil, "copyfile"), (os, "replace")):
            patched.setattr(module, name, watched(getattr(module, name)))
        with contextlib.suppress(KeyboardInterrupt):
            still_to_train([job], ["k"], tmp_path / "old")
            assert step == 11, "raise the number of steps"
    assert finished_key(tmp_path / "new" / "a") in ("", "k")
    assert {path.name for path in (tmp_path / "new").iterdir()} <= {"a"}
    assert still_to_train([job], ["k"], tmp_path / "old") == []
    assert read_result(tmp_path / "new" / "a").miou == 50.0


def test_left_copies_of_ended_processes_are_removed(tmp_path):
    write_finished_training(tmp_path / "old" / "a", "k")
    left = tmp_path / "new" / f".a.copy.{2**22 + 1}.part"
    write_finished_training(left, "k")
    assert (
        still_to_train([make_job(tmp_path, tmp_path / "new" / "a")], ["k"], tmp_path / "old") == []
    )
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]


def test_each_job_has_a_key_and_what_was_found_needs_no_logs(tmp_path):
    write_finished_training(tmp_path / "old" / "deep" / "a", "k")
    shutil.rmtree(tmp_path / "old" / "deep" / "a" / "logs")
    job = make_job(tmp_path, tmp_path / "new" / "a")
    for keys in ([], ["k", "k"]):
        with pytest.raises(ValueError, match="zip"):
            still_to_train([job], keys, tmp_path / "old")
    assert still_to_train([job], ["k"], tmp_path / "old") == []
    assert finished_key(tmp_path / "new" / "a") == "k"


def test_train_all_reads_what_is_finished_and_believes_hashes_only(tmp_path, monkeypatch):
    """Trainings are made by a stand-in that writes files at once."""
    monkeypatch.setattr(side_by_side, "job_key", lambda job: f"key of {job.seed}")
    monkeypatch.setattr(side_by_side, "_Training", AtOnce)
    monkeypatch.setattr(side_by_side, "_is_forked", lambda job: False)
    monkeypatch.setattr(side_by_side, "POLL_SECONDS", 0)
    trained: list[str] = []
    monkeypatch.setattr(AtOnce, "trained", trained)
    jobs = [make_job(tmp_path, tmp_path / name, name=name, seed=ord(name)) for name in "ab"]
    assert [result.miou for result in side_by_side.train_all(jobs, progress=None)] == [40.0, 40.0]
    assert trained == ["a", "b"]
    side_by_side.train_all(jobs, progress=None)
    assert trained == ["a", "b"]
    better_score(tmp_path / "a")
    results = side_by_side.train_all(jobs, progress=None)
    assert trained == ["a", "b", "a"] and results[0].miou == 40.0
    moved = [replace(job, work_dir=str(tmp_path / "new" / job.name)) for job in jobs]
    flip_bit(tmp_path / "b" / WEIGHTS)
    side_by_side.train_all(moved, progress=None, reuse=tmp_path)
    assert trained == ["a", "b", "a", "b"]


class AtOnce(side_by_side._Training):
    """A training that is over when it begins."""

    trained: ClassVar[list[str]] = []

    def __init__(self, job, core, key, nursery):
        self.trained.append(job.name)
        self.job, self.folder, self.logs = job, Path(job.work_dir), Path(job.work_dir) / "logs"
        self.process = type("Process", (), {"returncode": 0, "poll": lambda self: 0})()
        write_finished_training(self.folder, f"key of {job.seed}", name=job.name)
