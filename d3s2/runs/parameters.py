"""Every parameter of a run: its type, range, unit and meaning; and how a value is read and checked.

`config` gives the parameters their values.
"""

from __future__ import annotations

import difflib
import operator
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from d3s2.core.errors import D3S2Error
from d3s2.core.places import EMBEDDED_WEIGHTS
from d3s2.data.pairing import parse_size

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 300
DATA_FORMATS = ("scenes", "folder", "camvid", "ade20k", "cocostuff", "voc2012", "voc2012aug")
PALETTES = ("ade20k", "coco", "dataset")
"""Written here as well as where they are defined (a test compares), so that nothing heavy is
imported to ask for help.
"""


def _parameter(
    kind: type,
    help: str,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    choices: tuple[str, ...] = (),
    decides: bool = True,
    divides: int = 0,
    pattern: tuple[str, str] = ("", ""),  # another value than the choices: how it looks, in words
) -> Any:
    metadata = {"type": kind, "help": help, "low": low, "high": high, "unit": unit}
    more = {"choices": choices, "decides": decides, "divides": divides, "pattern": pattern}
    return field(metadata=metadata | more)


def _machine(kind: type, help: str, *bounds: Any, **more: Any) -> Any:
    """A parameter that suits a run to its machine: nothing is made anew when it changes."""
    return _parameter(kind, help, *bounds, **more, decides=False)


