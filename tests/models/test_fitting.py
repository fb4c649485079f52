"""The loop that trains generator and proxy: its batches, its average, its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training_jobs import write_splits

from d3s2.core.errors import D3S2Error
from d3s2.data.folder import open_folder
from d3s2.models import pretraining
from d3s2.models.fitting import (
    CHECKPOINT,
    LOG,
    RISE,
    Fit,
    MovingAverage,
    PixelPool,
    Schedule,
    batch_generator,
    fit,
)
from d3s2.models.generator import LayoutGenerator, noise_schedule

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


def trained(
    folder: Path, stop_at: int = 0, recipe: Schedule = RECIPE, held_out: Callable | None = None
) -> tuple[torch.nn.Linear, list[str]]:
    model = line()
    said: list[str] = []
    drawn: list[int] = []

    def loss_of(rng: torch.Generator) -> torch.Tensor:
        drawn.append(1)
        if len(drawn) == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=rng)
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    fit(model, loss_of, recipe, folder, said.append, held_out=held_out)
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
    dropped = pretraining.Dropped(0.1, 0.2, 0.05)
    layout, classes = pretraining._some_dropped(labels, 4, dropped, batch_generator(0, 0))
    without_layout = (layout == -1).all((1, 2))
    without_classes = (classes == -1).all(1)
    shares = {
        "layout": (without_layout & ~without_classes).double().mean(),
        "set": (~without_layout & without_classes).double().mean(),
        "both": (without_layout & without_classes).double().mean(),
    }
    assert shares["layout"] == pytest.approx(dropped.layout, abs=0.01)
    assert shares["set"] == pytest.approx(dropped.classes, abs=0.01)
    assert shares["both"] == pytest.approx(dropped.both, abs=0.01)
    assert torch.equal(layout[~without_layout], labels[~without_layout])
    assert (classes[~without_classes].sum(1) == 1).all() and (labels >= 0).all()


def rates(recipe: Schedule) -> list[float]:
    run = Fit(line(), recipe)
    found = []
    for _ in range(recipe.iterations):
        found.append(run.optimizer.param_groups[0]["lr"])
        run.advance(run.model(torch.ones(1, 3)).sum())
    return found


def test_a_constant_rate_rises_and_stays_and_one_cycle_comes_back():
    found = rates(Schedule(RISE + 50, learning_rate=0.4, policy="constant"))
    assert found[0] == pytest.approx(0.4 / RISE) and found[RISE // 2 - 1] == pytest.approx(0.2)
    assert found[RISE - 1 :] == pytest.approx([0.4] * 51)
    cycle = rates(Schedule(100, learning_rate=0.4))
    assert max(cycle) == pytest.approx(0.4) and max(cycle) == cycle[9] and cycle[-1] < 1e-4


def test_with_a_constant_rate_a_training_may_be_made_longer(tmp_path):
    constant = replace(RECIPE, policy="constant")
    trained(tmp_path / "on", recipe=replace(constant, iterations=4))
    longer, said = trained(tmp_path / "on", recipe=constant)
    whole, _ = trained(tmp_path / "whole", recipe=constant)
    assert said[0] == "going on at iteration 4" and torch.equal(longer.weight, whole.weight)


@pytest.mark.parametrize("wrong", [{"policy": "cosine"}, {"average": 1.0}, {"average": -0.1}])
def test_a_schedule_that_there_is_not_is_refused_by_name(wrong):
    (name, value) = next(iter(wrong.items()))
    with pytest.raises(D3S2Error, match=f"{name} is {value!r}"):
        Schedule(5, **wrong)


def test_held_out_loss_is_that_of_the_averaged_weights_at_every_checkpoint(tmp_path):
    seen = []

    def judge(model: torch.nn.Module) -> float:
        assert not model.training
        seen.append(model.weight.detach().clone())
        return len(seen) / 10

    model, _ = trained(tmp_path, held_out=judge)
    rows = [row.split(",") for row in (tmp_path / LOG).read_text().splitlines()]
    assert rows[0] == ["iteration", "loss", "seconds", "held_out"]
    found = {int(row[0]): row[3] for row in rows[1:]}
    assert found == {2: "0.10000", 3: "", 4: "0.20000", 6: "0.30000", 7: "0.40000"}
    assert torch.equal(seen[-1], model.weight) and not torch.equal(seen[0], seen[1])
    decayed, _ = trained(tmp_path / "other", recipe=replace(RECIPE, average=0.0))
    kept = torch.load(tmp_path / "other" / CHECKPOINT, weights_only=True)
    assert torch.equal(decayed.weight, kept["model"]["weight"])


class Recorder(torch.nn.Module):
    """A network that answers 0 and keeps what it was asked."""

    def forward(self, x, t, layout, classes):
        self.asked = (x, t, layout, classes)
        return torch.zeros_like(x)


def grey(size: int) -> SimpleNamespace:
    images = torch.full((size, 3, 8, 8), 127, dtype=torch.uint8)
    labels = torch.arange(size)[:, None, None].expand(-1, 8, 8) % 3
    return SimpleNamespace(images=images, labels=labels.to(torch.uint8), num_classes=3)


def test_the_error_of_a_network_that_answers_nothing_is_the_signals_share():
    """Of grey images v is sqrt(alpha_bar) eps, the same noise for every network."""
    generator = LayoutGenerator(Recorder(), noise_schedule())
    found = pretraining.denoising_error(generator, grey(500))
    alpha = noise_schedule().alphas_cumprod[list(pretraining.JUDGED_AT)]
    assert found == pytest.approx(alpha.mean().item(), rel=0.02)
    assert found == pretraining.denoising_error(generator, grey(500))
    x, t, layout, classes = generator.unet.asked
    assert len(x) == 500 % 64 and sorted(set(t.tolist())) == list(pretraining.JUDGED_AT)
    assert torch.equal(layout[:, 0, 0], torch.arange(448, 500) % 3)
    assert torch.equal(classes.argmax(1), layout[:, 0, 0]) and (classes.sum(1) == 1).all()


def test_a_generators_batches_lack_what_its_training_drops(pool):
    generator = LayoutGenerator(Recorder(), noise_schedule())
    recipe = Schedule(1, batch_size=8)
    for dropped in (pretraining.Dropped(1, 0, 0), pretraining.Dropped(0, 1, 0)):
        rng = batch_generator(0, 1)
        pretraining._denoising_loss(generator, pool, recipe, dropped, rng)
        *_, layout, classes = generator.unet.asked
        assert (layout == -1).all() == (dropped.layout == 1)
        assert (classes == -1).all() == (dropped.classes == 1)


def test_shares_that_are_none_are_refused(tmp_path):
    data = open_folder(write_splits(tmp_path), "train")
    for wrong in (pretraining.Dropped(0.5, 0.4, 0.2), pretraining.Dropped(-0.1, 0, 0)):
        with pytest.raises(D3S2Error, match="shares dropped"):
            pretraining.train_generator(data, tmp_path / "out", RECIPE, dropped=wrong)


def test_the_command_line_trains_a_generator_on_with_what_it_was_told(tmp_path, monkeypatch):
    write_splits(tmp_path)
    asked = {}
    keep = lambda *given, **named: asked.update(given=given, named=named)  # noqa: E731
    monkeypatch.setattr(pretraining, "train_generator", keep)
    words = f"generator --data {tmp_path} --out {tmp_path / 'out'} --iterations 7 --pretrained a"
    words += " --policy constant --average 0.5 --dropped 0.1 0.2 0.3 --held-out"
    assert pretraining.main(words.split()) == 0
    dataset, out, recipe, _, pretrained, held_out, dropped = asked["given"]
    assert (dataset.split, held_out.split) == ("train", "val") and out == tmp_path / "out"
    assert (recipe.policy, recipe.average, recipe.iterations) == ("constant", 0.5, 7)
    assert pretrained == Path("a") and dropped == pretraining.Dropped(0.1, 0.2, 0.3)
