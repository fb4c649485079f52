"""Parameters of a run, the profiles that give them values, and where things lie.

Every notebook's `parameters` cell sets some of the names below, most to None. `resolve(globals())`
right after it gives the complete `Settings`: a value that was set wins; None takes what notebook 00
noted in the run folder's `run.json`; without that, the profile's value. All profile values are our
choice.
"""

from __future__ import annotations

import difflib
import json
import operator
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json, write_json
from d3s2.core.places import EMBEDDED_WEIGHTS, home
from d3s2.data.benchmarks import FORMATS
from d3s2.models.control_colors import PALETTES
from d3s2.runs.profiles import PROFILES

PARAMETERS = "D3S2_PARAMETERS"
"""Environment variable, how a run tells its notebooks the parameters that none of them declares:
JSON.
"""
RUN_FILE = "run.json"


def _parameter(
    kind: type,
    help: str,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    choices: tuple[str, ...] = (),
    run_wide: bool = False,
) -> Any:
    return field(
        metadata={
            "type": kind,
            "help": help,
            "low": low,
            "high": high,
            "unit": unit,
            "choices": choices,
            "run_wide": run_wide,
        }
    )


def _model(kind: type, help: str, *bounds: float | None, **more: Any) -> Any:
    """A parameter that concerns pretrained models: of the whole run, and in no notebook's cell."""
    return _parameter(kind, help, *bounds, **more, run_wide=True)


def _machine(kind: type, help: str, *bounds: float | None, **more: Any) -> Any:
    """A parameter that suits a run to its machine: of the whole run, and nothing is made anew when
    it changes.
    """
    return field(metadata=_model(kind, help, *bounds, **more).metadata | {"decides": False})


