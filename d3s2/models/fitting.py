"""The loop that trains the embedded generator and proxy: batches, checkpoints, averaged weights.

AdamW, one cycle of the learning rate or a constant one, gradients clipped at norm 1, an exponential
moving average of the weights (all our choice). Batch number k follows from (seed, k) alone, and a
training that finds its checkpoint goes on from there: a break changes no byte of the result. A
checkpoint says what it was made from; another training's is set aside.
"""

from __future__ import annotations

import copy
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from d3s2.core.errors import D3S2Error
from d3s2.core.files import atomic_path, digest, write_csv
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.tensors import class_sets, scaled

CHECKPOINT = "checkpoint.pt"
LOG = "training_log.csv"
WEIGHT_DECAY = 0.01
WARM_UP = 0.1
"""Share of the iterations in which the learning rate rises."""
CLIP = 1.0
"""Largest norm of a step's gradient."""
POLICIES = ("one cycle", "constant")
RISE = 200
"""Iterations in which a constant learning rate rises to its value."""


@dataclass(frozen=True)
class Schedule:
    """One training: how long, how fast, from which seed, and how often it speaks and saves.

    policy: of the learning rate, one of `POLICIES`. With a constant one the averaged weights are
    those of a whole training at any time, so that it may go on for as long as it pays. average:
    decay of the moving average. Raises D3S2Error for another policy, and an average outside [0, 1).
    """

    iterations: int
    batch_size: int = 16
    learning_rate: float = 4e-4
    seed: int = 0
    log_every: int = 100
    save_every: int = 500
    device: str = "cpu"
    policy: str = "one cycle"
    average: float = 0.999

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise D3S2Error(f"policy is {self.policy!r}: use {' or '.join(map(repr, POLICIES))}.")
        if not 0 <= self.average < 1:
            raise D3S2Error(f"average is {self.average}: give a decay from 0 to below 1.")


class PixelPool:
    """A split in memory: images uint8[N, 3, H, W], labels uint8[N, H, W], and weights float64[N],
    how often each image is drawn.

    Images with classes rarer than `balance` of the images are drawn more often (LVIS repeat
    factors, Gupta et al. 2019).
    """

    def __init__(self, dataset: SegmentationDataset, balance: float = 0.1):
        self.num_classes = dataset.num_classes
        images = [torch.from_numpy(dataset.read_image(i)) for i in range(len(dataset))]
        labels = [dataset.read_labels(i).astype(np.uint8) for i in range(len(dataset))]
        self.images = torch.stack([image.permute(2, 0, 1) for image in images])
        self.labels = torch.from_numpy(np.stack(labels))
        chunks = [class_sets(chunk.long(), self.num_classes) for chunk in self.labels.split(256)]
        present = torch.cat(chunks)
        share = present.mean(0).clamp(min=1 / len(dataset))
        repeat = (balance / share).sqrt().clamp(min=1)
        self.weights = (present * repeat).amax(1).clamp(min=1).double()

    def batch(self, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw float32[B, 3, H, W] images in [-1, 1] and int64[B, H, W] labels, each flipped with
        probability 1/2.
        """
        index = torch.multinomial(self.weights, size, replacement=True, generator=rng)
        flip = torch.rand(size, generator=rng) < 0.5
        images = scaled(self.images[index])
        labels = self.labels[index].long()
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        labels = torch.where(flip[:, None, None], labels.flip(-1), labels)
        return images, labels


class MovingAverage:
    """Exponential moving average of a model's weights, with the usual warm-up."""

    def __init__(self, model: nn.Module, decay: float = 0.999):
        self.decay = decay
        self.step = 0
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model's weights after a step; what is no float is copied."""
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)


