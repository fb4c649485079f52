"""One door to every generator and proxy: what a folder holds decides which kind is loaded.

A folder holds weights in diffusers' format, or a *note* that stands for a pretrained model:
gigabytes are not copied into a run's folder. A note says which model, how it is loaded, and the
SHA-256 of its files.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler

from d3s2.core.errors import D3S2Error
from d3s2.core.files import digest, read_json, sha256
from d3s2.models.generator import LayoutGenerator, LayoutUNet
from d3s2.models.proxy import ProxySegmenter

GENERATOR_NOTE = "stable_diffusion.json"
PROXY_NOTE = "mmseg_proxy.json"
"""Names of the notes, by which `load_generator` and `load_proxy` know them."""
JUDGE = "judge"
"""A folder beside `generator` and `proxy`: a second segmenter, which looks at images and decides
none.
"""
_WHOLE = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
"""How diffusers' `from_pretrained` reads our half-precision files: safetensors only, to fp32."""


def load_generator(folder: Path, device: str = "cpu") -> LayoutGenerator:
    """Load what `LayoutGenerator.save` wrote, frozen and in fp32; or the pretrained model that a
    note there stands for.

    Raises D3S2Error when the folder holds no generator.
    """
    folder = Path(folder)
    if (folder / GENERATOR_NOTE).is_file():
        return _open_generator(folder, device)
    if not (folder / "unet" / "config.json").is_file():
        raise D3S2Error(
            f"No generator in {folder}: expected unet/config.json there. Train one with `python -m "
            "d3s2.models.pretraining`."
        )
    unet = LayoutUNet.from_pretrained(folder / "unet", use_safetensors=True, **_WHOLE)
    unet.requires_grad_(False).eval().to(device)
    return LayoutGenerator(unet, DDIMScheduler.from_pretrained(folder / "scheduler"))


def load_proxy(folder: Path, device: str = "cpu") -> ProxySegmenter:
    """Load a proxy, frozen, in evaluation mode and fp32; or the mmsegmentation model that a note
    there stands for.

    Raises D3S2Error when the folder holds none.
    """
    folder = Path(folder)
    if (folder / PROXY_NOTE).is_file():
        return _open_proxy(folder, device)
    if not (folder / "config.json").is_file():
        raise D3S2Error(
            f"No proxy in {folder}: expected config.json there. Train one with `python -m "
            "d3s2.models.pretraining`."
        )
    proxy = ProxySegmenter.from_pretrained(folder, use_safetensors=True, **_WHOLE)
    return proxy.requires_grad_(False).eval().to(device)


def weights_digest(folder: Path) -> str:
    """SHA-256 over the hashes of all weight files and notes, for the manifests of what was made
    with them; not over the `JUDGE`'s.
    """
    notes = [folder.rglob(name) for name in (GENERATOR_NOTE, PROXY_NOTE)]
    found = chain(folder.rglob("*.safetensors"), *notes)
    files = sorted(path for path in found if path.parts[len(folder.parts)] != JUDGE)
    if len(files) < 2:
        raise D3S2Error(
            f"{folder} holds {len(files)} weight files, the proxy's and the generator's are "
            "needed: install d3s2 from a complete checkout, or train them with `python -m "
            "d3s2.models.pretraining`."
        )
    return digest({path.relative_to(folder).as_posix(): sha256(path) for path in files})


def digest_of(folders: Mapping[str, Path]) -> str:
    """SHA-256 over the files' hashes of some models, by name."""
    hashes = {}
    for name, folder in folders.items():
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".safetensors", ".json", ".txt") and path.is_file():
                hashes[f"{name}/{path.relative_to(folder).as_posix()}"] = sha256(path)
    return digest(hashes)


def _open_generator(folder: Path, device: str) -> Any:
    """Load what a generator's note stands for."""
    from d3s2.models.custom import open_custom
    from d3s2.models.stable_diffusion import DiffusionOptions, load_stable_diffusion

    note = read_json(folder / GENERATOR_NOTE)
    colors = np.array(note["colors"], dtype=np.uint8)
    options = DiffusionOptions(**note["options"])
    if function := note.get("function"):
        return open_custom(function, options, note["names"], colors, device)
    return load_stable_diffusion(options, note["names"], colors, device)


def _open_proxy(folder: Path, device: str) -> Any:
    """Load what a proxy's note stands for."""
    from d3s2.models.mmseg_proxy import load_mmseg_proxy

    note = read_json(folder / PROXY_NOTE)
    return load_mmseg_proxy(
        config=note["config"],
        checkpoint=Path(note["checkpoint"]),
        num_classes=note["num_classes"],
        layers=note["layers"],
        device=device,
    )
