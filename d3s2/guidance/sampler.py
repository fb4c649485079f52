"""Guided sampling: the DDIM loop written out, with losses on the predicted clean image.

Notation: x_t noisy image, a_t = alpha_bar_t. From the network's v the loop takes
    x0_hat = sqrt(a_t) x_t - sqrt(1 - a_t) v,      eps = sqrt(a_t) v + sqrt(1 - a_t) x_t,
asks the proxy what it thinks of x0_hat, and adds the losses' gradient to the noise prediction (the
form of Universal Guidance, Bansal et al. 2023, and UniDD):
    eps_hat = eps + s(t) g,   g = d loss / d x_t,   s(t) = lambda sqrt(1 - a_t)          (scale =
    "raw")
In "norm" mode each loss's gradient is first scaled to the length of eps, image by image, so that
lambda is a share of the step and does not depend on a loss's units:  eps_hat = eps + sqrt(1 - a_t)
sum_k lambda_k |eps| g_k / |g_k|. Adding the gradient to eps moves x0_hat by -sqrt((1 - a_t) / a_t)
times it: downhill. Where the generator works on latents, x_t and x0_hat are latents and the losses
see the decoded image, so g goes through the decoder too.

`jacobian="full"` differentiates through the generator; "detach" treats eps as a constant, so that
g = (d loss / d x0_hat) / sqrt(a_t): no backward pass through the generator. Which form the paper
uses is unknown to us.

A step goes from t to the next timestep s as in DDIM (Song et al. 2021), whose eta runs from 0,
deterministic, to 1, as noisy as DDPM:
    x_s = sqrt(a_s) x0 + sqrt(1 - a_s - sigma^2) eps + sigma z,   sigma^2 = eta^2 (1 - a_s) / (1 -
    a_t) (1 - a_t / a_s).
Recurrence (time travel; Universal Guidance, FreeDoM) takes a guided step R times, noising again in
    between: x_t = sqrt(a_t / a_s) x_s + sqrt(1 - a_t / a_s) z.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from d3s2.core.errors import D3S2Error
from d3s2.models.generator import LayoutGenerator

Losses = Callable[[Tensor], Mapping[str, Tensor]]
"""The guidance losses: float[B, 3, H, W] images in [-1, 1] to {name: float[B]}, one number per
image, differentiable. One function for all, so that they can share one pass through the proxy.
"""


@dataclass(frozen=True)
class Guidance:
    """How the sampler is steered. All defaults are our choice.

    Args:
        scales: lambda of each loss by name; 0 or a missing name leaves the loss out of the
        gradient.
        window: guided part of the run as fractions of the steps, 0 = pure noise, 1 = finished
        image.
        mode: "norm" or "raw" (see the module's text).
        jacobian: "detach" or "full".
        cfg_scale: classifier-free guidance w, v = v_free + w (v_conditioned - v_free); 1 =
        conditioned only.
        eta: 0 = deterministic DDIM, 1 = as much fresh noise as DDPM.
        recurrence: how often each guided step is taken; 1 = once, no time travel.
        clip_norm: largest length of what is added to eps, as a share of |eps|, image by image; 0 =
        no bound.
        every: take the gradient anew at each so-many-th guided step and use it again in between,
            where neither the losses nor a backward pass are computed; 1 = at each. Larger values
            are an approximation.
    """

    scales: Mapping[str, float] = field(default_factory=dict)
    window: tuple[float, float] = (0.1, 0.8)
    mode: str = "norm"
    jacobian: str = "detach"
    cfg_scale: float = 1.0
    eta: float = 0.0
    recurrence: int = 1
    clip_norm: float = 0.0
    every: int = 1

    def __post_init__(self) -> None:
        if self.mode not in ("norm", "raw"):
            raise D3S2Error(f"guidance mode is {self.mode!r}: use 'norm' or 'raw'.")
        if self.jacobian not in ("detach", "full"):
            raise D3S2Error(f"jacobian is {self.jacobian!r}: use 'detach' or 'full'.")
        if not 0 <= self.window[0] <= self.window[1] <= 1:
            raise D3S2Error(
                f"window is {self.window}: give two fractions with 0 <= start <= end <= 1."
            )
        if not 0 <= self.eta <= 1:
            raise D3S2Error(
                f"eta is {self.eta}: give a number from 0 (deterministic) to 1 (as noisy as DDPM)."
            )
        if self.recurrence < 1 or self.every < 1:
            raise D3S2Error(
                f"recurrence is {self.recurrence} and every is {self.every}: both count from 1."
            )
        if not self.clip_norm >= 0:
            raise D3S2Error(
                f"clip_norm is {self.clip_norm}: give a positive share of the noise's length, or "
                "0 for no bound."
            )

    @property
    def random(self) -> bool:
        """Whether the run needs fresh noise on its way."""
        return self.eta > 0 or self.recurrence > 1


@dataclass
class Step:
    """One step of the sampler, for drawing and for tests."""

    index: int  # which timestep, from 0
    t: int
    x: Tensor  # float[B, D, h, w] after the step: pixels (3, H, W), or latents
    clean: Tensor  # float[B, D, h, w], the same, clean, as predicted before guidance
    losses: dict[
        str, Tensor
    ]  # float[B] each; empty outside the window and where an old gradient is used again
    gradient_norms: dict[str, Tensor]  # float[B] each, before normalisation
    gradient: Tensor | None  # float[B, D, h, w] added to eps, or None
    decode: Callable[[Tensor], Tensor]
    repeat: int = 0  # which pass of the recurrence, from 0

    @property
    def image(self) -> Tensor:
        """float[B, 3, H, W]: `x` as an image, after the last step the result. Latents are decoded
        anew at each call.
        """
        with torch.no_grad():
            return self.decode(self.x)

    @property
    def x0(self) -> Tensor:
        """float[B, 3, H, W] in [-1, 1]: `clean` as an image."""
        with torch.no_grad():
            return self.decode(self.clean).clamp(-1, 1)


def timesteps(steps: int, train_steps: int = 1000) -> list[int]:
    """Evenly spaced timesteps, last first: train_steps - k ... (leading spacing, as diffusers'
    DDIM).

    Raises D3S2Error unless `steps` divides `train_steps`, without which the spacing would be
    uneven.
    """
    if steps < 1 or train_steps % steps:
        raise D3S2Error(
            f"steps is {steps}: it must divide {train_steps}, for example 10, 20, 25, 40, "
            "50 or 100."
        )
    stride = train_steps // steps
    return list(range(0, train_steps, stride))[::-1]


class NoiseStream:
    """One random generator per image: its first draw is x_T, each later one the noise of a
    stochastic step.

    So the noise of an image follows from its own seed, whatever the batch, the order or the shard
    it is in.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self) -> Tensor:
        """float32[B, *shape] on the CPU: the next standard normal draw of every image."""
        return torch.stack(
            [torch.randn(self.shape, generator=generator) for generator in self._generators]
        )


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """float[B, *shape]: standard normal noise, one random generator per image, whatever the
    batch.
    """
    return NoiseStream(seeds, shape)()


