"""Flow matching: the schedule against diffusers' own steps, and the guided run against the same run
written out in flow matching's own terms, and against exact solutions.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from d3s2.core.errors import D3S2Error
from d3s2.guidance.sampler import Guidance, NoiseStream, finish, initial_noise, sample
from d3s2.models.flow import FlowSchedule, alpha_bar, length
from d3s2.models.generator import LayoutGenerator, Timestep

SHAPE = (3, 4, 4)
MEAN = torch.linspace(-0.8, 0.9, 48, dtype=torch.float64).reshape(SHAPE)
SPREAD = 0.3
"""Of the images: independent normal pixels, whose best prediction is a line."""
GAIN = 0.4
"""Of the decoder; small enough that no image leaves [-1, 1]."""


def scheduler(shift: float = 1.0, **more) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=shift, **more)


def noise() -> torch.Tensor:
    return initial_noise([5, 6], SHAPE).double()


def expected_image(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """E[x_0 | x_t = x] of normal images, x_t = alpha x_0 + sigma eps: regression on x."""
    gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
    return MEAN + gain * (x - alpha * MEAN)


@dataclass
class FlowToy(LayoutGenerator):
    """A flow matching model that knows the images' distribution, with a decoder."""

    scheduler: FlowMatchEulerDiscreteScheduler
    bounded = False

    @property
    def schedule(self) -> FlowSchedule:
        return FlowSchedule(self.scheduler)

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        return GAIN * x


def flow_toy(shift: float = 1.0) -> FlowToy:
    own = scheduler(shift)
    schedule = FlowSchedule(own)

    def unet(x, t, layout, classes):
        return schedule.v(velocity(schedule.unscaled(x, t), schedule.s(t)), x, t)

    return FlowToy(unet, own)


def velocity(x: torch.Tensor, s: float) -> torch.Tensor:
    """eps - x_0 as the best network would say it."""
    clean = expected_image(x, 1 - s, s)
    eps = (x - (1 - s) * clean) / s
    return eps - clean


@dataclass
class GivenLevels:
    """A schedule of levels alpha_bar that someone chose."""

    levels: list[float]

    def steps(self, count: int) -> list[Timestep]:
        pairs = itertools.pairwise(self.levels)
        return [Timestep(i, i, a, b) for i, (a, b) in enumerate(pairs)]


# ------------------------------------------------------------------------------------ the schedule
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_the_steps_are_those_of_diffusers_own_scheduler(shift, steps):
    theirs = scheduler(shift)
    theirs.set_timesteps(steps)
    ours = FlowSchedule(scheduler(shift)).steps(steps)
    assert [at.t for at in ours] == theirs.timesteps.tolist()
    assert [at.index for at in ours] == list(range(steps))
    assert (ours[0].a_t, ours[-1].a_next) == (0.0, 1.0)
    for at, s, after in zip(ours, theirs.sigmas, theirs.sigmas[1:], strict=False):
        for level, share in ((at.a_t, float(s)), (at.a_next, float(after))):
            assert math.sqrt(level) * length(share) == pytest.approx(1 - share, abs=1e-7)
            assert math.sqrt(1 - level) * length(share) == pytest.approx(share, abs=1e-7)


def test_the_levels_of_the_training_go_from_the_image_to_noise():
    levels = FlowSchedule(scheduler()).alpha_bars
    assert len(levels) == 1000 and levels[0] == 1 and levels[500] == 0.5
    assert (levels.diff() < 0).all()


@pytest.mark.parametrize("s", [1.0, 0.8, 0.3, 0.01])
def test_v_of_the_velocity_gives_image_and_noise_back(s):
    clean, eps = noise().chunk(2)
    schedule, t = FlowSchedule(scheduler()), torch.tensor(1000 * s, dtype=torch.float64)
    x = ((1 - s) * clean + s * eps) / length(s)
    torch.testing.assert_close(schedule.unscaled(x, t), (1 - s) * clean + s * eps)
    v, a = schedule.v(eps - clean, x, t), alpha_bar(s)
    torch.testing.assert_close(math.sqrt(a) * x - math.sqrt(1 - a) * v, clean)
    torch.testing.assert_close(math.sqrt(a) * v + math.sqrt(1 - a) * x, eps)


