"""Layout-to-image with Stable Diffusion and a ControlNet for segmentation, behind the interface of
`LayoutGenerator`.

A mask becomes two conditions: a picture in the colours that the ControlNet was trained on
(`control_colors`; ids are painted, colours never decoded), and a prompt that names its classes, the
largest first. Instead of the picture, or with it, the layout can say which words a pixel attends to
(`rectified`). The sampler's loop, the losses and the guidance are those of the embedded generator;
only, it works on latents z, and the losses see Dec(z / scaling factor), through which their
gradients flow. diffusers' own pipeline runs under no_grad and could not do that.

The networks may run in half precision; latents, noise schedule, losses and gradients outside of
them are float32, and so is the decoder that makes the finished image. That this generator is the
one of D3S2 is not known: the paper's abstract names none. All defaults are our choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import IGNORE
from d3s2.models.diffusion_parts import PRECISIONS as PRECISIONS
from d3s2.models.diffusion_parts import DiffusionOptions, Loader, check_widths
from d3s2.models.generator import DiffusionSchedule, LayoutGenerator
from d3s2.models.hub import locate
from d3s2.models.prompts import Prompts
from d3s2.models.rectified import layout_masks, rectify

_HALF_GAIN = 2.0**14
"""What gradients are multiplied with where they pass through float16."""


class ControlledUNet(nn.Module):
    """U-Net and ControlNet as one network with the signature of `LayoutUNet`: it predicts v from
    latents.

    It has no `dtype`, so that the sampler gives it, and gets back, its own float32. With
    `attends` the layout says which words a pixel attends to, with or without a ControlNet.
    """

    def __init__(
        self,
        unet: nn.Module,
        controlnet: nn.Module | None,
        prompts: Prompts,
        scheduler: Any,
        colors: np.ndarray,
        control_scale: float = 1.0,
        attends: bool = False,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.controlnet = controlnet
        self.prompts = prompts
        self.control_scale = control_scale
        self.num_classes = len(colors)
        self.schedule = self.schedule_of(scheduler)
        self.attends = attends
        if self.attends:
            rectify(unet)
        table = np.zeros((256, 3), dtype=np.uint8)
        table[: len(colors)] = colors
        self.register_buffer("table", torch.from_numpy(table).float() / 255)

    schedule_of: ClassVar[Callable[[Any], Any]] = DiffusionSchedule
    """What a scheduler in diffusers' format says of noise levels and the network's answer."""

    def control_image(self, layout: Tensor) -> Tensor:
        """float[B, 3, H, W] in [0, 1]: int64[B, H, W] painted; 255, and -1 where a layout was
        dropped, are black.
        """
        return self.table[layout.masked_fill(layout < 0, IGNORE)].permute(0, 3, 1, 2)

    def forward(
        self, z: Tensor, t: Tensor, layout: Tensor | None, classes: Tensor | None
    ) -> Tensor:
        """Predict v, float32[B, 4, h, w].

        Args:
            z: float32[B, 4, h, w], noisy latents; t: a scalar, timestep 0 .. 999.
            layout: int64[B, H, W] with H = 8 h; None leaves the layout out.
            classes: float[B, C] multi-hot; None, or -1 in a row, gives the negative prompt.
        """
        if classes is None:
            classes = torch.full((len(z), self.num_classes), -1.0, device=z.device)
        text = self.conditions(z, layout, classes)
        time = t.item()  # before the networks: where memory is only counted it is lost after them
        inputs = self.schedule.unscaled(z, time)
        out = in_precision(partial(self.predict, t, text, layout), inputs, self.unet.dtype)
        return self.schedule.v(out, z, time)

    def conditions(self, z: Tensor, layout: Tensor | None, classes: Tensor) -> dict[str, Any]:
        """What the networks are told besides latents and timestep, by diffusers' names."""
        told: dict[str, Any] = {"encoder_hidden_states": self.prompts(classes, layout)}
        if self.attends and layout is not None:
            owners = self.prompts.owners(classes, layout)
            levels = len(self.unet.config.block_out_channels)
            masks = layout_masks(layout, owners, tuple(z.shape[2:]), levels)
            told["cross_attention_kwargs"] = {"layout_masks": masks}
        return told

    def predict(self, t: Tensor, told: dict[str, Any], layout: Tensor | None, z: Tensor) -> Tensor:
        """What the U-Net says of latents, with the ControlNet's hints where there is a layout; all
        in the U-Net's precision.
        """
        down = None
        middle = None
        if layout is not None and self.controlnet is not None:
            shared = {name: told[name] for name in told if name != "cross_attention_kwargs"}
            down, middle = self.controlnet(
                z,
                t,
                controlnet_cond=self.control_image(layout).to(z.dtype),
                conditioning_scale=self.control_scale,
                return_dict=False,
                **shared,
            )
        return self.unet(
            z,
            t,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            **told,
        ).sample


