"""The full Swin-S Mask2Former: what of mmsegmentation's configuration stays, what changes, and that
it learns and is judged.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from d3s2.core.errors import D3S2Error
from d3s2.data import scenes
from d3s2.data.folder import write_classes
from d3s2.data.scenes import scenes_classes
from d3s2.training import mask2former, swin
from d3s2.training.job import TrainingJob, check_job, job_key


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> TrainingJob:
    root = tmp_path_factory.mktemp("data")
    write_classes(root / "classes.csv", scenes_classes())
    for split in ("train", "val"):
        scenes.write_split(root, split, 2)
    torch.save({"state_dict": {}}, root / "swin.pth")
    return TrainingJob(
        name="swin",
        train_root=str(root),
        val_root=str(root),
        num_classes=20,
        work_dir=str(root / "work"),
        iterations=300,
        batch_size=4,
        network="swin-s",
        backbone_weights=str(root / "swin.pth"),
    )


def test_network_augmentation_and_optimizer_are_the_shipped_ones(job):
    ours = mask2former.build_config(job)
    shipped = mask2former.Config.fromfile(str(mask2former.SHIPPED))
    changed = {"init_cfg"}
    assert {k: v for k, v in ours.model.backbone.items() if k not in changed} == {
        k: v for k, v in shipped.model.backbone.items() if k not in changed
    }
    assert (
        ours.model.backbone.depths == [2, 2, 18, 2]
        and ours.model.backbone.init_cfg["checkpoint"] == job.backbone_weights
    )
    head, theirs = ours.model.decode_head, shipped.model.decode_head
    same = set(theirs) - {"type", "num_classes", "loss_cls"}
    assert {k: head[k] for k in same} == {k: theirs[k] for k in same}
    assert head.num_classes == 20 and len(head.loss_cls.class_weight) == 21
    steps = [step["type"] for step in ours.train_dataloader["dataset"]["pipeline"]]
    assert [step for step in steps if step != "Pad"] == [
        step["type"] for step in shipped.train_pipeline
    ][2:]
    assert ours.optim_wrapper.paramwise_cfg == shipped.optim_wrapper.paramwise_cfg


def test_every_augmented_view_has_the_jobs_size_and_fills_up_with_ignored_pixels(job):
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    init_default_scope("mmseg")
    data = DATASETS.build(mask2former.build_config(job).train_dataloader.dataset)
    views = [data[0] for _ in range(12)]
    filled = [view for view in views if (view["data_samples"].gt_sem_seg.data[0, -1] == 255).all()]
    assert {tuple(view["inputs"].shape) for view in views} == {(3, 64, 64)} and filled
    assert all(
        view["inputs"][:, -1, -1].tolist() == [104, 116, 124] for view in filled
    )  # the mean colour, BGR


def test_the_schedule_is_as_long_as_the_job_and_the_rate_scaled_to_its_batch(job):
    ours = mask2former.build_config(job)
    assert (
        ours.optim_wrapper.optimizer.lr
        == pytest.approx(1e-4 * 4 / 16)
        == swin.learning_rate(1e-4, 4)
    )
    assert swin.learning_rate(1e-4, 16) == 1e-4
    assert ours.param_scheduler[0]["end"] == ours.train_cfg["max_iters"] == 300


def test_missing_backbone_weights_and_unknown_networks_are_a_sentence(job):
    for wrong in (replace(job, backbone_weights="/nowhere.pth"), replace(job, network="swin-x")):
        with pytest.raises(D3S2Error, match="network 'swin-"):
            check_job(wrong)
    assert job_key(job) != job_key(replace(job, network="scaled-down"))


def test_other_backbone_weights_are_another_job_and_another_place_is_not(job, tmp_path):
    content = Path(job.backbone_weights).read_bytes()
    (tmp_path / "same.pth").write_bytes(content)
    assert job_key(replace(job, backbone_weights=str(tmp_path / "same.pth"))) == job_key(job)
    (tmp_path / "other.pth").write_bytes(content + b"x")
    assert job_key(replace(job, backbone_weights=str(tmp_path / "other.pth"))) != job_key(job)
