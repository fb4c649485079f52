"""The sampler against its text: every step of a run computed again with numpy, whatever the
settings, and where the results lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from d3s2.guidance.sampler import (
    Denoiser,
    Guidance,
    NoiseStream,
    _noised_again,
    _step,
    finish,
    initial_noise,
    predict,
    sample,
)
from d3s2.models.generator import LayoutGenerator, Timestep, noise_schedule

SCHEDULE = noise_schedule()
ALPHA = SCHEDULE.alphas_cumprod.tolist()
SHAPE = (3, 4, 6)
SEEDS = [5, 6]
LAYOUT = torch.arange(48).reshape(2, 4, 6) % 3
CLASSES = torch.tensor([[0.3], [-0.2]], dtype=torch.float64)


class Unbounded(LayoutGenerator):
    """One with a decoder, whose clean images the sampler leaves as they are."""

    bounded = False

    def decode(self, x):
        return 1.5 * x


def network(x, t, layout, classes):
    """v: linear in x, and another for each layout, class set and timestep."""
    v = 0.3 * x.roll(1, -1) - 2e-4 * t
    if layout is not None:
        v = v + 0.4 * layout[:, None]
    if classes is not None:
        v = v + classes[:, :, None, None]
    return v


def losses(images: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "bright": (images - 0.5).square().flatten(1).mean(1),
        "red": images[:, 0].flatten(1).mean(1),
        "measured": images.flatten(1).sum(1),
    }


# ---------------------------------------------------------------------- the same, out of the text
def lengths(values: np.ndarray) -> np.ndarray:
    return np.sqrt((values**2).sum((1, 2, 3), keepdims=True))


def reference(
    guidance: Guidance, steps: int, clip: bool, guided: bool, gain: float, draw: Callable
) -> Iterator[SimpleNamespace]:
    """The steps of a run; gain: of the decoder, 1 where clean images are bounded."""
    x = draw()
    held = {}
    first, last = (round(share * steps) for share in guidance.window)
    stride = 1000 // steps
    steering = {name: scale for name, scale in guidance.scales.items() if scale}
    for index in range(steps):
        t = (steps - 1 - index) * stride
        a = ALPHA[t]
        after = ALPHA[t - stride] if index < steps - 1 else 1.0
        inside = guided and first <= index < last and bool(steering)
        for repeat in range(guidance.recurrence if inside else 1):
            if repeat:
                x = math.sqrt(a / after) * x + math.sqrt(1 - a / after) * draw()
            common = 0.3 * np.roll(x, 1, -1) - 2e-4 * t
            shown = 0.4 * LAYOUT.numpy()[:, None] + CLASSES.numpy()[:, :, None, None]
            v = common + guidance.cfg_scale * shown
            x0 = math.sqrt(a) * x - math.sqrt(1 - a) * v
            eps = math.sqrt(a) * v + math.sqrt(1 - a) * x
            found = SimpleNamespace(index=index, t=t, repeat=repeat, losses={}, norms={})
            found.clean = np.clip(x0, -1, 1) if gain == 1 else x0
            if inside and (index - first) % guidance.every == 0:
                image = np.clip(gain * x0, -1, 1)
                found.losses = {
                    "bright": ((image - 0.5) ** 2).mean((1, 2, 3)),
                    "red": image[:, 0].mean((1, 2)),
                    "measured": image.sum((1, 2, 3)),
                }
                slopes = {"bright": 2 * (image - 0.5) / image[0].size, "red": np.zeros_like(x)}
                slopes["red"][:, 0] = 1 / image[0, 0].size
                held = {}
                for name in steering:
                    slope = gain * slopes[name] * (np.abs(gain * x0) <= 1)
                    if guidance.jacobian == "detach":
                        held[name] = slope / math.sqrt(a)
                    else:
                        back = 0.3 * np.roll(slope, -1, -1)
                        held[name] = math.sqrt(a) * slope - math.sqrt(1 - a) * back
                    found.norms[name] = lengths(held[name])[:, 0, 0, 0]
            found.gradient = None
            if inside:
                added = 0.0
                for name, scale in steering.items():
                    unit = 1.0
                    if guidance.mode == "norm":  # where there is no gradient, nothing is added
                        length = lengths(held[name])
                        unit = lengths(eps) / np.where(length > 0, length, np.inf)
                    added = added + scale * math.sqrt(1 - a) * unit * held[name]
                if guidance.clip_norm:
                    most = guidance.clip_norm * lengths(eps)
                    added = added * np.minimum(1, most / np.maximum(lengths(added), 1e-300))
                found.gradient = added
                eps = eps + added
            clean = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
            if clip and gain == 1:
                clean = np.clip(clean, -1, 1)
                eps = (x - math.sqrt(a) * clean) / math.sqrt(1 - a)
            variance = guidance.eta**2 * (1 - after) / (1 - a) * (1 - a / after)
            x = math.sqrt(after) * clean + math.sqrt(max(0.0, 1 - after - variance)) * eps
            if variance > 0:
                x = x + math.sqrt(variance) * draw()
            found.x = x
            yield found


WHITE = {
    "scales": {"bright": -0.2, "red": 0.1},
    "window": (0.0, 1.0),
    "mode": "norm",
    "jacobian": "detach",
    "cfg_scale": 1.0,
    "eta": 0.0,
    "recurrence": 1,
    "clip_norm": 0.0,
    "every": 1,
    "steps": 10,
    "clip": False,
    "guided": True,
    "latent": True,
}
"""Values that drive an image to where all of it is clipped, so that a loss has no gradient."""


@example(**WHITE)
@example(**WHITE | {"clip_norm": 0.3})
@settings(max_examples=60, deadline=None)
@given(
    scales=st.fixed_dictionaries(
        {"bright": st.sampled_from([0.0, 0.3, -0.2])},
        optional={"red": st.sampled_from([0.0, 0.1])},
    ),
    window=st.sampled_from([(0.0, 1.0), (0.2, 0.8), (0.4, 0.4), (0.25, 0.7)]),
    mode=st.sampled_from(["norm", "raw"]),
    jacobian=st.sampled_from(["detach", "full"]),
    cfg_scale=st.sampled_from([1.0, 0.0, 2.5]),
    eta=st.sampled_from([0.0, 0.5, 1.0]),
    recurrence=st.integers(1, 3),
    clip_norm=st.sampled_from([0.0, 0.05, 0.3]),
    every=st.integers(1, 3),
    steps=st.sampled_from([4, 10]),
    clip=st.booleans(),
    guided=st.booleans(),
    latent=st.booleans(),
)
def test_every_step_of_a_run_is_what_the_text_says(steps, clip, guided, latent, **options):
    guidance = Guidance(**options)
    generator = (Unbounded if latent else LayoutGenerator)(network, SCHEDULE)
    ours, theirs = (NoiseStream(SEEDS, SHAPE) for _ in range(2))
    expected = reference(
        guidance, steps, clip, guided, 1.5 if latent else 1.0, lambda: theirs().double().numpy()
    )
    found = sample(
        generator,
        ours().double(),
        LAYOUT,
        CLASSES,
        steps,
        guidance,
        losses if guided else None,
        clip=clip,
        fresh=ours,
    )
    for step, right in zip(found, expected, strict=True):
        assert (step.index, step.t, step.repeat) == (right.index, right.t, right.repeat)
        assert set(step.losses) == set(right.losses)
        assert set(step.gradient_norms) == set(right.norms)
        assert (step.gradient is None) == (right.gradient is None)
        pairs = [(step.x, right.x), (step.clean, right.clean)]
        pairs += [(step.losses[name], right.losses[name]) for name in right.losses]
        pairs += [(step.gradient_norms[name], right.norms[name]) for name in right.norms]
        if right.gradient is not None:
            pairs.append((step.gradient, right.gradient))
        for one, other in pairs:
            assert not one.requires_grad
            np.testing.assert_allclose(one.numpy(), other, rtol=1e-6, atol=1e-6)
        gain = 1.5 if latent else 1.0
        np.testing.assert_allclose(step.image.numpy(), gain * right.x, rtol=1e-6, atol=1e-6)
        shown = np.clip(gain * right.clean, -1, 1)
        np.testing.assert_allclose(step.x0.numpy(), shown, rtol=1e-6, atol=1e-6)


def test_the_settings_left_out_are_these():
    """Half a hundred steps, no guidance, clamped; steered from a tenth to four fifths, by the
    noise's length, without the generator's backward pass.
    """
    generator = LayoutGenerator(network, SCHEDULE)
    noise = initial_noise(SEEDS, SHAPE).double()
    plain = list(sample(generator, noise, LAYOUT, CLASSES))
    same = sample(generator, noise, LAYOUT, CLASSES, 50, Guidance(), None, clip=True, fresh=None)
    assert len(plain) == 50 and torch.equal(plain[-1].x, finish(same).x)
    loose = finish(sample(generator, noise, LAYOUT, CLASSES, clip=False)).x
    assert loose.abs().max() > 1 >= plain[-1].x.abs().max()
    spelled = Guidance({"bright": 0.1}, (0.1, 0.8), "norm", "detach", 1.0, 0.0, 1, 0.0, 1)
    assert Guidance({"bright": 0.1}) == spelled and Guidance().scales == {}


def test_a_prediction_without_guidance_asks_what_has_no_scale_but_takes_no_gradient():
    at = Timestep(0, 500, ALPHA[500], ALPHA[400])
    denoiser = Denoiser(LayoutGenerator(network, SCHEDULE))
    found = predict(denoiser, initial_noise(SEEDS, SHAPE).double(), at, losses=losses)
    assert set(found.losses) == {"bright", "red", "measured"} and not found.gradients
    assert predict(denoiser, initial_noise(SEEDS, SHAPE).double(), at).losses == {}


# --------------------------------------------------------------------------------- where it lies
class Where(torch.nn.Module):
    """A network that answers from the device, and in the precision, that it is told to expect."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype, self.seen = dtype, []

    def forward(self, x, t, layout, classes):
        self.seen.append((x.dtype, x.device.type, t.device.type, t.dtype, t.ndim))
        return x.roll(1, -1)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("inner", [torch.bfloat16, torch.float64])
