"""Identities and limits of the two losses, listed in test_sampler.py: no snapshots."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from d3s2.core.errors import D3S2Error
from d3s2.guidance.losses import (
    ClassAreas,
    FeatureTargets,
    LossOptions,
    SetMemory,
    class_moments,
    feature_matching,
    guidance_losses,
    pixel_losses,
    segmentation_consistency,
)
from d3s2.models.proxy import ProxyOutput
from d3s2.statistics.features import ClassMoments, soft_masks

C, H, W = 5, 8, 12


def some(seed: int, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, C, H, W, generator=rng, dtype=torch.float64)
    labels = torch.randint(0, C, (batch, H, W), generator=rng)
    labels[torch.rand(labels.shape, generator=rng) < 0.2] = 255
    return logits, labels


def layers(seed: int, batch: int = 3) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, 6, H, W, generator=rng, dtype=torch.float64),
        torch.randn(batch, 4, H // 2, W // 2, generator=rng, dtype=torch.float64),
    ]


def targets_of(features: list[torch.Tensor], labels: torch.Tensor) -> FeatureTargets:
    moments = ClassMoments(C, [f.shape[1] for f in features])
    moments.update(features, labels)
    return FeatureTargets.from_moments(moments, dtype=torch.float64)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_segmentation_loss_is_the_mean_over_the_valid_pixels_of_each_image(seed):
    logits, labels = some(seed)
    expected = [
        F.cross_entropy(logits[b : b + 1], labels[b : b + 1], ignore_index=255) for b in range(3)
    ]
    torch.testing.assert_close(segmentation_consistency(logits, labels), torch.stack(expected))


def test_segmentation_loss_of_an_image_without_valid_pixels_is_zero_and_has_a_finite_gradient():
    logits, labels = some(0)
    labels[1] = 255
    logits.requires_grad_()
    for balance in (False, True):
        loss = segmentation_consistency(logits, labels, balance)
        assert loss[1] == 0 and torch.isfinite(torch.autograd.grad(loss.sum(), logits)[0]).all()


def test_balanced_loss_weighs_classes_equally_whatever_their_area():
    logits = torch.zeros(1, 2, 1, 10, dtype=torch.float64)
    logits[0, 0, 0, 9] = 3.0  # the only pixel of class 1 is called class 0
    labels = torch.zeros(1, 1, 10, dtype=torch.int64)
    labels[0, 0, 9] = 1
    common, rare = torch.log(torch.tensor(2.0)), torch.log(1 + torch.exp(torch.tensor(3.0)))
    assert segmentation_consistency(logits, labels, balance=True).item() == pytest.approx(
        ((common + rare) / 2).item()
    )
    assert segmentation_consistency(logits, labels).item() == pytest.approx(
        ((9 * common + rare) / 10).item()
    )


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_relabelling_the_classes_changes_neither_loss(seed):
    logits, labels = some(seed)
    features, order = layers(seed), torch.randperm(C, generator=torch.Generator().manual_seed(seed))
    moved = torch.where(labels == 255, labels, order[labels.clamp(max=C - 1)])
    moved_logits = torch.empty_like(logits)
    moved_logits[:, order] = logits
    real = layers(seed + 1)
    for balance in (False, True):
        torch.testing.assert_close(
            segmentation_consistency(logits, labels, balance),
            segmentation_consistency(moved_logits, moved, balance),
        )
    torch.testing.assert_close(
        feature_matching(features, labels, targets_of(real, labels)),
        feature_matching(features, moved, targets_of(real, moved)),
    )


def test_images_of_a_batch_do_not_feel_each_other():
    logits, labels = some(3)
    features, targets = layers(3), targets_of(layers(4), labels)
    together = feature_matching(features, labels, targets)
    alone = torch.cat(
        [
            feature_matching([f[b : b + 1] for f in features], labels[b : b + 1], targets)
            for b in range(3)
        ]
    )
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(
        segmentation_consistency(logits, labels)[1:2],
        segmentation_consistency(logits[1:2], labels[1:2]),
    )


def test_feature_loss_is_zero_when_an_image_has_exactly_the_real_statistics():
    _, labels = some(5, batch=1)
    features = layers(5, batch=1)
    assert (
        feature_matching(features, labels, targets_of(features, labels), min_area=1e-9).item()
        < 1e-12
    )


def test_shuffling_pixels_inside_a_class_changes_nothing():
    labels = torch.arange(H * W).reshape(1, H, W) % C
    features = layers(6, batch=1)[:1]
    targets = targets_of(layers(7, batch=1)[:1], labels)
    shuffled = features[0].flatten(2).clone()
    for c in range(C):
        where = (labels.flatten() == c).nonzero().flatten()
        shuffled[..., where] = shuffled[
            ..., where[torch.randperm(len(where), generator=torch.Generator().manual_seed(c))]
        ]
    torch.testing.assert_close(
        feature_matching([shuffled.reshape(features[0].shape)], labels, targets),
        feature_matching(features, labels, targets),
    )


def test_features_under_ignored_pixels_do_not_count():
    _, labels = some(8)
    features, targets = layers(8)[:1], targets_of(layers(9)[:1], labels)
    changed = [
        torch.where((labels == 255)[:, None], torch.full_like(f, 100.0), f) for f in features
    ]
    torch.testing.assert_close(
        feature_matching(changed, labels, targets), feature_matching(features, labels, targets)
    )


def test_one_class_everywhere_is_plain_mean_and_deviation_matching():
    feature = layers(10, batch=1)[0]
    labels = torch.zeros(1, H, W, dtype=torch.int64)
    real = layers(11, batch=1)[0]
    flat, real_flat = feature.flatten(2)[0], real.flatten(2)[0]
    deviation, real_deviation = (
        (values.var(1, False) + 1e-6).sqrt() for values in (flat, real_flat)
    )
    gap = (flat.mean(1) - real_flat.mean(1)) ** 2 + (deviation - real_deviation) ** 2
    expected = (gap / (real_flat.var(1, False) + 1e-6)).mean()
    assert feature_matching([feature], labels, targets_of([real], labels)).item() == pytest.approx(
        expected.item(), rel=1e-9
    )


def test_constant_features_have_no_variance_and_kappa_zero_ignores_deviations():
    labels = torch.zeros(1, H, W, dtype=torch.int64)
    constant = torch.full((1, 6, H, W), 2.5, dtype=torch.float64)
    assert class_moments(constant, soft_masks(labels, C, (H, W)).double())[2].abs().max() < 1e-12
    noisy = constant + layers(12, batch=1)[0] - layers(12, batch=1)[0].mean((2, 3), keepdim=True)
    targets = targets_of([noisy], labels)
    assert feature_matching([constant], labels, targets, kappa=0.0).item() < 1e-12
    assert feature_matching([constant], labels, targets).item() > 0.1


def test_gradients_agree_with_finite_differences():
    logits, labels = some(13, batch=1)
    features, targets = layers(13, batch=1), targets_of(layers(14, batch=1), labels)
    assert torch.autograd.gradcheck(
        lambda x: segmentation_consistency(x, labels, True), logits.requires_grad_()
    )
    leaves = tuple(feature.requires_grad_() for feature in features)
    assert torch.autograd.gradcheck(
        lambda a, b: feature_matching([a, b], labels, targets), leaves, atol=1e-6
    )


def moments_of(features: list[torch.Tensor], labels: torch.Tensor) -> ClassMoments:
    moments = ClassMoments(C, [f.shape[1] for f in features])
    moments.update(features, labels)
    return moments


def test_an_empty_memory_is_the_image_scope_to_the_bit():
    _, labels = some(15)
    features, targets = layers(15), targets_of(layers(16), labels)
    empty = SetMemory.from_moments(ClassMoments(C, [6, 4]), dtype=torch.float64)
    assert torch.equal(
        feature_matching(features, labels, targets, memory=empty),
        feature_matching(features, labels, targets),
    )


def test_the_real_set_made_so_far_and_now_has_no_loss_though_its_images_have():
    _, labels = some(17, batch=6)
    features = layers(17, batch=6)
    targets = targets_of(features, labels)
    memory = SetMemory.from_moments(
        moments_of([f[:5] for f in features], labels[:5]), dtype=torch.float64
    )
    last = [f[5:] for f in features]
    assert feature_matching(last, labels[5:], targets, min_area=1e-9, memory=memory).item() < 1e-12
    assert feature_matching(last, labels[5:], targets, min_area=1e-9).item() > 0.01


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_memory_and_image_join_to_the_moments_of_all(seed):
    _, labels = some(seed, batch=4)
    features = layers(seed, batch=4)
    memory = SetMemory.from_moments(
        moments_of([f[:3] for f in features], labels[:3]), dtype=torch.float64
    )
    everything = moments_of(features, labels)
    for layer, feature in enumerate(features):
        n, mean, variance = class_moments(
            feature[3:], soft_masks(labels[3:], C, tuple(feature.shape[2:])).double()
        )
        mean, variance = memory.join(layer, n, mean, variance)
        torch.testing.assert_close(mean[0], everything.mean[layer], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(variance[0], everything.variance()[layer], rtol=1e-6, atol=1e-9)


def test_memory_does_not_know_the_order_or_the_shards_of_the_set():
    _, labels = some(18, batch=6)
    features, image = layers(18, batch=6), layers(19)
    targets = targets_of(layers(20), labels[:3])
    shards = [
        moments_of([f[part] for f in features], labels[part]) for part in ([4, 0], [5, 2, 1], [3])
    ]
    for shard in shards[1:]:
        shards[0].merge(shard)
    losses = [
        feature_matching(
            image, labels[:3], targets, memory=SetMemory.from_moments(m, dtype=torch.float64)
        )
        for m in (shards[0], moments_of(features, labels))
    ]
    torch.testing.assert_close(*losses)


def test_in_the_set_scope_an_image_leans_against_the_error_of_those_before_it():
    """Alone it would be pulled to the data's mean; after images that were too low, it is pulled
    beyond it.
    """
    labels = torch.zeros(1, H, W, dtype=torch.int64)
    real = [torch.randn(1, 6, H, W, dtype=torch.float64)]
    targets, low = targets_of(real, labels), moments_of([real[0] - 1], labels)
    for memory, sign in ((None, 0), (SetMemory.from_moments(low, dtype=torch.float64), -1)):
        leaf = real[0].clone().requires_grad_()
        loss = feature_matching([leaf], labels, targets, kappa=0.0, memory=memory)
        slope = torch.autograd.grad(loss.sum(), leaf)[0].mean()
        assert abs(slope) < 1e-12 if sign == 0 else slope < -1e-6


def test_only_the_layers_chosen_are_compared():
    _, labels = some(21)
    features, targets = layers(21), targets_of(layers(22), labels)
    first, second = (feature_matching(features, labels, targets, layers=[k]) for k in range(2))
    torch.testing.assert_close(feature_matching(features, labels, targets), (first + second) / 2)
    for wrong in ([], [2], [0, -1]):
        with pytest.raises(D3S2Error) as caught:
            feature_matching(features, labels, targets, layers=wrong)
        assert str(caught.value) == f"layers are {wrong}: choose some of 0 to 1."


def test_areas_computed_once_change_no_bit():
    _, labels = some(23)
    targets, areas = targets_of(layers(24), labels), ClassAreas(labels, C)
    for seed in (25, 26):
        assert torch.equal(
            feature_matching(layers(seed), areas, targets),
            feature_matching(layers(seed), labels, targets),
        )


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_losses_of_half_precision_features_are_computed_in_single(half):
    logits, labels = some(27)
    features = [f.to(half) for f in layers(27)]
    targets = FeatureTargets.from_moments(moments_of(layers(28), labels))
    found = feature_matching(features, labels, targets)
    assert found.dtype == torch.float32 and torch.equal(
        found, feature_matching([f.float() for f in features], labels, targets)
    )
    assert segmentation_consistency(logits.to(half), labels).dtype == torch.float32
    assert torch.equal(
        pixel_losses(logits.to(half), labels), pixel_losses(logits.to(half).float(), labels)
    )


def test_the_order_of_the_images_does_not_matter():
    logits, labels = some(29)
    features, targets, order = layers(29), targets_of(layers(30), labels), [2, 0, 1]
    torch.testing.assert_close(
        feature_matching([f[order] for f in features], labels[order], targets),
        feature_matching(features, labels, targets)[order],
    )
    for balance in (False, True):
        torch.testing.assert_close(
            segmentation_consistency(logits[order], labels[order], balance),
            segmentation_consistency(logits, labels, balance)[order],
        )


def test_statistics_of_another_proxy_are_refused():
    _, labels = some(0)
    with pytest.raises(D3S2Error) as caught:
        feature_matching(layers(0)[:1], labels, targets_of(layers(0), labels))
    assert str(caught.value) == (
        "The proxy gives 1 feature layers but the statistics hold 2: run notebook 01 again with "
        "this proxy."
    )


# --------------------------------------------------------------- what counts, class by class
def only(labels: torch.Tensor, number: int) -> torch.Tensor:
    """The mask with one class left; all else ignored."""
    return torch.where(labels == number, labels, 255)


@given(seed=st.integers(0, 10_000), classes=st.integers(1, C))
@settings(max_examples=15, deadline=None)
def test_the_balanced_loss_is_the_mean_over_the_classes_present_of_their_own_losses(seed, classes):
    logits, labels = some(seed)
    labels = torch.where(labels < classes, labels, 255)
    labels[2] = only(labels[2], 0)  # one image of a single class
    found = segmentation_consistency(logits, labels, balance=True)
    for b in range(3):
        present = labels[b][labels[b] != 255].unique().tolist()
        alone = [
            segmentation_consistency(logits[b : b + 1], only(labels[b : b + 1], c)).item()
            for c in present
        ]
        expected = sum(alone) / len(alone) if alone else 0.0
        assert found[b].item() == pytest.approx(expected, rel=1e-9)


@given(
    seed=st.integers(0, 10_000),
    min_area=st.sampled_from([0.5, 1.0, 3.0, 6.0]),
    kappa=st.sampled_from([0.0, 1.0, 2.5]),
)
@settings(max_examples=25, deadline=None)
def test_the_feature_loss_is_the_mean_over_layers_of_the_mean_over_classes_known_and_large_enough(
    seed, min_area, kappa
):
    """From the distances of each class alone: every class that is seen in the data and reaches the
    area counts once in its layer, and no other does.
    """
    rng = torch.Generator().manual_seed(seed)
    rare = [0.0, 0.6, 0.3, 0.06, 0.04]
    labels = torch.multinomial(torch.tensor(rare), H * W, True, generator=rng).reshape(1, H, W)
    labels[0, 0, 0] = 0  # one pixel, a quarter of a coarse cell
    real = torch.where(labels == 2, 255, labels)  # class 2 is not in the data
    features, targets = layers(seed, 1), targets_of(layers(seed + 1, 1), real)
    expected = 0.0
    for layer, feature in enumerate(features):
        area = soft_masks(labels, C, tuple(feature.shape[2:]))[0].sum((1, 2))
        counted = [c for c in range(C) if c != 2 and area[c] >= min_area]
        alone = [
            feature_matching(
                features, only(labels, c), targets, kappa=kappa, layers=[layer], min_area=1e-9
            ).item()
            for c in counted
        ]
        expected += sum(alone) / max(len(alone), 1) / len(features)
    found = feature_matching(features, labels, targets, kappa=kappa, min_area=min_area)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    if min_area == 0.5:
        assert torch.equal(feature_matching(features, labels, targets, kappa=kappa), found)


def test_a_class_that_the_data_lacks_or_that_is_too_small_may_as_well_be_ignored():
    labels = torch.ones(1, H, W, dtype=torch.int64)
    labels[:, :4, :4] = 3
    labels[:, 6, 6] = 4
    features = layers(31, 1)
    targets = targets_of(layers(32, 1), torch.where(labels == 3, 255, labels))
    unknown = torch.where(labels == 3, 255, labels)
    assert torch.equal(
        feature_matching(features, labels, targets), feature_matching(features, unknown, targets)
    )
    small = torch.where(labels == 4, 255, labels)  # a pixel is a quarter of a cell of the second
    for layer, same in ((0, False), (1, True)):
        one, other = (
            feature_matching(features, mask, targets, layers=[layer]) for mask in (labels, small)
        )
        assert torch.allclose(one, other, rtol=1e-12, atol=0) is same


def test_the_weight_of_the_deviations_is_linear_and_positive():
    _, labels = some(33)
    features, targets = layers(33), targets_of(layers(34), labels)
    none, one, three = (
        feature_matching(features, labels, targets, kappa=kappa) for kappa in (0.0, 1.0, 3.0)
    )
    assert (one > none).all()
    torch.testing.assert_close(three - none, 3 * (one - none))
    assert torch.equal(feature_matching(features, labels, targets), one)


# ------------------------------------------------------------------- both together, as options say
class TwoLayers:
    """A proxy whose answers are given."""

    layers = ("fine", "coarse")

    def __init__(self, logits: torch.Tensor, features: list[torch.Tensor]):
        self.output = ProxyOutput(logits, features)

    def __call__(self, images: torch.Tensor) -> ProxyOutput:
        return self.output


@pytest.mark.parametrize(
    "options, balance, more",
    [
        (LossOptions(), False, {}),
        (LossOptions(balance=True), True, {}),
        (LossOptions(kappa=0.0), False, {"kappa": 0.0}),
        (LossOptions(kappa=3.0), False, {"kappa": 3.0}),
        (LossOptions(layers=("fine",)), False, {"layers": [0]}),
        (LossOptions(layers=("coarse",)), False, {"layers": [1]}),
        (LossOptions(layers=("coarse", "fine")), False, {}),
        (LossOptions(True, 0.5, ("coarse",)), True, {"kappa": 0.5, "layers": [1]}),
    ],
)
@pytest.mark.parametrize("remembers", [False, True])
def test_every_option_reaches_the_loss_that_it_is_for(options, balance, more, remembers):
    logits, labels = some(35)
    features, targets = layers(35), targets_of(layers(36), labels)
    memory = None
    if remembers:
        memory = SetMemory.from_moments(moments_of(layers(37), labels), dtype=torch.float64)
    proxy = TwoLayers(logits, features)
    found = guidance_losses(proxy, labels, targets, options, memory)(torch.zeros(3, 3, H, W))
    assert set(found) == {"segmentation", "feature"}
    assert torch.equal(found["segmentation"], segmentation_consistency(logits, labels, balance))
    expected = feature_matching(features, labels, targets, memory=memory, **more)
    torch.testing.assert_close(found["feature"], expected)
    default = guidance_losses(proxy, labels, targets)(torch.zeros(3, 3, H, W))
    assert torch.equal(found["segmentation"], default["segmentation"]) is not balance
    assert torch.allclose(found["feature"], default["feature"]) is not bool(more or remembers)


@pytest.mark.parametrize("offset", [0.0, 3.0, 30.0, 1000.0])
def test_the_loss_of_features_far_from_zero_is_that_of_features_near_it(offset):
    """In single precision, where a square of 1000 has lost a variance of 0.01."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 3, 6, 8, generator=generator) * 0.1 for _ in range(2)]
    labels = torch.randint(0, 3, (2, 12, 16), generator=generator)
    real = [torch.randn(4, 3, 6, 8, generator=generator) * 0.1 for _ in range(2)]
    moments = ClassMoments(4, [3, 3])
    moments.update([f.double() + offset for f in real], torch.randint(0, 3, (4, 12, 16)))
    losses = []
    for kind in (torch.float32, torch.float64):
        targets = FeatureTargets.from_moments(moments, dtype=kind)
        losses.append(feature_matching([f.to(kind) + offset for f in features], labels, targets))
    # what remains is the spacing of float32 at the features themselves
    torch.testing.assert_close(losses[0].double(), losses[1], rtol=1e-4 + offset * 1e-5, atol=0)


