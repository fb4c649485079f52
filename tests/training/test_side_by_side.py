"""Mask2Former through mmsegmentation's Runner: the parts against mmdet, whole trainings in real
processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from training_jobs import CLASSES, make_job, wait_for, write_data, write_splits

from d3s2.core.errors import D3S2Error
from d3s2.training import mask2former, side_by_side
from d3s2.training.job import PREDICTIONS, RESULT, WEIGHTS, write_job
from d3s2.training.registered import FolderDataset
from d3s2.training.side_by_side import train_all

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("data"))


def truths(labels: torch.Tensor) -> list:
    from mmengine.structures import InstanceData

    found = []
    for one in labels:
        classes = one.unique()
        classes = classes[classes != 255]
        found.append(
            InstanceData(labels=classes, masks=torch.stack([one == c for c in classes]).long())
        )
    return found


def test_the_configuration_inherits_the_shipped_one(data, tmp_path):
    config = mask2former.build_config(make_job(data, tmp_path, num_classes=11, size=(96, 128)))
    shipped = mask2former.Config.fromfile(str(mask2former.SHIPPED))
    head, original = config.model.decode_head, shipped.model.decode_head
    assert original.num_classes == 150 and head.num_classes == 11
    assert len(head.loss_cls.class_weight) == 12
    assert tuple(config.model.data_preprocessor["size"]) == (96, 128)
    for kept in ("loss_mask", "loss_dice"):  # losses and matching are the paper's Mask2Former
        assert head[kept] == original[kept]
    assert head.train_cfg.assigner == original.train_cfg.assigner
    assert config.model.backbone.init_cfg is None  # from scratch: nothing is downloaded


@pytest.mark.parametrize("size", [(64, 64), (96, 128), (40, 56)])
def test_the_network_takes_rectangles_and_answers_in_their_size(data, tmp_path, size):
    model = mask2former.build_model(make_job(data, tmp_path, size=size))
    batch = {
        "inputs": [torch.zeros(3, *size, dtype=torch.uint8)] * 2,
        "data_samples": samples(size),
    }
    with torch.no_grad():
        answer = model(**model.data_preprocessor(batch, False), mode="predict")
    assert [tuple(one.pred_sem_seg.data.shape) for one in answer] == [(1, *size)] * 2


def samples(size: tuple[int, int]) -> list:
    from mmseg.structures import SegDataSample

    return [SegDataSample(metainfo={"img_shape": size, "ori_shape": size}) for _ in range(2)]


def test_matching_equals_mmdets_for_the_same_points(data, tmp_path):
    from mmdet.models.dense_heads import Mask2FormerHead as Reference

    head = mask2former.build_model(make_job(data, tmp_path)).decode_head
    generator = torch.Generator().manual_seed(0)
    for seed in range(3):
        labels = torch.randint(0, CLASSES, (1, 32, 48), generator=generator)
        labels[:, :, seed:] = torch.where(labels[:, :, seed:] == seed, 255, labels[:, :, seed:])
        truth = truths(labels)
        scores = torch.randn(1, head.num_queries, CLASSES + 1, generator=generator)
        masks = torch.randn(1, head.num_queries, 16, 24, generator=generator) * 3
        torch.manual_seed(seed)
        mine = head.get_targets(list(scores), list(masks), truth, [{}])
        torch.manual_seed(seed)
        theirs = Reference.get_targets(head, list(scores), list(masks), truth, [{}])
        for part in range(4):
            torch.testing.assert_close(
                mine[part][0].float(), theirs[part][0].float(), rtol=0, atol=0
            )
        assert mine[4] == theirs[4] == len(truth[0].labels)


def test_an_image_without_a_labelled_pixel_gives_a_finite_loss(data, tmp_path):
    from mmengine.structures import InstanceData

    head = mask2former.build_model(make_job(data, tmp_path)).decode_head.train()
    nothing = InstanceData(
        labels=torch.zeros(0, dtype=torch.int64), masks=torch.zeros(0, 32, 48, dtype=torch.int64)
    )
    scores = torch.randn(2, 1, head.num_queries, CLASSES + 1)
    masks = torch.randn(2, 1, head.num_queries, 16, 24)
    losses = head.loss_by_feat(list(scores), list(masks), [nothing], [{}])
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())


def test_the_data_set_reads_what_d3s2_reads(data):
    dataset = FolderDataset(str(data), "train", ["4", "1"], (32, 48), pipeline=[])
    assert len(dataset) == 2 and dataset.metainfo["classes"] == ("c0", "c1", "c2", "c3")
    record = dataset[0]
    with Image.open(data / "train" / "images" / "4.png") as image:
        np.testing.assert_array_equal(record["img"][..., ::-1], np.array(image))
    assert record["gt_seg_map"][0, 0] == 255
    record["img"][:] = 0
    assert dataset[0]["img"].any()  # augmentation writes into a copy


def test_the_same_job_gives_the_same_bytes_and_runs_once(data, tmp_path, monkeypatch):
    """Forked from a process that had all imported, and in one that began with nothing."""
    monkeypatch.setattr(side_by_side, "_is_forked", lambda job: job.name == "a")
    jobs = [make_job(data, tmp_path / name, name=name) for name in ("a", "b")]
    lines: list[str] = []
    first, second = train_all(jobs, progress=lines.append)
    assert first.per_class_iou == second.per_class_iou and first.curve == second.curve
    for name in (WEIGHTS, PREDICTIONS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with np.load(tmp_path / "a" / PREDICTIONS) as stored:
        assert {name: stored[name].shape for name in stored} == dict.fromkeys("012", (32, 48))
    assert first.train_images == 6 and any("done, mIoU" in line for line in lines)
    again = train_all(jobs, progress=lines.append)
    assert again == [first, second] and sum("done" in line for line in lines) == 2
    model = mask2former.build_model(jobs[0], tmp_path / "a" / WEIGHTS)
    assert sum(weight.numel() for weight in model.parameters()) == first.parameters


def test_a_training_that_fails_says_why(data, tmp_path):
    broken = tmp_path / "data"
    write_data(broken, "train", 2, (32, 48), 0)
    write_data(broken, "val", 1, (32, 48), 1)
    (broken / "train" / "images" / "1.png").write_bytes(b"\x89PNG, but no more")
    job = make_job(broken, tmp_path / "run", name="broken", iterations=4)
    with pytest.raises(D3S2Error, match=r"training 'broken' failed[\s\S]*1\.png"):
        train_all([job], progress=None)
    assert not (tmp_path / "run" / RESULT).exists()


@pytest.mark.parametrize(
    ("change", "words"), [({"iterations": 0}, "iterations 0"), ({"train_ids": ("none",)}, "'none'")]
)
def test_bad_jobs_are_named_before_anything_runs(data, tmp_path, change, words):
    good = make_job(data, tmp_path / "good")
    bad = make_job(data, tmp_path / "bad", **change)
    with pytest.raises(D3S2Error, match=words):
        train_all([good, bad], progress=None)
    assert not (tmp_path / "good").exists()


def test_two_trainings_may_not_share_a_folder(data, tmp_path):
    with pytest.raises(D3S2Error, match="work_dir"):
        train_all([make_job(data, tmp_path), make_job(data, tmp_path, seed=1)])


def test_a_training_ends_with_the_process_that_started_it(data, tmp_path):
    job = make_job(data, tmp_path / "run", iterations=100_000)
    write_job(tmp_path / "job.json", job)
    code = (
        "import sys; from d3s2.training.job import read_job; "
        "from d3s2.training.side_by_side import train_all; train_all([read_job(sys.argv[1])])"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "job.json")])
    progress = tmp_path / "run" / "logs" / "progress.json"
    wait_for(progress.exists, 60)
    children = [child.pid for child in psutil.Process(parent.pid).children(recursive=True)]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not any(os.path.exists(f"/proc/{child}") for child in children), 20)
    assert len(children) == 2 and not (tmp_path / "run" / RESULT).exists()  # one forked the other


# ---------------------------------------------------------------------------------------- the pool
class Sleeper(side_by_side._Training):
    """A training that has ended when its job's seed says so."""

    over: ClassVar[set[int]] = set()

    def __init__(self, job, core, key, nursery):
        self.nursery = nursery
        self.job = job
        self.core = core
        self.key = key
        self.stopped = False

    def has_ended(self):
        return self.job.seed in self.over

    def news(self):
        return f"{self.job.seed} goes on"

    def stop(self):
        self.stopped = True


