"""Train what the guided sampler needs: the layout-to-image generator and the proxy, on the real
training split.

The embedded scenes ship with their weights; this module made them, and the `camvid` profile runs it
for its own:

    python -m d3s2.models.pretraining proxy     --data <data folder> --out d3s2/weights/scenes/proxy
    python -m d3s2.models.pretraining generator --data <data folder> --out
    d3s2/weights/scenes/generator --iterations 9000

Both trainings draw batch number k from a random generator seeded by (seed, k), keep a checkpoint,
and go on from it when they are started again. Images with rare classes are drawn more often (LVIS
repeat factors, Gupta et al. 2019).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d3s2.core.errors import D3S2Error, exit_code
from d3s2.core.files import atomic_path, sha256, write_csv, write_json
from d3s2.data.dataset import IGNORE, SegmentationDataset
from d3s2.data.folder import open_folder
from d3s2.data.tensors import class_sets
from d3s2.models.generator import LayoutGenerator, LayoutUNet, noise_schedule, save_half
from d3s2.models.load import load_generator, load_proxy
from d3s2.models.proxy import ProxySegmenter

LAYOUT_DROPPED, SET_DROPPED, BOTH_DROPPED = (
    0.10,
    0.15,
    0.10,
)  # shares of the training images, our choice


@dataclass(frozen=True)
class Schedule:
    """One training: how long, how fast, from which seed, and how often it speaks and saves."""

    iterations: int
    batch_size: int = 16
    learning_rate: float = 4e-4
    seed: int = 0
    log_every: int = 100
    save_every: int = 500
    device: str = "cpu"


class Pixels:
    """A split in memory: images uint8[N, 3, H, W], labels uint8[N, H, W], and how often each image
    is drawn.
    """

    def __init__(self, dataset: SegmentationDataset, balance: float = 0.1):
        self.num_classes = dataset.num_classes
        self.images = torch.stack(
            [torch.from_numpy(dataset.read_image(i)).permute(2, 0, 1) for i in range(len(dataset))]
        )
        self.labels = torch.stack(
            [torch.from_numpy(dataset.read_labels(i).astype(np.uint8)) for i in range(len(dataset))]
        )
        present = torch.cat(
            [class_sets(chunk.long(), self.num_classes) for chunk in self.labels.split(256)]
        )
        repeat = (balance / present.mean(0).clamp(min=1 / len(dataset))).sqrt().clamp(min=1)
        self.weights = (present * repeat).amax(1).clamp(min=1).double()

    def batch(self, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw float[B, 3, H, W] images in [-1, 1] and int64[B, H, W] labels, each flipped with
        probability 1/2.
        """
        index = torch.multinomial(self.weights, size, replacement=True, generator=rng)
        flip = torch.rand(size, generator=rng) < 0.5
        images, labels = self.images[index].float() / 127.5 - 1, self.labels[index].long()
        return (
            torch.where(flip[:, None, None, None], images.flip(-1), images),
            torch.where(flip[:, None, None], labels.flip(-1), labels),
        )


def _bf16_pays() -> bool:
    """Half-precision convolutions are faster only where the processor has instructions for them."""
    return bool(
        torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class _Ema:
    """Exponential moving average of the weights, with the usual warm-up."""

    def __init__(self, model: nn.Module, decay: float = 0.999):
        self.decay, self.step = decay, 0
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)


