"""The sampler against closed forms, diffusers' own scheduler and finite differences.

What must hold of guidance, and where it is tested (L: test_losses.py, P: test_painting.py, Q:
test_quality.py, F: test_sampler_formulas.py):

[x] lambda 0, no losses or an empty window: bit-identical to unguided
[x] the loop is diffusers' DDIM, for eta from 0 to 1, given the same noise
[x] the numbered schedule has no gap; a denoiser mixes free and conditioned, and asks once for w = 1
[x] closed forms of the shift: of x_s by sqrt(1 - a_s) - sqrt(a_s (1 - a_t) / a_t) < 0 times what is
    added to eps, of the clean image by -sqrt((1 - a_t) / a_t) times it
[x] descent, not ascent, in both modes and with both Jacobians; the wrong sign ascends
[x] norm mode: a loss times a constant changes nothing; the length is lambda sqrt(1 - a_t) |eps|;
    two gradients are normalised each on its own. Raw mode: s(t) = lambda sqrt(1 - a_t), from lambda
    at pure noise to 0 at the image
[x] detach equals full for a constant denoiser, and differs for another
[x] finite differences in float64: linear denoiser (here), both losses through a network (here, L)
[x] window counters; recurrence 1 is no recurrence; recurrence keeps the marginal at its level
[x] clipping bounds the length and keeps the direction; a gradient used again keeps its direction
[x] one seed, one image: batch size, order and shard do not matter, stochastic or not (here), to the
    byte of the PNG (P)
[x] losses in float32 whatever the network's precision; what is not finite is named with loss, step
    and image
[x] F: every step of a run, whatever the settings, is what numpy makes of the sampler's text; a run
    stays on its device, and the network gets its own precision
[x] L: permutation inside a class, relabelling, ignored pixels; the feature loss is 0 for the real
    set itself, also as a set; one class everywhere is plain mean and deviation matching; constant
    features have no variance
[x] P: an interrupted run gives the same bytes, in the set scope too; losses, judge and start noise
    that are handed in are those that count
[x] Q: nothing is counted with a mask for every class; what is not a number never wins
[ ] DPS, FreeDoM, backward guidance and batch-norm matching have identities of their own; they are
    not built
"""

from __future__ import annotations

import itertools
import math
import weakref

import pytest
import torch
from diffusers import DDIMScheduler

from d3s2.core.errors import D3S2Error
from d3s2.data.tensors import class_sets
from d3s2.guidance.losses import FeatureTargets, feature_matching, segmentation_consistency
from d3s2.guidance.sampler import (
    Denoiser,
    Guidance,
    NoiseStream,
    _combine,
    _step,
    finish,
    initial_noise,
    predict,
    sample,
)
from d3s2.models.generator import (
    DiffusionSchedule,
    LayoutGenerator,
    LayoutUNet,
    Timestep,
    noise_schedule,
    timesteps,
)
from d3s2.models.proxy import ProxySegmenter
from d3s2.statistics.features import ClassMoments

SCHEDULE = noise_schedule()
ALPHA = SCHEDULE.alphas_cumprod.tolist()


@pytest.fixture(scope="module")
def tiny() -> LayoutGenerator:
    torch.manual_seed(0)
    unet = (
        LayoutUNet(num_classes=4, channels=(32, 32), embedding=4, layers=1)
        .double()
        .eval()
        .requires_grad_(False)
    )
    return LayoutGenerator(unet, SCHEDULE)


@pytest.fixture()
def start() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    labels = torch.randint(0, 4, (3, 16, 16), generator=torch.Generator().manual_seed(1))
    return initial_noise([5, 6, 7], (3, 16, 16)).double(), labels, class_sets(labels, 4).double()


def at(t: int) -> Timestep:
    """A first step from t; predictions do not ask where it goes."""
    return Timestep(0, t, ALPHA[t], 1.0)


