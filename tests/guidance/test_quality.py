"""The proxy's verdict, FreeMask's filter and the choice among several images: limits and small
exact cases.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_scenes import small_scenes
from torch.utils._python_dispatch import TorchDispatchMode

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import ClassInfo, SegmentationDataset
from d3s2.data.folder import write_classes
from d3s2.data.opening import open_dataset
from d3s2.data.tensors import read_images, read_masks
from d3s2.guidance.losses import (
    FeatureTargets,
    feature_matching,
    pixel_losses,
    segmentation_consistency,
)
from d3s2.guidance.quality import (
    SCORES,
    best,
    class_agreement,
    class_mean_losses,
    ignore_doubtful,
    judge,
    kept_class_losses,
)
from d3s2.models.proxy import ProxyOutput, ProxySegmenter
from d3s2.statistics.features import ClassMoments, feature_statistics

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


@given(scale=st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_the_filters_limit_is_not_rounded_to_the_losses_precision(scale):
    """What float32 makes of 1.25 times a loss can lie on either side of it."""
    numbers = 1 + torch.arange(scale, scale + 200, dtype=torch.float32) / 1000
    losses = (1.25 * numbers)[None, None]
    above = losses.double() > 1.25 * numbers.double()
    assert above.any() and not above.all()
    found = ignore_doubtful(losses, torch.arange(200)[None, None], numbers)
    assert torch.equal(found == 255, above)


def test_the_filter_works_where_the_masks_lie():
    """The classes' losses come from the CPU; the device here only knows shapes."""
    logits, labels = some(4)
    losses = pixel_losses(logits, labels)
    found = ignore_doubtful(losses.to("meta"), labels.to("meta"), torch.ones(C))
    assert (found.device.type, found.dtype, found.shape) == ("meta", torch.int64, labels.shape)
    usual = ignore_doubtful(losses, labels, torch.ones(C))
    assert torch.equal(usual, ignore_doubtful(losses, labels, torch.ones(C), 1.25))
    assert not torch.equal(usual, ignore_doubtful(losses, labels, torch.ones(C), 2.25))


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


@given(
    tries=st.lists(
        st.lists(
            st.sampled_from([math.nan, -math.inf, -1.0, 0.5, math.inf]), min_size=3, max_size=3
        ),
        min_size=1,
        max_size=4,
    ),
    score=st.sampled_from(sorted(SCORES)),
)
@settings(max_examples=80, deadline=None)
def test_what_is_not_a_number_never_wins(tries, score):
    """The choice is that of a tournament in which NaN loses to everything; all NaN is refused."""
    verdicts = [{score: values} for values in tries]
    lost = [k for k in range(3) if all(math.isnan(values[k]) for values in tries)]
    if lost:
        with pytest.raises(D3S2Error) as caught:
            best(verdicts, score)
        assert str(caught.value) == (
            f"The {score} of image {lost[0]} of the batch is NaN in all {len(tries)} tries, so "
            "none is the best: look at what the proxy answers."
        )
        return
    expected = []
    for k in range(3):
        winner = None
        for place, values in enumerate(tries):
            value = SCORES[score] * values[k]
            if not math.isnan(value) and (
                winner is None or value > SCORES[score] * tries[winner][k]
            ):
                winner = place
        expected.append(winner)
    assert best(verdicts, score) == expected


def test_an_unknown_score_and_one_that_the_judge_does_not_give_are_refused():
    with pytest.raises(D3S2Error) as caught:
        best([], "beauty")
    assert str(caught.value) == f"score is 'beauty': choose {', '.join(SCORES)}."
    with pytest.raises(D3S2Error) as caught:
        best([{"red": [1.0], "feature_loss": [1.0]}, {"feature_loss": [1.0]}], "proxy_agreement")
    assert str(caught.value) == (
        "score is 'proxy_agreement', but the judge gives red, feature_loss: choose one of them."
    )
    with pytest.raises(ValueError, match="shorter"):  # a judge that left an image out
        best([{"feature_loss": [1.0, 2.0]}, {"feature_loss": [1.0]}], "feature_loss")


# ------------------------------------------------------------- the verdict, from its definitions
class Given(torch.nn.Module):
    """A proxy whose logits and features are made of the images' own pixels, so that anyone can
    compute them again.
    """

    device = "cpu"
    layers = ("pixels",)

    def forward(self, images: torch.Tensor) -> ProxyOutput:
        logits = torch.stack([images[:, 0], images[:, 1], images[:, 2], -images[:, 0]], 1)
        return ProxyOutput(3 * logits, [images])


def drawn(seed: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (batch, 4, 6), generator=rng)
    labels[torch.rand(labels.shape, generator=rng) < 0.3] = 255
    return torch.rand(batch, 3, 4, 6, generator=rng) * 2 - 1, labels


