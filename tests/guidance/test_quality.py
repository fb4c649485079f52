"""The proxy's verdict, FreeMask's filter and the choice among several images: limits and small
exact cases.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_scenes import small_scenes
from torch.utils._python_dispatch import TorchDispatchMode

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.tensors import read_images, read_masks
from d3s2.guidance.losses import FeatureTargets, pixel_losses, segmentation_consistency
from d3s2.guidance.quality import (
    SCORES,
    best,
    class_agreement,
    class_mean_losses,
    ignore_doubtful,
    judge,
)
from d3s2.models.proxy import ProxySegmenter
from d3s2.statistics.features import feature_statistics

C = 5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> SegmentationDataset:
    return small_scenes(tmp_path_factory.mktemp("scenes"), 5)


@pytest.fixture(scope="module")
def proxy() -> ProxySegmenter:
    torch.manual_seed(0)
    return ProxySegmenter(20, channels=(8, 16)).eval().requires_grad_(False)


def some(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, C, (3, 6, 7), generator=rng)
    labels[torch.rand(labels.shape, generator=rng) < 0.2] = 255
    return torch.randn(3, C, 6, 7, generator=rng, dtype=torch.float64), labels


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_agreement_of_the_classes_adds_up_to_that_of_the_image(seed):
    logits, labels = some(seed)
    right, pixels = class_agreement(logits, labels)
    assert torch.equal(right.sum(1), (logits.argmax(1) == labels).flatten(1).sum(1))
    assert torch.equal(pixels.sum(1), (labels != 255).flatten(1).sum(1)) and (right <= pixels).all()
    for c in range(C):
        assert torch.equal(pixels[:, c], (labels == c).flatten(1).sum(1))


class LargestOfIntegers(TorchDispatchMode):
    """How many elements the largest tensor of integers or truth values had."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result.is_floating_point():
            self.most = max(self.most, result.numel())
        return result


def test_nothing_is_counted_with_a_mask_for_every_class():
    logits, labels = some(2)
    with LargestOfIntegers() as largest:
        class_agreement(logits, labels)
        segmentation_consistency(logits, labels, balance=True)
    assert 0 < largest.most <= labels.numel()


@given(seed=st.integers(0, 10_000), margins=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)))
@settings(max_examples=20, deadline=None)
def test_a_wider_margin_ignores_fewer_pixels_and_none_when_it_is_infinite(seed, margins):
    logits, labels = some(seed)
    losses, means = pixel_losses(logits, labels), torch.rand(C, dtype=torch.float64) + 0.1
    narrow, wide = (ignore_doubtful(losses, labels, means, m) for m in sorted(margins))
    assert ((wide == 255) <= (narrow == 255)).all()
    assert torch.equal(ignore_doubtful(losses, labels, means, math.inf), labels)
    assert torch.equal(narrow[narrow != 255], labels[narrow != 255])


def test_the_filter_is_strict_knows_each_pixels_class_and_spares_classes_never_seen():
    labels = torch.tensor([[[0, 0, 1, 1, 2, 255]]])
    losses = torch.tensor([[[2.5, 2.5001, 5.0, 5.1, 1e6, 0.0]]], dtype=torch.float64)
    means = torch.tensor([2.0, 4.0, math.inf], dtype=torch.float64)
    assert ignore_doubtful(losses, labels, means, 1.25).tolist() == [[[0, 255, 1, 255, 2, 255]]]


def test_a_perfect_proxy_filters_nothing():
    _, labels = some(1)
    perfect = (
        1e4 * torch.nn.functional.one_hot(labels.clamp(max=C - 1), C).permute(0, 3, 1, 2).double()
    )
    assert torch.equal(
        ignore_doubtful(pixel_losses(perfect, labels), labels, torch.zeros(C)), labels
    )


def test_mean_losses_are_the_means_over_each_classes_real_pixels_in_any_batches(dataset, proxy):
    with torch.no_grad():
        labels = read_masks(dataset, range(5))
        losses = pixel_losses(proxy(read_images(dataset, range(5))).logits, labels).double()
    means = class_mean_losses(proxy, dataset, batch=2)
    for c in range(20):
        expected = losses[labels == c].mean().item() if (labels == c).any() else math.inf
        assert means[c].item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(class_mean_losses(proxy, dataset, batch=5), means)


def test_judge_gives_an_image_the_same_verdict_in_every_company(dataset, proxy):
    targets = FeatureTargets.from_moments(feature_statistics(dataset, proxy, progress=False))
    images, labels = read_images(dataset, range(5)), read_masks(dataset, range(5))
    together = judge(proxy, targets, images, labels)
    for k in range(5):
        alone = judge(proxy, targets, images[k : k + 1], labels[k : k + 1])
        assert {name: value[k] for name, value in together.items()} == {
            name: value[0] for name, value in alone.items()
        }


@pytest.mark.parametrize(
    "score, expected", [("segmentation_loss", [1, 0]), ("proxy_agreement", [0, 0])]
)
def test_the_best_try_is_kept_image_by_image_and_the_first_of_equals(score, expected):
    verdicts = [
        {"segmentation_loss": [0.3, 0.2], "proxy_agreement": [0.9, 0.8]},
        {"segmentation_loss": [0.1, 0.2], "proxy_agreement": [0.9, 0.7]},
    ]
    assert best(verdicts, score) == expected


def test_an_unknown_score_is_refused():
    with pytest.raises(D3S2Error, match=f"choose {', '.join(SCORES)}"):
        best([], "beauty")
