"""The latent model that chapter 03 looks into: random weights, true shapes, and a real gradient."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_scenes import small_scenes

from d3s2.core.places import EMBEDDED_WEIGHTS
from d3s2.data.tensors import class_sets, read_masks
from d3s2.guidance.sampler import initial_noise
from d3s2.models.load import load_proxy
from d3s2.runs.weights import load_judge, load_stand_in


def test_a_latent_model_is_at_hand_for_every_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scenes = small_scenes(tmp_path, 1)
    generator = load_stand_in(SimpleNamespace(train=scenes))
    assert capfd.readouterr() == ("", "")  # it would stand in a published notebook
    labels = read_masks(scenes, [0])
    classes = class_sets(labels, 20)
    (prompt,) = generator.unet.prompts.texts(classes, labels)
    present = [name for name, there in zip(scenes.class_names, classes[0], strict=True) if there]
    assert all(name in prompt for name in present)
    control = generator.unet.control_image(labels)[0].permute(1, 2, 0) * 255
    assert control.round().int().tolist() == scenes.palette[labels[0].numpy()].tolist()

    z = initial_noise([0], generator.noise_shape(64, 64)).requires_grad_()
    assert z.shape == (1, 4, 8, 8)
    image = generator.decode(z)
    assert image.shape == (1, 3, 64, 64)
    gradient = torch.autograd.grad(image[0, :, 20, 40].sum(), z)[0].norm(dim=1)[0]
    row, column = divmod(int(gradient.argmax()), 8)
    assert abs(row - 20 // 8) <= 1 and abs(column - 40 // 8) <= 1


def test_the_judge_is_another_network_and_judges_the_embedded_scenes_alone() -> None:
    judge = load_judge(
        SimpleNamespace(settings=SimpleNamespace(data_format="scenes"), device="cpu")
    )
    guide = load_proxy(EMBEDDED_WEIGHTS / "proxy")
    assert judge is not None and not any(one.requires_grad for one in judge.parameters())
    widths = [sum(one.numel() for one in network.parameters()) for network in (judge, guide)]
    assert widths[0] != widths[1]
    other = SimpleNamespace(settings=SimpleNamespace(data_format="camvid"), device="cpu")
    assert load_judge(other) is None