@given(seed=st.integers(0, 10_000), batch=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_a_verdict_is_made_of_the_losses_and_the_share_of_valid_pixels_recognised(seed, batch):
    images, labels = drawn(seed, batch)
    real = ClassMoments(4, [3])
    real.update([drawn(seed + 1, 3)[0]], drawn(seed + 1, 3)[1])
    targets, proxy = FeatureTargets.from_moments(real), Given()
    verdict = judge(proxy, targets, images, labels)
    assert set(verdict) == set(SCORES)
    said = proxy(images).logits.argmax(1)
    for b in range(batch):
        valid = labels[b] != 255
        right = (said[b] == labels[b])[valid].float().mean().item() if valid.any() else 0.0
        assert verdict["proxy_agreement"][b] == pytest.approx(right, abs=1e-6)
        logits = proxy(images).logits[b : b + 1]
        entropy = torch.nn.functional.cross_entropy(logits, labels[b : b + 1], ignore_index=255)
        if valid.any():
            assert verdict["segmentation_loss"][b] == pytest.approx(entropy.item(), abs=1e-5)
        matching = feature_matching([images], labels, targets, kappa=1.0)[b].item()
        assert verdict["feature_loss"][b] == pytest.approx(matching, abs=2e-6, rel=1e-5)


def test_real_images_are_judged_better_than_noise_by_every_score_and_so_picked():
    """Where the pixels say their class, the real images must win, whatever is asked."""
    labels = torch.arange(24).reshape(1, 4, 6) % 3
    real = torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2) * 1.6 - 0.8
    noise = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    moments = ClassMoments(4, [3])
    moments.update([real], labels)
    targets = FeatureTargets.from_moments(moments)
    verdicts = [judge(Given(), targets, images, labels) for images in (noise, real)]
    for score in SCORES:
        assert best(verdicts, score) == [1] and best(verdicts[::-1], score) == [0], score


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_ignored_pixels_count_for_nothing(seed):
    """Neither in an image's verdict nor in a class's agreement, whatever is seen there."""
    images, labels = drawn(seed, 2)
    other = torch.where((labels == 255)[:, None], -images, images)
    real = ClassMoments(4, [3])
    real.update([drawn(seed + 1, 3)[0]], drawn(seed + 1, 3)[1])
    targets, proxy = FeatureTargets.from_moments(real), Given()
    verdict = judge(proxy, targets, images, labels)
    for name, found in judge(proxy, targets, other, labels).items():
        assert found == pytest.approx(verdict[name], abs=2e-6), name  # the last of six digits
    for one, two in zip(
        class_agreement(proxy(images).logits, labels),
        class_agreement(proxy(other).logits, labels),
        strict=True,
    ):
        assert torch.equal(one, two)
    losses, means = pixel_losses(proxy(images).logits, labels), torch.tensor([1e9, 0, 0, 0])
    filtered = ignore_doubtful(losses, labels, means, 1.0)
    assert torch.equal(filtered[labels == 0], labels[labels == 0])
    assert (filtered[labels == 255] == 255).all() and (filtered[(labels > 0)] == 255).all()


@pytest.fixture(scope="module")
def with_void(tmp_path_factory) -> SegmentationDataset:
    """Five small images of three classes, with ignored pixels, the first of a single pixel; a
    fourth class is nowhere.
    """
    root, rng = tmp_path_factory.mktemp("void"), np.random.default_rng(3)
    write_classes(root / "classes.csv", [ClassInfo(f"c{k}", (k, 0, 0)) for k in range(4)])
    labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (5, 4, 6), p=[0.1, 0.4, 0.2, 0.3])
    labels[labels == 0] = 1
    labels[3, 1, 2] = 0
    images = rng.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    for part, arrays in (("images", images), ("labels", labels)):
        (root / "train" / part).mkdir(parents=True)
        for k, array in enumerate(arrays):
            Image.fromarray(array).save(root / "train" / part / f"{k}.png")
    return open_dataset("folder", root, "train")


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
def test_a_classes_mean_loss_leaves_ignored_pixels_and_padding_out(with_void, batch):
    """Batches of one to three are padded to four: what is repeated must not be counted."""
    labels = read_masks(with_void, range(5))
    losses = pixel_losses(Given()(read_images(with_void, range(5))).logits, labels)
    means = class_mean_losses(Given(), with_void, batch)
    for c in range(3):
        assert means[c].item() == pytest.approx(losses[labels == c].mean().item(), rel=1e-6)
    assert means.shape == (4,) and math.isinf(means[3])


def test_mean_losses_are_kept_and_read_back_with_the_class_that_has_none(with_void, tmp_path):
    path = tmp_path / "class_losses.json"
    first = kept_class_losses(Given(), with_void, path)
    torch.testing.assert_close(first, class_mean_losses(Given(), with_void), rtol=0, atol=0)
    path.write_text("[1.5, 2, 3, null]")
    assert kept_class_losses(None, None, path).tolist() == [1.5, 2, 3, math.inf]
