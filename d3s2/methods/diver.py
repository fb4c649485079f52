"""DIVER (arXiv 2605.12649): make a distilled image realistic again, without forgetting it.

A run of the sampler begins at the image of an earlier set, noised (inheritance), and is drawn back
to it while it takes shape (guidance), in the phase in which things become concrete and not before
or after (fusion). The pull is in closed form, so it costs next to nothing:

    x <- x - gamma sigma_k (x_before - z_0),    k steps left, in a window of k,

the gradient of sigma_k |x - z_0|^2 / 2 at the x before the step. What is known of the method is its
abstract and a note on its text: gamma 0.1 and the window from 40 to 25 of 50 steps stand there. The
noise level of the beginning is stated in two ways that contradict each other; ours is 40 steps
left, where the window begins. sigma_k is not defined for a deterministic step; ours is the standard
deviation of DDPM's posterior. Labels are the masks, and stay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from d3s2.core.errors import D3S2Error
from d3s2.guidance.sampler import Nudge
from d3s2.models.generator import Timestep


def posterior_deviation(at: Timestep) -> float:
    """sqrt((1 - a_s) / (1 - a_t) (1 - a_t / a_s)): how far a step of DDPM from t to s scatters."""
    return math.sqrt((1 - at.a_next) / (1 - at.a_t) * (1 - at.a_t / at.a_next))


def noise_deviation(at: Timestep) -> float:
    """sqrt(1 - a_t): how much noise there is."""
    return math.sqrt(1 - at.a_t)


DEVIATIONS = {"posterior": posterior_deviation, "noise": noise_deviation}
"""Readings of sigma_k: they take from a window of 16 steps 38 % and 75 % of the distance."""


@dataclass(frozen=True)
class PullBack:
    """A pull towards the image that the run began at (see the module's text).

    Args:
        gamma: its strength, >= 0.
        window: (from, to), steps left of 50, both included; of other numbers of steps the same
            shares.
        deviation: sigma_k, a name of `DEVIATIONS`.
    Raises:
        D3S2Error: for values outside of these.
    """

    gamma: float = 0.1
    window: tuple[int, int] = (40, 25)
    deviation: str = "posterior"

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise D3S2Error(f"gamma is {self.gamma}: the pull is 0 or more.")
        if not 50 >= self.window[0] >= self.window[1] >= 1:
            raise D3S2Error(
                f"window is {self.window}: give steps left of 50, the larger first, down to 1."
            )
        if self.deviation not in DEVIATIONS:
            raise D3S2Error(f"deviation is {self.deviation!r}: choose {' or '.join(DEVIATIONS)}.")

    def __call__(self, clean: Tensor, steps: int) -> Nudge:
        """The move besides each step, towards `clean` float[B, D, h, w]."""
        deviation = DEVIATIONS[self.deviation]

        def pulled(x: Tensor, before: Tensor, at: Timestep) -> Tensor:
            left = (steps - at.index) * 50 / steps
            if not self.window[1] <= left <= self.window[0]:
                return x
            return x - self.gamma * deviation(at) * (before - clean)

        return pulled
