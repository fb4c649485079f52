"""Identities of SFM's flow and loss; no snapshots."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from d3s2.core.errors import D3S2Error
from d3s2.guidance.losses import FeatureTargets
from d3s2.methods.flow_matching import (
    MIN_AREA,
    Centres,
    class_centres,
    flow,
    flow_distance,
    flow_matching,
    layer_numbers,
)
from d3s2.statistics.features import ClassMoments, soft_masks

C, D, H, W = 5, 7, 8, 12
ALL = torch.ones(C, dtype=torch.bool)
SOME = st.integers(0, 10_000)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_batch(seed: int, batch: int = 3) -> tuple[Tensor, Tensor]:
    """(features [B, D, H, W], labels [B, H, W]), some of these 255."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, C, (batch, H, W), generator=rng)
    labels[torch.rand(labels.shape, generator=rng) < 0.2] = 255
    return random(seed + 1, batch, D, H, W), labels


def moments_of(features: list[Tensor], labels: Tensor) -> ClassMoments:
    moments = ClassMoments(C, [feature.shape[1] for feature in features])
    moments.update(features, labels)
    return moments


def targets_of(features: list[Tensor], labels: Tensor) -> FeatureTargets:
    return FeatureTargets.from_moments(moments_of(features, labels), dtype=torch.float64)


def centres_of(feature: Tensor, labels: Tensor) -> Centres:
    return class_centres(feature, soft_masks(labels, C, tuple(feature.shape[2:])).double())


# ---------------------------------------------------------------------------------------- centres
@given(seed=SOME)
@settings(max_examples=20, deadline=None)
def test_centres_are_the_means_over_the_pixels_of_a_class_in_all_images(seed: int) -> None:
    features, labels = a_batch(seed)
    found = centres_of(features, labels)
    for c in range(C):
        pixels = features.permute(0, 2, 3, 1)[labels == c]
        torch.testing.assert_close(found.mean[c], pixels.mean(0))
        assert found.area[c] == len(pixels)


@given(seed=SOME)
@settings(max_examples=20, deadline=None)
def test_centres_are_the_means_of_chapter_01_and_join_with_them(seed: int) -> None:
    features, labels = a_batch(seed, 4)
    coarse = F.avg_pool2d(features, 3, 4)  # cells that several classes share
    moments = moments_of([coarse], labels)
    torch.testing.assert_close(centres_of(coarse, labels).mean, moments.mean[0])
    real = Centres.of_moments(moments_of([coarse[:1]], labels[:1]), 0)
    both = real.join(centres_of(coarse[1:], labels[1:]))
    torch.testing.assert_close(both.mean, moments.mean[0])
    torch.testing.assert_close(both.area, moments.n[0])


