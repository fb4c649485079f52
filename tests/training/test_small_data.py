"""Data and schedules at the edge of what can be trained: whole trainings of two iterations."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from training_jobs import make_job, write_splits

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import ClassInfo
from d3s2.data.folder import write_classes
from d3s2.training.job import PREDICTIONS, job_key
from d3s2.training.registered import Progress
from d3s2.training.side_by_side import train_all


def relabel(root, split: str, value) -> None:
    """Give every mask of a split other labels."""
    for path in sorted((root / split / "labels").iterdir()):
        with Image.open(path) as image:
            labels = np.array(image)
        Image.fromarray(value(labels).astype(np.uint8)).save(path)


@pytest.mark.processes
def test_data_of_one_class_is_trained_and_all_of_it_is_that_class(tmp_path):
    data = write_splits(tmp_path / "data")
    (data / "classes.csv").unlink()
    write_classes(data / "classes.csv", [ClassInfo("road", (1, 2, 3))])
    for split in ("train", "val"):
        relabel(data, split, lambda labels: np.where(labels == 255, 255, 0))
    job = make_job(data, tmp_path / "run", num_classes=1, iterations=2)
    (result,) = train_all([job], progress=None)
    assert result.miou == 100.0 and result.per_class_iou == (100.0,)
    with np.load(tmp_path / "run" / PREDICTIONS) as stored:
        assert len(stored) == 3 and not any(stored[name].any() for name in stored)
    assert [step for step, _ in result.curve] == [2]


@pytest.mark.processes
@pytest.mark.parametrize("iterations", [1, 2, 12])
def test_the_curve_of_a_short_training_ends_where_the_training_does(tmp_path, iterations):
    data = write_splits(tmp_path / "data")
    job = make_job(data, tmp_path / "run", iterations=iterations)
    (result,) = train_all([job], progress=None)
    assert [step for step, _ in result.curve] == {1: [1], 2: [2], 12: [10, 12]}[iterations]
    assert all(np.isfinite(loss) for _, loss in result.curve)


@pytest.mark.parametrize("last", [20, 23])
def test_the_curve_is_the_mean_of_the_losses_since_its_last_point(tmp_path, last):
    import torch

    class Runner:
        iter, max_iters = 0, last

    runner, hook = Runner(), Progress(str(tmp_path / "progress.json"))
    for number in range(last):
        runner.iter = number
        hook.after_train_iter(runner, number, outputs={"loss": torch.tensor(float(number))})
    assert hook.curve == [(10, 4.5), (20, 14.5), (23, 21.0)][: 2 + (last == 23)]


@pytest.mark.parametrize(
    ("split", "words"), [("val", "no mIoU to measure"), ("train", "nothing to learn")]
)
def test_a_split_without_a_labelled_pixel_is_a_sentence_before_the_training(tmp_path, split, words):
    data = write_splits(tmp_path / "data")
    relabel(data, split, lambda labels: np.full_like(labels, 255))
    job = make_job(data, tmp_path / "run")
    with pytest.raises(D3S2Error, match=f"'tiny': none of the .* masks.*{words}"):
        job_key(job)
    with pytest.raises(D3S2Error, match=words):
        train_all([job], progress=None)
    assert not (tmp_path / "run").exists()


def test_one_labelled_pixel_is_enough(tmp_path):
    data = write_splits(tmp_path / "data")
    whole = job_key(make_job(data, tmp_path))
    relabel(data, "val", lambda labels: np.full_like(labels, 255))
    last = data / "val" / "labels" / "2.png"
    with Image.open(last) as image:
        labels = np.array(image)
    labels[0, 0] = 3
    Image.fromarray(labels).save(last)
    assert job_key(make_job(data, tmp_path)) != whole