def sample(
    generator: LayoutGenerator,
    noise: Tensor,
    layout: Tensor | None,
    classes: Tensor | None,
    steps: int = 50,
    guidance: Guidance = Guidance(),
    losses: Losses | None = None,
    clip: bool = True,
    fresh: Callable[[], Tensor] | None = None,
) -> Iterator[Step]:
    """Sample from `noise` and yield every step; the last step's `image` is the result.

    Args:
        noise: float[B, D, h, w], of the generator's `noise_shape`.
        layout: int64[B, H, W]; classes: float[B, C] (see `LayoutUNet.forward`).
        losses: see `Losses`; those without a scale are measured in the window but do not steer.
        clip: keep the predicted clean image in [-1, 1] (and the noise consistent with it); latents
        never are.
        fresh: noise for eta > 0 and recurrence > 1, shaped as `noise`, at each call: a
        `NoiseStream` that `noise` came from.
    Raises:
        D3S2Error: for steps that do not divide the schedule, a scale for a loss that there is not,
            a loss that is not finite (naming loss, step and image), and a stochastic run without
            `fresh`.
    """
    if guidance.random and fresh is None:
        given = f"eta = {guidance.eta} and recurrence = {guidance.recurrence}"
        raise D3S2Error(f"{given} need fresh noise: give `fresh`, a NoiseStream.")
    alpha_bars = generator.scheduler.alphas_cumprod.tolist()
    schedule = timesteps(steps, len(alpha_bars))
    first, last = (round(edge * steps) for edge in guidance.window)
    x = noise
    held: dict[str, Tensor] = {}  # the gradients last taken
    for index, t in enumerate(schedule):
        a_t = alpha_bars[t]
        a_next = alpha_bars[schedule[index + 1]] if index + 1 < steps else 1.0
        guided = losses is not None and first <= index < last and any(guidance.scales.values())
        for repeat in range(guidance.recurrence if guided else 1):
            if repeat:
                x = math.sqrt(a_t / a_next) * x + math.sqrt(1 - a_t / a_next) * fresh().to(x)
            again = guided and (index - first) % guidance.every > 0
            asked = losses if guided and not again else None
            eps, x0, found = _predict(generator, x, t, a_t, layout, classes, guidance, asked, index)
            held = found.gradients if asked else held
            gradient = _combine(held, eps, a_t, guidance) if guided else None
            x = _step(
                x, eps, gradient, a_t, a_next, guidance.eta, clip and generator.bounded, fresh
            )
            yield Step(
                index, t, x, x0, found.values, found.norms, gradient, generator.decode, repeat
            )


