"""The floors are floors of the same work: the same counts, inputs and networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from d3s2.statistics.pixels import count_pixels
from d3s2.studies import floors, training_floor
from d3s2.studies.drawn_masks import draw_mask, draw_masks, draw_scenes
from d3s2.studies.floors import Measured, main, mask_works, step_works

pytestmark = pytest.mark.processes  # imports mmseg, trains for seconds


def test_drawn_masks_have_several_classes_in_connected_regions(tmp_path: Path) -> None:
    masks = [draw_mask(np.random.default_rng(seed)) for seed in range(6)]
    kinds = [len(np.unique(mask)) for mask in masks]
    assert 4 <= min(kinds) and max(kinds) <= 9 and max(mask.max() for mask in masks) < 150
    changes = np.mean([(mask[:, 1:] != mask[:, :-1]).mean() for mask in masks])
    assert 0.005 < changes < 0.05
    dataset = draw_masks(tmp_path, 3, side=48)
    assert len(dataset) == 3 and dataset.num_classes == 150
    assert dataset.read_labels(2).shape == dataset.read_image(2).shape[:2] == (48, 48)


def test_mmsegmentation_and_we_count_the_same(tmp_path: Path) -> None:
    dataset = draw_masks(tmp_path, 4, side=48)
    theirs = mask_works(dataset)["mmseg's loader + np.bincount"]()
    ours = count_pixels(dataset).counts.toarray()
    assert theirs.shape == (4, 256) and np.array_equal(theirs[:, :150], ours)


def test_the_u_net_gets_what_a_step_gives_it(tmp_path: Path, monkeypatch) -> None:
    """As often as there are steps, each time a whole batch, in the kind of number that is said."""
    given = []
    forward = floors.load_generator(floors._weights() / "generator").unet.unet.__class__.forward

    def note(self, x, t, *rest, class_labels):
        given.append((tuple(x.shape), x.dtype, class_labels.dtype, torch.is_grad_enabled()))
        return forward(self, x, t, *rest, class_labels=class_labels)

    works = step_works(draw_scenes(tmp_path, 2), 2)
    monkeypatch.setattr("diffusers.UNet2DModel.forward", note)
    for name, work in works.items():
        given.clear()
        work()
        assert len(given) == 2, name
        shape, kind, of_classes, grad = given[0]
        assert shape[0] == 2 and shape[2:] == (32, 32) and not grad
        assert kind == of_classes == (torch.bfloat16 if "bfloat16" in name else torch.float32)


def test_both_trainings_have_one_network_one_optimizer_and_one_batch(
    tmp_path: Path, monkeypatch
) -> None:
    built = []
    monkeypatch.setattr(training_floor, "SKIPPED", 1)
    original = training_floor.Runner.from_cfg
    monkeypatch.setattr(
        training_floor.Runner, "from_cfg", lambda cfg: built.append(original(cfg)) or built[-1]
    )
    draw_scenes(tmp_path, 4, ("train", "val"))
    seconds = training_floor.iterations(tmp_path, 2, 1, tmp_path / "work")
    assert [len(each) for each in seconds.values()] == [1, 1]
    assert all(each[0] > 0 for each in seconds.values())
    plain, ours = built
    shapes = [{n: p.shape for n, p in runner.model.named_parameters()} for runner in built]
    assert shapes[0] == shapes[1]
    assert type(plain.model.decode_head).__module__.startswith("mmseg.")
    assert type(plain.train_loop).__module__.startswith("mmengine.")
    assert type(ours.train_loop).__module__.startswith("d3s2.")
    assert plain.train_dataloader.batch_size == ours.train_dataloader.batch_size == 4
    facts = [runner.optim_wrapper.optimizer.defaults for runner in built]
    assert facts[0] == facts[1] and facts[0]["fused"]
    groups = [len(runner.optim_wrapper.optimizer.param_groups) for runner in built]
    assert groups[0] == groups[1]
    assert plain.iter == ours.iter == 3
    dataset = plain.train_dataloader.dataset
    assert dataset.img_suffix == ".png" and len(dataset) == len(ours.train_dataloader.dataset) == 4
    assert np.array_equal(
        dataset[0]["inputs"].shape, ours.train_dataloader.dataset[0]["inputs"].shape
    )


def test_what_is_printed_is_measured_against_the_faster_floor() -> None:
    seconds = {"slow": [4.0] * 3, "quick": [2.0] * 3, "ours": [3.0] * 3}
    text = str(Measured("masks", seconds, ("slow", "quick"), "ours", 10, "a mask", 1.5))
    assert text.splitlines()[-1] == "  ours / quick: 1.50; aim 1.5, reached"
    missed = Measured("masks", seconds, ("slow", "quick"), "ours", 10, "a mask", 1.4)
    assert str(missed).endswith("aim 1.4, not reached") and "300.00 ms a mask" in str(missed)


def test_the_command_measures_what_it_is_asked(capsys, monkeypatch) -> None:
    monkeypatch.setattr("d3s2.studies.drawn_masks.REGIONS", 3)
    assert main(["masks", "features", "step", "--rounds", "1", "--count", "3"]) == 0
    text = capsys.readouterr().out
    assert "masks: 3 of 512 x 512, 150 classes" in text and "features: 3 scenes" in text
    assert text.count("aim") == 3 and "training" not in text
    assert main(["speed"]) == 2 and main(["masks", "--rounds", "0"]) == 2
    errors = capsys.readouterr().err
    assert "'speed' is no work: choose masks, features, step, training" in errors
    assert "count from 1" in errors or "numbers from 1" in errors
