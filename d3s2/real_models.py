"""Pretrained models of a run: what its settings name, what of it is missing, and notes that stand for it.

Gigabytes are not copied into a run's folder. `weights/generator/` and `weights/proxy/` then hold a note instead of
weights: which model, how it is loaded, and the SHA-256 of its files. Names, sizes and times of these files are part of
the stage's key, so that a changed model makes the results anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from . import artifacts
from .config import Settings, home
from .control_colors import control_colors
from .data import SegmentationDataset
from .errors import D3S2Error
from .model_files import locate, problems

GENERATOR_NOTE, PROXY_NOTE = "stable_diffusion.json", "mmseg_proxy.json"
"""Names of the notes, by which `load_generator` and `load_proxy` know them."""


def parts(settings: Settings) -> tuple[str, ...]:
    """Which of "proxy" and "generator" are pretrained models."""
    real = {"proxy": bool(settings.proxy_config), "generator": settings.generator != "embedded"}
    return tuple(name for name, pretrained in real.items() if pretrained)


def diffusion_options(settings: Settings) -> Any:
    """The `DiffusionOptions` of a run."""
    from .stable_diffusion import DiffusionOptions

    return DiffusionOptions(
        settings.diffusion_model, settings.controlnet_model, settings.diffusion_revision, settings.controlnet_revision,
        settings.model_files == "download", settings.precision, settings.negative_prompt, settings.control_scale,
        bool(settings.checkpointing), settings.vae_memory)


def checkpoint_path(settings: Settings) -> Path:
    """The proxy's checkpoint: as named, else where `d3s2 fetch` puts the published one."""
    return Path(settings.proxy_checkpoint).expanduser() if settings.proxy_checkpoint else _published(_proxy_address(settings))


def backbone_path(settings: Settings) -> Path:
    """The ImageNet weights of Swin-S: as named, else where `d3s2 fetch` puts the published ones."""
    return Path(settings.backbone_weights).expanduser() if settings.backbone_weights else _published(_backbone_address())


def training_network(settings: Settings) -> dict[str, Any]:
    """The fields of a `TrainingJob` that say which network is trained, and by how many processes."""
    shared = {"processes": settings.gpus}
    if settings.network == "scaled-down":
        return shared
    return shared | {"network": settings.network, "backbone_weights": str(backbone_path(settings))}


def write_notes(settings: Settings, dataset: SegmentationDataset, folder: Path) -> None:
    """Write the notes of the run's pretrained models into `<folder>/{proxy,generator}`.

    Raises D3S2Error for models that are missing, damaged, or not made for the dataset's classes.
    """
    if "generator" in parts(settings):
        options = diffusion_options(settings)
        colors = control_colors(dataset.classes, settings.control_palette)
        folders = {str(i): locate(source, options.download) for i, source in enumerate(options.sources())}
        artifacts.write_json(folder / "generator" / GENERATOR_NOTE, {
            "options": asdict(options), "names": dataset.class_names, "colors": colors.tolist(), "digest": digest_of(folders)})
    if "proxy" in parts(settings):
        path = checkpoint_path(settings)
        artifacts.write_json(folder / "proxy" / PROXY_NOTE, {
            "config": settings.proxy_config, "checkpoint": str(path), "num_classes": dataset.num_classes,
            "layers": _layers(settings), "digest": artifacts.sha256(path)})


def stamp(settings: Settings) -> str:
    """Digest over names, sizes and times of the pretrained models' files. Raises D3S2Error for a model that is missing."""
    options = diffusion_options(settings)
    folders = [locate(source, options.download) for source in options.sources()] if "generator" in parts(settings) else []
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    if "proxy" in parts(settings):
        files.append(checkpoint_path(settings))
    if lost := next(missing_files(settings), ""):
        raise D3S2Error(lost)
    return artifacts.digest([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files])


def open_generator(folder: Path, device: str) -> Any:
    """Load what a generator's note stands for."""
    from .stable_diffusion import DiffusionOptions, load_stable_diffusion

    note = artifacts.read_json(folder / GENERATOR_NOTE)
    colors = np.array(note["colors"], dtype=np.uint8)
    return load_stable_diffusion(DiffusionOptions(**note["options"]), note["names"], colors, device)


def open_proxy(folder: Path, device: str) -> Any:
    """Load what a proxy's note stands for."""
    from .mmseg_proxy import load_mmseg_proxy

    note = artifacts.read_json(folder / PROXY_NOTE)
    return load_mmseg_proxy(note["config"], Path(note["checkpoint"]), note["num_classes"], note["layers"], device)


def digest_of(folders: Mapping[str, Path]) -> str:
    """SHA-256 over the files' hashes of some models, by name."""
    return artifacts.digest({f"{name}/{path.relative_to(folder).as_posix()}": artifacts.sha256(path)
                             for name, folder in folders.items() for path in sorted(folder.rglob("*"))
                             if path.suffix in (".safetensors", ".json", ".txt") and path.is_file()})


# ------------------------------------------------------------------------------------------------------------- check
def check(settings: Settings) -> Iterator[tuple[bool, str]]:
    """(good, line) of everything pretrained that the settings ask for."""
    if settings.generator == "stable-diffusion":
        options = diffusion_options(settings)
        found = problems(options.sources())
        yield from ((False, f"generator: {problem}") for problem in found)
        if not found:
            yield True, f"generator: {options.model} with {options.controlnet}"
    lost = list(missing_files(settings))
    yield from ((False, line) for line in lost)
    if not lost and settings.proxy_config:
        yield True, f"proxy: {checkpoint_path(settings)}"


def missing_files(settings: Settings) -> Iterator[str]:
    """A sentence with a command for the proxy's checkpoint and the backbone's weights, where they are needed and not there."""
    if settings.proxy_config and not checkpoint_path(settings).is_file():
        yield _sentence("the proxy's checkpoint", checkpoint_path(settings), _proxy_address(settings), "proxy_checkpoint")
    if settings.network == "swin-s" and not backbone_path(settings).is_file():
        yield _sentence("the ImageNet weights of Swin-S", backbone_path(settings), _backbone_address(), "backbone_weights")


def _sentence(what: str, path: Path, address: str, parameter: str) -> str:
    command = f"fetch it: d3s2 fetch file {address} {path}" if address else f"name it with -p {parameter}=FILE"
    return f"{what}, {path}, is missing; {command}"


def _published(address: str) -> Path:
    return home() / "models" / (address.rsplit("/", 1)[-1] or "checkpoint.pth")


def _proxy_address(settings: Settings) -> str:
    from .mmseg_proxy import published_weights

    return published_weights(settings.proxy_config) if settings.proxy_config else ""


def _backbone_address() -> str:
    from .mask2former import SHIPPED, Config

    return Config.fromfile(str(SHIPPED)).model.backbone.init_cfg.checkpoint


def _layers(settings: Settings) -> list[str]:
    return [name.strip() for name in settings.proxy_layers.split(",") if name.strip()]
