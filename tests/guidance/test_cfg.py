"""Classifier-free guidance and the bounds of the clean image, through whole runs of the sampler."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d3s2.guidance.sampler import (
    Denoiser,
    Guidance,
    Step,
    finish,
    initial_noise,
    predict,
    sample,
)
from d3s2.models.generator import LayoutGenerator, Timestep, noise_schedule

SCHEDULE = noise_schedule()
ALPHA = SCHEDULE.alphas_cumprod.tolist()
NOISE = initial_noise([5, 6], (3, 8, 8)).double()
LAYOUT = torch.tensor([0, 1])[:, None, None].expand(2, 8, 8)


class Towards:
    """A network that knows the one clean image of each condition: grey without a layout, else
    `level` in every pixel of class 1 and minus that in class 0. It counts how often it is asked.
    """

    def __init__(self, level: float = 0.2, grey: float = 0.0):
        self.level, self.grey, self.asked = level, grey, 0

    def __call__(self, x, t, layout, classes):
        self.asked += 1
        a = ALPHA[int(t)]
        clean = torch.full_like(x, self.grey)
        if layout is not None:
            clean = clean + self.level * (2 * layout - 1)[:, None]
        return (math.sqrt(a) * x - clean) / math.sqrt(1 - a)


def run(unet, layout=LAYOUT, **more) -> torch.Tensor:
    guidance = Guidance(**more)
    return finish(sample(LayoutGenerator(unet, SCHEDULE), NOISE, layout, None, 5, guidance)).x


def test_a_scale_of_one_asks_once_a_step_and_is_the_conditioned_run_to_the_bit():
    class Conditioned(Towards):
        def __call__(self, x, t, layout, classes):
            assert layout is not None, "asked without its condition"
            return super().__call__(x, t, layout, classes)

    plain, explicit = Conditioned(), Conditioned()
    assert torch.equal(run(plain), run(explicit, cfg_scale=1.0))
    assert plain.asked == explicit.asked == 5
    # the two evaluations of another scale come to the same where it is one but for rounding
    twice = Towards()
    torch.testing.assert_close(run(twice, cfg_scale=1 + 1e-9), run(plain), atol=1e-6, rtol=0)
    assert twice.asked == 10


def test_a_scale_of_zero_is_the_run_without_a_condition():
    torch.testing.assert_close(run(Towards(), cfg_scale=0.0), run(Towards(), layout=None))


@settings(max_examples=20, deadline=None)
@given(w=st.floats(-4, 4), grey=st.floats(-0.2, 0.2))
def test_the_image_goes_from_the_free_one_past_the_conditioned_one(w: float, grey: float):
    """x = free + w (conditioned - free), to the end of the run and in every sign of w."""
    found = run(Towards(0.1, grey), cfg_scale=w)
    expected = grey + w * 0.1 * (2.0 * LAYOUT - 1)[:, None].expand_as(found)
    torch.testing.assert_close(found, expected.double(), atol=1e-5, rtol=0)


# ----------------------------------------------------------------------- bounds of the clean image
class Latents(LayoutGenerator):
    """Without bounds, and with a decoder, as a generator that works on latents."""

    bounded = False

    def decode(self, x):
        return 3 * x


def watched(generator, level: float, **more) -> list[Step]:
    """All steps of a run in which losses may see images in [-1, 1] only."""

    def losses(images):
        assert images.abs().max() <= 1
        return {"any": images.square().flatten(1).mean(1)}

    guidance = Guidance({"any": 0.1}, window=(0, 1))
    return list(sample(generator, NOISE, LAYOUT, None, 5, guidance, losses, **more))


def test_a_clean_image_beyond_the_bounds_is_clamped_wherever_it_is_seen():
    inside = LayoutGenerator(Towards(5.0), SCHEDULE)
    steps = watched(inside, 5.0)
    sign = (2.0 * LAYOUT - 1)[:, None].expand(2, 3, 8, 8).double()
    for step in steps:
        torch.testing.assert_close(step.clean, sign)  # not 5
        torch.testing.assert_close(step.x0, sign)
    torch.testing.assert_close(steps[-1].x, sign)  # and so the result
    free = watched(inside, 5.0, clip=False)
    assert free[-1].x.abs().max() > 2


def test_latents_are_not_clamped_but_their_images_are():
    steps = watched(Latents(Towards(5.0), SCHEDULE), 5.0)
    for step in steps:
        assert step.clean.abs().max() == pytest.approx(5, rel=1e-6)
        assert step.x0.abs().max() == 1
        torch.testing.assert_close(step.image, 3 * step.x)


def test_what_is_clamped_keeps_to_the_line_between_image_and_noise():
    """x_s = sqrt(a_s) x0 + sqrt(1 - a_s) eps of the clamped x0 and the eps that belongs to it."""
    generator = LayoutGenerator(Towards(5.0), SCHEDULE)
    first = next(sample(generator, NOISE, LAYOUT, None, 5))
    a, after = ALPHA[800], ALPHA[600]
    noise = (NOISE - math.sqrt(a) * first.clean) / math.sqrt(1 - a)
    torch.testing.assert_close(
        first.x, math.sqrt(after) * first.clean + math.sqrt(1 - after) * noise
    )


def test_a_prediction_is_in_bounds_and_consistent_with_its_noise():
    at = Timestep(0, 500, ALPHA[500], 1.0)
    found = predict(Denoiser(LayoutGenerator(Towards(0.5), SCHEDULE), LAYOUT), NOISE, at)
    back = math.sqrt(at.a_t) * found.clean + math.sqrt(1 - at.a_t) * found.eps
    torch.testing.assert_close(back, NOISE)
    beyond = predict(Denoiser(LayoutGenerator(Towards(5.0), SCHEDULE), LAYOUT), NOISE, at)
    assert beyond.clean.abs().max() == 1


# ------------------------------------------------------------------- what the free prediction keeps
class Listening:
    """A network that hears both conditions, each image its own; -1 says that one was dropped."""

    def __call__(self, x, t, layout, classes):
        heard = x.clone()
        if layout is not None:
            heard = heard + torch.where(layout == -1, 0, 1 + layout)[:, None]
        if classes is not None:
            heard = heard + torch.where(classes == -1, 0, 10 + classes).sum(1)[:, None, None, None]
        return heard


class Keeping(LayoutGenerator):
    """Its free prediction drops the class set alone, or both conditions."""

    keeps_layout = False

    def unconditioned(self, layout):
        return layout if self.keeps_layout else None, None


@pytest.mark.parametrize("one_batch", [False, True])
@pytest.mark.parametrize("keeps_layout", [False, True])
@pytest.mark.parametrize("told", [(True, True), (True, False), (False, True)])
def test_one_batch_of_both_predictions_says_what_two_say(one_batch, keeps_layout, told):
    layout = LAYOUT if told[0] else None
    classes = torch.tensor([[1.0, 0.0], [0.0, 3.0]]) if told[1] else None
    generator = Keeping(Listening(), SCHEDULE)
    generator.one_batch, generator.keeps_layout = one_batch, keeps_layout
    conditioned = generator.unet(NOISE, 500, layout, classes)
    free = generator.unet(NOISE, 500, layout if keeps_layout else None, None)
    asked = Denoiser(generator, layout, classes, cfg_scale=3.0).v(NOISE, 500)
    torch.testing.assert_close(asked, free + 3 * (conditioned - free))
