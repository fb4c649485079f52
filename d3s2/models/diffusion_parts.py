"""Which pretrained diffusion model, how it runs, and how its parts are loaded from diffusers'
format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from d3s2.core.errors import D3S2Error
from d3s2.models.hub import MODEL_FILES, Source, locate

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUT_CONTROLS = ("controlnet", "attention", "both")
VAE_MODES = ("whole", "slicing", "tiling")
NEGATIVE = "cartoon, painting, illustration, blurry, deformed, text, watermark"
PARTS = {
    "unet": MODEL_FILES,
    "vae": MODEL_FILES,
    "text_encoder": MODEL_FILES,
    "tokenizer": ("vocab.json", "merges.txt", "tokenizer_config.json"),
    "scheduler": ("scheduler_config.json",),
}


@dataclass(frozen=True)
class DiffusionOptions:
    """Which models, and how they run.

    model, controlnet: folders, or names on the Hugging Face hub, in diffusers' format, at a
    revision ("" = main); download: fetch what is missing, False uses only what is on this machine;
    precision: of the networks; negative_prompt: what classifier-free guidance moves away from;
    control_scale: weight of the layout; checkpointing: compute again instead of keeping activations
    for gradients; vae: decode a batch at once ("whole"), image by image ("slicing"), or also in
    tiles ("tiling", which changes the images a little); layout_control: how a layout enters,
    by the ControlNet, by "attention" (see `rectified`; no ControlNet is loaded) or by both. Raises
    D3S2Error for another precision, vae or layout_control.
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
    layout_control: str = "controlnet"

    def __post_init__(self) -> None:
        known = {"precision": PRECISIONS, "vae": VAE_MODES, "layout_control": LAYOUT_CONTROLS}
        for name, choices in known.items():
            value = getattr(self, name)
            if value not in choices:
                raise D3S2Error(f"{name} is {value!r}: choose {', '.join(choices)}.")

    def sources(self, parts: Mapping[str, Sequence[str]] = PARTS) -> tuple[Source, ...]:
        """What must be on this machine: the diffusion model, with these parts, and the ControlNet
        where there is one.
        """
        model = Source(self.model, dict(parts), self.revision)
        if self.layout_control == "attention":
            return (model,)
        return model, Source(self.controlnet, {"": MODEL_FILES}, self.controlnet_revision)


def files_of_sources(sources: Iterable[Source], download: bool) -> list[Path]:
    """All files of some models. Raises D3S2Error for a model that is missing."""
    folders = [locate(source, download) for source in sources]
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]


def check_widths(options: DiffusionOptions, unet: Any, controlnet: Any, width: str) -> None:
    """Raise D3S2Error for a ControlNet that reads other text embeddings than the model, by the name
    that their configurations have for it.
    """
    mine, other = unet.config[width], controlnet.config[width]
    if mine != other:
        raise D3S2Error(
            f"The ControlNet {options.controlnet} was made for another diffusion model than "
            f"{options.model} (text width {other}, not {mine}): take one that fits it."
        )


@dataclass(frozen=True)
class Loader:
    """Loads the parts of a model as its options say; each raises D3S2Error for what cannot be."""

    options: DiffusionOptions
    device: str

    def network(self, cls: type, place: Path, kind: torch.dtype | None = None) -> Any:
        """A network with the weights of this folder, frozen; pickled ones are refused.

        kind: its precision, if not that of the options.
        """
        with _explained(cls, place):
            network = cls.from_pretrained(
                place,
                local_files_only=True,
                use_safetensors=True,
                torch_dtype=kind or PRECISIONS[self.options.precision],
            )
        return network.requires_grad_(False).eval().to(self.device)

    def decoders(self, place: Path) -> tuple[AutoencoderKL, AutoencoderKL | None]:
        """The decoder, and in half precision also the one in float32 (see `StableDiffusion`)."""
        vae = self.network(AutoencoderKL, place)
        if vae.dtype == torch.float32:
            return vae, None
        exact = self.network(AutoencoderKL, place, torch.float32)
        self._sliced(exact)
        return vae, exact

    def scheduler(self, cls: type, place: Path) -> Any:
        """A scheduler with the numbers of this folder."""
        with _explained(cls, place):
            return cls.from_config(cls.load_config(place, local_files_only=True))

    def tokenizer(self, place: Path) -> Any:
        """The tokenizer; it has no weights, and `use_safetensors` says so to whoever searches."""
        from transformers import CLIPTokenizer

        with _explained(CLIPTokenizer, place):
            return CLIPTokenizer.from_pretrained(place, local_files_only=True, use_safetensors=True)

    def save_memory(self, unet: Any, controlnet: Any, vae: AutoencoderKL) -> None:
        """Compute activations again, and decode in pieces, where the options say so."""
        for part in (unet, controlnet, vae):
            if self.options.checkpointing and part is not None:
                part.enable_gradient_checkpointing()
        self._sliced(vae)

    def _sliced(self, vae: AutoencoderKL) -> None:
        if self.options.vae != "whole":
            vae.enable_slicing()
        if self.options.vae == "tiling":
            vae.enable_tiling()


@contextmanager
def _explained(cls: type, place: Path) -> Iterator[None]:
    """A sentence for what cannot be loaded; remarks about optional packages are kept from a
    notebook's output.
    """
    try:
        with redirect_stderr(StringIO()):
            yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise D3S2Error(
            f"{place} cannot be loaded as {cls.__name__}: {reason}. Fetch the model again."
        ) from error
