"""Train what the guided sampler needs: the layout-to-image generator and the proxy, on the real
training split.

The embedded scenes ship with their weights; this module made them, and the `camvid` profile runs it
for its own:

    python -m d3s2.models.pretraining proxy --data <data folder> \\
        --out d3s2/weights/scenes/proxy --iterations 4000 --learning-rate 2e-3
    python -m d3s2.models.pretraining generator --data <data folder> \\
        --out d3s2/weights/scenes/generator --iterations 9000

A generator is trained on, at a constant rate for as long as it pays, with its error on the val
split in the log; so was the one that ships:

    python -m d3s2.models.pretraining generator --data <data folder> --out <folder> \\
        --pretrained d3s2/weights/scenes/generator --policy constant --average 0.9995 \\
        --learning-rate 2e-4 --dropped 0.05 0.05 0.05 --held-out --iterations 14000

Both go through the loop of `fitting`: a training that is started again goes on from its checkpoint
(that of another training is set aside), and images with rare classes are drawn more often.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d3s2.core.errors import D3S2Error, exit_code
from d3s2.core.files import digest, sha256, write_json
from d3s2.data.dataset import IGNORE, SegmentationDataset
from d3s2.data.folder import open_folder
from d3s2.data.tensors import class_sets, scaled
from d3s2.models.fitting import POLICIES, PixelPool, Schedule, batch_generator, fit
from d3s2.models.generator import LayoutGenerator, LayoutUNet, noise_schedule, save_half
from d3s2.models.load import load_generator, load_proxy
from d3s2.models.proxy import ProxySegmenter


class Dropped(NamedTuple):
    """Shares of the training images that lack the layout alone, the class set alone, or both."""

    layout: float = 0.10
    classes: float = 0.15
    both: float = 0.10


DROPPED = Dropped()
"""Our choice."""
JUDGED_AT = (50, 150, 250, 350, 450, 550, 650, 750, 850, 950)
"""Timesteps at which the error on held-out images is measured."""


@functools.cache
def _bf16_pays() -> bool:
    """Half-precision convolutions are faster only where the processor has instructions for them."""
    return bool(
        torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _check_size(pixels: PixelPool, multiple: int) -> None:
    """Raise D3S2Error unless the network's strides divide the images' sides."""
    height, width = pixels.images.shape[2:]
    if height % multiple or width % multiple:
        fitting = f"{height // multiple * multiple}x{width // multiple * multiple}"
        raise D3S2Error(
            f"Images of {height}x{width} do not fit the network: both sides must be multiples of "
            f"{multiple}. Set image_size, for example {fitting}."
        )


def warm_start(model: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """Copy every tensor that has the same name and shape in both, and return the sorted names of
    the others.

    What depends on the classes (an embedding, the last layer) has another shape for another dataset
    and stays as it is.
    """
    own = model.state_dict()
    left = []
    for name, value in own.items():
        if name in weights and weights[name].shape == value.shape:
            own[name] = weights[name].to(value.dtype)
        else:
            left.append(name)
    model.load_state_dict(own)
    return sorted(left)


# -------------------------------------------------------------------------------------------- proxy
def train_proxy(
    dataset: SegmentationDataset,
    out: Path,
    recipe: Schedule,
    report: Callable[[str], None] = print,
    pretrained: Path | None = None,
    **architecture: object,
) -> ProxySegmenter:
    """Train the proxy by cross-entropy with flips and light and colour changes; write it to `out`.

    pretrained: the folder of a proxy to start from (see `warm_start`); None = from random weights.
    architecture: arguments of `ProxySegmenter`. Raises D3S2Error for images that the network's
    strides do not divide.
    """
    torch.manual_seed(recipe.seed)
    pixels = PixelPool(dataset)
    model = ProxySegmenter(dataset.num_classes, **architecture).to(recipe.device)
    if pretrained is not None:
        warm_start(model, load_proxy(pretrained).state_dict())
    _check_size(pixels, 2 ** (len(model.config.channels) - 1))
    loss = functools.partial(_proxy_loss, model, pixels, recipe)
    fit(model, loss, recipe, out, report, dataset.fingerprint())
    save_half(model.eval(), out)
    return model


def _proxy_loss(
    model: ProxySegmenter, pixels: PixelPool, recipe: Schedule, rng: torch.Generator
) -> Tensor:
    """Cross-entropy of a batch of images in other light."""
    images, labels = pixels.batch(recipe.batch_size, rng)
    images = _relit(images, rng).to(recipe.device)
    with torch.autocast(recipe.device, torch.bfloat16, enabled=_bf16_pays()):
        logits = model(images).logits
    return F.cross_entropy(logits.float(), labels.to(recipe.device), ignore_index=IGNORE)


def _relit(images: Tensor, rng: torch.Generator) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1], each with other strengths of its channels, and lightness."""
    one_each = (len(images), 1, 1, 1)
    tint = 2 * torch.rand(len(images), 3, 1, 1, generator=rng) - 1
    gain = 1 + 0.25 * tint * torch.rand(one_each, generator=rng)
    shift = 0.1 * torch.randn(one_each, generator=rng)
    return ((images + 1) * gain - 1 + shift).clamp(-1, 1)