def _step(
    x: Tensor,
    eps: Tensor,
    gradient: Tensor | None,
    a_t: float,
    a_next: float,
    eta: float,
    clip: bool,
    fresh: Callable[[], Tensor] | None,
) -> Tensor:
    """From x_t to x_s with the noise prediction eps, plus the gradient."""
    if gradient is not None:
        eps = eps + gradient
    clean = (x - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)
    if clip:
        clean = clean.clamp(-1, 1)
        eps = (x - math.sqrt(a_t) * clean) / math.sqrt(
            1 - a_t
        )  # the noise that belongs to the clipped image
    variance = eta**2 * (1 - a_next) / (1 - a_t) * (1 - a_t / a_next)
    x = math.sqrt(a_next) * clean + math.sqrt(1 - a_next - variance) * eps
    return x + math.sqrt(variance) * fresh().to(x) if variance > 0 else x


@dataclass
class _Found:
    """What the losses say at one timestep; all empty where they are not asked."""

    values: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)  # d loss / d x_t
    norms: dict[str, Tensor] = field(default_factory=dict)


def _predict(
    generator: LayoutGenerator,
    x: Tensor,
    t: int,
    a_t: float,
    layout: Tensor | None,
    classes: Tensor | None,
    guidance: Guidance,
    losses: Losses | None,
    index: int,
) -> tuple[Tensor, Tensor, _Found]:
    """(eps, x0_hat, what the losses say) at one timestep, all detached."""
    full = losses is not None and guidance.jacobian == "full"
    x = x.detach().requires_grad_(full)
    with torch.set_grad_enabled(full):
        v = _velocity(generator, x, t, layout, classes, guidance.cfg_scale)
        x0 = math.sqrt(a_t) * x - math.sqrt(1 - a_t) * v
        eps = math.sqrt(a_t) * v + math.sqrt(1 - a_t) * x
    clean = x0.detach().clamp(-1, 1) if generator.bounded else x0.detach()
    if losses is None:
        return eps, clean, _Found()
    leaf, factor = (x, 1.0) if full else (x0.detach().requires_grad_(), 1 / math.sqrt(a_t))
    with torch.enable_grad():
        values = losses(generator.decode(x0 if full else leaf).clamp(-1, 1))
    found = _Found({name: value.detach() for name, value in values.items()})
    for name, gradient in _gradients(values, leaf, guidance.scales, index):
        found.gradients[name] = factor * gradient
        found.norms[name] = _lengths(found.gradients[name])
        _check_finite(found.norms[name], f"the gradient of loss {name!r}", index)
    return eps.detach(), clean, found


def _gradients(
    values: Mapping[str, Tensor], leaf: Tensor, scales: Mapping[str, float], index: int
) -> Iterator[tuple[str, Tensor]]:
    """d loss / d leaf of every loss with a scale, each on its own. The sum over images keeps them
    independent.
    """
    wanted = [name for name, scale in scales.items() if scale]
    for name in wanted:
        if name not in values:
            raise D3S2Error(f"guidance scale for {name!r}, but the losses are {sorted(values)}.")
        _check_finite(values[name], f"loss {name!r}", index)
        ones = torch.ones_like(
            values[name]
        )  # a sum would have no gradient for a caller under no_grad
        yield (
            name,
            torch.autograd.grad(values[name], leaf, ones, retain_graph=name != wanted[-1])[0],
        )


def _velocity(
    generator: LayoutGenerator,
    x: Tensor,
    t: int,
    layout: Tensor | None,
    classes: Tensor | None,
    w: float,
) -> Tensor:
    """Classifier-free guidance; w = 1 costs one evaluation. In x's precision, whatever the
    network's.
    """
    at = torch.tensor(t, device=x.device)
    inputs = x.to(getattr(generator.unet, "dtype", x.dtype))
    conditioned = generator.unet(inputs, at, layout, classes).to(x.dtype)
    if w == 1.0:
        return conditioned
    free = generator.unet(inputs, at, *generator.unconditioned(layout)).to(x.dtype)
    return free + w * (conditioned - free)


def _combine(
    gradients: Mapping[str, Tensor], eps: Tensor, a_t: float, guidance: Guidance
) -> Tensor:
    """float[B, D, h, w], what is added to eps."""
    total = torch.zeros_like(eps)
    for name, gradient in gradients.items():
        step = gradient * _ratio(eps, gradient) if guidance.mode == "norm" else gradient
        total = total + guidance.scales[name] * math.sqrt(1 - a_t) * step
    if guidance.clip_norm:
        total = total * (guidance.clip_norm * _ratio(eps, total)).clamp(max=1)
    return total


def _lengths(images: Tensor) -> Tensor:
    """float[B], the Euclidean length of each image."""
    return images.flatten(1).norm(dim=1)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """float[B, 1, 1, 1], |a| / |b| image by image."""
    return (_lengths(a) / _lengths(b).clamp(min=1e-12))[:, None, None, None]


def _check_finite(values: Tensor, what: str, index: int) -> None:
    bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
    if bad:
        raise D3S2Error(
            f"{what} is not finite at step {index} for image {bad[0]} of the batch: lower its "
            "guidance scale, "
            "or start the window later."
        )


def finish(steps: Iterator[Step]) -> Step:
    """Run a sampler to its end and return the last step."""
    return deque(steps, maxlen=1).pop()  # a list of all steps would hold all their images