def toy(unet) -> LayoutGenerator:
    return LayoutGenerator(unet, SCHEDULE)


def brightness(images: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "bright": (images - 0.5).square().flatten(1).mean(1),
        "red": images[:, 0].flatten(1).mean(1),
    }


@pytest.mark.parametrize(
    "guidance",
    [Guidance({"bright": 0.0}), Guidance({"bright": 1.0}, window=(0.5, 0.5)), Guidance()],
)
def test_no_scale_or_no_window_is_bit_identical_to_unguided(tiny, start, guidance):
    plain = finish(sample(tiny, *start, steps=5)).x
    assert torch.equal(
        finish(sample(tiny, *start, steps=5, guidance=guidance, losses=brightness)).x, plain
    )


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_unguided_loop_equals_diffusers_ddim(tiny, start, eta):
    noise, layout, classes = start
    SCHEDULE.set_timesteps(10)
    x, fresh = noise, NoiseStream([1, 2, 3], (3, 16, 16))
    for t in SCHEDULE.timesteps:
        v = tiny.unet(x, t, layout, classes)
        z = fresh().double() if eta and t > 0 else torch.zeros_like(x)
        x = SCHEDULE.step(
            v, t, x, eta=eta, use_clipped_model_output=True, variance_noise=z
        ).prev_sample
    assert [int(t) for t in SCHEDULE.timesteps] == timesteps(10)
    ours = sample(
        tiny,
        noise,
        layout,
        classes,
        steps=10,
        guidance=Guidance(eta=eta),
        fresh=NoiseStream([1, 2, 3], (3, 16, 16)),
    )
    torch.testing.assert_close(finish(ours).x, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["raw", "norm"])
def test_a_guided_step_moves_the_sample_by_the_closed_form(tiny, start, mode):
    guidance = Guidance({"bright": 0.3}, window=(0, 1), mode=mode)
    plain = next(sample(tiny, *start, steps=10, clip=False))
    steered = next(sample(tiny, *start, steps=10, guidance=guidance, losses=brightness, clip=False))
    a, a_next = ALPHA[900], ALPHA[800]
    bracket = math.sqrt(1 - a_next) - math.sqrt(a_next * (1 - a) / a)
    assert bracket < 0
    torch.testing.assert_close(
        steered.x - plain.x, bracket * steered.gradient, rtol=1e-7, atol=1e-9
    )