# ---------------------------------------------------------------------------------------- generator
def train_generator(
    dataset: SegmentationDataset,
    out: Path,
    recipe: Schedule,
    report: Callable[[str], None] = print,
    pretrained: Path | None = None,
    held_out: SegmentationDataset | None = None,
    dropped: Dropped = DROPPED,
    **architecture: object,
) -> LayoutGenerator:
    """Train the generator by v-prediction with both conditions dropped at random; write the
    averaged weights to `out`.

    pretrained: the folder of a generator to start from (see `warm_start`); None = from random
    weights. held_out: other images, on which every checkpoint's `denoising_error` is measured and
    logged. architecture: arguments of `LayoutUNet`. Raises D3S2Error for images that the network's
    strides do not divide, and shares that are none.
    """
    if min(dropped) < 0 or sum(dropped) > 1:
        raise D3S2Error(f"The shares dropped are {tuple(dropped)}: give at most 1 together.")
    torch.manual_seed(recipe.seed)
    pixels = PixelPool(dataset)
    model = LayoutUNet(dataset.num_classes, **architecture).to(recipe.device)
    if pretrained is not None:
        warm_start(model, load_generator(pretrained).unet.state_dict())
    _check_size(pixels, model.config.patch * 2 ** (len(model.config.channels) - 1))
    generator = LayoutGenerator(model.train(), noise_schedule())
    loss = functools.partial(_denoising_loss, generator, pixels, recipe, dropped)
    made_from = digest([dataset.fingerprint(), dropped]) if dropped != DROPPED else ""
    judge = None
    if held_out is not None:
        judge = functools.partial(_judged, PixelPool(held_out), recipe.device)
    fit(model, loss, recipe, out, report, made_from or dataset.fingerprint(), judge)
    model.eval()
    generator.save(out)
    return generator


def _denoising_loss(
    generator: LayoutGenerator,
    pixels: PixelPool,
    recipe: Schedule,
    dropped: Dropped,
    rng: torch.Generator,
) -> Tensor:
    """Mean squared error of v for a batch of images at random timesteps."""
    images, labels = pixels.batch(recipe.batch_size, rng)
    layout, classes = _some_dropped(labels, pixels.num_classes, dropped, rng)
    strata = torch.arange(len(images)) + torch.rand(len(images), generator=rng)
    t = (strata * 1000 / len(images)).long()  # one timestep from each part of the schedule
    noise = torch.randn(images.shape, generator=rng)
    noisy = generator.scheduler.add_noise(images, noise, t)
    target = generator.scheduler.get_velocity(images, noise, t)
    inputs = [part.to(recipe.device) for part in (noisy, t, layout, classes)]
    with torch.autocast(recipe.device, torch.bfloat16, enabled=_bf16_pays()):
        v = generator.unet(*inputs)
    return F.mse_loss(v.float(), target.to(recipe.device))