def test_the_pool_gives_each_training_a_core_of_its_own_and_frees_it(data, tmp_path, monkeypatch):
    monkeypatch.setattr(side_by_side, "_Training", Sleeper)
    monkeypatch.setattr(side_by_side, "_is_forked", lambda job: False)
    monkeypatch.setattr(Sleeper, "over", {0})
    said: list[str] = []
    keys = {str(tmp_path / str(seed)): f"key {seed}" for seed in range(3)}
    pool = side_by_side._Pool([4, 7], said.append, keys)
    assert pool.has_room and not pool.is_busy
    for seed in (0, 1):
        pool.start(make_job(data, tmp_path / str(seed), seed=seed))
    assert pool.is_busy and not pool.has_room
    (ended,) = pool.poll()
    assert (ended.job.seed, ended.core) == (0, 4) and said == ["1 goes on"]
    assert pool.has_room and pool.is_busy
    pool.start(make_job(data, tmp_path / "2", seed=2))
    running = list(pool._running.values())
    found = [(one.job.seed, one.core, one.key) for one in running]
    assert found == [(1, 7, "key 1"), (2, 4, "key 2")]
    pool.stop()
    assert all(one.stopped for one in running) and not ended.stopped and not pool.is_busy


@pytest.mark.parametrize(
    ("changes", "parallel", "at_once"),
    [({}, 0, 3), ({}, 2, 2), ({}, 9, 5), ({"device": "cuda"}, 2, 1), ({"processes": 2}, 0, 1)],
)
def test_how_many_run_at_once(data, tmp_path, monkeypatch, changes, parallel, at_once):
    """Of five cores, in a container that may use three."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {9, 3, 5, 1, 7}, raising=False)
    monkeypatch.setattr(side_by_side.machine, "cores", lambda: 3)
    jobs = [make_job(data, tmp_path), make_job(data, tmp_path, **changes)]
    assert side_by_side._cores(jobs, parallel) == [1, 3, 5, 7, 9][:at_once]


@pytest.mark.parametrize(
    ("batch", "processes", "parts", "more"),
    [(8, 1, 1, 2), (8, 2, 2, 4), (6, 1, 2, 6), (12, 1, 2, 4), (9, 1, 1, 3), (8, 2, 4, 0)],
)
def test_more_parts_share_the_batch_evenly(data, tmp_path, batch, processes, parts, more):
    job = make_job(data, tmp_path, batch_size=batch, processes=processes, parts=parts)
    assert side_by_side._more_parts(job) == more
