"""The three gradients that the study compares: SFM's is linear gradient matching's at W = 0."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from d3s2.guidance.losses import FeatureTargets
from d3s2.models.proxy import ProxySegmenter
from d3s2.statistics.features import ClassMoments
from d3s2.studies import gradient_matching
from d3s2.studies.gradient_matching import (
    Batch,
    Bench,
    flow_step,
    head_gradient,
    head_step,
    megabytes_of,
    network_step,
    seconds_of,
    steps_of,
)

CLASSES = 4


def batch(seed: int, count: int) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    images = 2 * torch.rand(count, 3, 16, 16, generator=rng, dtype=torch.float64) - 1
    coarse = torch.randint(0, CLASSES, (count, 4, 4), generator=rng)
    coarse[:, 0, 0] = 255
    return Batch(images, coarse.repeat_interleave(4, 1).repeat_interleave(4, 2))


@pytest.fixture
def bench() -> tuple[Bench, Tensor]:
    torch.manual_seed(0)
    proxy = ProxySegmenter(CLASSES, (4, 6, 8)).double().requires_grad_(False).eval()
    real, fake = batch(1, 5), batch(2, 3)
    features = proxy(real.images).features
    moments = ClassMoments(CLASSES, [feature.shape[1] for feature in features])
    moments.update(features, real.labels)
    targets = FeatureTargets.from_moments(moments, dtype=torch.float64)
    return Bench(proxy, (1, 2), targets, real, fake.labels), fake.images


def test_sfm_is_linear_gradient_matching_with_heads_of_zero(bench: tuple[Bench, Tensor]) -> None:
    known, images = bench
    heads = [torch.zeros_like(known.targets.mean[number]) for number in known.layers]
    flows = flow_step(known, images)
    torch.testing.assert_close(head_step(known, images, heads), flows, rtol=1e-8, atol=1e-15)
    assert flows.abs().max() > 1e-8
    other = head_step(known, images, [head + torch.eye(*head.shape) for head in heads])
    assert not torch.allclose(other, flows, rtol=1e-2)


def test_a_head_has_the_gradient_of_its_finite_differences(bench: tuple[Bench, Tensor]) -> None:
    known, images = bench
    feature = known.features(images)[0]
    masks = known.masks(feature, known.labels)
    masks[:, 3] = 0  # a class that is not there
    head = torch.randn(CLASSES, feature.shape[1], dtype=torch.float64)
    found = head_gradient(feature, masks, head, graph=False)
    assert not found[3].any()

    def loss(head: Tensor) -> Tensor:
        scores = torch.einsum("cd,bdhw->bchw", head[:3], feature).log_softmax(1)
        return -torch.stack(
            [(scores[:, c] * masks[:, c]).sum() / masks[:, c].sum() for c in range(3)]
        )

    step = torch.zeros_like(head)
    step[1, 2] = 1e-5
    slope = (loss(head + step).mean() - loss(head - step).mean()) / 2e-5
    assert found[1, 2].item() == pytest.approx(slope.item(), rel=1e-5)


def test_matching_all_weights_is_the_slope_of_its_own_loss(bench: tuple[Bench, Tensor]) -> None:
    known, images = bench
    network = ProxySegmenter(CLASSES, (4, 6, 8)).double().eval()
    network.load_state_dict(known.proxy.state_dict())
    gradient = network_step(known, images, network)
    assert gradient.shape == images.shape and gradient.isfinite().all()
    # the same images as the real batch: the gradients agree, and nothing pulls
    same = dataclasses.replace(known, labels=known.real.labels)
    assert network_step(same, known.real.images, network).abs().max() < 1e-9 < gradient.abs().max()
    assert not any(weight.grad is not None for weight in network.parameters())


def test_a_gradient_of_a_gradient_takes_more_memory(bench: tuple[Bench, Tensor]) -> None:
    steps = steps_of(*bench, seed=0)
    assert list(steps) == ["SFM", "linear gradient matching", "gradient matching"]
    sizes = [megabytes_of(step, "cpu") for step in steps.values()]
    assert sizes == sorted(sizes) and sizes[2] > 1.5 * sizes[0]
    assert seconds_of(steps, 1).keys() == steps.keys()


def test_the_command_prints_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--images", "2", "--rounds", "1", "--threads", "1", "--device", "cpu"]
    assert gradient_matching.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("one step for 2 images of 64 x 64; cpu, 1 threads, median of 1")
    assert lines[2].split()[0] == "SFM" and lines[2].split()[2] == lines[2].split()[4] == "1.00"
    assert len(lines) == 5
    assert gradient_matching.main(["--images", "0"]) == 2
    assert "images is 0 and rounds 5: both count from 1." in capsys.readouterr().err