class Fit:
    """A training between two iterations: model, optimizer, schedule, average, and the log's rows
    (iteration, loss, seconds, loss on held-out data or ""). `state` and `load` are what a
    checkpoint keeps of it.

    made_from: a digest of all that decides its bytes: data, schedule, and the weights it begins
    with, which follow from the network, the seed and what it starts from.
    """

    def __init__(self, model: nn.Module, recipe: Schedule, data: str = "") -> None:
        self.model = model
        deciding = [recipe.batch_size, recipe.learning_rate, recipe.seed, recipe.policy]
        deciding += [recipe.average]
        if recipe.policy == "one cycle":  # whose steps follow from their number
            deciding.append(recipe.iterations)
        self.made_from = digest([deciding, data, _fingerprint(model)])
        rate = recipe.learning_rate
        self.optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=WEIGHT_DECAY)
        if recipe.policy == "one cycle":
            self.schedule = torch.optim.lr_scheduler.OneCycleLR(
                self.optimizer, rate, recipe.iterations, pct_start=WARM_UP
            )
        else:
            self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, _risen)
        self.average = MovingAverage(model, recipe.average)
        self.rows: list[list[float | str]] = []
        self.seconds = 0.0

    @property
    def step(self) -> int:
        """Iterations done."""
        return self.average.step

    def advance(self, loss: Tensor) -> None:
        """One iteration: a step of the optimizer down this loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.schedule.step()
        self.average.update(self.model)

    def averaged(self) -> nn.Module:
        """A copy of the model with the averaged weights."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.average.weights)
        return model.eval()

    def state(self) -> dict[str, Any]:
        """What `load` goes on from."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ema": self.average.weights,
            "step": self.step,
            "rows": self.rows,
            "seconds": self.seconds,
            "made_from": self.made_from,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Put a `state` back."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.average.weights = state["ema"]
        self.average.step = state["step"]
        self.rows = state["rows"]
        self.seconds = state["seconds"]

    def save(self, folder: Path) -> None:
        """Write the checkpoint and the log."""
        with atomic_path(folder / CHECKPOINT) as partial:
            torch.save(self.state(), partial)
        write_csv(folder / LOG, [["iteration", "loss", "seconds", "held_out"], *self.rows])


def fit(
    model: nn.Module,
    loss_of: Callable[[torch.Generator], Tensor],
    recipe: Schedule,
    folder: Path,
    report: Callable[[str], None],
    data: str = "",
    held_out: Callable[[nn.Module], float] | None = None,
) -> None:
    """Train the model in place, and give it the averaged weights in the end.

    loss_of: the loss of a batch, all of whose random numbers come from the generator that it is
    given. folder: of the checkpoint, from which a training goes on, and of the log. report: called
    with a line now and then. data: the fingerprint of what the model is trained on. held_out: the
    loss of a model on other data, measured with the averaged weights at every checkpoint. A
    checkpoint of other data, another schedule or another network is set aside.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = Fit(model, recipe, data)
    if (folder / CHECKPOINT).exists():
        kept = read_state(folder / CHECKPOINT, recipe.device)
        if kept.get("made_from") == run.made_from:
            run.load(kept)
            report(f"going on at iteration {run.step}")
        else:
            report(_set_aside(folder / CHECKPOINT, str(kept.get("made_from", "unknown"))))
    begun = time.perf_counter() - run.seconds
    losses: list[float] = []
    while run.step < recipe.iterations:
        loss = loss_of(batch_generator(recipe.seed, run.step + 1))
        run.advance(loss)
        losses.append(loss.item())
        run.seconds = time.perf_counter() - begun
        is_last = run.step == recipe.iterations
        saves = is_last or run.step % recipe.save_every == 0
        judged = f"{held_out(run.averaged()):.5f}" if saves and held_out else ""
        if is_last or judged or run.step % recipe.log_every == 0:
            mean = round(sum(losses) / len(losses), 5)
            run.rows.append([run.step, mean, round(run.seconds, 1), judged])
            losses = []
            place = f"iteration {run.step}/{recipe.iterations}"
            report(f"{place}  loss {mean:.4f} {judged:>8s}  {run.seconds:.0f} s")
        if saves:
            run.save(folder)
    model.load_state_dict(run.average.weights)


def _risen(step: int) -> float:
    """Share of a constant learning rate after so many steps."""
    return min(1.0, (step + 1) / RISE)


def read_state(path: Path, device: str) -> dict[str, Any]:
    """A checkpoint; empty when the file is damaged."""
    try:
        kept = torch.load(path, weights_only=True, map_location=device)
    except Exception:  # noqa: BLE001 - whatever is wrong with the file, there is nothing to go on from
        return {}
    return kept if isinstance(kept, dict) else {}


def _set_aside(path: Path, made_from: str) -> str:
    """Rename a checkpoint that is not this training's, and say so."""
    other = path.with_stem(f"{path.stem}-{made_from[:8]}")
    os.replace(path, other)
    return (
        f"{path.name} is of other data, another schedule or another network, or damaged: it was "
        f"set aside as {other.name}, and the training begins anew"
    )


def _fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes and values of a model's weights."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def batch_generator(seed: int, number: int) -> torch.Generator:
    """The random numbers of one batch, whatever was drawn for those before."""
    return torch.Generator().manual_seed(seed * 10_000_019 + number)
