"""Whose checkpoint a training goes on from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_jobs import write_data

from d3s2.data.folder import open_folder
from d3s2.models import pretraining
from d3s2.models.fitting import CHECKPOINT, Schedule, fit

RECIPE = Schedule(iterations=2, batch_size=2, log_every=1, save_every=1)


def train(
    out: Path, recipe: Schedule = RECIPE, data: str = "a", width: int = 1, start: int = 0
) -> tuple[list[str], torch.Tensor]:
    """What a small training says, and the weights it ends with."""
    torch.manual_seed(start)
    model = torch.nn.Linear(3, width)
    said: list[str] = []

    def loss_of(rng: torch.Generator) -> torch.Tensor:
        return model(torch.randn(recipe.batch_size, 3, generator=rng)).square().mean()

    fit(model, loss_of, recipe, out, said.append, data)
    return said, model.weight.detach()


def test_the_same_training_goes_on_and_changes_nothing(tmp_path):
    _, first = train(tmp_path)
    said, again = train(tmp_path, replace(RECIPE, log_every=2, save_every=2))
    assert said == ["going on at iteration 2"] and torch.equal(first, again)


@pytest.mark.parametrize(
    "change",
    [
        {"data": "b"},
        {"recipe": replace(RECIPE, seed=1)},
        {"recipe": replace(RECIPE, iterations=3)},
        {"recipe": replace(RECIPE, learning_rate=1e-2)},
        {"recipe": replace(RECIPE, batch_size=3)},
        {"recipe": replace(RECIPE, policy="constant")},
        {"recipe": replace(RECIPE, average=0.9)},
        {"width": 2},
        {"start": 1},
    ],
)
def test_another_trainings_checkpoint_is_set_aside(tmp_path, change):
    """More iterations ended in a ValueError, other data and another seed trained nothing."""
    train(tmp_path / "out")
    kept = (tmp_path / "out" / CHECKPOINT).read_bytes()
    said, found = train(tmp_path / "out", **change)
    iterations = change.get("recipe", RECIPE).iterations
    assert "was set aside as checkpoint-" in said[0] and len(said) == 1 + iterations
    (aside,) = (tmp_path / "out").glob("checkpoint-*.pt")
    assert aside.read_bytes() == kept
    _, fresh = train(tmp_path / "fresh", **change)
    assert torch.equal(found, fresh)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more"])
def test_a_damaged_checkpoint_is_set_aside(tmp_path, content):
    _, first = train(tmp_path / "whole")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / CHECKPOINT).write_bytes(content)
    said, found = train(tmp_path / "out")
    assert "set aside as checkpoint-unknown.pt" in said[0] and torch.equal(first, found)


def test_a_checkpoint_of_before_it_said_what_it_is_made_from_is_set_aside(tmp_path):
    train(tmp_path)
    kept = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    del kept["made_from"]
    torch.save(kept, tmp_path / CHECKPOINT)
    assert "set aside as checkpoint-unknown.pt" in train(tmp_path)[0][0]


@pytest.mark.parametrize("network", ["train_proxy", "train_generator"])
def test_both_networks_say_what_they_are_trained_on(tmp_path, monkeypatch, network):
    write_data(tmp_path, "train", 2, (32, 48), 0)
    dataset = open_folder(tmp_path, "train")
    heard = []

    def stop(*arguments):
        heard.append(arguments[5])
        raise KeyboardInterrupt

    monkeypatch.setattr(pretraining, "fit", stop)
    with pytest.raises(KeyboardInterrupt):
        getattr(pretraining, network)(dataset, tmp_path / "out", RECIPE)
    assert heard == [dataset.fingerprint()]