def test_features_near_zero_are_not_moved_at_all():
    features = layers(0)
    moments = ClassMoments(C, [f.shape[1] for f in features])
    moments.update(features, torch.randint(0, C, (3, H, W)))
    assert not any(FeatureTargets.from_moments(moments).center(layer).any() for layer in (0, 1))
    moments = ClassMoments(C, [f.shape[1] for f in features])
    moments.update([f + 50 for f in features], torch.randint(0, C - 1, (3, H, W)))
    for layer in (0, 1):  # class C - 1 is nowhere, and its zeros count for nothing
        center = FeatureTargets.from_moments(moments).center(layer)
        assert (center - 50).abs().max() < 1


@pytest.mark.parametrize(
    "asked", [{}, {"device": "meta"}, {"dtype": torch.float64}, {"device": "meta", "eps": 0.5}]
)
def test_targets_and_memory_lie_where_they_are_asked_for_and_are_the_moments(asked):
    _, labels = some(38)
    moments = moments_of(layers(38), torch.where(labels == 2, 255, labels))
    device, dtype = asked.get("device", "cpu"), asked.get("dtype", torch.float32)
    targets = FeatureTargets.from_moments(moments, **asked)
    memory = SetMemory.from_moments(
        moments, **{key: value for key, value in asked.items() if key != "eps"}
    )
    eps = asked.get("eps", 1e-6)
    variances, overall = moments.variance(), moments.global_variance()
    for layer in range(2):
        pairs = [
            (targets.mean, moments.mean[layer]),
            (targets.deviation, (variances[layer] + eps).sqrt()),
            (targets.scale, overall[layer]),
            (targets.known, moments.n[layer] > 0),
            (memory.n, moments.n[layer]),
            (memory.mean, moments.mean[layer]),
            (memory.variance, variances[layer]),
        ]
        for found, expected in pairs:
            kind = torch.bool if found is targets.known else dtype
            assert (found[layer].device.type, found[layer].dtype) == (device, kind)
            assert found[layer].shape == expected.shape and len(found) == 2
            if device == "cpu":
                assert torch.equal(found[layer], expected.to(kind))
    assert moments.n[0][2] == 0