def _some_dropped(
    labels: Tensor, num_classes: int, dropped: Dropped, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(layout int64[B, H, W], class set float32[B, C]) of labels; -1 all over where dropped."""
    classes = class_sets(labels, num_classes)
    draw = torch.rand(len(labels), generator=rng)
    layout = labels.clone()
    layout[draw < dropped.layout + dropped.both] = -1
    classes[(draw < dropped.both) | (draw > 1 - dropped.classes)] = -1
    return layout, classes


@torch.no_grad()
def denoising_error(generator: LayoutGenerator, pixels: PixelPool, device: str = "cpu") -> float:
    """Mean squared error of v over all these images with both their conditions.

    Image number i has noise of seed i and a timestep of its own of `JUDGED_AT`, so that two
    networks are asked the same.
    """
    found = []
    for indices in torch.arange(len(pixels.images)).split(64):
        images, labels = scaled(pixels.images[indices]), pixels.labels[indices].long()
        t = torch.tensor(JUDGED_AT)[indices % len(JUDGED_AT)]
        numbers = indices.tolist()
        drawn = [torch.randn(images[0].shape, generator=batch_generator(0, i)) for i in numbers]
        noise = torch.stack(drawn)
        noisy = generator.scheduler.add_noise(images, noise, t)
        classes = class_sets(labels, pixels.num_classes)
        v = generator.unet(*(part.to(device) for part in (noisy, t, labels, classes)))
        target = generator.scheduler.get_velocity(images, noise, t)
        found.append((v.cpu() - target).square().flatten(1).mean(1))
    return torch.cat(found).double().mean().item()


def _judged(pixels: PixelPool, device: str, model: nn.Module) -> float:
    """The error of a network between two steps of its training."""
    return denoising_error(LayoutGenerator(model, noise_schedule()), pixels, device)


# ------------------------------------------------------------------------------------- command line
def write_provenance(folder: Path, commands: list[str]) -> None:
    """Write `weights.json`: the commands, and bytes and SHA-256 of every weight file under
    `folder`.
    """
    files = {}
    for path in sorted(folder.rglob("*.safetensors")):
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    facts = {"commands": commands, "torch": torch.__version__, "files": files}
    write_json(folder / "weights.json", facts)


def main(arguments: list[str] | None = None) -> int:
    """Command line: train one of the two networks on the train split of a folder in the ordinary
    layout.
    """
    parser = argparse.ArgumentParser(
        prog="python -m d3s2.models.pretraining", description=main.__doc__
    )
    parser.add_argument("what", choices=["proxy", "generator"])
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with train/images, train/labels and classes.csv",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--pretrained", type=Path, help="folder of a network of the same kind to start from"
    )
    parser.add_argument(
        "--channels", type=int, nargs="+", help="proxy: width of each level, finest first"
    )
    parser.add_argument("--policy", choices=POLICIES, default="one cycle")
    parser.add_argument(
        "--average", type=float, default=0.999, help="decay of the average of the weights"
    )
    parser.add_argument(
        "--dropped",
        type=float,
        nargs=3,
        metavar=("LAYOUT", "CLASSES", "BOTH"),
        default=DROPPED,
        help="generator: shares of the images that lack a condition",
    )
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="generator: log the error on the val split at every checkpoint",
    )
    options = parser.parse_args(arguments)
    return exit_code(functools.partial(_command, options))


def _command(options: argparse.Namespace) -> None:
    """What the command line asks for."""
    recipe = Schedule(
        iterations=options.iterations,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
        device=options.device,
        policy=options.policy,
        average=options.average,
    )
    say = functools.partial(print, flush=True)
    dataset = open_folder(options.data, "train")
    if options.what == "proxy":
        architecture = {"channels": tuple(options.channels)} if options.channels else {}
        train_proxy(dataset, options.out, recipe, say, options.pretrained, **architecture)
        return
    held_out = open_folder(options.data, "val") if options.held_out else None
    dropped = Dropped(*options.dropped)
    train_generator(dataset, options.out, recipe, say, options.pretrained, held_out, dropped)


if __name__ == "__main__":
    sys.exit(main())