def in_precision(network: Callable[[Tensor], Tensor], x: Tensor, kind: torch.dtype) -> Tensor:
    """network(x), computed in `kind` and answered in x's precision, with gradients that survive
    float16.

    A loss's gradient of one pixel is about 1e-6, where float16 has few digits left: it is made
    larger for the way back.
    """
    goes_back = x.requires_grad and torch.is_grad_enabled()
    if kind is not torch.float16 or not goes_back:
        return network(x.to(kind)).to(x.dtype)
    entry = x * 1.0
    entry.register_hook(lambda gradient: gradient / _HALF_GAIN)
    out = network(entry.to(kind)).to(x.dtype)
    out.register_hook(lambda gradient: gradient * _HALF_GAIN)
    return out


@dataclass
class StableDiffusion(LayoutGenerator):
    """A latent diffusion model, with the decoder from its latents to images.

    exact: the autoencoder in float32 for finished images and those to begin at, where `vae` has
    another precision; None = `vae`.
    """

    bounded: ClassVar[bool] = False
    padded: ClassVar[bool] = False
    """Padding makes a CPU's bytes the same in every company; on a GPU they are not in any case, and
    it would cost.
    """
    one_batch: ClassVar[bool] = True

    unet: ControlledUNet
    scheduler: Any
    vae: AutoencoderKL
    exact: AutoencoderKL | None = None

    @property
    def schedule(self) -> Any:
        """The noise levels that its runs go through."""
        return self.unet.schedule

    @property
    def num_classes(self) -> int:
        """C; layouts hold 0 .. C-1 and 255."""
        return self.unet.num_classes

    @property
    def strides(self) -> tuple[int, int]:
        """Pixels to a latent, and latents to a cell of the network's coarsest grid."""
        vae, unet = self.vae.config, self.unet.unet.config
        return 2 ** (len(vae.block_out_channels) - 1), 2 ** (len(unet.block_out_channels) - 1)

    def noise_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of the latents of an image of this size. Raises D3S2Error unless the networks'
        strides divide it.
        """
        factor, cells = self.strides
        multiple = factor * cells
        if height % multiple or width % multiple:
            raise D3S2Error(
                f"Images of {height}x{width} do not fit the diffusion model: both sides must be "
                f"multiples of {multiple}. Set image_size, for example "
                f"{max(1, height // multiple) * multiple}x{max(1, width // multiple) * multiple}."
            )
        return self.vae.config.latent_channels, height // factor, width // factor

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents float32 of images float32[B, 3, H, W] in [-1, 1]: the encoder's mean, no draw, in
        float32 where a decoder in float32 is there.
        """
        vae = self.vae if self.exact is None else self.exact
        return in_precision(partial(_encoded, vae), images, vae.dtype)

    def decode(self, x: Tensor) -> Tensor:
        """Images float32[B, 3, H, W] of latents, differentiable; about in [-1, 1]."""
        return in_precision(partial(_decoded, self.vae), x, self.vae.dtype)

    def render(self, x: Tensor) -> Tensor:
        """The same, decoded in float32 whatever the networks' precision."""
        vae = self.vae if self.exact is None else self.exact
        return in_precision(partial(_decoded, vae), x, vae.dtype)

    def unconditioned(self, layout: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The layout with the negative prompt, as in diffusers' pipeline."""
        return layout, None

    def save(self, folder: Path) -> None:
        """Pretrained and unchanged, so there is nothing to save. Raises D3S2Error."""
        raise D3S2Error(
            f"A pretrained diffusion model is not copied to {folder}: name its folder instead."
        )


def _encoded(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """The mean of what an encoder makes of images; the inverse of `_decoded`'s shift and scale."""
    latents = vae.encode(images).latent_dist.mode()
    return (latents - (vae.config.shift_factor or 0)) * vae.config.scaling_factor


def _decoded(vae: AutoencoderKL, z: Tensor) -> Tensor:
    """What a decoder makes of latents; some models' latents are also shifted."""
    z = z / vae.config.scaling_factor
    if vae.config.shift_factor:
        z = z + vae.config.shift_factor
    return vae.decode(z).sample


def load_stable_diffusion(
    options: DiffusionOptions, names: Sequence[str], colors: np.ndarray, device: str = "cpu"
) -> StableDiffusion:
    """Load the models, frozen, for classes with these names and control colours uint8[C, 3] (see
    `control_colors`).

    Raises D3S2Error for what is missing, half downloaded or pickled, with the command that fetches
    it.
    """
    from transformers import CLIPTextModel

    folder, *control = (locate(source, options.download) for source in options.sources())
    loaded = Loader(options, device)
    tokenizer = loaded.tokenizer(folder / "tokenizer")
    encoder = loaded.network(CLIPTextModel, folder / "text_encoder")
    scheduler = loaded.scheduler(DDIMScheduler, folder / "scheduler")
    unet = loaded.network(UNet2DConditionModel, folder / "unet")
    controlnet = loaded.network(ControlNetModel, *control) if control else None
    if controlnet is not None:
        check_widths(options, unet, controlnet, "cross_attention_dim")
    vae, exact = loaded.decoders(folder / "vae")
    loaded.save_memory(unet, controlnet, vae)
    controlled = ControlledUNet(
        unet=unet,
        controlnet=controlnet,
        prompts=Prompts(tokenizer, encoder, names, options.negative_prompt),
        scheduler=scheduler,
        colors=colors,
        control_scale=options.control_scale,
        attends=options.layout_control != "controlnet",
    )
    return StableDiffusion(controlled.to(device).eval(), scheduler, vae, exact)