@given(seed=SOME, cut=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_shards_merge(seed: int, cut: int) -> None:
    features, labels = a_batch(seed, 4)
    parts = [centres_of(features[part], labels[part]) for part in (slice(cut), slice(cut, None))]
    torch.testing.assert_close(parts[0].join(parts[1]).mean, centres_of(features, labels).mean)


def test_half_precision_is_summed_in_single() -> None:
    features = torch.full((1, 1, 64, 64), 30.0, dtype=torch.bfloat16)
    found = class_centres(features, torch.ones(1, 1, 64, 64))
    assert found.total.dtype == torch.float32 and found.mean.item() == 30.0


def test_permuting_the_pixels_of_a_class_over_all_images_changes_nothing() -> None:
    features, labels = a_batch(3)
    pixels = features.permute(0, 2, 3, 1).clone()
    for c in range(C):
        there = pixels[labels == c]
        order = torch.randperm(len(there), generator=torch.Generator().manual_seed(c))
        pixels[labels == c] = there[order]
    moved = pixels.permute(0, 3, 1, 2)
    assert not torch.equal(moved, features)
    torch.testing.assert_close(centres_of(moved, labels).mean, centres_of(features, labels).mean)


# ------------------------------------------------------------------------------------------- flow
@given(seed=SOME, present=st.lists(st.booleans(), min_size=C, max_size=C))
@settings(max_examples=30, deadline=None)
def test_the_flow_leads_to_the_mean_of_the_other_classes_present(seed, present) -> None:
    there = torch.tensor(present)
    count = int(there.sum())
    if count < 2:
        return
    mu = random(seed, C, D)
    found = flow(mu, there)
    chosen = mu[there]
    for row in range(count):
        others = torch.cat([chosen[:row], chosen[row + 1 :]])
        torch.testing.assert_close(found[row], others.mean(0) - chosen[row])
    torch.testing.assert_close(found, count / (count - 1) * (chosen.mean(0) - chosen))
    torch.testing.assert_close(found.sum(0), torch.zeros(D, dtype=torch.float64))


def test_the_two_flows_of_two_classes_are_opposite() -> None:
    first, second = flow(random(0, 2, D), torch.tensor([True, True]))
    torch.testing.assert_close(first, -second)


def test_an_absent_class_is_no_centre_at_zero() -> None:
    mu = random(1, C, D) + 5
    present = torch.tensor([True, True, False, True, True])
    filled = torch.where(present[:, None], mu, 0 * mu)
    kept = flow(mu, present)
    torch.testing.assert_close(kept, flow(filled, present))
    wrong = flow(filled, ALL)[present]
    assert flow_distance(kept, wrong) > 0.01


# ------------------------------------------------------------------------------------------- loss
@given(seed=SOME, a=st.floats(0.1, 10), b=st.floats(-100, 100), turned=st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_distance_is_0_at_a_mu_plus_b_and_2_for_a_negative_a(seed, a, b, turned) -> None:
    mu = random(seed, C, D)
    sign = -1 if turned else 1
    moved = flow(sign * a * mu + b * random(seed + 1, 1, D), ALL)
    assert flow_distance(moved, flow(mu, ALL)).item() == pytest.approx(2 if turned else 0, abs=1e-9)


@given(seed=SOME)
@settings(max_examples=15, deadline=None)
def test_the_loss_of_the_real_set_is_0_also_moved_and_scaled(seed: int) -> None:
    features, labels = a_batch(seed)
    coarse = F.avg_pool2d(features, 2)
    targets = targets_of([features, coarse], labels)
    for a, b in ((1, 0), (3, 0), (1, 50), (-1, 0)):
        found = [centres_of(a * layer + b, labels) for layer in (features, coarse)]
        expected = 0 if a > 0 else 2
        assert flow_matching(found, targets).item() == pytest.approx(expected, abs=1e-9)


def test_the_loss_is_one_cosine_a_layer_of_features_in_units_of_their_deviation() -> None:
    features, labels = a_batch(5)
    layers = [features, 100 * random(6, 3, 4, H, W)]
    scale = torch.tensor([1e3, 1, 1, 1, 1, 1, 1], dtype=torch.float64)
    real = [random(7, 3, D, H, W) * scale[:, None, None], random(8, 3, 4, H, W)]
    targets = targets_of(real, labels)
    expected = []
    for fake, true in zip(layers, real, strict=True):
        values = true.permute(0, 2, 3, 1)[labels != 255]
        s = (values.var(0, correction=0) + 1e-6).sqrt()
        flows = [flow(centres_of(one, labels).mean / s, ALL).flatten() for one in (fake, true)]
        expected.append(1 - flows[0] @ flows[1] / (flows[0].norm() * flows[1].norm()))
    found = [centres_of(layer, labels) for layer in layers]
    assert flow_matching(found, targets).item() == pytest.approx(sum(expected).item() / 2)
    second = flow_matching(found[1:], targets, [1])
    assert second.item() == pytest.approx(expected[1].item())
    # another scale of the whole layer changes nothing, and neither does one of a channel
    assert flow_matching(
        [found[0], Centres(found[1].area, 7 * found[1].total)], targets
    ).item() == (pytest.approx(sum(expected).item() / 2))


def test_a_class_below_half_a_cell_or_unknown_is_in_neither_flow() -> None:
    features, labels = a_batch(9)
    targets = targets_of([random(98, 3, D, H, W)], labels)
    found = centres_of(features, labels)
    shifted = found.total.clone()
    shifted[2] += 1e6
    for area, counts in ((MIN_AREA - 0.01, False), (MIN_AREA, True)):
        areas = found.area.clone()
        areas[2] = area
        losses = [flow_matching([Centres(areas, sums)], targets) for sums in (found.total, shifted)]
        assert (losses[0] != losses[1]) == counts
    unknown = FeatureTargets(targets.mean, targets.deviation, targets.scale, [torch.arange(C) != 2])
    losses = [
        flow_matching([Centres(found.area, sums)], unknown) for sums in (found.total, shifted)
    ]
    assert losses[0] == losses[1]
    # the flow of four classes, and not that of five of which one is left out
    present = torch.arange(C) != 2
    s = (targets.scale[0] + 1e-6).sqrt()
    fake, real = (flow(mean / s, present) for mean in (found.mean, targets.mean[0]))
    assert losses[0].item() == pytest.approx(flow_distance(fake, real).item())


def test_two_classes_are_enough_for_a_flow() -> None:
    features, labels = a_batch(17)
    targets = targets_of([random(99, 3, D, H, W)], labels)
    only = labels.where(labels < 2, 255)
    s = (targets.scale[0] + 1e-6).sqrt()
    ways = [mean[0] - mean[1] for mean in (centres_of(features, only).mean, targets.mean[0])]
    found = flow_matching([centres_of(features, only)], targets).item()
    assert found == pytest.approx(1 - F.cosine_similarity(*(way / s for way in ways), dim=0).item())


def test_layers_are_taken_by_name_in_the_order_asked() -> None:
    names = ("encoder1", "encoder2", "encoder3", "decoder")
    assert layer_numbers(names, ("encoder3", "encoder1")) == (2, 0)
    assert layer_numbers(names) == (1, 2)
    assert layer_numbers(("encoder1", "decoder")) == (0, 1)


def test_a_set_of_one_class_has_no_loss_and_a_gradient_of_zero() -> None:
    features, labels = a_batch(11)
    targets = targets_of([features], labels)
    features.requires_grad_()
    loss = flow_matching([centres_of(features, 0 * labels)], targets)
    (gradient,) = torch.autograd.grad(loss, features)
    assert loss == 0 and not gradient.any()


@given(seed=SOME)
@settings(max_examples=10, deadline=None)
def test_the_gradient_of_one_image_depends_on_the_others(seed: int) -> None:
    features, labels = a_batch(seed)
    targets = targets_of([random(seed + 5, 3, D, H, W)], labels)
    gradients = []
    for change in (0.0, 1.0):
        leaf = features.clone()
        leaf[1] += change * random(seed + 6, D, H, W)
        leaf.requires_grad_()
        loss = flow_matching([centres_of(leaf, labels)], targets)
        gradients.append(torch.autograd.grad(loss, leaf)[0][0])
    assert not torch.allclose(*gradients)


# ------------------------------------------------------------------------ linear gradient matching
def head_gradient(feature: Tensor, labels: Tensor, balanced: bool) -> Tensor:
    """[C, D]: the gradient of softmax cross-entropy in a linear head, at W = 0, by autograd."""
    head = torch.zeros(C, D, dtype=torch.float64, requires_grad=True)
    logits = torch.einsum("cd,bdhw->bchw", head, feature)
    losses = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    loss = losses[labels != 255].mean()
    if balanced:
        loss = torch.stack([losses[labels == c].mean() for c in range(C)]).mean()
    return torch.autograd.grad(loss, head, create_graph=True)[0]


@given(seed=SOME)
@settings(max_examples=15, deadline=None)
def test_the_flow_is_the_gradient_of_a_balanced_linear_head_at_zero(seed: int) -> None:
    features, labels = a_batch(seed)
    found = flow(centres_of(features, labels).mean, ALL)
    gradient = head_gradient(features, labels, balanced=True)
    torch.testing.assert_close(gradient, (C - 1) / C**2 * found, rtol=1e-12, atol=1e-14)


def test_matching_these_gradients_is_matching_the_flows_to_the_last_digits() -> None:
    """In the loss, and in its gradient for the images: there one needs a gradient of a gradient."""
    fake, labels = a_batch(12)
    real, others = a_batch(14)
    fake.requires_grad_()
    pairs = ((fake, labels), (real, others))
    ours = flow_distance(*(flow(centres_of(*pair).mean, ALL) for pair in pairs))
    theirs = flow_distance(*(head_gradient(*pair, balanced=True) for pair in pairs))
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-14)
    gradients = [torch.autograd.grad(loss, fake)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-15)


def test_the_gradient_of_the_plain_head_is_the_flow_for_equal_areas_alone() -> None:
    features = random(15, 1, D, 5, 6)
    equal = torch.arange(30).reshape(1, 5, 6) % C
    same = flow(centres_of(features, equal).mean, ALL)
    torch.testing.assert_close(
        head_gradient(features, equal, balanced=False), (C - 1) / C**2 * same, rtol=1e-12, atol=0
    )
    unequal = equal.clone()
    unequal[0, :3] = 0
    other = flow(centres_of(features, unequal).mean, ALL)
    assert flow_distance(head_gradient(features, unequal, balanced=False), other) > 0.05
    assert flow_distance(head_gradient(features, unequal, balanced=True), other) < 1e-12


# -------------------------------------------------------------------------------------- bad input
def test_bad_input_is_one_sentence() -> None:
    features, labels = a_batch(16)
    found = centres_of(features, labels)
    targets = targets_of([features], labels)
    for wrong, message in (
        (lambda: class_centres(features, torch.ones(3, C, 4, 6)), r"need masks of their batch"),
        (lambda: flow(found.mean, torch.arange(C) == 1), "and there is 1: take masks"),
        (lambda: found.join(Centres(found.area, found.total[:, :2])), r"\(5, 7\) and \(5, 2\)"),
        (lambda: flow_matching([], targets), "of 0 layers and 1 layers"),
        (lambda: flow_matching([found], targets, [0, 1]), "of 1 layers and 2 layers"),
    ):
        with pytest.raises(D3S2Error, match=message) as error:
            wrong()
        assert "\n" not in str(error.value)
