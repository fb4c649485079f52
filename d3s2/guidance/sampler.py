"""Guided sampling: the DDIM loop written out, with losses on the predicted clean image.

Notation: x_t noisy image, a_t = alpha_bar_t. From the network's v the loop takes
    x0_hat = sqrt(a_t) x_t - sqrt(1 - a_t) v,      eps = sqrt(a_t) v + sqrt(1 - a_t) x_t,
asks the proxy what it thinks of x0_hat, and adds the losses' gradient to the noise prediction (the
form of Universal Guidance, Bansal et al. 2023, and UniDD):
    eps_hat = eps + s(t) g,   g = d loss / d x_t,   s(t) = lambda sqrt(1 - a_t)   (mode = "raw").
In "norm" mode each loss's gradient is first scaled to the length of eps, image by image, so that
lambda is a share of the step and does not depend on a loss's units:
    eps_hat = eps + sqrt(1 - a_t) sum_k lambda_k |eps| g_k / |g_k|.
Adding the gradient to eps moves x0_hat by -sqrt((1 - a_t) / a_t) times it: downhill. Where the
generator works on latents, x_t and x0_hat are latents and the losses see the decoded image, so g
goes through the decoder too.

`jacobian="full"` differentiates through the generator; "detach" treats eps as a constant, so that
g = (d loss / d x0_hat) / sqrt(a_t): no backward pass through the generator. Which form the paper
uses is unknown to us.

A step goes from t to the next timestep s as in DDIM (Song et al. 2021), whose eta runs from 0,
deterministic, to 1, as noisy as DDPM:
    x_s = sqrt(a_s) x0 + sqrt(1 - a_s - sigma^2) eps + sigma z,
    sigma^2 = eta^2 (1 - a_s) / (1 - a_t) (1 - a_t / a_s).
Recurrence (time travel; Universal Guidance, FreeDoM) takes a guided step R times, noising again in
between:
    x_t = sqrt(a_t / a_s) x_s + sqrt(1 - a_t / a_s) z.

A model that mixes x_t = alpha_t x0 + sigma_t eps otherwise, as flow matching does (alpha_t = 1 - s,
sigma_t = s), goes through the same loop as x_t / r, r^2 = alpha_t^2 + sigma_t^2, where a_t =
(alpha_t / r)^2; see `models.flow`. The rules above are then those of its own x_t. eps_hat = eps +
lambda sigma_t d loss / d x_t tilts the score, -eps / sigma_t, by the loss, and is the same for
every r: sigma_t becomes shorter as the gradient becomes longer. "detach" divides by alpha_t. The
step with eta = 0, x_s = alpha_s x0 + sigma_s eps, is Euler's along the velocity eps - x0. In pure
noise, alpha_t = 0, no eps moves x0_hat, so guidance cannot begin there.

A run begins in pure noise, or at an image (img2img; SDEdit, Meng et al. 2022): noised to the level
of one of the run's steps, x_t = sqrt(a_t) x0 + sqrt(1 - a_t) eps, it goes on from there, by the
same steps. Their numbers and the window are those of the whole run, so that guidance acts at the
same noise levels wherever a run begins.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from d3s2.core.errors import D3S2Error
from d3s2.models.generator import LayoutGenerator, Timestep

Losses = Callable[[Tensor], Mapping[str, Tensor]]
"""The guidance losses: float[B, 3, H, W] images in [-1, 1] to {name: float[B]}, one number per
image, differentiable. One function for all, so that they can share one pass through the proxy.
"""

Nudge = Callable[[Tensor, Tensor, Timestep], Tensor]
"""(x after a step, x before it, the step) to the x that the run goes on with, float[B, D, h, w]: a
method's own move besides the step. It acts at every pass of the recurrence.
"""

Fresh = Callable[[], Tensor]
"""Noise of one run: float[B, D, h, w], another standard normal draw at each call."""


# ---------------------------------------------------------------------------------------- the parts
@dataclass(frozen=True)
class Guidance:
    """How the sampler is steered. All defaults are our choice.

    Args:
        scales: lambda of each loss by name; 0 or a missing name leaves the loss out of the
            gradient.
        window: guided part of the run as fractions of the steps, 0 = pure noise, 1 = finished
            image; of all steps, also where a run begins at a later one (see `Start`).
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
    Raises:
        D3S2Error: for a value outside of these.
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
                f"clip_norm is {self.clip_norm}: give a positive share of the noise's length, or 0 "
                "for no bound."
            )

    @property
    def random(self) -> bool:
        """Whether the run needs fresh noise on its way."""
        return self.eta > 0 or self.recurrence > 1

    def steers(self, index: int, steps: int) -> bool:
        """Whether step `index` of `steps` is guided: in the window, by a loss that has a scale."""
        first = round(self.window[0] * steps)
        last = round(self.window[1] * steps)
        return first <= index < last and any(self.scales.values())

    def asks(self, index: int, steps: int, begin: int = 0) -> bool:
        """Whether a guided step takes its gradient anew; the others use the last one again. begin:
        the first step that is run.
        """
        first = max(begin, round(self.window[0] * steps))
        return (index - first) % self.every == 0


