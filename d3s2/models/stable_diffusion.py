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

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import IGNORE
from d3s2.models.generator import LayoutGenerator
from d3s2.models.hub import MODEL_FILES, Source, locate

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
VAE_MODES = ("whole", "slicing", "tiling")
NEGATIVE = "cartoon, painting, illustration, blurry, deformed, text, watermark"
PREFIX = "a photo of "
_PARTS = {
    "unet": MODEL_FILES,
    "vae": MODEL_FILES,
    "text_encoder": MODEL_FILES,
    "tokenizer": ("vocab.json", "merges.txt"),
    "scheduler": ("scheduler_config.json",),
}
_HALF_GAIN = 2.0**14


@dataclass(frozen=True)
class DiffusionOptions:
    """Which models, and how they run.

    model, controlnet: folders, or names on the Hugging Face hub, in diffusers' format, at a
    revision ("" = main).
    download: fetch what is missing; False uses only what is on this machine. precision: of the
    networks. negative_prompt: what classifier-free guidance moves away from. control_scale: weight
    of the layout. checkpointing: compute again instead of keeping activations for gradients. vae:
    decode a batch at once ("whole"), image by image ("slicing"), or also in tiles ("tiling", which
    changes the images a little).
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
        for name, value, choices in (
            ("precision", self.precision, PRECISIONS),
            ("vae", self.vae, VAE_MODES),
        ):
            if value not in choices:
                raise D3S2Error(f"{name} is {value!r}: choose {', '.join(choices)}.")

    def sources(self) -> tuple[Source, Source]:
        """What must be on this machine: the diffusion model and the ControlNet."""
        return Source(self.model, _PARTS, self.revision), Source(
            self.controlnet, {"": MODEL_FILES}, self.controlnet_revision
        )


class Prompts(nn.Module):
    """From the classes of a mask to text embeddings; each different prompt is encoded once."""

    def __init__(
        self, tokenizer: Any, encoder: nn.Module, names: Sequence[str], negative: str
    ) -> None:
        super().__init__()
        self.tokenizer, self.encoder, self.names, self.negative = (
            tokenizer,
            encoder,
            [spoken(name) for name in names],
            negative,
        )
        self._kept: dict[str, Tensor] = {}

    def forward(self, classes: Tensor, layout: Tensor | None) -> Tensor:
        """float[B, T, D] for multi-hot float[B, C]; a row of -1 gets the negative prompt."""
        texts = [
            self.negative
            if row[0] < 0
            else self.prompt(row, layout[k] if layout is not None else None)
            for k, row in enumerate(classes)
        ]
        return torch.stack([self.encode(text) for text in texts])

    def prompt(self, present: Tensor, labels: Tensor | None = None) -> str:
        """The prompt for the classes of multi-hot float[C], the largest in labels int64[H, W]
        first.

        Names that the text encoder has no room for are left out whole, the smallest classes'.
        """
        area = torch.zeros_like(present)
        if labels is not None:
            area = torch.bincount(labels[labels != IGNORE].flatten(), minlength=len(present)).to(
                present
            )
        order = sorted(present.nonzero().flatten().tolist(), key=lambda c: (-float(area[c]), c))
        names = [self.names[c] for c in order if self.names[c]]
        while (
            names
            and len(self.tokenizer(PREFIX + ", ".join(names), verbose=False).input_ids)
            > self.tokenizer.model_max_length
        ):
            names.pop()
        return PREFIX + (", ".join(names) or "a scene")

    @torch.no_grad()
    def encode(self, text: str) -> Tensor:
        """float[T, D]: the text encoder's last hidden states."""
        if text not in self._kept:
            tokens = self.tokenizer(
                text,
                padding="max_length",
                truncation=True,
                return_tensors="pt",
                max_length=self.tokenizer.model_max_length,
            )
            self._kept[text] = self.encoder(tokens.input_ids.to(self.encoder.device))[0][0]
        return self._kept[text]


