"""The sampler against closed forms, diffusers' own scheduler and finite differences."""
from __future__ import annotations

import math

import pytest
import torch

from d3s2.errors import D3S2Error
from d3s2.generators import LayoutGenerator, LayoutUNet, class_sets, noise_schedule
from d3s2.guidance import Guidance, _predict, finish, initial_noise, sample, timesteps

SCHEDULE = noise_schedule()
ALPHA = SCHEDULE.alphas_cumprod.tolist()


@pytest.fixture(scope="module")
def tiny() -> LayoutGenerator:
    torch.manual_seed(0)
    unet = LayoutUNet(num_classes=4, channels=(32, 32), embedding=4, layers=1).double().eval().requires_grad_(False)
    return LayoutGenerator(unet, SCHEDULE)


@pytest.fixture()
def start() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    labels = torch.randint(0, 4, (3, 16, 16), generator=torch.Generator().manual_seed(1))
    return initial_noise([5, 6, 7], (3, 16, 16)).double(), labels, class_sets(labels, 4).double()


def toy(unet) -> LayoutGenerator:
    return LayoutGenerator(unet, SCHEDULE)


def brightness(images: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"bright": (images - 0.5).square().flatten(1).mean(1), "red": images[:, 0].flatten(1).mean(1)}


@pytest.mark.parametrize("guidance", [Guidance({"bright": 0.0}), Guidance({"bright": 1.0}, window=(0.5, 0.5)), Guidance()])
def test_no_scale_or_no_window_is_bit_identical_to_unguided(tiny, start, guidance):
    plain = finish(sample(tiny, *start, steps=5)).x
    assert torch.equal(finish(sample(tiny, *start, steps=5, guidance=guidance, losses=brightness)).x, plain)


def test_unguided_loop_equals_diffusers_ddim(tiny, start):
    noise, layout, classes = start
    SCHEDULE.set_timesteps(10)
    x = noise
    for t in SCHEDULE.timesteps:
        v = tiny.unet(x, t, layout, classes)
        x = SCHEDULE.step(v, t, x, use_clipped_model_output=True).prev_sample
    assert [int(t) for t in SCHEDULE.timesteps] == timesteps(10)
    torch.testing.assert_close(finish(sample(tiny, noise, layout, classes, steps=10)).x, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["raw", "norm"])