class Elsewhere(ClassAreas):
    """Areas on the device that only knows shapes; masks are not checked there."""

    def at(self, feature):
        here = ClassAreas(torch.zeros(self.labels.shape, dtype=torch.int64), self.num_classes)
        n, weights = here.at(torch.zeros(feature.shape, dtype=feature.dtype))
        return n.to("meta"), weights.to("meta")


def test_the_feature_loss_of_masks_elsewhere_is_computed_there():
    _, labels = some(39)
    moments = moments_of(layers(39), labels)
    targets = FeatureTargets.from_moments(moments, "meta")
    memory = SetMemory.from_moments(moments, "meta")
    features = [f.to("meta") for f in layers(40)]
    found = feature_matching(features, Elsewhere(labels.to("meta"), C), targets, memory=memory)
    assert (found.device.type, found.shape, found.dtype) == ("meta", (3,), torch.float64)


def test_areas_are_kept_for_each_size_and_precision():
    """And are those of the soft masks: in cells, with weights that sum to one over a class."""
    _, labels = some(41)
    areas = ClassAreas(labels, C)
    for _ in range(2):
        for size in ((H, W), (H // 2, W // 2)):
            for dtype in (torch.float32, torch.float64):
                feature = torch.zeros(3, 2, *size, dtype=dtype)
                n, weights = areas.at(feature)
                masks = soft_masks(labels, C, size).to(dtype).flatten(2)
                assert n.dtype == weights.dtype == dtype
                torch.testing.assert_close(n, masks.sum(2))
                torch.testing.assert_close(weights * n[:, None], masks.transpose(1, 2))
                assert areas.at(feature)[1] is weights


def test_a_share_of_a_cell_has_the_mean_of_its_pixels_and_no_variance():
    """A class of a quarter of a cell: the area is small, its moments are those of the cell."""
    labels = torch.zeros(1, H, W, dtype=torch.int64)
    labels[0, 0, 0] = 3
    feature = layers(42, 1)[1]
    n, mean, variance = class_moments(feature, soft_masks(labels, C, (H // 2, W // 2)).double())
    assert n[0, 3] == 0.25
    torch.testing.assert_close(mean[0, 3], feature[0, :, 0, 0])
    assert variance[0, 3].abs().max() < 1e-12
    assert not n[0, 1] and not mean[0, 1].any() and not variance[0, 1].any()