@dataclass(frozen=True)
class Settings:
    """Every parameter of a run, complete and checked. The metadata of each field holds type, range,
    unit and help.
    """

    profile: str = _parameter(str, "named set of values for all other parameters")
    run_dir: str = _parameter(str, "folder of this run; empty = <home>/runs/<profile>")
    data_format: str = _parameter(
        str, "how the data lies on disk", choices=("scenes", "camvid", "folder", *FORMATS)
    )
    data_root: str = _parameter(str, "folder of your data; scenes need none")
    image_size: str = _parameter(
        str, "height x width that images are resized to, e.g. 96x128", unit="pixels"
    )
    train_images: int = _parameter(int, "training images used; 0 = all", 0, None, "images")
    val_images: int = _parameter(int, "validation images used; 0 = all", 0, None, "images")
    seed: int = _parameter(int, "seed of every random choice", 0, 2**31 - 1)
    threads: int = _parameter(int, "CPU threads; 0 = all cores", 0, 1024, "threads")
    device: str = _parameter(str, "where networks run", choices=("auto", "cpu", "cuda"))
    jobs: int = _parameter(int, "trainings side by side; 0 = one a core", 0, 1024, "processes")
    proxy_iterations: int = _parameter(
        int,
        "training iterations of the proxy, for data without shipped weights",
        1,
        10**6,
        "iterations",
    )
    generator_iterations: int = _parameter(
        int,
        "training iterations of the generator, for data without shipped weights",
        1,
        10**6,
        "iterations",
    )
    feature_images: int = _parameter(
        int, "training images for the feature statistics; 0 = all", 0, None, "images"
    )
    budget: float = _parameter(
        float, "size of the distilled set: share of the images (up to 1) or their number", 0
    )
    beta: float = _parameter(
        float, "how strongly rare classes weigh in the selection; 0 = not at all", 0, 1
    )
    delta: float = _parameter(float, "softening of the selection's coverage term", 0.001, 1000)
    presence_threshold: float = _parameter(
        float,
        "share of an image from which a class counts as present",
        0.0001,
        1,
        "share of the pixels",
    )
    steps: int = _parameter(int, "sampling steps", 1, 1000, "steps")
    cfg_scale: float = _parameter(
        float, "classifier-free guidance scale; 1 = plain conditional sampling", 0, 50
    )
    lambda_seg: float = _parameter(
        float, "strength of the segmentation-consistency guidance; 0 = off", 0, 1000
    )
    lambda_feat: float = _parameter(
        float, "strength of the class-wise feature guidance; 0 = off", 0, 1000
    )
    window_start: float = _parameter(
        float, "guidance starts after this share of the steps", 0, 1, "share of the steps"
    )
    window_end: float = _parameter(
        float, "guidance ends after this share of the steps", 0, 1, "share of the steps"
    )
    jacobian: str = _parameter(
        str,
        "gradient through the denoiser (full) or around it (detach)",
        choices=("detach", "full"),
    )
    sampling_batch: int = _parameter(
        int, "images sampled together; never changes an image", 1, 1024, "images"
    )
    method: str = _parameter(str, "how the distilled images are made")
    iterations: int = _parameter(
        int, "training iterations of every Mask2Former", 1, 10**6, "iterations"
    )
    batch_size: int = _parameter(int, "images in a training batch", 1, 1024, "images")
    train_seeds: int = _parameter(
        int, "trainings of each set with different seeds", 1, 100, "seeds"
    )
    full_iterations: int = _parameter(
        int, "extra long training on all real images; 0 = none", 0, 10**7, "iterations"
    )
    generator: str = _model(
        str,
        "what paints: our small network, or a pretrained one",
        choices=("embedded", "stable-diffusion"),
    )
    diffusion_model: str = _model(
        str, "Stable Diffusion in diffusers' format: a folder, or owner/name on the hub"
    )
    diffusion_revision: str = _model(str, "commit, tag or branch of diffusion_model; empty = main")
    controlnet_model: str = _model(
        str, "ControlNet for segmentation: a folder, or owner/name on the hub"
    )
    controlnet_revision: str = _model(
        str, "commit, tag or branch of controlnet_model; empty = main"
    )
    control_palette: str = _model(
        str, "colours that the ControlNet was trained on", choices=PALETTES
    )
    control_scale: float = _model(float, "weight of the layout in the ControlNet", 0, 2)
    negative_prompt: str = _model(str, "what classifier-free guidance moves away from")
    model_files: str = _model(
        str,
        "take models from this machine alone, or fetch missing ones",
        choices=("local", "download"),
    )
    precision: str = _model(
        str, "of the diffusion networks", choices=("float32", "bfloat16", "float16")
    )
    checkpointing: int = _model(
        int, "1 = compute activations again for gradients, which saves memory; 0 = keep them", 0, 1
    )
    vae_memory: str = _model(
        str, "how the decoder saves memory", choices=("whole", "slicing", "tiling")
    )
    proxy_config: str = _model(
        str,
        "mmsegmentation config of the proxy, a file or a shipped name; empty = our small network",
    )
    proxy_checkpoint: str = _model(
        str, "weights of proxy_config; empty = <home>/models/<published file>"
    )
    proxy_layers: str = _model(
        str,
        "modules of the proxy whose features are matched, with commas; empty = the "
        "backbone's outputs",
    )
    network: str = _model(
        str,
        "Mask2Former that is trained: scaled down, or Swin-S as shipped",
        choices=("scaled-down", "swin-s"),
    )
    backbone_weights: str = _model(
        str, "ImageNet weights for swin-s; empty = <home>/models/<published file>"
    )
    gpus: int = _machine(
        int, "GPUs that share each training, through torchrun; on a CPU: processes", 1, 64
    )
    out_of_memory: str = _machine(
        str,
        "when a GPU's memory runs out: stop, or go on with half as many images at once",
        choices=("stop", "halve"),
    )

    @property
    def weights_folder(self) -> Path:
        """Where `proxy/` and `generator/` lie: in the package for scenes, else in the run's folder,
        which makes them.
        """
        return EMBEDDED_WEIGHTS if self.data_format == "scenes" else Path(self.run_dir) / "weights"

    def subset(self, *names: str) -> dict[str, Any]:
        """The named settings as a dict, for the parameters of a `Stage`."""
        return {name: getattr(self, name) for name in names}


FIELDS = {entry.name: entry for entry in fields(Settings)}
RUN_WIDE = tuple(name for name, entry in FIELDS.items() if entry.metadata["run_wide"])
MODELS = tuple(name for name in RUN_WIDE if FIELDS[name].metadata.get("decides", True))
"""The parameters of the whole run that concern pretrained models."""


def resolve(names: Mapping[str, Any], *, remember: bool = True) -> Settings:
    """The complete settings from a notebook's globals (or any mapping), of which only the declared
    names count.

    Args:
        names: a value, or None (or absent) for the run's own.
        remember: take what is None from the run folder's `run.json`, as notebook 00 noted it; False
            = from the profile only.

    Raises D3S2Error for an unknown profile, a value of the wrong type or out of range, and a run
    folder that was begun with another profile.
    """
    given = {name: _typed(name, names[name]) for name in FIELDS if names.get(name) is not None}
    profile = given.pop("profile", "scenes")
    if profile not in PROFILES:
        raise D3S2Error(f"profile is {profile!r}: choose {_listing(PROFILES)}.")
    run_dir = str(
        Path(given.pop("run_dir", "") or home() / "runs" / profile).expanduser().absolute()
    )
    noted = _noted(run_dir, profile) if remember else {}
    values = PROFILES[profile] | noted | _told() | given | {"profile": profile, "run_dir": run_dir}
    if values["data_root"]:
        values["data_root"] = str(Path(values["data_root"]).expanduser().absolute())
    settings = Settings(**values)
    _check(settings)
    return settings