def test_a_guided_step_moves_the_sample_by_the_closed_form(tiny, start, mode):
    guidance = Guidance({"bright": 0.3}, window=(0, 1), mode=mode)
    plain = next(sample(tiny, *start, steps=10, clip=False))
    steered = next(sample(tiny, *start, steps=10, guidance=guidance, losses=brightness, clip=False))
    a, a_next = ALPHA[900], ALPHA[800]
    bracket = math.sqrt(1 - a_next) - math.sqrt(a_next * (1 - a) / a)
    assert bracket < 0
    torch.testing.assert_close(steered.x - plain.x, bracket * steered.gradient, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("jacobian", ["detach", "full"])
def test_guidance_descends(tiny, start, jacobian):
    plain = finish(sample(tiny, *start, steps=10)).x
    guidance = Guidance({"bright": 0.3}, window=(0, 1), jacobian=jacobian)
    steered = finish(sample(tiny, *start, steps=10, guidance=guidance, losses=brightness)).x
    assert (brightness(steered)["bright"] < brightness(plain)["bright"]).all()


def test_norm_mode_does_not_know_the_unit_of_a_loss_and_has_the_stated_length(tiny, start):
    guidance = Guidance({"bright": 0.2}, window=(0, 1))
    step = next(sample(tiny, *start, steps=10, guidance=guidance, losses=brightness))
    scaled = next(sample(tiny, *start, steps=10, guidance=guidance, losses=lambda x: {k: 1e3 * v for k, v in brightness(x).items()}))
    torch.testing.assert_close(step.gradient, scaled.gradient, rtol=1e-8, atol=0)
    eps, _, _ = _predict(tiny, start[0], 900, ALPHA[900], start[1], start[2], Guidance(), None, 0)
    expected = 0.2 * math.sqrt(1 - ALPHA[900]) * eps.flatten(1).norm(dim=1)
    torch.testing.assert_close(step.gradient.flatten(1).norm(dim=1), expected)


def test_detach_equals_full_when_the_noise_prediction_is_constant(start):
    fixed = initial_noise([1, 2, 3], (3, 16, 16)).double()
    a = ALPHA[500]

    def unet(x, t, layout, classes):  # v that makes eps = fixed for every x
        return (fixed - math.sqrt(1 - a) * x) / math.sqrt(a)

    found = [_predict(toy(unet), start[0], 500, a, None, None, Guidance({"bright": 1.0}, mode="raw", jacobian=j),
                      lambda x: {"bright": (x**3).flatten(1).mean(1)}, 0)[2].gradients["bright"] for j in ("detach", "full")]
    torch.testing.assert_close(found[0], found[1])


def test_full_jacobian_agrees_with_finite_differences_on_a_linear_denoiser():
    torch.manual_seed(0)
    matrix, a = 0.1 * torch.randn(12, 12, dtype=torch.float64), ALPHA[500]
    generator = toy(lambda x, t, layout, classes: (x.flatten(1) @ matrix).reshape(x.shape))
    x = 0.1 * torch.randn(1, 3, 2, 2, dtype=torch.float64)

    def loss(z):
        return ((math.sqrt(a) * z - math.sqrt(1 - a) * generator.unet(z, 0, None, None)) ** 3).sum()

    guidance = Guidance({"cube": 1.0}, mode="raw", jacobian="full")
    gradient = _predict(generator, x, 500, a, None, None, guidance, lambda im: {"cube": (im**3).flatten(1).sum(1)}, 0)[2].gradients["cube"]
    for k in range(12):
        h = torch.zeros(12, dtype=torch.float64)
        h[k] = 1e-5
        slope = (loss(x + h.reshape(x.shape)) - loss(x - h.reshape(x.shape))) / 2e-5
        assert gradient.flatten()[k].item() == pytest.approx(slope.item(), rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("jacobian", ["detach", "full"])
def test_batch_and_order_do_not_change_an_image(tiny, start, jacobian):
    guidance = Guidance({"bright": 0.2, "red": 0.1}, window=(0.2, 0.9), jacobian=jacobian, cfg_scale=1.5)
    together = finish(sample(tiny, *start, steps=5, guidance=guidance, losses=brightness)).x
    order = [2, 0]
    apart = finish(sample(tiny, *(part[order] for part in start), steps=5, guidance=guidance, losses=brightness)).x
    torch.testing.assert_close(apart, together[order], rtol=1e-9, atol=1e-9)


def test_window_counts_its_steps(tiny, start):
    guidance = Guidance({"bright": 0.1}, window=(0.2, 0.6))
    guided = [s.index for s in sample(tiny, *start, steps=10, guidance=guidance, losses=brightness) if s.losses]
    assert guided == [2, 3, 4, 5]


def test_cfg_scale_zero_ignores_the_condition_and_one_needs_no_second_pass(tiny, start):
    noise, layout, classes = start
    free = finish(sample(tiny, noise, layout, classes, steps=5, guidance=Guidance(cfg_scale=0.0))).x
    torch.testing.assert_close(free, finish(sample(tiny, noise, None, None, steps=5)).x)


def test_one_seed_one_noise_whatever_the_company():
    assert torch.equal(initial_noise([3, 9, 4], (3, 8, 8))[1], initial_noise([9], (3, 8, 8))[0])
    assert not torch.equal(initial_noise([3], (3, 8, 8)), initial_noise([4], (3, 8, 8)))


@pytest.mark.parametrize("make, message", [
    (lambda: Guidance(mode="loud"), "mode is 'loud'"), (lambda: Guidance(jacobian="half"), "jacobian is 'half'"),
    (lambda: Guidance(window=(0.8, 0.2)), "window is"), (lambda: timesteps(30), "must divide 1000")])
def test_bad_settings_are_named(make, message):
    with pytest.raises(D3S2Error, match=message):
        make()


def test_a_loss_that_is_not_finite_is_named_with_step_and_image(tiny, start):
    def broken(images):
        return {"bright": images.flatten(1).mean(1) * torch.tensor([1.0, float("nan"), 1.0])}

    with pytest.raises(D3S2Error, match="loss 'bright' is not finite at step 0 for image 1"):
        finish(sample(tiny, *start, steps=5, guidance=Guidance({"bright": 0.1}, window=(0, 1)), losses=broken))
    with pytest.raises(D3S2Error, match="'dark'"):
        finish(sample(tiny, *start, steps=5, guidance=Guidance({"dark": 0.1}, window=(0, 1)), losses=brightness))
