"""Layout-to-image with Stable Diffusion and a ControlNet for segmentation, behind the interface of
`LayoutGenerator`.

A mask becomes two conditions: a picture in the colours that the ControlNet was trained on
(`control_colors`; ids are painted, colours never decoded), and a prompt that names its classes, the
largest first. The sampler's loop, the losses and the guidance are those of the embedded generator;
only, it works on latents z, and the losses see Dec(z / scaling factor), through which their
gradients flow. diffusers' own pipeline runs under no_grad and could not do that.

The networks may run in half precision; latents, noise schedule, losses and gradients outside of
them are float32. That this generator is the one of D3S2 is not known: the paper's abstract names
none. All defaults are our choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import IGNORE
from d3s2.models.generator import DiffusionSchedule, LayoutGenerator
from d3s2.models.hub import MODEL_FILES, Source, locate
from d3s2.models.prompts import Prompts

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
VAE_MODES = ("whole", "slicing", "tiling")
NEGATIVE = "cartoon, painting, illustration, blurry, deformed, text, watermark"
_PARTS = {
    "unet": MODEL_FILES,
    "vae": MODEL_FILES,
    "text_encoder": MODEL_FILES,
    "tokenizer": ("vocab.json", "merges.txt", "tokenizer_config.json"),
    "scheduler": ("scheduler_config.json",),
}
_HALF_GAIN = 2.0**14
"""What gradients are multiplied with where they pass through float16."""


@dataclass(frozen=True)
class DiffusionOptions:
    """Which models, and how they run.

    model, controlnet: folders, or names on the Hugging Face hub, in diffusers' format, at a
    revision ("" = main); download: fetch what is missing, False uses only what is on this machine;
    precision: of the networks; negative_prompt: what classifier-free guidance moves away from;
    control_scale: weight of the layout; checkpointing: compute again instead of keeping activations
    for gradients; vae: decode a batch at once ("whole"), image by image ("slicing"), or also in
    tiles ("tiling", which changes the images a little). Raises D3S2Error for another precision or
    vae.
    """

    model: str
    controlnet: str
    revision: str = ""
    controlnet_revision: str = ""
    download: bool = False
    precision: str = "bfloat16"
    negative_prompt: str = NEGATIVE
    control_scale: float = 1.0
    checkpointing: bool = True
    vae: str = "slicing"

    def __post_init__(self) -> None:
        for name, choices in (("precision", PRECISIONS), ("vae", VAE_MODES)):
            value = getattr(self, name)
            if value not in choices:
                raise D3S2Error(f"{name} is {value!r}: choose {', '.join(choices)}.")

    def sources(self) -> tuple[Source, Source]:
        """What must be on this machine: the diffusion model and the ControlNet."""
        model = Source(self.model, _PARTS, self.revision)
        control = Source(self.controlnet, {"": MODEL_FILES}, self.controlnet_revision)
        return model, control


class ControlledUNet(nn.Module):
    """U-Net and ControlNet as one network with the signature of `LayoutUNet`: it predicts v from
    latents.

    It has no `dtype`, so that the sampler gives it, and gets back, its own float32.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        controlnet: ControlNetModel,
        prompts: Prompts,
        scheduler: DDIMScheduler,
        colors: np.ndarray,
        control_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.controlnet = controlnet
        self.prompts = prompts
        self.control_scale = control_scale
        self.num_classes = len(colors)
        self.schedule = DiffusionSchedule(scheduler)
        table = np.zeros((256, 3), dtype=np.uint8)
        table[: len(colors)] = colors
        self.register_buffer("table", torch.from_numpy(table).float() / 255)

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
            layout: int64[B, H, W] with H = 8 h; None leaves the ControlNet out.
            classes: float[B, C] multi-hot; None, or -1 in a row, gives the negative prompt.
        """
        if classes is None:
            classes = torch.full((len(z), self.num_classes), -1.0, device=z.device)
        text = self.prompts(classes, layout)
        out = in_precision(partial(self._predict, t, text, layout), z, self.unet.dtype)
        return self.schedule.v(out, z, t)

    def _predict(self, t: Tensor, text: Tensor, layout: Tensor | None, z: Tensor) -> Tensor:
        """What the U-Net says of latents, with the ControlNet's hints where there is a layout; all
        in the U-Net's precision.
        """
        down = None
        middle = None
        if layout is not None:
            down, middle = self.controlnet(
                z,
                t,
                encoder_hidden_states=text,
                controlnet_cond=self.control_image(layout).to(z.dtype),
                conditioning_scale=self.control_scale,
                return_dict=False,
            )
        return self.unet(
            z,
            t,
            encoder_hidden_states=text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
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
    """A latent diffusion model, with the decoder from its latents to images."""

    bounded: ClassVar[bool] = False
    padded: ClassVar[bool] = False
    """Padding makes a CPU's bytes the same in every company; on a GPU they are not in any case, and
    it would cost.
    """

    unet: ControlledUNet
    scheduler: DDIMScheduler
    vae: AutoencoderKL

    @property
    def num_classes(self) -> int:
        """C; layouts hold 0 .. C-1 and 255."""
        return self.unet.num_classes

    def noise_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of the latents of an image of this size. Raises D3S2Error unless the networks'
        strides divide it.
        """
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        multiple = factor * 2 ** (len(self.unet.unet.config.block_out_channels) - 1)
        if height % multiple or width % multiple:
            raise D3S2Error(
                f"Images of {height}x{width} do not fit the diffusion model: both sides must be "
                f"multiples of {multiple}. Set image_size, for example "
                f"{max(1, height // multiple) * multiple}x{max(1, width // multiple) * multiple}."
            )
        return self.vae.config.latent_channels, height // factor, width // factor

    def decode(self, x: Tensor) -> Tensor:
        """Images float32[B, 3, H, W] of latents, differentiable; about in [-1, 1]."""
        return in_precision(self._decode, x, self.vae.dtype)

    def _decode(self, z: Tensor) -> Tensor:
        return self.vae.decode(z / self.vae.config.scaling_factor).sample

    def unconditioned(self, layout: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The layout with the negative prompt, as in diffusers' pipeline."""
        return layout, None

    def save(self, folder: Path) -> None:
        """Pretrained and unchanged, so there is nothing to save. Raises D3S2Error."""
        raise D3S2Error(
            f"A pretrained diffusion model is not copied to {folder}: name its folder instead."
        )


def load_stable_diffusion(
    options: DiffusionOptions, names: Sequence[str], colors: np.ndarray, device: str = "cpu"
) -> StableDiffusion:
    """Load the models, frozen, for classes with these names and control colours uint8[C, 3] (see
    `control_colors`).

    Raises D3S2Error for what is missing, half downloaded or pickled, with the command that fetches
    it.
    """
    from transformers import CLIPTextModel

    folder, control = (locate(source, options.download) for source in options.sources())
    network = partial(_load_network, kind=PRECISIONS[options.precision], device=device)
    tokenizer = _load_tokenizer(folder / "tokenizer")
    with _explained(DDIMScheduler, folder / "scheduler") as place:
        scheduler = DDIMScheduler.from_pretrained(place, local_files_only=True)
    encoder = network(CLIPTextModel, folder / "text_encoder")
    controlnet = network(ControlNetModel, control)
    unet = network(UNet2DConditionModel, folder / "unet")
    vae = network(AutoencoderKL, folder / "vae")
    _check_widths(options, unet, controlnet)
    if options.checkpointing:
        for part in (unet, controlnet, vae):
            part.enable_gradient_checkpointing()
    if options.vae != "whole":
        vae.enable_slicing()
    if options.vae == "tiling":
        vae.enable_tiling()
    controlled = ControlledUNet(
        unet=unet,
        controlnet=controlnet,
        prompts=Prompts(tokenizer, encoder, names, options.negative_prompt),
        scheduler=scheduler,
        colors=colors,
        control_scale=options.control_scale,
    )
    return StableDiffusion(controlled.to(device).eval(), scheduler, vae)


def _check_widths(options: DiffusionOptions, unet: Any, controlnet: Any) -> None:
    """Raise D3S2Error for a ControlNet that reads other text embeddings than the model."""
    width = unet.config.cross_attention_dim
    other = controlnet.config.cross_attention_dim
    if width != other:
        raise D3S2Error(
            f"The ControlNet {options.controlnet} was made for another diffusion model than "
            f"{options.model} (text width {other}, not {width}): take one that fits it."
        )


def _load_tokenizer(folder: Path) -> Any:
    """The tokenizer; it has no weights, and `use_safetensors` says so to whoever searches."""
    from transformers import CLIPTokenizer

    with _explained(CLIPTokenizer, folder) as place:
        return CLIPTokenizer.from_pretrained(place, local_files_only=True, use_safetensors=True)


def _load_network(cls: type, place: Path, kind: torch.dtype, device: str) -> Any:
    """A network with the weights of this folder, frozen; pickled ones are refused."""
    with _explained(cls, place):
        network = cls.from_pretrained(
            place, local_files_only=True, use_safetensors=True, torch_dtype=kind
        )
    return network.requires_grad_(False).eval().to(device)


@contextmanager
def _explained(cls: type, place: Path) -> Iterator[Path]:
    """A sentence for what cannot be loaded; remarks about optional packages are kept from a
    notebook's output.
    """
    try:
        with redirect_stderr(StringIO()):
            yield place
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise D3S2Error(
            f"{place} cannot be loaded as {cls.__name__}: {reason}. Fetch the model again."
        ) from error