def spoken(name: str) -> str:
    """A class's name as a prompt says it: 'wall-other-merged' is a wall; background is nothing."""
    words = [
        word
        for word in name.replace("-", " ").replace("_", " ").replace(";", ",").split()
        if word not in ("other", "merged", "stuff", "background")
    ]
    return " ".join(words)


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
        self.unet, self.controlnet, self.prompts, self.control_scale = (
            unet,
            controlnet,
            prompts,
            control_scale,
        )
        self.num_classes, self.alpha_bars = len(colors), scheduler.alphas_cumprod.tolist()
        self.predicts_v = scheduler.config.prediction_type == "v_prediction"
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
        text, kind = self.prompts(classes, layout), self.unet.dtype

        def network(inputs: Tensor) -> Tensor:
            down = middle = None
            if layout is not None:
                image = self.control_image(layout).to(kind)
                down, middle = self.controlnet(
                    inputs, t, text, image, self.control_scale, return_dict=False
                )
            return self.unet(
                inputs,
                t,
                text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample

        out, a = in_precision(network, z, kind), self.alpha_bars[int(t)]
        return out if self.predicts_v else (out - math.sqrt(1 - a) * z) / math.sqrt(a)  # v of eps


def in_precision(network: Callable[[Tensor], Tensor], x: Tensor, kind: torch.dtype) -> Tensor:
    """network(x), computed in `kind` and answered in x's precision, with gradients that survive
    float16.

    A loss's gradient of one pixel is about 1e-6, where float16 has few digits left: it is made
    larger for the way back.
    """
    gain = (
        _HALF_GAIN if kind is torch.float16 and x.requires_grad and torch.is_grad_enabled() else 1.0
    )
    if gain == 1.0:
        return network(x.to(kind)).to(x.dtype)
    entry = x * 1.0
    entry.register_hook(lambda gradient: gradient / gain)
    out = network(entry.to(kind)).to(x.dtype)
    out.register_hook(lambda gradient: gradient * gain)
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
        return in_precision(
            lambda z: self.vae.decode(z / self.vae.config.scaling_factor).sample, x, self.vae.dtype
        )

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
    from transformers import CLIPTextModel, CLIPTokenizer

    folder, control = (locate(source, options.download) for source in options.sources())
    kind = PRECISIONS[options.precision]

    def network(cls: type, place: Path) -> Any:
        return _load_network(cls, place, kind).to(device)

    with _explained(
        CLIPTokenizer, folder / "tokenizer"
    ) as place:  # has no weights, and says so to whoever searches
        tokenizer = CLIPTokenizer.from_pretrained(
            place, local_files_only=True, use_safetensors=True
        )
    with _explained(DDIMScheduler, folder / "scheduler") as place:
        scheduler = DDIMScheduler.from_pretrained(place, local_files_only=True)
    prompts = Prompts(
        tokenizer, network(CLIPTextModel, folder / "text_encoder"), names, options.negative_prompt
    )
    controlnet = network(ControlNetModel, control)
    unet, vae = (
        network(UNet2DConditionModel, folder / "unet"),
        network(AutoencoderKL, folder / "vae"),
    )
    if options.checkpointing:
        for part in (unet, controlnet, vae):
            part.enable_gradient_checkpointing()
    if options.vae != "whole":
        vae.enable_slicing()
    if options.vae == "tiling":
        vae.enable_tiling()
    if unet.config.cross_attention_dim != controlnet.config.cross_attention_dim:
        raise D3S2Error(
            f"The ControlNet {options.controlnet} was made for another diffusion model than "
            f"{options.model} (text width {controlnet.config.cross_attention_dim}, not "
            f"{unet.config.cross_attention_dim}): take one that fits it."
        )
    controlled = ControlledUNet(
        unet, controlnet, prompts, scheduler, colors, options.control_scale
    ).to(device)
    return StableDiffusion(controlled.eval(), scheduler, vae)


def _load_network(cls: type, place: Path, kind: torch.dtype) -> Any:
    """A network with the weights of this folder, frozen; pickled ones are refused."""
    with _explained(cls, place):
        network = cls.from_pretrained(
            place, local_files_only=True, use_safetensors=True, torch_dtype=kind
        )
    return network.requires_grad_(False).eval()


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
