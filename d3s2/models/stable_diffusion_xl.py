"""Stable Diffusion XL with a ControlNet: `generator=d3s2.models.stable_diffusion_xl:load`.

What it has beyond `stable_diffusion`: two text encoders, whose last hidden states but one stand
beside each other; the second one's pooled answer; and the image's size and crop, of which it is
told that nothing was cropped. Never run with the published weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from d3s2.models.diffusion_parts import (
    PARTS,
    DiffusionOptions,
    Loader,
    check_widths,
    files_of_sources,
)
from d3s2.models.hub import locate
from d3s2.models.prompts import Prompts, encoded
from d3s2.models.stable_diffusion import ControlledUNet, StableDiffusion

XL_PARTS = PARTS | {
    "text_encoder_2": PARTS["text_encoder"],
    "tokenizer_2": PARTS["tokenizer"],
}


class PairedPrompts(Prompts):
    """Prompts for two text encoders at once; the first one's tokens say which token is whose."""

    def __init__(
        self, tokenizers: Sequence[Any], encoders: Sequence[nn.Module], names: Any, negative: str
    ) -> None:
        super().__init__(tokenizers[0], encoders[0], names, negative)
        self.tokenizers = tokenizers
        self.encoders = nn.ModuleList(encoders)
        self.room = min(self.room, encoders[1].config.max_position_embeddings)
        self._pooled: dict[str, list[Tensor | None]] = {}

    def encode(self, text: str) -> Tensor:
        """float[T, D1 + D2]: both encoders' last hidden states but one."""
        if text not in self._kept:
            said = [
                encoded(tokenizer, encoder, text, self.room, output_hidden_states=True)
                for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True)
            ]
            self._kept[text] = torch.cat([one.hidden_states[-2][0] for one in said], dim=-1)
            # an encoder with a projection answers with its pooled text
            self._pooled[text] = [getattr(one, "text_embeds", None) for one in said]
        return self._kept[text]

    def pooled(self, classes: Tensor, layout: Tensor | None) -> Tensor:
        """float[B, P]: of each prompt, what the encoders that have a projection say of it as a
        whole, side by side.
        """
        rows = []
        for text in self.texts(classes, layout):
            self.encode(text)
            rows.append(torch.cat([one[0] for one in self._pooled[text] if one is not None]))
        return torch.stack(rows)


class ControlledXL(ControlledUNet):
    """U-Net and ControlNet, told of the whole text and of the image's size too."""

    pixels: int = 8
    """To a latent, along a side."""

    def conditions(self, z: Tensor, layout: Tensor | None, classes: Tensor) -> dict[str, Any]:
        """What the networks are told besides latents and timestep, by diffusers' names."""
        height, width = (side * self.pixels for side in z.shape[2:])
        sizes = [height, width, 0, 0, height, width]  # as it was, where it was cropped, as it is
        added = {
            "text_embeds": self.prompts.pooled(classes, layout),
            "time_ids": torch.tensor([sizes] * len(z), dtype=z.dtype, device=z.device),
        }
        return super().conditions(z, layout, classes) | {"added_cond_kwargs": added}


def files(options: DiffusionOptions) -> list[Path]:
    """All that `load` reads. Raises D3S2Error for a model that is missing."""
    return files_of_sources(options.sources(XL_PARTS), options.download)


def load(
    options: DiffusionOptions, names: Sequence[str], colors: np.ndarray, device: str = "cpu"
) -> StableDiffusion:
    """As `stable_diffusion.load_stable_diffusion`."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    folder, *control = (locate(one, options.download) for one in options.sources(XL_PARTS))
    loaded = Loader(options, device)
    tokenizers = [loaded.tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2")]
    encoders = [
        loaded.network(CLIPTextModel, folder / "text_encoder"),
        loaded.network(CLIPTextModelWithProjection, folder / "text_encoder_2"),
    ]
    scheduler = loaded.scheduler(DDIMScheduler, folder / "scheduler")
    unet = loaded.network(UNet2DConditionModel, folder / "unet")
    controlnet = loaded.network(ControlNetModel, *control) if control else None
    if controlnet is not None:
        check_widths(options, unet, controlnet, "cross_attention_dim")
    vae, exact = decoders(loaded, folder / "vae")
    loaded.save_memory(unet, controlnet, vae)
    controlled = ControlledXL(
        unet=unet,
        controlnet=controlnet,
        prompts=PairedPrompts(tokenizers, encoders, names, options.negative_prompt),
        scheduler=scheduler,
        colors=colors,
        control_scale=options.control_scale,
        attends=options.layout_control != "controlnet",
    )
    model = StableDiffusion(controlled.to(device).eval(), scheduler, vae, exact)
    controlled.pixels = model.strides[0]
    return model


def decoders(loaded: Loader, place: Path) -> tuple[AutoencoderKL, AutoencoderKL | None]:
    """As `Loader.decoders`; a decoder whose numbers float16 cannot hold is used in float32."""
    vae, exact = loaded.decoders(place)
    if vae.dtype == torch.float16 and vae.config.force_upcast:
        return exact, None
    return vae, exact
