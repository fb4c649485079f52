"""Flow matching behind the interface of `LayoutGenerator`: its noise levels, and what its network's
answer means.

A flow model goes in a straight line from the image to the noise, x_s = (1 - s) x_0 + s eps, and its
network predicts the velocity u = eps - x_0 (Lipman et al. 2023; rectified flow, Liu et al. 2023).
Divided by c = sqrt((1 - s)^2 + s^2), its length for unit variances, x_s has the form in which all
generators here speak:
    x = x_s / c = sqrt(a) x_0 + sqrt(1 - a) eps,    a = (1 - s)^2 / c^2,
    v = sqrt(a) eps - sqrt(1 - a) x_0 = (1 - 2 s) x + c u.
The sampler's deterministic step from a to a' is then Euler's from s to s'. Guidance, time travel
and fresh noise are the sampler's own; a flow model's own pipelines have none of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from d3s2.core.errors import D3S2Error
from d3s2.models.generator import Timestep, numbered


def length(s: float) -> float:
    """c: what x_s is divided by."""
    return math.hypot(1 - s, s)


def alpha_bar(s: float) -> float:
    """The image's share a of x_s: 1 at s = 0, the image, and 0 at s = 1, pure noise."""
    return ((1 - s) / length(s)) ** 2


@dataclass(frozen=True)
class FlowSchedule:
    """The noise levels of diffusers' flow matching scheduler, of which the shift is one number.

    Raises D3S2Error for a scheduler whose shift depends on the image's size, and for one that adds
    noise of its own or runs backwards.
    """

    scheduler: FlowMatchEulerDiscreteScheduler

    def __post_init__(self) -> None:
        config: Any = self.scheduler.config
        for name in ("use_dynamic_shifting", "invert_sigmas", "stochastic_sampling"):
            if config[name]:
                raise D3S2Error(
                    f"The scheduler's {name} is on, which d3s2 does not know: set it to false in "
                    "scheduler_config.json, and `shift` to the number that fits the image size."
                )

    @property
    def alpha_bars(self) -> Tensor:
        """float32[T]: of s = 0, 1/T, 2/T, ...; the shift only says where a run's steps lie."""
        count = self.scheduler.config.num_train_timesteps
        return torch.tensor([alpha_bar(t / count) for t in range(count)])

    def steps(self, count: int) -> list[Timestep]:
        """The numbered steps of a run: the scheduler's own, from pure noise to the image.

        Raises D3S2Error for a count below 1.
        """
        if count < 1:
            raise D3S2Error(f"steps is {count}: give 1 or more.")
        run = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config)
        run.set_timesteps(count)
        *levels, end = (alpha_bar(s) for s in run.sigmas.tolist())
        return numbered(run.timesteps.tolist(), levels, end)

    def s(self, t: Tensor) -> float:
        """The noise's share at timestep t."""
        return float(t) / self.scheduler.config.num_train_timesteps

    def unscaled(self, x: Tensor, t: Tensor) -> Tensor:
        """x_s, as the network knows it, of the sampler's x."""
        return length(self.s(t)) * x

    def v(self, said: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """v, of the velocity that the network said of `unscaled` x."""
        s = self.s(t)
        return (1 - 2 * s) * x + length(s) * said
