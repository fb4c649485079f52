"""The process of one training: where it is bound, what it becomes, what it leaves when it fails."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training_jobs import make_job

from d3s2.core.files import read_json
from d3s2.training import evaluation, mask2former, predictions, registered, worker
from d3s2.training.job import (
    ERROR,
    OUT_OF_MEMORY,
    PREDICTIONS,
    RESULT,
    WEIGHTS,
    finished_key,
    write_job,
)


@pytest.fixture
def called(tmp_path, monkeypatch) -> list[tuple]:
    """What `main` does with a job, without doing it."""
    calls: list[tuple] = []
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(worker, "train", lambda job, *key: calls.append(("train", job.name, *key)))
    monkeypatch.setattr(worker, "_stay_on", lambda core: calls.append(("core", core)))
    monkeypatch.setattr("torch.distributed.run.main", lambda command: calls.append((*command,)))
    return calls


def run(tmp_path: Path, **changes) -> int:
    (tmp_path / "logs").mkdir(exist_ok=True)
    write_job(tmp_path / "job.json", make_job(tmp_path, tmp_path, **changes))
    return worker.main([str(tmp_path / "job.json"), "3"])


def test_a_training_alone_stays_on_its_core(tmp_path, called):
    assert run(tmp_path) == 0 and called == [("core", 3), ("train", "tiny")]


def test_a_key_that_is_known_is_handed_down(tmp_path, called):
    run(tmp_path)
    assert worker.main([str(tmp_path / "job.json"), "3", "known"]) == 0
    assert called[-1] == ("train", "tiny", "known")


def test_a_training_on_a_gpu_takes_all_cores(tmp_path, called):
    assert run(tmp_path, device="cuda") == 0 and called == [("train", "tiny")]


def test_several_processes_are_started_by_torchrun_and_train(tmp_path, called, monkeypatch):
    assert run(tmp_path, processes=2) == 0
    place = str(tmp_path / "job.json")
    command = ("--standalone", "--nproc-per-node=2", "-m", "d3s2.training.worker", place, "3")
    assert called == [command]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run(tmp_path, processes=2) == 0 and called[1:] == [("train", "tiny")]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds to cores")
def test_a_process_is_bound_to_its_core():
    before = os.sched_getaffinity(0)
    try:
        worker._stay_on(max(before))
        assert os.sched_getaffinity(0) == {max(before)}
    finally:
        os.sched_setaffinity(0, before)


def test_a_failure_leaves_its_traceback_and_the_first_one_counts(tmp_path):
    for message in ("first", "second"):
        with pytest.raises(ValueError, match=message), worker._reported(tmp_path):
            raise ValueError(message)
    text = (tmp_path / ERROR).read_text()
    assert text.startswith("Traceback") and text.endswith("ValueError: first\n")
    assert not (tmp_path / OUT_OF_MEMORY).exists()


def test_want_of_memory_leaves_a_mark(tmp_path):
    with pytest.raises(torch.OutOfMemoryError), worker._reported(tmp_path):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert (tmp_path / OUT_OF_MEMORY).is_file() and "OutOfMemoryError" in (
        tmp_path / ERROR
    ).read_text()


def test_the_hashes_are_written_when_all_else_is_there(tmp_path, monkeypatch):
    """A process that is killed in between has no result, and its checkpoint still."""
    runner = SimpleNamespace(
        model=torch.nn.Linear(2, 1),
        train_loop=SimpleNamespace(seconds_before=100.0),
        val_dataloader=SimpleNamespace(dataset=SimpleNamespace(source=SimpleNamespace(ids=["a"]))),
        val_evaluator=SimpleNamespace(metrics=[SimpleNamespace(folder=tmp_path / "answers")]),
    )
    predictions.keep(tmp_path / "answers", "a", np.eye(2, dtype=np.uint8))
    logs = tmp_path / "logs"
    logs.mkdir()
    checkpoint = logs / "checkpoint-0.pt"
    checkpoint.touch()
    others = [tmp_path / WEIGHTS, tmp_path / PREDICTIONS, logs / "cost.json", checkpoint]
    others.append(tmp_path / RESULT)
    real = worker.write_finished
    seen = []

    def watched(folder, key):
        seen.extend(other.is_file() for other in others)
        real(folder, key)

    monkeypatch.setattr(worker, "write_finished", watched)
    worker._write_files(tmp_path, runner, {"miou": 1.0, "key": "k"}, begun=0.0)
    assert seen == [True] * 5 and not checkpoint.exists()
    assert read_json(tmp_path / RESULT) == {"miou": 1.0, "key": "k"}
    assert finished_key(tmp_path) == "k"
    assert read_json(logs / "cost.json")["seconds"] > 100
    weights = mask2former.load_file(tmp_path / WEIGHTS)
    assert torch.equal(weights["weight"], runner.model.weight)
    assert not (tmp_path / "answers").exists()


def test_the_scores_of_a_result_are_those_of_the_confusion_matrix(tmp_path):
    """mmsegmentation's metric over batches of images, against a count of all their pixels."""
    rng, metric = np.random.default_rng(4), registered.ClassIoU(str(tmp_path / "answers"))
    metric.dataset_meta = {"classes": tuple("abcde")}  # no pixel of "c" and "e", nor called so
    said, true = rng.choice([0, 1, 3], (2, 5, 6, 9)).astype(np.uint8)
    true[rng.random(true.shape) < 0.2] = 255
    for batch in ((0, 1), (2, 3), (4,)):
        samples = [
            {
                "pred_sem_seg": {"data": torch.from_numpy(said[k][None].astype(np.int64))},
                "gt_sem_seg": {"data": torch.from_numpy(true[k][None].astype(np.int64))},
                "img_path": f"image {k}",
            }
            for k in batch
        ]
        metric.process({}, samples)
    metric.evaluate(5)
    progress = registered.Progress(str(tmp_path / "progress.json"))
    progress.curve = [(3, 2.5)]
    runner = SimpleNamespace(
        model=torch.nn.Linear(2, 3),
        hooks=[object(), progress],
        train_dataloader=SimpleNamespace(dataset=range(7)),
        val_evaluator=SimpleNamespace(metrics=[metric]),
    )
    job = make_job(tmp_path, tmp_path, seed=6, parts=2)
    facts = worker._facts(job, "the key", runner)
    matrix = evaluation.confusion(said, true, 5)
    assert facts.pop("miou") == pytest.approx(evaluation.mean_iou(matrix))
    scores = facts.pop("per_class_iou")
    assert [score is None for score in scores] == [False, False, True, False, True]
    known = [0, 1, 3]
    assert [scores[k] for k in known] == pytest.approx(evaluation.class_iou(matrix)[known])
    assert facts == {
        "name": "tiny",
        "curve": [(3, 2.5)],
        "parameters": 9,
        "train_images": 7,
        "iterations": 3,
        "seed": 6,
        "key": "the key",
        "processes": 1,
        "parts": 2,
    }
    names = [f"image {k}" for k in (4, 0, 1, 2, 3)]
    predictions.pack(tmp_path / "answers", names, tmp_path / "said.npz")
    with np.load(tmp_path / "said.npz") as stored:
        assert stored.files == names
        assert all(np.array_equal(stored[f"image {k}"], said[k]) for k in range(5))