@pytest.mark.parametrize("name", ["use_dynamic_shifting", "invert_sigmas", "stochastic_sampling"])
def test_what_the_schedule_does_not_know_is_a_sentence(name):
    with pytest.raises(D3S2Error, match=f"The scheduler's {name} is on"):
        FlowSchedule(scheduler(**{name: True}))
    with pytest.raises(D3S2Error, match="steps is 0"):
        FlowSchedule(scheduler()).steps(0)


# ----------------------------------------------------------------------------------------- the run
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_an_unguided_run_is_diffusers_own(shift):
    theirs = scheduler(shift)
    theirs.set_timesteps(8)
    x = noise()
    for t in theirs.timesteps:
        x = theirs.step(velocity(x, float(t) / 1000), t, x).prev_sample
    ours = finish(sample(flow_toy(shift), noise(), None, None, 8))
    torch.testing.assert_close(ours.x, x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.image, GAIN * ours.x)


def test_many_steps_come_to_the_exact_solution_first_order_in_the_step():
    """The flow of normal images keeps each pixel's place in its distribution: x_0 is mean + spread
    times the noise it started from.
    """
    exact = MEAN + SPREAD * noise()
    errors = [
        (finish(sample(flow_toy(), noise(), None, None, steps)).x - exact).abs().max().item()
        for steps in (50, 100, 200)
    ]
    assert errors[2] < 0.01
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2, rel=0.15)


def brightness(images: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "bright": (images - 0.5).square().flatten(1).mean(1),
        "red": images[:, 0].sin().flatten(1).mean(1),
    }


def in_flows_own_terms(guidance: Guidance, steps: int, shift: float) -> torch.Tensor:
    """The guided run in x_s: the score of x_s is -eps / s, so a loss that tilts it adds s g to eps,
    g = d loss / d x_s; in "norm" mode the noise's share of x_s times its length stands for s g.
    """
    theirs = scheduler(shift)
    theirs.set_timesteps(steps)
    sigmas, x = theirs.sigmas.double().tolist(), noise()
    first, last = (round(share * steps) for share in guidance.window)
    for index, (s, after) in enumerate(itertools.pairwise(sigmas)):
        leaf = x.clone().requires_grad_()
        clean = leaf - s * velocity(leaf, s)
        eps = (leaf + (1 - s) * velocity(leaf, s)).detach()
        added = torch.zeros_like(x)
        if first <= index < last:
            if guidance.jacobian == "detach":
                seen = clean.detach().requires_grad_()
                values, source, factor = brightness(GAIN * seen), seen, 1 / (1 - s)
            else:
                values, source, factor = brightness(GAIN * clean), leaf, 1.0
            for name, scale in guidance.scales.items():
                g = torch.autograd.grad(values[name].sum(), source, retain_graph=True)[0] * factor
                if guidance.mode == "norm":
                    size = eps.flatten(1).norm(dim=1) / g.flatten(1).norm(dim=1)
                    added += scale * s / length(s) * g * size[:, None, None, None]
                else:
                    added += scale * s * g
        eps = eps + added
        clean = clean.detach() if s == 1 else (x - s * eps) / (1 - s)
        x = x + (after - s) * (eps - clean)  # Euler
    return x


