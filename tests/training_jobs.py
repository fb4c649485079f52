"""Small data and small trainings on it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from d3s2.core.files import write_json
from d3s2.data.dataset import ClassInfo
from d3s2.data.folder import write_classes
from d3s2.training.job import PREDICTIONS, RESULT, WEIGHTS, TrainingJob, write_finished

CLASSES = 4


def write_data(root: Path, split: str, count: int, size: tuple[int, int], seed: int) -> None:
    """Rectangles of one class each on a background of class 0; a strip of ignored pixels."""
    write_classes(
        root / "classes.csv",
        [ClassInfo(f"c{i}", (60 * i, 200 - 50 * i, 90)) for i in range(CLASSES)],
    )
    rng = np.random.default_rng(seed)
    for part in ("images", "labels"):
        (root / split / part).mkdir(parents=True)
    for index in range(count):
        labels = np.zeros(size, np.uint8)
        for name in range(1, CLASSES):
            y, x = rng.integers(0, size[0] - 8), rng.integers(0, size[1] - 8)
            labels[y : y + 8, x : x + 8] = name
        image = np.stack([60 * labels, 200 - 50 * labels, 90 + 0 * labels], -1).astype(np.uint8)
        labels[:, :2] = 255
        Image.fromarray(image).save(root / split / "images" / f"{index}.png")
        Image.fromarray(labels).save(root / split / "labels" / f"{index}.png")


def write_splits(root: Path) -> Path:
    """Six rectangles to train on, three to validate."""
    write_data(root, "train", 6, (32, 48), 0)
    write_data(root, "val", 3, (32, 48), 1)
    return root


def make_job(data: Path, work: Path, **changes) -> TrainingJob:
    job = TrainingJob(
        name="tiny",
        train_root=str(data),
        val_root=str(data),
        num_classes=CLASSES,
        work_dir=str(work),
        iterations=3,
        batch_size=2,
        size=(32, 48),
    )
    return replace(job, **changes)


def write_finished_training(folder: Path, key: str, **facts) -> None:
    """The files of a finished training, without one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(b"weights " + key.encode())
    (folder / PREDICTIONS).write_bytes(b"predictions")
    write_json(folder / "logs" / "cost.json", {"seconds": 3.0, "peak_memory_mb": 5})
    known = {"name": "a", "miou": 40.0, "per_class_iou": [40.0, None], "curve": [[10, 2.5]]}
    known |= {"parameters": 9, "train_images": 3, "iterations": 10, "seed": 0, "key": key}
    write_json(folder / RESULT, known | facts)
    write_finished(folder, key)


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
