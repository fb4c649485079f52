"""Flow matching behind the interface of `LayoutGenerator`: its noise levels, what its network's
answer means, and Stable Diffusion 3 with a ControlNet, `generator=d3s2.models.flow:load`.

A flow model goes in a straight line from the image to the noise, x_s = (1 - s) x_0 + s eps, and its
network predicts the velocity u = eps - x_0 (Lipman et al. 2023; rectified flow, Liu et al. 2023).
Divided by c = sqrt((1 - s)^2 + s^2), its length for unit variances, x_s has the form in which all
generators here speak:
    x = x_s / c = sqrt(a) x_0 + sqrt(1 - a) eps,    a = (1 - s)^2 / c^2,
    v = sqrt(a) eps - sqrt(1 - a) x_0 = (1 - 2 s) x + c u.
The sampler's deterministic step from a to a' is then Euler's from s to s'. Guidance, time travel
and fresh noise are the sampler's own; a flow model's own pipelines have none of them.

Of the model's three text encoders the two small ones are read; where the third's words would stand
there are zeros, as in diffusers' own pipeline without it. Never run with the published weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3ControlNetModel,
    SD3Transformer2DModel,
)
from torch import Tensor
from torch.nn import functional as F

from d3s2.core.errors import D3S2Error
from d3s2.models.diffusion_parts import (
    MODEL_FILES,
    DiffusionOptions,
    Loader,
    check_widths,
    files_of_sources,
)
from d3s2.models.generator import Timestep, numbered
from d3s2.models.hub import locate
from d3s2.models.stable_diffusion import ControlledUNet, StableDiffusion
from d3s2.models.stable_diffusion_xl import XL_PARTS, PairedPrompts

FLOW_PARTS = {name: files for name, files in XL_PARTS.items() if name != "unet"}
FLOW_PARTS |= {"transformer": MODEL_FILES}
THIRD_ENCODERS_TOKENS = 256


# ------------------------------------------------------------------------------------ noise levels


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

    def s(self, t: float) -> float:
        """The noise's share at timestep t."""
        return float(t) / self.scheduler.config.num_train_timesteps

    def unscaled(self, x: Tensor, t: float) -> Tensor:
        """x_s, as the network knows it, of the sampler's x."""
        return length(self.s(t)) * x

    def v(self, said: Tensor, x: Tensor, t: float) -> Tensor:
        """v, of the velocity that the network said of `unscaled` x."""
        s = self.s(t)
        return (1 - 2 * s) * x + length(s) * said


# --------------------------------------------------------------------------------------- the model
class ControlledTransformer(ControlledUNet):
    """Transformer and ControlNet as one network; the layout's picture is encoded as an image is."""

    schedule_of: ClassVar[Any] = FlowSchedule
    vae: AutoencoderKL

    def conditions(self, z: Tensor, layout: Tensor | None, classes: Tensor) -> dict[str, Any]:
        """What the networks are told besides latents and timestep, by diffusers' names."""
        text = self.prompts(classes, layout)
        missing = self.unet.config.joint_attention_dim - text.shape[2]
        return {
            "encoder_hidden_states": F.pad(text, (0, missing, 0, THIRD_ENCODERS_TOKENS)),
            "pooled_projections": self.prompts.pooled(classes, layout),
        }

    def predict(self, t: Tensor, told: dict[str, Any], layout: Tensor | None, z: Tensor) -> Tensor:
        """The velocity, with the ControlNet's hints where there is a layout."""
        times = t.expand(len(z)).to(z.dtype)
        hints = None
        if layout is not None:
            pooled = told["pooled_projections"]
            zeros = self.controlnet.config.force_zeros_for_pooled_projection
            (hints,) = self.controlnet(
                z,
                timestep=times,
                controlnet_cond=self.control_latents(layout).to(z.dtype),
                conditioning_scale=self.control_scale,
                encoder_hidden_states=told["encoder_hidden_states"],
                pooled_projections=torch.zeros_like(pooled) if zeros else pooled,
                return_dict=False,
            )
        return self.unet(z, timestep=times, block_controlnet_hidden_states=hints, **told).sample

    @torch.no_grad()
    def control_latents(self, layout: Tensor) -> Tensor:
        """Latents of the layout's picture; ControlNets that are told no pooled text know them
        without the shift.
        """
        picture = (2 * self.control_image(layout) - 1).to(self.vae.dtype)
        latents = self.vae.encode(picture).latent_dist.mode()
        unshifted = self.controlnet.config.force_zeros_for_pooled_projection
        shift = 0 if unshifted else self.vae.config.shift_factor or 0
        return (latents - shift) * self.vae.config.scaling_factor


class FlowModel(StableDiffusion):
    """A latent flow matching model, with the decoder from its latents to images."""

    @property
    def strides(self) -> tuple[int, int]:
        """Pixels to a latent, and latents to one of the transformer's patches."""
        levels = len(self.vae.config.block_out_channels)
        return 2 ** (levels - 1), self.unet.unet.config.patch_size


def files(options: DiffusionOptions) -> list[Path]:
    """All that `load` reads. Raises D3S2Error for a model that is missing."""
    return files_of_sources(options.sources(FLOW_PARTS), options.download)


def load(
    options: DiffusionOptions, names: Sequence[str], colors: np.ndarray, device: str = "cpu"
) -> FlowModel:
    """As `stable_diffusion.load_stable_diffusion`; its layouts enter by the ControlNet alone."""
    from transformers import CLIPTextModelWithProjection

    if options.layout_control != "controlnet":
        raise D3S2Error(
            f"layout_control is {options.layout_control!r}, but this model's attention mixes words "
            "and pixels, and knows the ControlNet alone: take 'controlnet'."
        )
    folder, control = (locate(one, options.download) for one in options.sources(FLOW_PARTS))
    loaded = Loader(options, device)
    tokenizers = [loaded.tokenizer(folder / f"tokenizer{number}") for number in ("", "_2")]
    encoders = [
        loaded.network(CLIPTextModelWithProjection, folder / f"text_encoder{number}")
        for number in ("", "_2")
    ]
    scheduler = loaded.scheduler(FlowMatchEulerDiscreteScheduler, folder / "scheduler")
    transformer = loaded.network(SD3Transformer2DModel, folder / "transformer")
    controlnet = loaded.network(SD3ControlNetModel, control)
    check_widths(options, transformer, controlnet, "joint_attention_dim")
    vae, exact = loaded.decoders(folder / "vae")
    loaded.save_memory(transformer, controlnet, vae)
    controlled = ControlledTransformer(
        unet=transformer,
        controlnet=controlnet,
        prompts=PairedPrompts(tokenizers, encoders, names, options.negative_prompt),
        scheduler=scheduler,
        colors=colors,
        control_scale=options.control_scale,
    )
    controlled.vae = vae
    return FlowModel(controlled.to(device).eval(), scheduler, vae, exact)
