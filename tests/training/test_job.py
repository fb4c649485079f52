"""What decides a training: the check of a job, its key, and its files."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_jobs import make_job, write_splits

from d3s2.core.errors import D3S2Error
from d3s2.core.files import write_json
from d3s2.training import job as module
from d3s2.training.job import (
    PREDICTIONS,
    RESULT,
    WEIGHTS,
    TrainingJob,
    check_job,
    job_key,
    open_split,
    read_job,
    read_result,
    write_finished,
    write_job,
)

BESIDE = {
    "name": "other",
    "work_dir": "elsewhere",
    "processes": 2,
    "parts": 2,
    "out_of_memory": "halve",
    "checkpoint_every": 7,
    "judge_every": 7,
    "tracking": "wandb",
    "backbone_weights": "nowhere.pth",
}
DECIDING = {
    "num_classes": 5,
    "train_ids": ("1", "2"),
    "val_ids": ("1",),
    "train_split": "val",
    "val_split": "train",
    "iterations": 4,
    "batch_size": 3,
    "seed": 1,
    "size": (32, 40),
    "protocol": "published",
    "device": "cuda",
    "network": "other",
    "precision": "bfloat16",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("data"))


def test_the_key_follows_what_decides_and_nothing_else(data, tmp_path):
    job = make_job(data, tmp_path)
    key = job_key(job)
    for name, value in BESIDE.items():
        assert job_key(replace(job, **{name: value})) == key, name
    others = [job_key(replace(job, **{name: value})) for name, value in DECIDING.items()]
    assert len({key, *others}) == 1 + len(DECIDING)
    places = {"train_root", "val_root", "train_format", "val_format"}
    assert {spec.name for spec in fields(TrainingJob)} == {*BESIDE, *DECIDING, *places}


def test_the_same_data_elsewhere_is_the_same_job_and_changed_data_is_not(data, tmp_path):
    copy = write_splits(tmp_path / "copy")
    job = make_job(data, tmp_path)
    moved = make_job(copy, tmp_path)
    assert job_key(moved) == job_key(job)
    (copy / "val" / "labels" / "1.png").write_bytes((data / "val/labels/2.png").read_bytes())
    assert job_key(moved) != job_key(job)
    named = {"train_ids": ("0", "1"), "val_ids": ("0", "2")}  # without the one that differs
    assert job_key(replace(moved, **named)) == job_key(replace(job, **named))


def test_the_key_reads_each_split_once_and_the_check_none(data, tmp_path, monkeypatch):
    opened: list[str] = []

    def counted(root, split, *more):
        opened.append(split)
        return open_split(root, split, *more)

    monkeypatch.setattr(module, "open_split", counted)
    check_job(make_job(data, tmp_path))
    assert opened == []
    job_key(make_job(data, tmp_path))
    assert opened == ["train", "val"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"iterations": 0}, "iterations 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"size": (15, 64)}, "at least \\(16, 16\\)"),
        ({"parts": 0}, "in 0 parts"),
        ({"num_classes": 0}, "classes 0"),
        ({"size": (64, 15)}, "at least \\(16, 16\\)"),
        ({"device": "tpu"}, "device 'tpu'"),
        ({"network": "swin-x"}, "network 'swin-x'"),
        ({"precision": "float16"}, "precision 'float16' must be"),
        ({"precision": "int8"}, "precision 'int8' must be"),
        ({"protocol": "squashed"}, "protocol 'squashed' is unknown"),
        ({"network": "swin-s"}, "'' is no file"),
        ({"processes": 3}, "a batch of 2 cannot be shared by 3 processes"),
        ({"parts": 3}, "in 3 parts"),
        ({"processes": 2, "parts": 2}, "a batch of 2 cannot be shared"),
        ({"processes": 0}, "by 0 processes"),
        ({"checkpoint_every": 0}, "a batch of 2 cannot be shared"),
    ],
)
def test_what_cannot_be_trained_is_named(data, tmp_path, change, words):
    with pytest.raises(D3S2Error, match=words):
        check_job(make_job(data, tmp_path, **change))


def test_the_least_that_can_be_trained_passes(data, tmp_path):
    least = {"iterations": 1, "batch_size": 1, "num_classes": 1, "size": (16, 16)}
    check_job(make_job(data, tmp_path, **least, checkpoint_every=1))
    check_job(make_job(data, tmp_path, batch_size=12, processes=3, parts=4))
    weights = tmp_path / "backbone.pth"
    weights.touch()
    check_job(make_job(data, tmp_path, network="swin-s", backbone_weights=str(weights)))


def test_several_processes_on_a_gpu_need_one_each(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_job(make_job(data, tmp_path, device="cuda"))  # whether it is there, PyTorch says
    check_job(make_job(data, tmp_path, processes=2))
    with pytest.raises(D3S2Error, match="gpus is 2 but PyTorch sees 1"):
        check_job(make_job(data, tmp_path, device="cuda", processes=2))


def test_refusals_are_whole_sentences(data, tmp_path):
    for change, words in (
        (
            {"processes": 2, "parts": 3},
            "training 'tiny': a batch of 2 cannot be shared by 2 processes in 3 parts each: take "
            "a batch_size that both divide.",
        ),
        (
            {"num_classes": 0},
            "training 'tiny': iterations 3, batch_size 2, classes 0 must be at least 1, and the "
            "size (32, 48) at least (16, 16).",
        ),
        ({"device": "tpu"}, "training 'tiny': device 'tpu' is unknown, use 'cpu' or 'cuda'."),
        (
            {"network": "swin-s", "backbone_weights": "/no/w.pth"},
            "training 'tiny': network 'swin-s' must be 'scaled-down', or 'swin-s' with "
            "backbone_weights that are there; '/no/w.pth' is no file.",
        ),
    ):
        with pytest.raises(D3S2Error) as raised:
            check_job(make_job(data, tmp_path, **change))
        assert str(raised.value) == words
    with pytest.raises(D3S2Error) as raised:
        open_split(data, "val", ["0", "none", "more"], None)
    assert str(raised.value) == f"image 'none' is not in {data / 'val'} (2 such): select again."


def test_a_split_is_opened_in_the_order_of_its_ids_and_in_the_size_that_is_asked(data):
    some = open_split(data, "train", ["4", "1"], (16, 24))
    assert some.ids == ("4", "1") and some.read_labels(0).shape == (16, 24)
    every = open_split(str(data), "train", None, None)
    assert len(every) == 6 and every.read_labels(0).shape == (32, 48)
    np.testing.assert_array_equal(
        open_split(data, "train", ["4"], None).read_labels(0), every.read_labels(4)
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [({"train_ids": ("1", "none")}, "'none'"), ({"train_root": "/nowhere"}, "/nowhere")],
)
def test_data_that_is_not_there_is_named(data, tmp_path, change, words):
    with pytest.raises(D3S2Error, match=words):
        job_key(make_job(data, tmp_path, **change))


def test_the_weights_of_a_pretrained_backbone_count_by_their_content(data, tmp_path):
    keys = {}
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
        job = make_job(data, tmp_path, network="swin-s", backbone_weights=str(tmp_path / name))
        keys[name] = job_key(job)
    assert keys["a"] == keys["b"] != keys["c"]


def test_the_sources_of_what_trains_count(data, tmp_path, monkeypatch):
    before = job_key(make_job(data, tmp_path))
    monkeypatch.setattr(module, "code_version", lambda name: f"other sources of {name}")
    changed = job_key(make_job(data, tmp_path))
    monkeypatch.setattr(module, "code_version", {"training.worker": "a"}.__getitem__)
    assert len({before, changed, job_key(make_job(data, tmp_path))}) == 3


def test_a_job_survives_the_disk(data, tmp_path):
    for job in (make_job(data, tmp_path), make_job(data, tmp_path, train_ids=("4", "1"))):
        write_job(tmp_path / "job.json", job)
        assert read_job(tmp_path / "job.json") == job
    with pytest.raises(D3S2Error, match="missing"):
        read_job(tmp_path / "none.json")


def test_a_result_is_read_with_its_cost_and_its_unknown_classes(tmp_path):
    with pytest.raises(D3S2Error, match="no finished training"):
        read_result(tmp_path)
    facts = {"name": "a", "miou": 40.0, "per_class_iou": [40.0, None], "curve": [[10, 2.5]]}
    facts |= {"parameters": 9, "train_images": 3, "iterations": 10, "seed": 0, "key": "k"}
    write_json(tmp_path / RESULT, facts)
    for name in (WEIGHTS, PREDICTIONS):
        (tmp_path / name).touch()
    with pytest.raises(D3S2Error, match="no finished training"):  # of before there were hashes
        read_result(tmp_path)
    write_finished(tmp_path, "k")
    found = read_result(tmp_path)
    assert found.curve == ((10, 2.5),)
    assert found.per_class_iou[0] == 40.0 and math.isnan(found.per_class_iou[1])
    assert math.isnan(found.seconds)
    write_json(tmp_path / "logs" / "cost.json", {"seconds": 3.0, "peak_memory_mb": 5})
    assert read_result(tmp_path).seconds == 3.0
    assert replace(found, per_class_iou=()) == replace(read_result(tmp_path), per_class_iou=())