@dataclass(frozen=True)
class Denoiser:
    """A generator together with what a run asks it for.

    Args:
        layout: int64[B, H, W], or None to drop it.
        classes: float[B, C], or None to drop it (see `LayoutUNet.forward`).
        cfg_scale: classifier-free guidance w (see `Guidance`).
    """

    generator: LayoutGenerator
    layout: Tensor | None = None
    classes: Tensor | None = None
    cfg_scale: float = 1.0

    def v(self, x: Tensor, t: float) -> Tensor:
        """The network's v of noisy images, by classifier-free guidance (Ho & Salimans 2021).

        w = 1 costs one evaluation, any other w two, or one of twice the size (see
        `LayoutGenerator.one_batch`).

        Args:
            x: float[B, D, h, w]; t: their timestep.
        Returns:
            float[B, D, h, w], in x's precision, whatever the network's.
        """
        if self.cfg_scale == 1.0:
            return self._ask(x, t, self.layout, self.classes)
        if self.generator.one_batch:
            conditioned, free = self._ask_both(x, t)
        else:
            conditioned = self._ask(x, t, self.layout, self.classes)
            free = self._ask(x, t, *self.generator.unconditioned(self.layout))
        return free + self.cfg_scale * (conditioned - free)

    def _ask_both(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """The conditioned and the free prediction, of one batch."""
        layout, classes = self.generator.unconditioned(self.layout)
        layouts, sets = _stacked(self.layout, layout), _stacked(self.classes, classes)
        conditioned, free = self._ask(torch.cat([x, x]), t, layouts, sets).chunk(2)
        return conditioned, free

    def _ask(self, x: Tensor, t: float, layout: Tensor | None, classes: Tensor | None) -> Tensor:
        unet = self.generator.unet
        inputs = x.to(getattr(unet, "dtype", x.dtype))
        return unet(inputs, torch.tensor(t, device=x.device), layout, classes).to(x.dtype)


def _stacked(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Two conditions as one batch; -1 everywhere where one of them is dropped, None for both."""
    given = first if second is None else second
    if given is None:
        return None
    parts = (torch.full_like(given, -1) if part is None else part for part in (first, second))
    return torch.cat(list(parts))


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
    """float32[B, *shape]: standard normal noise, one random generator per image, whatever the
    batch.
    """
    return NoiseStream(seeds, shape)()


# ------------------------------------------------------------------------------ where a run begins
class Start(NamedTuple):
    """An image that a run begins at, instead of pure noise."""

    clean: Tensor  # float[B, D, h, w]: an image as the generator works on it, see `encode`
    index: int  # of the first step that is run, from 0; the image is noised to its level


def first_step(steps: int, strength: float) -> int:
    """Index of the first of `steps` steps that is run at a strength in (0, 1]: the last round(
    strength * steps) are, and at least one.

    1 runs them all. The name and the meaning are those of diffusers' img2img pipelines, which cut
    off where this rounds.
    """
    return steps - max(1, round(strength * steps))


def noised(clean: Tensor, noise: Tensor, a_t: float) -> Tensor:
    """x_t = sqrt(a_t) clean + sqrt(1 - a_t) noise, of float[B, D, h, w] each."""
    return math.sqrt(a_t) * clean + math.sqrt(1 - a_t) * noise


# ----------------------------------------------------------------------------------------- the loop
@dataclass
class Step:
    """One step of the sampler, for drawing and for tests."""

    index: int  # which timestep of the whole run, from 0
    t: float
    x: Tensor  # float[B, D, h, w] after the step: pixels (3, H, W), or latents
    clean: Tensor  # float[B, D, h, w], the same, clean, as predicted before guidance
    # float[B] each; empty outside the window and where an old gradient is used again
    losses: dict[str, Tensor]
    gradient_norms: dict[str, Tensor]  # float[B] each, before normalisation
    gradient: Tensor | None  # float[B, D, h, w] added to eps, or None
    decode: Callable[[Tensor], Tensor]
    render: Callable[[Tensor], Tensor]  # the same for `image`, see `LayoutGenerator.render`
    repeat: int = 0  # which pass of the recurrence, from 0

    @property
    def image(self) -> Tensor:
        """float[B, 3, H, W]: `x` as an image, after the last step the result. Latents are decoded
        anew at each call.
        """
        with torch.no_grad():
            return self.render(self.x)

    @property
    def x0(self) -> Tensor:
        """float[B, 3, H, W] in [-1, 1]: `clean` as an image."""
        with torch.no_grad():
            return self.decode(self.clean).clamp(-1, 1)


def sample(
    generator: LayoutGenerator,
    noise: Tensor,
    layout: Tensor | None,
    classes: Tensor | None,
    steps: int = 50,
    guidance: Guidance = Guidance(),
    losses: Losses | None = None,
    *,
    clip: bool = True,
    fresh: Fresh | None = None,
    start: Start | None = None,
    nudge: Nudge | None = None,
) -> Iterator[Step]:
    """Sample from `noise` and yield every step; the last step's `image` is the result.

    Args:
        noise: float[B, D, h, w], of the generator's `noise_shape`.
        layout: int64[B, H, W]; classes: float[B, C] (see `LayoutUNet.forward`).
        losses: see `Losses`; those without a scale are measured in the window but do not steer.
        clip: keep the predicted clean image in [-1, 1], the noise with it; latents never are.
        fresh: noise for eta > 0 and recurrence > 1, shaped as `noise`, at each call: a
            `NoiseStream` that `noise` came from.
        start: where to begin; None = pure noise and the first step. nudge: see `Nudge`.
    Raises:
        D3S2Error: for steps that do not divide the schedule, a start at none of them, a scale for a
            loss that there is not, a loss that is not finite (naming loss, step and image),
            guidance where a flow model's run begins, and a stochastic run without `fresh`.
    """
    _check_fresh(guidance, fresh)
    denoiser = Denoiser(generator, layout, classes, guidance.cfg_scale)
    clip = clip and generator.bounded
    x, levels = _begun(noise, generator.schedule.steps(steps), start)
    held: dict[str, Tensor] = {}  # the gradients last taken
    for at in levels:
        guided = losses is not None and guidance.steers(at.index, steps)
        _check_level(at, guided)
        asked = losses if guided and guidance.asks(at.index, steps, levels[0].index) else None
        for repeat in range(guidance.recurrence if guided else 1):
            if repeat:
                x = _noised_again(x, at, fresh)
            found = predict(denoiser, x, at, guidance, asked)
            if asked is not None:
                held = found.gradients
            gradient = _combine(held, found.eps, at.a_t, guidance) if guided else None
            eps = found.eps if gradient is None else found.eps + gradient
            after = _step(x, eps, at, guidance.eta, clip, fresh, None if at.a_t else found.clean)
            x = nudge(after, x, at) if nudge else after
            yield Step(
                index=at.index,
                t=at.t,
                x=x,
                clean=found.clean,
                losses=found.losses,
                gradient_norms=found.norms,
                gradient=gradient,
                decode=generator.decode,
                render=generator.render,
                repeat=repeat,
            )


def finish(steps: Iterator[Step]) -> Step:
    """Run a sampler to its end and return the last step."""
    return deque(steps, maxlen=1).pop()  # a list of all steps would hold all their images


def _begun(
    noise: Tensor, levels: Sequence[Timestep], start: Start | None
) -> tuple[Tensor, Sequence[Timestep]]:
    """Where a run begins, float[B, D, h, w], and the steps that it goes through."""
    if start is None:
        return noise, levels
    if not 0 <= start.index < len(levels):
        raise D3S2Error(
            f"The run begins at step {start.index}, but its steps are 0 to {len(levels) - 1}."
        )
    left = levels[start.index :]
    return noised(start.clean.to(noise), noise, left[0].a_t), left


def _check_fresh(guidance: Guidance, fresh: Fresh | None) -> None:
    """Raise D3S2Error for a stochastic run without noise."""
    if guidance.random and fresh is None:
        given = f"eta = {guidance.eta} and recurrence = {guidance.recurrence}"
        raise D3S2Error(f"{given} need fresh noise: give `fresh`, a NoiseStream.")


def _check_level(at: Timestep, guided: bool) -> None:
    """Raise D3S2Error for guidance where a_t = 0: there no eps moves the image."""
    if guided and not at.a_t:
        raise D3S2Error(
            f"Guidance begins at step {at.index}, where there is nothing but noise: start later, "
            "with a larger window_start."
        )


def _noised_again(x: Tensor, at: Timestep, fresh: Fresh) -> Tensor:
    """From x_s back to x_t, for another pass of the same step."""
    kept = at.a_t / at.a_next
    return math.sqrt(kept) * x + math.sqrt(1 - kept) * fresh().to(x)


def _step(
    x: Tensor,
    eps: Tensor,
    at: Timestep,
    eta: float,
    clip: bool,
    fresh: Fresh | None,
    clean: Tensor | None = None,
) -> Tensor:
    """From x_t to x_s with the noise prediction eps, to which the gradient was added.

    clean: the image predicted, where it does not follow from eps: in pure noise, a_t = 0.
    """
    if clean is None:
        clean = (x - math.sqrt(1 - at.a_t) * eps) / math.sqrt(at.a_t)
    if clip:
        clean = clean.clamp(-1, 1)
        # the noise that belongs to the clipped image
        eps = (x - math.sqrt(at.a_t) * clean) / math.sqrt(1 - at.a_t)
    variance = eta**2 * (1 - at.a_next) / (1 - at.a_t) * (1 - at.a_t / at.a_next)
    x = math.sqrt(at.a_next) * clean + math.sqrt(1 - at.a_next - variance) * eps
    if variance > 0:
        x = x + math.sqrt(variance) * fresh().to(x)
    return x


# -------------------------------------------------------------------------- prediction and gradient
@dataclass
class Prediction:
    """What one timestep says, all detached: the network, and where they are asked the losses."""

    eps: Tensor  # float[B, D, h, w], the noise predicted
    clean: Tensor  # float[B, D, h, w], x0_hat; in [-1, 1] where the generator is bounded
    losses: dict[str, Tensor] = field(default_factory=dict)  # float[B] each
    gradients: dict[str, Tensor] = field(default_factory=dict)  # d loss / d x_t, as eps
    norms: dict[str, Tensor] = field(default_factory=dict)  # float[B] each: their lengths


def predict(
    denoiser: Denoiser,
    x: Tensor,
    at: Timestep,
    guidance: Guidance = Guidance(),
    losses: Losses | None = None,
) -> Prediction:
    """What the network predicts of x float[B, D, h, w] at one timestep, and what the losses say.

    Of `guidance` it takes the Jacobian and which losses have a scale; of `at` t, a_t and, for its
    errors, the index. Raises D3S2Error for a scale without a loss, and for numbers not finite.
    """
    full = losses is not None and guidance.jacobian == "full"
    x = x.detach().requires_grad_(full)
    with torch.set_grad_enabled(full):
        v = denoiser.v(x, at.t)
        x0 = math.sqrt(at.a_t) * x - math.sqrt(1 - at.a_t) * v
        eps = math.sqrt(at.a_t) * v + math.sqrt(1 - at.a_t) * x
    clean = x0.detach()
    if denoiser.generator.bounded:
        clean = clean.clamp(-1, 1)
    found = Prediction(eps.detach(), clean)
    if losses is None:
        return found
    leaf = x if full else x0.detach().requires_grad_()
    factor = 1.0 if full else 1 / math.sqrt(at.a_t)
    with torch.enable_grad():
        values = losses(denoiser.generator.decode(x0 if full else leaf).clamp(-1, 1))
    found.losses = {name: value.detach() for name, value in values.items()}
    for name, gradient in _gradients(values, leaf, guidance.scales, at.index):
        found.gradients[name] = factor * gradient
        found.norms[name] = _lengths(found.gradients[name])
        _check_finite(found.norms[name], f"the gradient of loss {name!r}", at.index)
    return found


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
        # a sum would have no gradient for a caller under no_grad
        ones = torch.ones_like(values[name])
        more = name != wanted[-1]  # the graph is still needed
        yield name, torch.autograd.grad(values[name], leaf, ones, retain_graph=more)[0]


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
    """Raise D3S2Error, naming the first image, unless all of float[B] are finite."""
    bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
    if bad:
        raise D3S2Error(
            f"{what} is not finite at step {index} for image {bad[0]} of the batch: lower its "
            "guidance scale, or start the window later."
        )
