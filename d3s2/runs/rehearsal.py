"""`d3s2 rehearse`: a profile's whole sequence in minutes, before the run that takes days.

Every notebook runs on the profile's own code path and settings, only shorter: 8 images, 2 steps, 20
iterations, and on a CPU 64 x 64 pixels. What is missing on this machine, data or models, is stood
in for by miniatures and random weights in the true formats. It lives in a folder of its own, and
says at its end what was real. What would stop the long run stops here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from d3s2.core.machine import pick_device
from d3s2.core.places import home
from d3s2.data.benchmarks import FORMATS
from d3s2.runs import config, runner
from d3s2.runs.model_choice import choose_models
from d3s2.runs.network_choice import missing_backbone
from d3s2.runs.parameters import Settings, require_known

SHORT: dict[str, Any] = {
    "train_images": 8,
    "val_images": 4,
    "feature_images": 8,
    "budget": 3,
    "steps": 2,
    "iterations": 20,
    "full_iterations": 0,
    "train_seeds": 1,
    "proxy_iterations": 20,
    "generator_iterations": 20,
}
"""What makes a run short; the rest are the profile's values."""
ON_CPU: dict[str, Any] = {
    "device": "cpu",
    "image_size": "64x64",
    "batch_size": 2,
    "training_precision": "float32",
}
"""What makes it bearable without a GPU."""


@dataclass(frozen=True)
class Rehearsal:
    """The parameters of a rehearsal, and what in it stands in for the real thing."""

    names: dict[str, Any]
    stand_ins: tuple[str, ...]


def rehearse(
    names: Mapping[str, Any],
    notebooks: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> Settings:
    """Run all notebooks in short; what `names` sets wins over the short values.

    Raises what `runner.run` raises: D3S2Error for bad parameters, NotebookFailed for a notebook
    that ends in an error.
    """
    rehearsal = prepare(names)
    for stand_in in rehearsal.stand_ins:
        say(f"stands in: {stand_in}")
    settings = runner.run(rehearsal.names, notebooks=notebooks)
    real = "data and models were real"
    missing = f"{len(rehearsal.stand_ins)} parts stood in for real ones, see above"
    say(f"rehearsed to the end: {missing if rehearsal.stand_ins else real}")
    return settings


def prepare(names: Mapping[str, Any]) -> Rehearsal:
    """The parameters of a profile's rehearsal; writes the stand-ins for what is not on this
    machine.
    """
    require_known(names)
    wanted = config.resolve(names, remember=False)
    folder = Path(names.get("run_dir") or home() / "runs" / f"rehearse-{wanted.profile}").absolute()
    short = dict(SHORT)
    if wanted.device == "cpu" or pick_device() == "cpu":
        short |= ON_CPU
    told = short | dict(names) | {"run_dir": str(folder)}
    places, sentences = _stand_ins(
        config.resolve(told, remember=False), home() / "data" / "stand-ins"
    )
    return Rehearsal(told | places, tuple(sentences))


def _stand_ins(settings: Settings, folder: Path) -> tuple[dict[str, str], list[str]]:
    """({parameter: place of a stand-in}, a sentence for each) of all that is missing."""
    places: dict[str, str] = {}
    sentences = []
    if settings.data_format in FORMATS and not settings.data_root:
        places["data_root"] = str(_data(settings, folder))
        sentences.append(f"drawn images in the layout of {settings.data_format}")
    pretrained = choose_models(settings).pretrained
    if settings.generator == "stable-diffusion" and list(pretrained["generator"].check()):
        places["diffusion_model"], places["controlnet_model"] = _diffusion(folder)
        sentences.append("Stable Diffusion and ControlNet, narrow, with random weights")
    if "proxy" in pretrained and list(pretrained["proxy"].check()):
        places["proxy_checkpoint"] = str(_checkpoint(settings.proxy_config, "", folder))
        sentences.append(f"{settings.proxy_config} with random weights")
    if missing_backbone(settings):
        from d3s2.training.mask2former import SHIPPED  # imports mmsegmentation: seconds

        places["backbone_weights"] = str(_checkpoint(str(SHIPPED), "backbone", folder))
        sentences.append("Swin-S with random weights")
    return places, sentences


def _data(settings: Settings, folder: Path) -> Path:
    from d3s2.data.miniatures import write_miniature

    return _once(folder / settings.data_format, partial(write_miniature, settings.data_format))


def _diffusion(folder: Path) -> tuple[str, str]:
    from d3s2.models.stand_ins import write_diffusion

    _once(folder / "stable-diffusion", write_diffusion)
    return tuple(str(folder / "stable-diffusion" / part) for part in ("diffusion", "controlnet"))


def _checkpoint(name: str, part: str, folder: Path) -> Path:
    from d3s2.models.stand_ins import write_checkpoint

    path = folder / f"{Path(name).stem}{'-' + part if part else ''}.pth"
    return path if path.is_file() else write_checkpoint(name, path, part)


def _once(folder: Path, write: Callable[[Path], Any]) -> Path:
    """The folder that `write` fills, whole. What is there stays: files made anew would have other
    times, and the rehearsal would begin anew instead of going on.
    """
    if not folder.is_dir():
        partly = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(partly, ignore_errors=True)
        write(partly)
        partly.rename(folder)
    return folder
