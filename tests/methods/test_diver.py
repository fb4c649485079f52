"""DIVER's pull: how far it draws, when, and towards what."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d3s2.core.errors import D3S2Error
from d3s2.guidance.sampler import Guidance, Start, finish, initial_noise, sample
from d3s2.methods.diver import DEVIATIONS, PullBack
from d3s2.models.generator import LayoutGenerator, Timestep, noise_schedule

GENERATOR = LayoutGenerator(None, noise_schedule())
STEPS = list(GENERATOR.schedule.steps(50))


def drawn(pull: PullBack, steps=STEPS, count: int = 50) -> float:
    """What is left of the distance to the image after a whole run of steps that move nothing."""
    clean, x = torch.tensor([[[[2.0]]]]).double(), torch.tensor([[[[3.0]]]]).double()
    nudge = pull(clean, count)
    for at in steps:
        x = nudge(x, x, at)
    return float(x - clean)


@pytest.mark.parametrize(("deviation", "left"), [("posterior", 0.6163), ("noise", 0.2496)])
def test_the_window_of_sixteen_steps_leaves_so_much_of_the_distance(deviation, left):
    """Steps that move nothing: the product of 1 - gamma sigma_k over k = 40 to 25."""
    assert drawn(PullBack(deviation=deviation)) == pytest.approx(left, abs=1e-4)


def test_the_pull_acts_in_its_window_both_ends_included():
    nudge = PullBack()(torch.zeros(1, 1, 1, 1), 50)
    x = torch.ones(1, 1, 1, 1)
    acting = [50 - at.index for at in STEPS if not torch.equal(nudge(x, x, at), x)]
    assert acting == list(range(40, 24, -1))


def test_of_fewer_steps_the_same_share_is_pulled():
    nudge = PullBack()(torch.zeros(1, 1, 1, 1), 10)
    x = torch.ones(1, 1, 1, 1)
    steps = GENERATOR.schedule.steps(10)
    acting = [10 - at.index for at in steps if not torch.equal(nudge(x, x, at), x)]
    assert acting == [8, 7, 6, 5]


@settings(max_examples=30, deadline=None)
@given(gamma=st.floats(0, 2), k=st.integers(25, 40), seed=st.integers(0, 99))
def test_it_is_the_gradient_of_a_spring_at_the_image_before_the_step(gamma, k, seed):
    at = STEPS[50 - k]
    rng = torch.Generator().manual_seed(seed)
    clean, before, after = torch.randn(3, 2, 1, 2, 2, generator=rng).double()
    before.requires_grad_()
    sigma = DEVIATIONS["posterior"](at)
    (gradient,) = torch.autograd.grad((sigma * (before - clean).square() / 2).sum(), before)
    found = PullBack(gamma)(clean, 50)(after, before.detach(), at)
    torch.testing.assert_close(found, after - gamma * gradient)


def test_the_posterior_deviation_is_that_of_a_step_of_ddpm():
    """Of q(x_s | x_t, x_0): variance (1 - a_s) / (1 - a_t) beta, beta = 1 - a_t / a_s."""
    at = Timestep(0, 500, 0.3, 0.4)
    assert DEVIATIONS["posterior"](at) == pytest.approx(math.sqrt(0.6 / 0.7 * (1 - 0.3 / 0.4)))
    assert DEVIATIONS["noise"](at) == pytest.approx(math.sqrt(0.7))


class Grey:
    """A network that sees grey in everything."""

    def __call__(self, x, t, layout, classes):
        a = ALPHA[int(t)]
        return math.sqrt(a) / math.sqrt(1 - a) * x


ALPHA = noise_schedule().alphas_cumprod.tolist()


def run(gamma: float, clean: torch.Tensor) -> torch.Tensor:
    generator = LayoutGenerator(Grey(), noise_schedule())
    noise = initial_noise([1], (3, 8, 8))
    nudge = PullBack(gamma)(clean, 50) if gamma is not None else None
    start = Start(clean, 10)
    steps = sample(
        generator, noise, None, None, 50, Guidance(), None, clip=False, start=start, nudge=nudge
    )
    return finish(steps).x


def test_without_strength_it_is_img2img_to_the_bit_and_with_it_the_first_image_shows():
    clean = torch.full((1, 3, 8, 8), 0.5)
    assert torch.equal(run(0.0, clean), run(None, clean))
    # in a sampler: what is pulled in the middle of the run is still there in the next step
    generator, noise = LayoutGenerator(Grey(), noise_schedule()), initial_noise([1], (3, 8, 8))
    pulled, plain = (
        [
            step.x
            for step in sample(
                generator, noise, None, None, 50, start=Start(clean, 10), nudge=nudge
            )
        ]
        for nudge in (PullBack(0.5)(clean, 50), None)
    )
    away = [(a - clean).norm() / (b - clean).norm() for a, b in zip(pulled, plain, strict=True)]
    assert away[0] < 1 and away[15] < away[0]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"gamma": -0.1}, "gamma is -0.1"),
        ({"gamma": math.nan}, "gamma is nan"),
        ({"window": (25, 40)}, r"window is \(25, 40\)"),
        ({"window": (51, 40)}, "steps left of 50"),
        ({"window": (4, 0)}, "down to 1"),
        ({"deviation": "ddim"}, "deviation is 'ddim': choose posterior or noise"),
    ],
)
def test_what_is_no_pull_is_refused(wrong, words):
    with pytest.raises(D3S2Error, match=words):
        PullBack(**wrong)
