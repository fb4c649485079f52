"""Networks in the place of Mask2Former: what they are, what decides them, and that they train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_jobs import CLASSES, make_job, write_splits

from d3s2.core.errors import D3S2Error
from d3s2.training import mask2former, side_by_side, student_networks, students, worker
from d3s2.training.job import CONFIG, PREDICTIONS, WEIGHTS, job_key, read_job, write_job
from d3s2.training.side_by_side import train_all
from d3s2.training.students import (
    NETWORK_NAMES,
    STUDENTS,
    StudentJob,
    network_of,
    read_student,
    student_key,
    with_network,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("data"))


def student(data: Path, work: Path, which: str, **changes) -> StudentJob:
    return with_network(make_job(data, work, **changes), which)


def test_a_training_with_another_network_is_the_same_else(data, tmp_path):
    job = make_job(data, tmp_path, seed=7, processes=2)
    assert with_network(job, "mask2former") is job and network_of(job) == "mask2former"
    other = with_network(job, "unet")
    assert network_of(other) == "unet" and other.processes == 1
    assert replace(other, student="lraspp") == with_network(job, "lraspp")
    write_job(tmp_path / "job.json", other)
    assert read_student(tmp_path / "job.json") == other
    write_job(tmp_path / "plain.json", job)
    assert read_student(tmp_path / "plain.json") is None
    assert read_job(tmp_path / "plain.json") == job


@pytest.mark.parametrize(
    ("network", "changes", "words"),
    [
        ("resnet", {}, "no network 'resnet' to train: choose of mask2former, lraspp, unet"),
        ("unet", {"network": "swin-s"}, "this run has network=swin-s: set -p network=scaled-down"),
        ("unet", {"size": (40, 64)}, "images are 40x64, .* sides that are multiples of 16"),
    ],
)
def test_what_cannot_be_trained_is_refused(data, tmp_path, network, changes, words):
    with pytest.raises(D3S2Error, match=words):
        student(data, tmp_path, network, **changes)


def test_a_key_follows_from_the_network_and_leaves_mask2formers_alone(data, tmp_path, monkeypatch):
    job = make_job(data, tmp_path)
    before = job_key(job)
    keys = [student_key(with_network(job, name)) for name in STUDENTS]
    assert len({before, *keys}) == 3
    moved = student(data, tmp_path / "elsewhere", "unet", name="other", judge_every=2)
    assert student_key(moved) == student_key(with_network(job, "unet"))
    assert student_key(replace(moved, seed=5)) != student_key(moved)
    monkeypatch.setattr(students, "code_version", lambda module: f"other {module}")
    assert student_key(moved) not in keys and job_key(job) == before


def test_the_networks_are_the_shipped_ones_with_the_size_of_the_images(data, tmp_path):
    for name in STUDENTS:
        job = student(data, tmp_path, name, num_classes=20, size=(64, 64))
        config = student_networks.build_config(job, name)
        ours = mask2former.build_config(make_job(data, tmp_path, num_classes=20, size=(64, 64)))
        assert {key: value for key, value in config.items() if key != "model"} == {
            key: value for key, value in ours.items() if key != "model"
        }
        assert config.model.data_preprocessor == ours.model.data_preprocessor
        assert "SyncBN" not in str(config.model) and not config.model.get("pretrained")
        model = student_networks.build_student(job, name)
        kinds = {type(part).__module__.partition(".")[0] for part in model.modules()}
        assert kinds <= {"torch", "mmcv", "mmengine", "mmseg", "d3s2"}
        weights = sum(each.numel() for each in model.parameters())
        assert weights == {"lraspp": 1_140_916, "unet": 1_819_896}[name]  # as documented
        with torch.no_grad():
            answer = model(torch.zeros(1, 3, 64, 64), mode="tensor")
        assert answer.shape[:2] == (1, 20)


def test_the_pooled_branch_of_lraspp_sees_the_whole_image(data, tmp_path):
    head = student_networks.build_student(make_job(data, tmp_path), "lraspp").decode_head
    values = torch.arange(12.0).reshape(1, 1, 3, 4)
    assert head.image_pool[0](values).flatten().tolist() == [5.5]


@pytest.mark.processes
def test_students_train_and_predict_side_by_side(data, tmp_path, monkeypatch):
    jobs = [with_network(make_job(data, tmp_path / name, name=name), name) for name in STUDENTS]
    results = train_all(jobs, 2, progress=None)
    for job, result in zip(jobs, results, strict=True):
        assert result.key == student_key(job) and result.iterations == 3
        assert 0 <= result.miou <= 100 and len(result.per_class_iou) == CLASSES
        assert [step for step, _ in result.curve] == [3] and result.curve[0][1] > 0
        with np.load(Path(job.work_dir) / PREDICTIONS) as stored:
            assert {stored[name].shape for name in stored.files} == {(32, 48)}
            assert len(stored.files) == 3 and max(stored[name].max() for name in stored.files) < 4
        assert not (Path(job.work_dir) / CONFIG).exists()
    assert results[0].parameters != results[1].parameters
    monkeypatch.setattr(side_by_side, "_Pool", Idle)  # nothing is trained again
    assert train_all(jobs, 2, progress=None) == results


class Idle:
    """A pool that must not be asked."""

    is_busy = False

    def __init__(self, *arguments: object) -> None: ...

    def stop(self) -> None: ...


@pytest.mark.processes
def test_in_a_process_that_is_not_forked_it_has_the_same_bytes(data, tmp_path, monkeypatch):
    jobs = [student(data, tmp_path / name, "lraspp", name=name) for name in "ab"]
    train_all(jobs[:1], 1, progress=None)
    monkeypatch.setattr(side_by_side, "_is_forked", lambda job: False)
    train_all(jobs[1:], 1, progress=None)
    a, b = (Path(job.work_dir) / WEIGHTS for job in jobs)
    assert a.read_bytes() == b.read_bytes()


def test_a_process_tells_the_two_kinds_of_jobs_apart(data, tmp_path, monkeypatch):
    called: list[tuple] = []
    monkeypatch.setattr(worker, "_stay_on", lambda core: called.append(("core", core)))
    monkeypatch.setattr(worker, "main", lambda words: called.append(("worker", *words)))
    monkeypatch.setattr(students, "train_student", lambda job, *key: called.append((job, *key)))
    for network in NETWORK_NAMES:
        job = student(data, tmp_path, network)
        (tmp_path / "logs").mkdir(exist_ok=True)
        write_job(tmp_path / "job.json", job)
        students.main([str(tmp_path / "job.json"), "1", "known"])
        if network == "mask2former":
            assert called == [("worker", str(tmp_path / "job.json"), "1", "known")]
        else:
            assert called[-2:] == [("core", 1), (job, "known")]


@pytest.mark.processes
def test_of_one_class_everything_is_that_class(data, tmp_path):
    one = write_splits(tmp_path / "data")
    (one / "classes.csv").write_text("id,name,red,green,blue\n0,all,9,9,9\n")
    from PIL import Image

    for path in one.glob("*/labels/*.png"):
        labels = np.asarray(Image.open(path)).copy()
        Image.fromarray(np.where(labels == 255, 255, 0).astype(np.uint8)).save(path)
    for name in STUDENTS:
        job = student(one, tmp_path / name, name, num_classes=1, iterations=1)
        assert students.train_student(job).miou == 100