def test_the_last_step_moves_the_clean_image_by_the_closed_form(tiny, start):
    plain = list(sample(tiny, *start, steps=10, clip=False))[-1]
    late = Guidance({"bright": 0.3}, window=(0.9, 1))
    steered = list(sample(tiny, *start, steps=10, guidance=late, losses=brightness, clip=False))[-1]
    expected = -math.sqrt((1 - ALPHA[0]) / ALPHA[0]) * steered.gradient
    torch.testing.assert_close(steered.x - plain.x, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("mode, strength", [("norm", 0.3), ("raw", 30.0)])
@pytest.mark.parametrize("jacobian", ["detach", "full"])
@pytest.mark.parametrize("sign", [1, -1])
def test_guidance_descends_and_the_wrong_sign_ascends(tiny, start, jacobian, mode, strength, sign):
    plain = finish(sample(tiny, *start, steps=10)).x
    guidance = Guidance({"bright": sign * strength}, window=(0, 1), mode=mode, jacobian=jacobian)
    steered = finish(sample(tiny, *start, steps=10, guidance=guidance, losses=brightness)).x
    change = brightness(steered)["bright"] - brightness(plain)["bright"]
    assert (sign * change < 0).all()


def test_raw_scale_runs_from_lambda_at_pure_noise_to_nothing_at_the_image():
    gradient, eps = (
        torch.randn(2, 3, 4, 4, dtype=torch.float64),
        torch.randn(2, 3, 4, 4, dtype=torch.float64),
    )
    for a, share in ((0.0, 1.0), (0.75, 0.5), (1.0, 0.0)):
        torch.testing.assert_close(
            _combine({"k": gradient}, eps, a, Guidance({"k": 7.0}, mode="raw")),
            7.0 * share * gradient,
        )


def test_norm_mode_normalises_each_gradient_on_its_own():
    a, b, eps = (torch.randn(2, 3, 4, 4, dtype=torch.float64) for _ in range(3))
    guidance = Guidance({"a": 0.1, "b": 0.2})
    sum_of_both = _combine({"a": a}, eps, 0.5, guidance) + _combine({"b": b}, eps, 0.5, guidance)
    torch.testing.assert_close(_combine({"a": 1e6 * a, "b": b}, eps, 0.5, guidance), sum_of_both)


def test_norm_mode_does_not_know_the_unit_of_a_loss_and_has_the_stated_length(tiny, start):
    guidance = Guidance({"bright": 0.2}, window=(0, 1))
    step = next(sample(tiny, *start, steps=10, guidance=guidance, losses=brightness))

    def thousandfold(x):
        return {name: 1e3 * value for name, value in brightness(x).items()}

    scaled = next(sample(tiny, *start, steps=10, guidance=guidance, losses=thousandfold))
    torch.testing.assert_close(step.gradient, scaled.gradient, rtol=1e-8, atol=0)
    eps = predict(Denoiser(tiny, *start[1:]), start[0], at(900)).eps
    expected = 0.2 * math.sqrt(1 - ALPHA[900]) * eps.flatten(1).norm(dim=1)
    torch.testing.assert_close(step.gradient.flatten(1).norm(dim=1), expected)


def test_detach_equals_full_when_the_noise_prediction_is_constant(start):
    fixed = initial_noise([1, 2, 3], (3, 16, 16)).double()
    a = ALPHA[500]

    def unet(x, t, layout, classes):  # v that makes eps = fixed for every x
        return (fixed - math.sqrt(1 - a) * x) / math.sqrt(a)

    def cube(images):
        return {"bright": (images**3).flatten(1).mean(1)}

    rules = [Guidance({"bright": 1.0}, mode="raw", jacobian=form) for form in ("detach", "full")]
    found = [predict(Denoiser(toy(unet)), start[0], at(500), rule, cube) for rule in rules]
    torch.testing.assert_close(found[0].gradients, found[1].gradients)


def test_detach_is_not_full_when_the_noise_prediction_moves(tiny, start):
    rules = [Guidance({"bright": 1.0}, jacobian=jacobian) for jacobian in ("detach", "full")]
    denoiser = Denoiser(tiny, *start[1:])
    found = [predict(denoiser, start[0], at(500), rule, brightness) for rule in rules]
    assert not torch.allclose(found[0].gradients["bright"], found[1].gradients["bright"], rtol=1e-2)


def test_full_jacobian_agrees_with_finite_differences_on_a_linear_denoiser():
    torch.manual_seed(0)
    matrix, a = 0.1 * torch.randn(12, 12, dtype=torch.float64), ALPHA[500]
    generator = toy(lambda x, t, layout, classes: (x.flatten(1) @ matrix).reshape(x.shape))
    x = 0.1 * torch.randn(1, 3, 2, 2, dtype=torch.float64)

    def loss(z):
        return ((math.sqrt(a) * z - math.sqrt(1 - a) * generator.unet(z, 0, None, None)) ** 3).sum()

    guidance = Guidance({"cube": 1.0}, mode="raw", jacobian="full")

    def cube(images):
        return {"cube": (images**3).flatten(1).sum(1)}

    gradient = predict(Denoiser(generator), x, at(500), guidance, cube).gradients["cube"]
    for k in range(12):
        h = torch.zeros(12, dtype=torch.float64)
        h[k] = 1e-5
        slope = (loss(x + h.reshape(x.shape)) - loss(x - h.reshape(x.shape))) / 2e-5
        assert gradient.flatten()[k].item() == pytest.approx(slope.item(), rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("jacobian", ["detach", "full"])
@pytest.mark.parametrize(
    "more", [{}, {"eta": 1.0}, {"recurrence": 3, "eta": 0.5}, {"every": 2, "clip_norm": 0.1}]
)
def test_batch_and_order_do_not_change_an_image(tiny, start, jacobian, more):
    guidance = Guidance(
        {"bright": 0.2, "red": 0.1}, window=(0.2, 0.9), jacobian=jacobian, cfg_scale=1.5, **more
    )

    def run(order):
        stream = NoiseStream([[5, 6, 7][k] for k in order], (3, 16, 16))
        noise = stream().double()
        return finish(
            sample(
                tiny, noise, start[1][order], start[2][order], 5, guidance, brightness, fresh=stream
            )
        ).x

    together, again = run([0, 1, 2]), run([0, 1, 2])
    assert torch.equal(together, again)
    torch.testing.assert_close(run([2, 0]), together[[2, 0]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(run([1]), together[[1]], rtol=1e-5, atol=1e-5)


def test_recurrence_repeats_guided_steps_only_and_once_is_no_recurrence(tiny, start):
    def run(**more):
        stream = NoiseStream([5, 6, 7], (3, 16, 16))
        return list(
            sample(
                tiny,
                *start,
                10,
                Guidance({"bright": 0.1}, window=(0.2, 0.4), **more),
                brightness,
                fresh=stream,
            )
        )

    plain = finish(
        sample(tiny, *start, 10, Guidance({"bright": 0.1}, window=(0.2, 0.4)), brightness)
    )
    assert torch.equal(run(recurrence=1)[-1].x, plain.x)
    assert [(s.index, s.repeat) for s in run(recurrence=3) if s.losses] == [
        (2, 0),
        (2, 1),
        (2, 2),
        (3, 0),
        (3, 1),
        (3, 2),
    ]
    assert len(run(recurrence=3)) == 14


def test_time_travel_keeps_the_marginal_of_its_level():
    """For a denoiser that knows the one image there is, x_t has mean sqrt(a_t) x_0 and variance 1 -
    a_t, at each repeat.
    """
    image, seen = torch.full((4, 3, 64, 64), 0.4, dtype=torch.float64), []

    def unet(x, t, layout, classes):
        a = ALPHA[int(t)]
        seen.append((a, x))
        return (math.sqrt(a) * x - image) / math.sqrt(1 - a)  # the v that makes x0_hat the image

    stream = NoiseStream([1, 2, 3, 4], (3, 64, 64))
    steering = Guidance({"red": 1e-12}, window=(0, 1), recurrence=2)
    begin = math.sqrt(ALPHA[800]) * image + math.sqrt(1 - ALPHA[800]) * stream().double()
    finish(sample(toy(unet), begin, None, None, 5, steering, brightness, fresh=stream))
    assert len(seen) == 10
    for a, x in seen:
        assert x.mean().item() == pytest.approx(
            0.4 * math.sqrt(a), abs=5 * math.sqrt((1 - a) / x.numel())
        )
        assert x.var().item() == pytest.approx(1 - a, rel=5 * math.sqrt(2 / x.numel()))


def test_clipping_bounds_the_length_and_keeps_the_direction(tiny, start):
    loose, tight, free = (
        next(
            sample(
                tiny,
                *start,
                10,
                Guidance({"bright": 0.3, "red": 0.2}, (0, 1), clip_norm=c),
                brightness,
            )
        )
        for c in (100.0, 0.05, 0.0)
    )
    assert torch.equal(loose.gradient, free.gradient)
    eps = predict(Denoiser(tiny, *start[1:]), start[0], at(900)).eps
    torch.testing.assert_close(
        tight.gradient.flatten(1).norm(dim=1), 0.05 * eps.flatten(1).norm(dim=1)
    )
    assert (
        torch.cosine_similarity(tight.gradient.flatten(1), free.gradient.flatten(1)).min()
        > 1 - 1e-12
    )


def test_a_gradient_used_again_keeps_its_direction_and_asks_no_loss(tiny, start):
    asked = []

    def counting(images):
        asked.append(1)
        return brightness(images)

    trace = list(
        sample(tiny, *start, 10, Guidance({"bright": 0.2}, window=(0.2, 0.8), every=3), counting)
    )
    assert len(asked) == 2 and [s.index for s in trace if s.losses] == [2, 5]
    assert [s.index for s in trace if s.gradient is not None] == [2, 3, 4, 5, 6, 7]
    for one, other, same in ((2, 3, True), (2, 4, True), (2, 5, False)):
        cosine = torch.cosine_similarity(
            trace[one].gradient.flatten(1), trace[other].gradient.flatten(1)
        )
        assert bool((cosine > 1 - 1e-12).all()) is same


@pytest.mark.parametrize("jacobian", ["detach", "full"])
def test_both_losses_steer_by_their_true_gradient(jacobian):
    """Finite differences in float64 through proxy, losses and denoiser, along random directions."""
    torch.manual_seed(0)
    proxy = ProxySegmenter(4, channels=(4, 8)).double().eval().requires_grad_(False)
    unet = (
        LayoutUNet(4, channels=(32, 32), embedding=4, layers=1)
        .double()
        .eval()
        .requires_grad_(False)
    )
    generator, a = LayoutGenerator(unet, SCHEDULE), ALPHA[500]
    labels, x = (
        torch.randint(0, 4, (1, 16, 16)),
        0.3 * torch.randn(1, 3, 16, 16, dtype=torch.float64),
    )
    moments = ClassMoments(4, [4, 8, 4])
    moments.update(
        proxy(torch.randn(2, 3, 16, 16, dtype=torch.float64)).features, labels.expand(2, -1, -1)
    )
    targets = FeatureTargets.from_moments(moments, dtype=torch.float64)
    denoiser = Denoiser(generator, labels)
    eps = predict(denoiser, x, at(500)).eps

    def losses(images):
        output = proxy(images)
        return {
            "segmentation": segmentation_consistency(output.logits, labels),
            "feature": feature_matching(output.features, labels, targets),
        }

    def value(z, name):
        noise = eps if jacobian == "detach" else predict(denoiser, z, at(500)).eps
        return losses(((z - math.sqrt(1 - a) * noise) / math.sqrt(a)).clamp(-1, 1))[name].item()

    guidance = Guidance({"segmentation": 1.0, "feature": 1.0}, jacobian=jacobian)
    found = predict(denoiser, x, at(500), guidance, losses).gradients
    for seed, name in ((1, "segmentation"), (2, "feature")):
        step = 1e-6 * torch.randn(
            x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        slope = value(x + step, name) - value(x - step, name)
        assert slope == pytest.approx(2 * (found[name] * step).sum().item(), rel=1e-4)


def test_a_network_in_half_precision_is_judged_in_single(start):
    torch.manual_seed(0)
    unet = (
        LayoutUNet(num_classes=4, channels=(32, 32), embedding=4, layers=1)
        .eval()
        .requires_grad_(False)
    )
    noise, layout, classes = start[0].float(), start[1], start[2].float()
    seen = []

    def losses(images):
        seen.append(images.dtype)
        return brightness(images)

    guidance = Guidance({"bright": 0.1}, window=(0, 1), jacobian="full")
    single = finish(
        sample(LayoutGenerator(unet, SCHEDULE), noise, layout, classes, 5, guidance, losses)
    ).x
    half = finish(
        sample(
            LayoutGenerator(unet.bfloat16(), SCHEDULE), noise, layout, classes, 5, guidance, losses
        )
    ).x
    assert set(seen) == {torch.float32} and half.dtype == torch.float32
    assert 0 < (half - single).abs().mean() < 0.05


@pytest.mark.parametrize("jacobian", ["detach", "full"])
def test_a_caller_without_gradients_gets_the_same_image(tiny, start, jacobian):
    guidance = Guidance({"bright": 0.1, "red": 0.1}, jacobian=jacobian)
    image = finish(sample(tiny, *start, steps=5, guidance=guidance, losses=brightness)).x
    with torch.no_grad():
        assert torch.equal(
            finish(sample(tiny, *start, steps=5, guidance=guidance, losses=brightness)).x, image
        )


def test_a_run_to_its_end_keeps_no_step_but_the_last(tiny, start):
    alive, most = weakref.WeakSet(), 0

    def watched():
        nonlocal most
        for step in sample(tiny, *start, steps=10):
            alive.add(step.x)
            most = max(most, len(alive))
            yield step

    assert finish(watched()).index == 9
    assert most <= 3  # the last one, the one being made, and what the loop still names


SD_15 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""What Stable Diffusion 1.5's own scheduler_config.json says (its class is PNDM)."""


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize(
    "given", [SD_15, SD_15 | {"timestep_spacing": "trailing"}, dict(SCHEDULE.config)]
)
def test_the_schedule_is_that_of_diffusers_own_ddim_step_by_step(given, steps):
    theirs = DDIMScheduler.from_config(given)
    theirs.set_timesteps(steps)
    ours = DiffusionSchedule(theirs).steps(steps)
    assert [at.t for at in ours] == theirs.timesteps.tolist()
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = theirs.config.clip_sample
    for at in ours:
        eps = torch.sin(3 * x)
        clean = (x - (1 - at.a_t) ** 0.5 * eps) / at.a_t**0.5
        v = at.a_t**0.5 * eps - (1 - at.a_t) ** 0.5 * clean
        said = v if theirs.config.prediction_type == "v_prediction" else eps
        expected = theirs.step(said, at.t, x, use_clipped_model_output=kept).prev_sample
        x = _step(x, eps, at, 0.0, kept, None)
        torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)


def test_stable_diffusions_schedule_and_the_embedded_ones():
    theirs = DDIMScheduler.from_config(SD_15)
    numbered = DiffusionSchedule(theirs).steps(50)
    assert (numbered[0].t, numbered[-1].t) == (981, 1)
    assert numbered[-1].a_next == pytest.approx(0.99915, abs=1e-6)
    embedded = DiffusionSchedule(SCHEDULE).steps(50)
    assert [at.t for at in embedded] == list(range(980, -1, -20))
    assert embedded[-1].a_next == 1.0


def test_the_numbered_schedule_goes_from_pure_noise_to_the_clean_image_without_a_gap():
    numbered = DiffusionSchedule(SCHEDULE).steps(10)
    assert [at.index for at in numbered] == list(range(10))
    assert [at.t for at in numbered] == timesteps(10)
    assert [at.a_t for at in numbered] == [ALPHA[t] for t in timesteps(10)]
    for here, there in itertools.pairwise(numbered):
        assert here.a_next == there.a_t > here.a_t
    assert numbered[-1].a_next == 1.0


def test_a_denoiser_mixes_the_free_and_the_conditioned_prediction_and_asks_once_where_it_can(start):
    noise, layout, classes = start
    asked = []

    def unet(x, t, layout, classes):
        asked.append((int(t), layout, classes))
        return torch.full_like(x, 1.0 if layout is None else 5.0)

    values = [Denoiser(toy(unet), layout, classes, w).v(noise, 300).unique() for w in (0, 1, 2.5)]
    assert [float(value) for value in values] == [1.0, 5.0, 1 + 2.5 * 4]
    conditioned, free = (300, layout, classes), (300, None, None)
    assert asked == [conditioned, free, conditioned, conditioned, free]


def test_window_counts_its_steps(tiny, start):
    guidance = Guidance({"bright": 0.1}, window=(0.2, 0.6))
    guided = [
        s.index
        for s in sample(tiny, *start, steps=10, guidance=guidance, losses=brightness)
        if s.losses
    ]
    assert guided == [2, 3, 4, 5]


def test_cfg_scale_zero_ignores_the_condition_and_one_needs_no_second_pass(tiny, start):
    noise, layout, classes = start
    asked = []

    def counting(x, t, layout, classes):
        asked.append(layout is not None)
        return tiny.unet(x, t, layout, classes)

    def run(layout, classes, scale):
        asked.clear()
        guidance = Guidance(cfg_scale=scale)
        return finish(sample(toy(counting), noise, layout, classes, 5, guidance)).x

    plain = finish(sample(tiny, noise, layout, classes, steps=5)).x
    free = finish(sample(tiny, noise, None, None, steps=5)).x
    assert not torch.allclose(plain, free, atol=1e-3)
    torch.testing.assert_close(run(layout, classes, 0.0), free)
    assert asked == [True, False] * 5
    assert torch.equal(run(layout, classes, 1.0), plain)
    assert asked == [True] * 5


def test_one_seed_one_noise_whatever_the_company():
    assert torch.equal(initial_noise([3, 9, 4], (3, 8, 8))[1], initial_noise([9], (3, 8, 8))[0])
    assert not torch.equal(initial_noise([3], (3, 8, 8)), initial_noise([4], (3, 8, 8)))


WINDOW = "window is {}: give two fractions with 0 <= start <= end <= 1."
ETA = "eta is {}: give a number from 0 (deterministic) to 1 (as noisy as DDPM)."
COUNTS = "recurrence is {} and every is {}: both count from 1."
CLIP = "clip_norm is {}: give a positive share of the noise's length, or 0 for no bound."
STEPS = "steps is {}: it must divide 1000, for example 10, 20, 25, 40, 50 or 100."
SPACING = "The scheduler's timestep_spacing is {!r}: 'leading' and 'trailing' are known."
OFFSET = "The scheduler's steps_offset is {}, with {} steps {} apart: take fewer steps."


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Guidance(mode="loud"), "guidance mode is 'loud': use 'norm' or 'raw'."),
        (lambda: Guidance(jacobian="half"), "jacobian is 'half': use 'detach' or 'full'."),
        (lambda: Guidance(window=(0.8, 0.2)), WINDOW.format((0.8, 0.2))),
        (lambda: Guidance(window=(-0.1, 0.2)), WINDOW.format((-0.1, 0.2))),
        (lambda: Guidance(window=(0.8, 1.2)), WINDOW.format((0.8, 1.2))),
        (lambda: Guidance(eta=1.5), ETA.format(1.5)),
        (lambda: Guidance(eta=-0.5), ETA.format(-0.5)),
        (lambda: Guidance(eta=math.nan), ETA.format("nan")),
        (lambda: Guidance(recurrence=0), COUNTS.format(0, 1)),
        (lambda: Guidance(every=0), COUNTS.format(1, 0)),
        (lambda: Guidance(clip_norm=-1.0), CLIP.format(-1.0)),
        (lambda: Guidance(clip_norm=math.nan), CLIP.format("nan")),
        (lambda: timesteps(30), STEPS.format(30)),
        (lambda: timesteps(0), STEPS.format(0)),
        (lambda: timesteps(-10), STEPS.format(-10)),
        (lambda: timesteps(2000), STEPS.format(2000)),
        (lambda: timesteps(10, spacing="linspace"), SPACING.format("linspace")),
        (lambda: timesteps(1000, offset=1), OFFSET.format(1, 1000, 1)),
        (lambda: timesteps(100, offset=10), OFFSET.format(10, 100, 10)),
        (lambda: timesteps(100, offset=-1), OFFSET.format(-1, 100, 10)),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(D3S2Error) as caught:
        make()
    assert str(caught.value) == message


def test_what_is_just_allowed_is_allowed():
    for window in ((0, 0), (0, 1), (1, 1), (0.5, 0.5)):
        assert Guidance(window=window).window == window
    for eta in (0, 1):
        assert Guidance(eta=eta).random is (eta == 1)
    assert not Guidance(recurrence=1, every=1, clip_norm=0.0).random
    assert Guidance(recurrence=2).random
    assert timesteps(1) == [0] and timesteps(1000) == list(range(999, -1, -1))
    assert timesteps(4, 40, offset=9) == [39, 29, 19, 9]
    assert timesteps(4, 40, spacing="trailing") == [39, 29, 19, 9]


NOT_FINITE = (
    "{} is not finite at step {} for image {} of the batch: lower its guidance scale, or start the "
    "window later."
)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_named_with_step_and_image(tiny, start, value):
    def broken(images):
        return {"bright": images.flatten(1).mean(1) + torch.tensor([0.0, value, value])}

    for window, step in (((0, 1), 0), ((0.4, 1), 2)):
        guidance = Guidance({"bright": 0.1}, window=window)
        with pytest.raises(D3S2Error) as caught:
            finish(sample(tiny, *start, steps=5, guidance=guidance, losses=broken))
        assert str(caught.value) == NOT_FINITE.format("loss 'bright'", step, 1)
    with pytest.raises(D3S2Error) as caught:
        guidance = Guidance({"bright": 0.1, "dark": 0.1}, window=(0, 1))
        finish(sample(tiny, *start, steps=5, guidance=guidance, losses=brightness))
    assert str(caught.value) == ("guidance scale for 'dark', but the losses are ['bright', 'red'].")


def test_a_gradient_that_is_not_finite_is_named_too(tiny, start):
    def kinked(images):  # the root of a sum of squares has no slope at zero
        return {"kink": (images - images).square().flatten(1).sum(1).sqrt()}

    with pytest.raises(D3S2Error) as caught:
        finish(
            sample(
                tiny,
                *start,
                steps=5,
                guidance=Guidance({"kink": 0.1}, window=(0.2, 1)),
                losses=kinked,
            )
        )
    assert str(caught.value) == NOT_FINITE.format("the gradient of loss 'kink'", 1, 0)


def test_guidance_does_not_begin_where_there_is_nothing_but_noise(tiny, start):
    """No noise prediction moves an image of which nothing is left; one step later it does."""
    betas = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=False, **betas)
    generator = LayoutGenerator(tiny.unet, scheduler)
    assert [step.a_t > 0 for step in generator.schedule.steps(4)] == [False, True, True, True]
    guidance = Guidance({"bright": 0.1}, window=(0, 1))
    with pytest.raises(D3S2Error) as caught:
        next(sample(generator, *start, steps=4, guidance=guidance, losses=brightness))
    assert str(caught.value) == (
        "Guidance begins at step 0, where there is nothing but noise: start later, with a larger "
        "window_start."
    )
    guidance = Guidance({"bright": 0.1}, window=(0.25, 1))
    steps = list(sample(generator, *start, steps=4, guidance=guidance, losses=brightness))
    assert [step.gradient is not None for step in steps] == [False, True, True, True]
    assert all(torch.isfinite(step.x).all() for step in steps)


@pytest.mark.parametrize("guidance", [Guidance(eta=0.5), Guidance(recurrence=2)])
def test_a_stochastic_run_asks_for_its_noise(tiny, start, guidance):
    with pytest.raises(D3S2Error) as caught:
        next(sample(tiny, *start, steps=5, guidance=guidance))
    given = f"eta = {guidance.eta} and recurrence = {guidance.recurrence}"
    assert str(caught.value) == f"{given} need fresh noise: give `fresh`, a NoiseStream."