def test_the_network_gets_its_own_precision_and_the_run_keeps_the_noises_and_its_device(
    device, inner
):
    unet = Where(inner)
    generator = LayoutGenerator(unet, SCHEDULE)
    noise = torch.zeros(2, *SHAPE, device=device)
    layout = LAYOUT.to(device)
    guidance = Guidance(eta=1.0, cfg_scale=2.0)
    stream = NoiseStream(SEEDS, SHAPE)  # always on the CPU
    last = finish(sample(generator, noise, layout, None, 5, guidance, fresh=stream))
    assert last.x.dtype == torch.float32 and last.x.device.type == device
    assert set(unet.seen) == {(inner, device, device, torch.int64, 0)} and len(unet.seen) == 10
    at = Timestep(1, 500, ALPHA[500], ALPHA[400])
    assert _noised_again(noise, at, stream).device.type == device
    assert _step(noise, noise, at, 1.0, True, stream).device.type == device


def test_each_draw_of_a_stream_is_the_generators_own_and_the_first_is_where_a_run_starts():
    stream = NoiseStream(SEEDS, SHAPE)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    for k in range(3):
        drawn = torch.stack([torch.randn(SHAPE, generator=own) for own in generators])
        found = stream()
        assert torch.equal(found, drawn) and found.dtype == torch.float32
        if k == 0:
            assert torch.equal(initial_noise(SEEDS, SHAPE), drawn)
