"""Counting live tensors, on cases whose sums are known, and the true sizes of the networks."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from d3s2.guidance.losses import segmentation_consistency
from d3s2.guidance.quality import class_agreement
from d3s2.models.stable_diffusion import ControlledUNet
from d3s2.statistics.features import MOST_PIXELS, ClassMoments
from d3s2.studies import memory
from d3s2.studies.memory import TEXT_ENCODER_WEIGHTS, LiveBytes, true_size_model


def test_the_peak_counts_what_is_alive_at_once_and_views_once():
    with LiveBytes() as live:
        a = torch.zeros(1000)
        b = a.view(10, 100) + 1
        del a
        c = b * 2
        del b, c
        torch.zeros(10)
    assert live.peak == 2 * 4000


def test_a_saved_activation_is_alive_until_the_gradient_is_taken():
    x = torch.ones(1000, requires_grad=True)
    with LiveBytes() as live:
        y = x.exp().exp()  # each result is kept for the way back
        assert live.peak == 2 * 4000
        torch.autograd.grad(y.sum(), x)
    assert live.peak > 2 * 4000


def peak(work) -> float:
    """GB alive at once while `work` runs on tensors without content."""
    with FakeTensorMode(), LiveBytes() as live:
        work()
    return live.peak / 1e9


def test_statistics_of_large_images_stay_below_a_tenth_of_a_gigabyte():
    """Masks of 150 classes, averaged over the cells of a proxy's first layer, a quarter as wide:
    bytes go with the pixels, so that small images say what large ones take.
    """
    labels = torch.zeros(4, 64, 64, dtype=torch.int64)
    with LiveBytes() as live:
        ClassMoments(150, [64]).update([torch.zeros(4, 64, 16, 16)], labels)
    each = live.peak / labels.numel()
    assert 150 / 16 * 8 < each < 200  # a share of each cell in float64, and no mask of each class
    assert MOST_PIXELS * each < 0.1e9


def test_judging_large_images_makes_no_mask_of_each_class():
    """Four images of 512 x 512 with 150 classes: their logits are 0.6 GB, and no integers are made
    of that size, which would be 1.3.
    """

    def agreement() -> None:
        labels = torch.zeros(4, 512, 512, dtype=torch.int64)
        class_agreement(torch.empty(4, 150, 512, 512), labels)

    def balanced_loss() -> None:
        labels = torch.zeros(4, 512, 512, dtype=torch.int64)
        segmentation_consistency(torch.empty(4, 150, 512, 512), labels, balance=True)

    logits = 4 * 150 * 512 * 512 * 4 / 1e9
    assert logits < peak(agreement) < logits + 0.1
    assert peak(balanced_loss) < 2 * logits + 0.1  # and their softmax


@pytest.mark.processes
def test_the_step_that_is_counted_can_be_taken_and_has_a_finite_gradient(monkeypatch):
    small = {
        "sample_size": 8,
        "cross_attention_dim": 768,
        "block_out_channels": (32, 64, 64, 64),
        "attention_head_dim": 8,
    }
    monkeypatch.setattr(memory, "UNET", small)
    monkeypatch.setattr(memory, "CONTROLNET", {name: small[name] for name in memory.CONTROLNET})
    monkeypatch.setattr(memory, "VAE", memory.VAE | {"block_out_channels": (32, 32, 32, 32)})
    for precision, jacobian in (("float32", "full"), ("bfloat16", "detach")):
        case = (precision, jacobian, True, "slicing", 64, 1)
        weights, counted = memory.peak(*case)
        assert 0 < weights < counted
        memory.take_step(*case)  # raises where the gradient is not finite


def test_the_networks_have_stable_diffusions_published_sizes():
    from transformers import CLIPTextConfig, CLIPTextModel

    with FakeTensorMode(allow_non_fake_inputs=True):
        model = true_size_model(True, "slicing")
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
            )
        )
    sizes = [
        sum(p.numel() for p in part.parameters())
        for part in (model.unet.unet, model.unet.controlnet, model.vae, text)
    ]
    assert sizes == [859_520_964, 361_279_120, 83_653_863, TEXT_ENCODER_WEIGHTS]
    assert model.noise_shape(512, 512) == (4, 64, 64) and isinstance(model.unet, ControlledUNet)