@pytest.mark.parametrize("jacobian", ["detach", "full"])
@pytest.mark.parametrize(("mode", "strength"), [("raw", 60.0), ("norm", 0.2)])
def test_a_guided_run_is_that_of_flow_matchings_own_terms(jacobian, mode, strength):
    guidance = Guidance(
        {"bright": strength, "red": strength / 2}, window=(0.25, 1), mode=mode, jacobian=jacobian
    )
    ours = finish(sample(flow_toy(3.0), noise(), None, None, 8, guidance, brightness)).x
    torch.testing.assert_close(ours, in_flows_own_terms(guidance, 8, 3.0), rtol=1e-5, atol=1e-6)
    plain = finish(sample(flow_toy(3.0), noise(), None, None, 8)).x
    fell = brightness(GAIN * plain)["bright"] - brightness(GAIN * ours)["bright"]
    assert (fell > 0.003).all()  # otherwise the comparison would say little


@pytest.mark.parametrize("more", [{}, {"eta": 1.0}, {"recurrence": 2, "eta": 0.5}])
def test_the_same_model_as_diffusion_goes_the_same_way(more):
    """The same images, noise levels and noise, with a network that was never told of flows."""
    toy = flow_toy()

    class Diffusion(FlowToy):
        @property
        def schedule(self) -> GivenLevels:
            steps = toy.schedule.steps(8)
            return GivenLevels([*(at.a_t for at in steps), 1.0])

    def unet(x, t, layout, classes):
        a = toy.schedule.steps(8)[int(t)].a_t
        clean = expected_image(x, math.sqrt(a), math.sqrt(1 - a))
        eps = (x - math.sqrt(a) * clean) / math.sqrt(1 - a)
        return math.sqrt(a) * eps - math.sqrt(1 - a) * clean

    guidance = Guidance({"bright": 0.2}, window=(0.25, 1), jacobian="full", **more)
    found = []
    for model in (toy, Diffusion(unet, toy.scheduler)):
        fresh = NoiseStream([1, 2], SHAPE)
        run = sample(model, noise(), None, None, 8, guidance, brightness, fresh=fresh)
        found.append(finish(run).x)
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_guided_flow_ends_at_the_exact_solution_of_the_tilted_images(sign):
    """Normal images tilted by exp(-lambda l), l linear, are normal with their mean moved by lambda
    times l's slope times their variance; the full gradient of l at x_0's prediction is then the
    exact score's, so the run ends at the moved mean + spread times its noise.
    """
    strength = 20.0 * sign

    def total(images):
        return {"up": images.flatten(1).sum(1)}

    guidance = Guidance({"up": strength}, (0.005, 1), "raw", "full")
    found = finish(sample(flow_toy(), noise(), None, None, 200, guidance, total)).x
    moved = MEAN - strength * GAIN * SPREAD**2
    torch.testing.assert_close(found, moved + SPREAD * noise(), rtol=0, atol=0.02)
    assert (moved - MEAN).abs().min() > 0.7


def test_where_there_is_only_noise_nothing_can_be_steered():
    guidance = Guidance({"bright": 0.2}, window=(0, 1))
    with pytest.raises(D3S2Error, match=r"begins at step 0.*larger window_start"):
        finish(sample(flow_toy(), noise(), None, None, 8, guidance, brightness))
    levels = GivenLevels([0.0, 0.5, 1.0])

    class Bounded(FlowToy):
        bounded = True
        schedule = levels

    steps = list(sample(Bounded(lambda x, t, *_: -3 * x, None), noise(), None, None, 2))
    assert steps[0].clean.abs().max() == 1 and torch.isfinite(steps[-1].x).all()
    kept = math.sqrt(0.5) * steps[0].clean + math.sqrt(0.5) * noise()
    torch.testing.assert_close(steps[0].x, kept)  # the image is clipped, the noise is the noise


def test_diffusion_schedules_are_asked_for_their_own_levels():
    plain = LayoutGenerator(None, DDIMScheduler())
    assert torch.equal(plain.schedule.alpha_bars, plain.scheduler.alphas_cumprod)
    assert plain.schedule.steps(10)[0].a_t == plain.schedule.alpha_bars[900].item()