def parse(name: str, text: str) -> Any:
    """The value that `text` writes for a parameter, e.g. from the command line.

    Raises D3S2Error for an unknown name, with the closest ones, and for text that is no value of
    its type.
    """
    require_known([name], FIELDS)
    kind = FIELDS[name].metadata["type"]
    try:
        value = kind(text)
    except ValueError as error:
        raise D3S2Error(f"{name} is {text!r}: give {_expected(name)}.") from error
    return _typed(name, value)


def require_known(names: Any, known: Any) -> None:
    """Raise D3S2Error naming the first of `names` that is not in `known`, and the closest that
    are.
    """
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, list(known), 3, 0.5)
            hint = (
                f"did you mean {_listing(close)}?"
                if close
                else f"there are {', '.join(sorted(known))}."
            )
            raise D3S2Error(f"There is no parameter {name!r}: {hint}")


def note(settings: Settings, facts: Mapping[str, Any]) -> Path:
    """Write the run folder's `run.json`: the settings, which later notebooks take over, and facts
    for the record.
    """
    path = Path(settings.run_dir) / RUN_FILE
    write_json(path, {**facts, "settings": asdict(settings)})
    return path


def _told() -> dict[str, Any]:
    """Parameters of the whole run, as the command line was given them."""
    told = json.loads(os.environ.get(PARAMETERS) or "{}")
    return {name: _typed(name, value) for name, value in told.items() if name in RUN_WIDE}


def _noted(run_dir: str, profile: str) -> dict[str, Any]:
    path = Path(run_dir) / RUN_FILE
    if not path.is_file():
        return {}
    noted = read_json(path).get("settings", {})
    if noted.get("profile") != profile:
        raise D3S2Error(
            f"{run_dir} was begun with profile {noted.get('profile')!r}, not {profile!r}: run "
            "notebook "
            "00_start_here with the new one first, or choose another run_dir."
        )
    return {name: _typed(name, value) for name, value in noted.items() if name in FIELDS}


def _typed(name: str, value: Any) -> Any:
    """`value` as its field's type: an int counts as float, a bool as nothing but a mistake."""
    meta = FIELDS[name].metadata
    try:
        if isinstance(value, bool) or (isinstance(value, str) != (meta["type"] is str)):
            raise TypeError
        typed = operator.index(value) if meta["type"] is int else meta["type"](value)
    except (TypeError, ValueError) as error:
        raise D3S2Error(f"{name} is {value!r}: give {_expected(name)}.") from error
    too_low = meta["low"] is not None and not typed >= meta["low"]  # written so that NaN fails
    too_high = meta["high"] is not None and not typed <= meta["high"]
    if too_low or too_high or (meta["choices"] and typed not in meta["choices"]):
        raise D3S2Error(f"{name} is {value!r}: give {_expected(name)}.")
    return typed


def _expected(name: str) -> str:
    """What a parameter takes, in words, with its meaning."""
    meta = FIELDS[name].metadata
    kind = {int: "a whole number", float: "a number", str: "a text"}[meta["type"]]
    bounds = [
        f"from {meta['low']}" if meta["low"] is not None else "",
        f"to {meta['high']}" if meta["high"] else "",
    ]
    text = _listing(meta["choices"]) if meta["choices"] else " ".join([kind, *filter(None, bounds)])
    return f"{text} ({meta['help']})"


def _check(settings: Settings) -> None:
    """What concerns two parameters at once."""
    if settings.window_start > settings.window_end:
        raise D3S2Error(
            f"window_start is {settings.window_start} and window_end {settings.window_end}: start "
            "before the end."
        )
    real = [
        name
        for name in ("generator", "proxy_config", "network")
        if getattr(settings, name) != PROFILES["scenes"][name]
    ]
    if settings.data_format == "scenes" and real:
        raise D3S2Error(
            f"{real[0]} is {getattr(settings, real[0])!r} but scenes come with their own small "
            "networks: leave it "
            "away, or take another profile or data_format."
        )
    if not 0 < settings.budget < float("inf"):
        raise D3S2Error(
            f"budget is {settings.budget}: give a share of the images (up to 1) or their number."
        )


def _listing(names: Any) -> str:
    names = [repr(name) for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
