"""The loop that trains generator and proxy: its batches, its average, its checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from training_jobs import write_splits

from d3s2.data.folder import open_folder
from d3s2.models import pretraining
from d3s2.models.fitting import (
    CHECKPOINT,
    LOG,
    MovingAverage,
    PixelPool,
    Schedule,
    batch_generator,
    fit,
)

RECIPE = Schedule(iterations=7, learning_rate=0.05, seed=3, log_every=3, save_every=2)


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> PixelPool:
    return PixelPool(open_folder(write_splits(tmp_path_factory.mktemp("data")), "train"))


def test_a_batch_follows_from_seed_and_number_alone(pool):
    for _ in range(2):
        images, labels = pool.batch(4, batch_generator(1, 5))
    again, same = pool.batch(4, batch_generator(1, 5))
    assert torch.equal(images, again) and torch.equal(labels, same)
    for other in (batch_generator(1, 6), batch_generator(2, 5)):
        assert not torch.equal(pool.batch(4, other)[0], images)
    assert images.shape == (4, 3, 32, 48) and images.dtype == torch.float32
    assert labels.shape == (4, 32, 48) and labels.dtype == torch.int64
    assert -1 <= images.min() < -0.2 and 0.2 < images.max() <= 1


def test_images_and_labels_are_flipped_together(pool):
    images, labels = pool.batch(32, batch_generator(0, 0))
    left = (labels[:, :, :2] == 255).all((1, 2))
    right = (labels[:, :, -2:] == 255).all((1, 2))
    assert (left ^ right).all() and 4 < int(left.sum()) < 28  # the strip of ignored pixels
    for image, mask in zip(images, labels, strict=True):
        for name in (1, 2, 3):  # red grows with the class
            assert torch.allclose(image[0, mask == name], torch.tensor(60 * name / 127.5 - 1))


def test_images_with_rare_classes_are_drawn_more_often(tmp_path):
    data = open_folder(write_splits(tmp_path), "train")
    assert (PixelPool(data, balance=0.1).weights == 1).all()  # each class is in every image
    rare = np.zeros((32, 48), np.uint8)
    labels = [data.read_labels(0), *[rare] * 5]

    class OneOfSix:
        num_classes = 4
        read_image = data.read_image
        read_labels = staticmethod(lambda index: labels[index])

        def __len__(self):
            return 6

    found = PixelPool(OneOfSix(), balance=0.5).weights
    assert found.tolist() == pytest.approx([3**0.5, 1, 1, 1, 1, 1])


def test_the_average_warms_up_and_copies_what_is_no_float():
    model = torch.nn.BatchNorm1d(1)
    average = MovingAverage(model, decay=0.5)
    with torch.no_grad():
        model.weight.fill_(12.0)
    model.num_batches_tracked += 4
    average.update(model)  # decay 2/11
    assert average.weights["weight"].item() == pytest.approx(1 * 2 / 11 + 12 * 9 / 11)
    assert average.weights["num_batches_tracked"] == 4
    for _ in range(40):
        average.update(model)
    assert average.weights["weight"].item() == pytest.approx(12.0)


def line() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 1)


def trained(folder: Path, stop_at: int = 0) -> tuple[torch.nn.Linear, list[str]]:
    model = line()
    said: list[str] = []
    drawn: list[int] = []

    def loss_of(rng: torch.Generator) -> torch.Tensor:
        drawn.append(1)
        if len(drawn) == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=rng)
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    fit(model, loss_of, RECIPE, folder, said.append)
    return model, said


def test_a_break_changes_nothing_and_the_model_gets_the_average(tmp_path):
    whole, said = trained(tmp_path / "whole")
    assert [words.split()[1] for words in said] == ["3/7", "6/7", "7/7"]
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "broken", stop_at=6)
    kept = torch.load(tmp_path / "broken" / CHECKPOINT, weights_only=True)
    assert kept["step"] == 4 and [row[0] for row in kept["rows"]] == [3]
    again, said = trained(tmp_path / "broken")
    assert said[0] == "going on at iteration 4"
    assert torch.equal(again.weight, whole.weight) and torch.equal(again.bias, whole.bias)
    states = [torch.load(tmp_path / name / CHECKPOINT) for name in ("whole", "broken")]
    assert torch.equal(states[0]["model"]["weight"], states[1]["model"]["weight"])
    assert not torch.equal(states[0]["model"]["weight"], whole.weight)
    assert torch.equal(states[0]["ema"]["weight"], whole.weight)
    logs = [(tmp_path / name / LOG).read_text().splitlines() for name in ("whole", "broken")]
    assert [row.split(",")[0] for row in logs[0]] == ["iteration", "3", "6", "7"]
    assert [row.split(",")[0] for row in logs[1]] == ["iteration", "3", "6", "7"]
    assert states[0]["schedule"]["last_epoch"] == states[1]["schedule"]["last_epoch"] == 7


def test_conditions_are_dropped_as_often_as_said_and_the_labels_stay():
    labels = torch.arange(4).repeat(5000)[:, None, None].expand(-1, 1, 2)
    layout, classes = pretraining._some_dropped(labels, 4, batch_generator(0, 0))
    without_layout = (layout == -1).all((1, 2))
    without_classes = (classes == -1).all(1)
    shares = {
        "layout": (without_layout & ~without_classes).double().mean(),
        "set": (~without_layout & without_classes).double().mean(),
        "both": (without_layout & without_classes).double().mean(),
    }
    assert shares["layout"] == pytest.approx(pretraining.LAYOUT_DROPPED, abs=0.01)
    assert shares["set"] == pytest.approx(pretraining.SET_DROPPED, abs=0.01)
    assert shares["both"] == pytest.approx(pretraining.BOTH_DROPPED, abs=0.01)
    assert torch.equal(layout[~without_layout], labels[~without_layout])
    assert (classes[~without_classes].sum(1) == 1).all() and (labels >= 0).all()