@dataclass(frozen=True)
class Settings:
    """Every parameter of a run, complete and checked. The metadata of each field holds type, range,
    unit and help.
    """

    profile: str = _parameter(str, "named set of values for all other parameters")
    run_dir: str = _machine(str, "folder of this run; empty = <home>/runs/<profile>")
    data_format: str = _parameter(str, "how the data lies on disk", choices=DATA_FORMATS)
    data_root: str = _parameter(str, "folder of your data; scenes need none")
    image_size: str = _parameter(
        str, "height x width that images are resized to, e.g. 96x128", unit="pixels"
    )
    train_images: int = _parameter(int, "training images used; 0 = all", 0, None, "images")
    val_images: int = _parameter(int, "validation images used; 0 = all", 0, None, "images")
    seed: int = _parameter(int, "seed of every random choice", 0, 2**31 - 1)
    threads: int = _machine(int, "CPU threads; 0 = all cores", 0, 1024, "threads")
    device: str = _machine(str, "where networks run", choices=("auto", "cpu", "cuda"))
    jobs: int = _machine(int, "trainings side by side; 0 = one a core", 0, 1024, "processes")
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
        float, "masks to select: share of the training images (up to 1) or their number", 0
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
    steps: int = _parameter(int, "sampling steps", 1, 1000, "steps", divides=1000)
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
        float, "guidance starts after this share of all steps", 0, 1, "share of the steps"
    )
    window_end: float = _parameter(
        float, "guidance ends after this share of all steps", 0, 1, "share of the steps"
    )
    jacobian: str = _parameter(
        str,
        "gradient through the denoiser (full) or around it (detach)",
        choices=("detach", "full"),
    )
    guide_every: int = _parameter(
        int,
        "guided steps from one gradient to the next; those between use the last one again",
        1,
        1000,
        "steps",
    )
    eta: float = _parameter(
        float, "fresh noise in every sampling step; 0 = none (DDIM), 1 = as much as DDPM's", 0, 1
    )
    strength: float = _parameter(
        float,
        "share of the steps that is run, from the mask's own photograph, noised; 1 = from pure "
        "noise",
        0.001,
        1,
        "share of the steps",
    )
    images_per_mask: int = _parameter(
        int, "images painted of each selected mask, from different noise", 1, 100, "images"
    )
    sampling_batch: int = _machine(
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
    generator: str = _parameter(
        str,
        "what paints: our small network, a pretrained one, or what a function of your own makes",
        choices=("embedded", "stable-diffusion"),
        pattern=("package.module:function", r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"),
    )
    diffusion_model: str = _parameter(
        str, "Stable Diffusion in diffusers' format: a folder, or owner/name on the hub"
    )
    diffusion_revision: str = _parameter(
        str, "commit, tag or branch of diffusion_model; empty = a known commit, or main"
    )
    controlnet_model: str = _parameter(
        str, "ControlNet for segmentation: a folder, or owner/name on the hub"
    )
    controlnet_revision: str = _parameter(
        str, "commit, tag or branch of controlnet_model; empty = a known commit, or main"
    )
    control_palette: str = _parameter(
        str, "colours that the ControlNet was trained on", choices=PALETTES
    )
    layout_control: str = _parameter(
        str,
        "how a layout enters Stable Diffusion: by its ControlNet, through attention, or both",
        choices=("controlnet", "attention", "both"),
    )
    control_scale: float = _parameter(float, "weight of the layout in the ControlNet", 0, 2)
    negative_prompt: str = _parameter(str, "what classifier-free guidance moves away from")
    model_files: str = _machine(
        str,
        "take models from this machine alone, or fetch missing ones",
        choices=("local", "download"),
    )
    precision: str = _parameter(
        str, "of the diffusion networks", choices=("float32", "bfloat16", "float16")
    )
    checkpointing: int = _parameter(
        int, "1 = compute activations again for gradients, which saves memory; 0 = keep them", 0, 1
    )
    vae_memory: str = _parameter(
        str, "how the decoder saves memory", choices=("whole", "slicing", "tiling")
    )
    proxy_config: str = _parameter(
        str,
        "mmsegmentation config of the proxy, a file or a shipped name; empty = our small network",
    )
    proxy_checkpoint: str = _parameter(
        str, "weights of proxy_config; empty = <home>/models/<published file>"
    )
    proxy_layers: str = _parameter(
        str,
        "modules of the proxy whose features are matched, with commas; empty = the backbone's "
        "outputs",
    )
    network: str = _parameter(
        str,
        "Mask2Former that is trained: scaled down, or Swin-S as shipped",
        choices=("scaled-down", "swin-s"),
    )
    protocol: str = _parameter(
        str,
        "images to train and to judge: squeezed to image_size, or as published figures are made",
        choices=("squeezed", "published"),
    )
    training_precision: str = _parameter(
        str,
        "of the products in a training step of the Mask2Formers",
        choices=("float32", "bfloat16", "float16"),
    )
    backbone_weights: str = _parameter(
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

    judge_every: int = _machine(
        int,
        "iterations between two looks at a training's validation mIoU on the way, for its logs; "
        "0 = none",
        0,
        10**7,
        "iterations",
    )
    tracking: str = _machine(
        str,
        "who else gets what trainings log",
        choices=("none", "tensorboard", "wandb", "mlflow"),
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
DECIDING = tuple(name for name, entry in FIELDS.items() if entry.metadata["decides"])
"""The parameters that decide results; the others only say where and how fast they are made."""


def parse(name: str, text: str) -> Any:
    """The value that `text` writes for a parameter, e.g. on the command line.

    Raises D3S2Error for an unknown name, with the closest ones, and for text that is no value of
    its type.
    """
    require_known([name])
    kind = FIELDS[name].metadata["type"]
    try:
        value = kind(text)
    except ValueError as error:
        raise D3S2Error(f"{name} is {_short(text)}: give {expected(name)}.") from error
    return typed(name, value)


def typed(name: str, value: Any) -> Any:
    """`value` as its field's type: an int counts as float, a bool as nothing but a mistake.

    Raises D3S2Error for another type, a value out of range, and one that is no choice.
    """
    meta = FIELDS[name].metadata
    try:
        if isinstance(value, bool) or (isinstance(value, str) != (meta["type"] is str)):
            raise TypeError
        found = operator.index(value) if meta["type"] is int else meta["type"](value)
    except (TypeError, ValueError, OverflowError) as error:
        raise D3S2Error(f"{name} is {_short(value)}: give {expected(name)}.") from error
    too_low = meta["low"] is not None and not found >= meta["low"]  # written so that NaN fails
    too_high = meta["high"] is not None and not found <= meta["high"]
    matches = meta["pattern"][1] and re.fullmatch(meta["pattern"][1], str(found))
    no_choice = meta["choices"] and found not in meta["choices"] and not matches
    if too_low or too_high or no_choice or (meta["divides"] and meta["divides"] % found):
        raise D3S2Error(f"{name} is {_short(value)}: give {expected(name)}.")
    return found


def _short(value: object) -> str:
    """A value as Python writes it, of which what is very long is cut out."""
    return _REPR.repr(value)


def expected(name: str) -> str:
    """What a parameter takes, in words, with its meaning."""
    meta = FIELDS[name].metadata
    if meta["choices"]:
        choices = [*meta["choices"], *filter(None, meta["pattern"][:1])]
        return f"{listing(choices)} ({meta['help']})"
    words = [{int: "a whole number", float: "a number", str: "a text"}[meta["type"]]]
    if meta["low"] is not None:
        words.append(f"from {meta['low']}")
    if meta["high"]:
        words.append(f"to {meta['high']}")
    if meta["divides"]:
        words.append(f"that divides {meta['divides']}")
    return f"{' '.join(words)} ({meta['help']})"


def require_known(names: Iterable[str], known: Iterable[str] = FIELDS) -> None:
    """Raise D3S2Error naming the first of `names` that is not known, and the closest that are."""
    known = sorted(known)
    for name in names:
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, 3, 0.5)
        hint = f"did you mean {listing(close)}?" if close else f"there are {', '.join(known)}."
        raise D3S2Error(f"There is no parameter {name!r}: {hint}")


def check_together(settings: Settings, defaults: Mapping[str, Any]) -> None:
    """What concerns two parameters at once. defaults: the values of the profile `scenes`.

    Raises D3S2Error for a window that ends before it starts, pretrained models and another size
    for scenes, a size or a budget that is none, and a batch that its GPUs cannot share.
    """
    start, end = settings.window_start, settings.window_end
    if start > end:
        raise D3S2Error(f"window_start is {start} and window_end {end}: start before the end.")
    size = parse_size(settings.image_size)
    if settings.data_format == "scenes":
        if size != parse_size(defaults["image_size"]):
            raise D3S2Error(
                f"image_size is {settings.image_size!r} but scenes are drawn at "
                f"{defaults['image_size']}: leave it away."
            )
        for name in ("generator", "proxy_config", "network"):
            if getattr(settings, name) != defaults[name]:
                raise D3S2Error(
                    f"{name} is {getattr(settings, name)!r} but scenes come with their own small "
                    "networks: leave it away, or take another profile or data_format."
                )
        if settings.protocol == "published":
            raise D3S2Error(
                "protocol is 'published' but scenes are drawn at one size: leave it away, or take "
                "another data_format."
            )
    if settings.batch_size % settings.gpus:
        raise D3S2Error(
            f"batch_size is {settings.batch_size} and gpus {settings.gpus}: the GPUs share a "
            "batch, take a batch_size that gpus divides."
        )
    broken = settings.budget > 1 and settings.budget % 1
    if broken or not 0 < settings.budget < float("inf"):
        raise D3S2Error(
            f"budget is {settings.budget}: give a share of the images (up to 1) or their number."
        )


def listing(names: Iterable[object]) -> str:
    """'a', 'b' or 'c'."""
    words = [repr(name) for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
