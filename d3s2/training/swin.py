"""Mask2Former with the full Swin-S, as mmsegmentation ships it, for real data: network,
augmentation and optimizer are its own.

Our choices: one length for all training sets, far shorter than the shipped 160,000 iterations of 16
images, a learning rate scaled linearly to the batch, and a head that matches a batch at once; for
how images are read and judged, see `protocol`. The configuration is the one for ADE20K; for other
data its number of classes changes and nothing else, as in FreeMask.
"""

from __future__ import annotations

from typing import Any

from d3s2.training import protocol
from d3s2.training.job import TrainingJob

SHIPPED_BATCH = 16
WORKERS = 4
VAL_BATCH = 4


def adapt(config: Any, job: TrainingJob) -> None:
    """Fit mmsegmentation's configuration, whose data loaders already read the job's folders, to the
    job.
    """
    _set_model(config.model, job)
    _set_loaders(config, job)
    _set_schedule(config, job)


def learning_rate(shipped: float, batch_size: int) -> float:
    """The shipped rate is for 16 images: in proportion, it is as far per image."""
    return shipped * batch_size / SHIPPED_BATCH


def _set_model(model: Any, job: TrainingJob) -> None:
    model.data_preprocessor.update(size=tuple(job.size), test_cfg={"size_divisor": 32})
    model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": job.backbone_weights}
    head = model.decode_head
    head.update(type="D3S2Mask2FormerHead", num_classes=job.num_classes)
    head.loss_cls.class_weight = [1.0] * job.num_classes + [0.1]


def _set_loaders(config: Any, job: TrainingJob) -> None:
    config.train_dataloader["dataset"]["pipeline"] = protocol.augmentation(config, job)
    workers = WORKERS if job.device == "cuda" else 0
    config.train_dataloader.update(num_workers=workers, persistent_workers=workers > 0)
    config.val_dataloader.update(num_workers=workers, batch_size=VAL_BATCH)


def _set_schedule(config: Any, job: TrainingJob) -> None:
    optimizer = config.optim_wrapper.optimizer
    optimizer.lr = learning_rate(optimizer.lr, job.batch_size)
    for scheduler in config.param_scheduler:
        scheduler["end"] = job.iterations