def _train(
    model: nn.Module,
    loss_of: Callable[[torch.Generator], Tensor],
    recipe: Schedule,
    out: Path,
    report: Callable[[str], None],
) -> _Ema:
    """The loop both trainings share: AdamW, one cycle, clipping at norm 1, an average of the
    weights, checkpoints.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, log = out / "checkpoint.pt", out / "training_log.csv"
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, recipe.iterations, pct_start=0.1
    )
    ema, start, rows, seconds = _Ema(model), 0, [], 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=recipe.device)
        model.load_state_dict(state["model"]), optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        ema.weights, ema.step, start, rows, seconds = (
            state["ema"],
            state["step"],
            state["step"],
            state["rows"],
            state["seconds"],
        )
        report(f"going on at iteration {start}")
    begun, running = time.perf_counter() - seconds, []
    for step in range(start + 1, recipe.iterations + 1):
        loss = loss_of(torch.Generator().manual_seed(recipe.seed * 10_000_019 + step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), schedule.step(), ema.update(model)
        running.append(loss.item())
        if step % recipe.log_every == 0 or step == recipe.iterations:
            seconds = time.perf_counter() - begun
            rows.append([step, round(sum(running) / len(running), 5), round(seconds, 1)])
            running = []
            report(f"iteration {step}/{recipe.iterations}  loss {rows[-1][1]:.4f}  {seconds:.0f} s")
        if step % recipe.save_every == 0 or step == recipe.iterations:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "ema": ema.weights,
                "step": step,
                "rows": rows,
                "seconds": seconds,
            }
            with atomic_path(checkpoint) as partial:
                torch.save(state, partial)
            write_csv(log, [["iteration", "loss", "seconds"], *rows])
    return ema


def _check_size(pixels: Pixels, multiple: int) -> None:
    height, width = pixels.images.shape[2:]
    if height % multiple or width % multiple:
        raise D3S2Error(
            f"Images of {height}x{width} do not fit the network: both sides must be multiples of "
            f"{multiple}. Set image_size, for example "
            f"{height // multiple * multiple}x{width // multiple * multiple}."
        )


def warm_start(model: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """Copy every tensor that has the same name and shape in both, and return the names of the
    others.

    What depends on the classes (an embedding, the last layer) has another shape for another dataset
    and stays as it is.
    """
    own = model.state_dict()
    fitting = {
        name: value
        for name, value in weights.items()
        if name in own and own[name].shape == value.shape
    }
    model.load_state_dict(
        {**own, **{name: value.to(own[name].dtype) for name, value in fitting.items()}}
    )
    return sorted(set(own) - set(fitting))


def train_proxy(
    dataset: SegmentationDataset,
    out: Path,
    recipe: Schedule,
    report: Callable[[str], None] = print,
    pretrained: Path | None = None,
) -> ProxySegmenter:
    """Train the proxy by cross-entropy with flips and light and colour changes; write it to `out`.

    `pretrained`: the folder of a proxy to start from (see `warm_start`); None = from random
    weights.
    """
    torch.manual_seed(recipe.seed)
    pixels, model = Pixels(dataset), ProxySegmenter(dataset.num_classes).to(recipe.device)
    if pretrained is not None:
        warm_start(model, load_proxy(pretrained).state_dict())
    _check_size(pixels, 2 ** (len(model.config.channels) - 1))
    bf16 = _bf16_pays()

    def loss_of(rng: torch.Generator) -> Tensor:
        images, labels = pixels.batch(recipe.batch_size, rng)
        tint = 2 * torch.rand(len(images), 3, 1, 1, generator=rng) - 1
        gain = 1 + 0.25 * tint * torch.rand(len(images), 1, 1, 1, generator=rng)
        images = (
            (images + 1) * gain - 1 + 0.1 * torch.randn(len(images), 1, 1, 1, generator=rng)
        ).clamp(-1, 1)
        images, labels = images.to(recipe.device), labels.to(recipe.device)
        with torch.autocast(recipe.device, torch.bfloat16, enabled=bf16):
            logits = model(images).logits
        return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE)

    ema = _train(model, loss_of, recipe, out, report)
    model.load_state_dict(ema.weights)
    save_half(model.eval(), out)
    return model


def train_generator(
    dataset: SegmentationDataset,
    out: Path,
    recipe: Schedule,
    report: Callable[[str], None] = print,
    pretrained: Path | None = None,
    **architecture: object,
) -> LayoutGenerator:
    """Train the generator by v-prediction with both conditions dropped at random; write the
    averaged weights to `out`.

    `pretrained`: the folder of a generator to start from (see `warm_start`); None = from random
    weights.
    """
    torch.manual_seed(recipe.seed)
    pixels, model = (
        Pixels(dataset),
        LayoutUNet(dataset.num_classes, **architecture).to(recipe.device),
    )
    if pretrained is not None:
        warm_start(model, load_generator(pretrained).unet.state_dict())
    _check_size(pixels, model.config.patch * 2 ** (len(model.config.channels) - 1))
    scheduler, bf16, size = noise_schedule(), _bf16_pays(), recipe.batch_size

    def loss_of(rng: torch.Generator) -> Tensor:
        images, labels = pixels.batch(size, rng)
        classes, dropped = class_sets(labels, dataset.num_classes), torch.rand(size, generator=rng)
        labels[dropped < LAYOUT_DROPPED + BOTH_DROPPED] = -1
        classes[(dropped < BOTH_DROPPED) | (dropped > 1 - SET_DROPPED)] = -1
        t = (
            (torch.arange(size) + torch.rand(size, generator=rng)) * 1000 / size
        ).long()  # one timestep per stratum
        noise = torch.randn(images.shape, generator=rng)
        noisy, target = (
            scheduler.add_noise(images, noise, t),
            scheduler.get_velocity(images, noise, t),
        )
        noisy, t, labels, classes = (a.to(recipe.device) for a in (noisy, t, labels, classes))
        with torch.autocast(recipe.device, torch.bfloat16, enabled=bf16):
            v = model(noisy, t, labels, classes)
        return F.mse_loss(v.float(), target.to(recipe.device))

    ema = _train(model.train(), loss_of, recipe, out, report)
    model.load_state_dict(ema.weights)
    generator = LayoutGenerator(model.eval(), scheduler)
    generator.save(out)
    return generator


def write_provenance(folder: Path, commands: list[str]) -> None:
    """Write `weights.json`: the commands, and bytes and SHA-256 of every weight file under
    `folder`.
    """
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*.safetensors"))
    }
    write_json(
        folder / "weights.json", {"commands": commands, "torch": torch.__version__, "files": files}
    )


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
    options = parser.parse_args(arguments)
    recipe = Schedule(
        options.iterations,
        options.batch_size,
        options.learning_rate,
        options.seed,
        device=options.device,
    )
    train = {"proxy": train_proxy, "generator": train_generator}[options.what]

    def work() -> None:
        dataset, say = open_folder(options.data, "train"), partial(print, flush=True)
        train(dataset, options.out, recipe, report=say, pretrained=options.pretrained)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
