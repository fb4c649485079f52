"""An iteration of chapter 04 beside one of a plain runner: what our loop, head and loader cost.

The plain one is the file that `d3s2 export` writes for those who have no d3s2: mmengine's loop and
hooks, mmsegmentation's own head, which matches image by image, and its own loader, which reads and
decodes each image anew. Both have the network, batch, augmentation, optimizer and schedule of the
same job, and the same operations (`models.mmcv_ops`). Whole trainings of a few iterations take
turns; an iteration is what lies between the ends of two, loading included.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from d3s2.core.files import write_text
from d3s2.data.folder import open_folder
from d3s2.studies.turns import Seconds
from d3s2.training.job import TrainingJob
from d3s2.training.mask2former import build_config
from d3s2.training.plain_training import as_python, training_config

SKIPPED = 5
"""First iterations of a training that do not count."""


class IterationEnds(Hook):
    """Notes the processor's seconds at the end of each iteration."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def after_train_iter(self, *given: Any, **named: Any) -> None:
        """mmengine's call, the last one of an iteration."""
        self.ends.append(time.process_time())


def iterations(data: Path, count: int, rounds: int, folder: Path) -> Seconds:
    """The processor's seconds of an iteration, plain and ours, one median a round.

    data: train and val in the ordinary layout, all PNG, of one size; count: iterations of a
    training, of which the first `SKIPPED` do not count; folder: where the runners write.
    """
    train = open_folder(data, "train")
    height, width, _ = train.read_image(0).shape
    job = TrainingJob(
        name="floor",
        train_root=str(data),
        val_root=str(data),
        num_classes=train.num_classes,
        work_dir=str(folder / "ours"),
        val_ids=open_folder(data, "val").ids[:1],
        iterations=SKIPPED + count,
        size=(height, width),
    )
    write_text(
        data / "plain.py", as_python(training_config(job, train.class_names, train.palette), "")
    )

    def plain() -> Config:
        config = Config.fromfile(str(data / "plain.py"))
        config.optim_wrapper.optimizer.fused = True  # as ours, which a file for others cannot say
        config.work_dir = str(folder / "plain")
        return config

    works = {"mmengine's plain runner": plain, "our training": lambda: build_config(job)}
    seconds: Seconds = {name: [] for name in works}
    for turn in range(rounds):
        for name in reversed(works) if turn % 2 else works:
            seconds[name].append(_one_training(works[name]))
    return seconds


_numbers = itertools.count()


def _one_training(build: Callable[[], Config]) -> float:
    """The median of its iterations, in seconds of the processor."""
    config = build()
    config.experiment_name = f"floor{next(_numbers)}"  # by which mmengine tells trainings apart
    config.log_level = "ERROR"
    torch.set_num_threads(1)
    runner = Runner.from_cfg(config)
    watch = IterationEnds()
    runner.register_hook(watch, priority="LOWEST")
    runner.train()
    spent = [later - sooner for sooner, later in itertools.pairwise(watch.ends[SKIPPED - 1 :])]
    return statistics.median(spent)
