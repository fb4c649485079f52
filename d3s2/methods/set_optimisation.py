"""SFM's optimisation: the pixels of all images of a set together, until its flow is the data's.

The public code (arXiv 2602.05391) takes 5,000 steps of Adam, adds the next level of the pyramid
after every 200, and sets Adam back each time; so does this. Ours: the masks, which stay as they are
and are the labels; every step shows each image once; 600 steps with a learning rate as much larger;
the last images, not the best ones by some test.

Class centres are those of the whole set: altering one image changes the gradient of the others. So
the set is the unit of work, and of resuming.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d3s2.core.errors import D3S2Error
from d3s2.core.files import atomic_path, digest
from d3s2.core.long_work import Steps
from d3s2.data.tensors import read_masks
from d3s2.guidance.losses import FeatureTargets
from d3s2.methods.augmentation import Views, draw_views, shown
from d3s2.methods.flow_matching import Centres, class_centres, flow_matching, layer_numbers
from d3s2.methods.pyramid import Pyramid, colour_matrix, random_numbers
from d3s2.methods.world import World
from d3s2.models.fitting import read_state
from d3s2.models.proxy import ProxySegmenter
from d3s2.statistics.features import soft_masks

CHECKPOINT = "pyramid.pt"
SAVE_EVERY = 50
"""Steps between two checkpoints."""


@dataclass(frozen=True)
class PyramidOptions:
    """How a set is optimised.

    Args:
        steps: of Adam, over the whole set.
        travel: learning rate x steps, how far a pixel could go; the released 2e-3 x 5,000.
        growth: share of the steps after which the next level begins; the released 200 of 5,000.
            Levels that would begin after the last step never do.
        layers: names of the proxy's layers to compare; () = all but the finest and the last.
        augment: show each image cropped, flipped and noised, with its mask, anew in every step.
        smallest_crop: least share of an image that is shown.
        noise: deviation of the noise of every other view; 1 = from black to white.
        chunk: images whose features are in memory together, 0 = all. A step then takes two passes,
            one for the centres and one for the gradient, which is the same up to rounding.
    Raises:
        D3S2Error: for a value outside its range.
    """

    steps: int = 600
    travel: float = 10.0
    growth: float = 0.04
    layers: tuple[str, ...] = ()
    augment: bool = True
    smallest_crop: float = 0.36
    noise: float = 0.2
    chunk: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.chunk < 0:
            raise D3S2Error(
                f"steps is {self.steps} and chunk {self.chunk}: steps count from 1, chunk from 0."
            )
        if not (self.travel > 0 and 0 < self.growth <= 1 and self.noise >= 0):
            raise D3S2Error(
                f"travel is {self.travel}, growth {self.growth} and noise {self.noise}: travel is "
                "above 0, growth above 0 and at most 1, noise 0 or more."
            )
        if not 0 < self.smallest_crop <= 1:
            raise D3S2Error(
                f"smallest_crop is {self.smallest_crop}: give a share above 0 and at most 1."
            )


@dataclass(frozen=True)
class Goal:
    """What a set is optimised for.

    labels: int64[N, H, W], 255 = ignore; proxy: frozen; targets: the real classes' statistics;
    layers: numbers of the proxy's layers that are compared; colours: float32[3, 3]. All tensors lie
    on the proxy's device.
    """

    labels: Tensor
    proxy: ProxySegmenter
    targets: FeatureTargets
    layers: tuple[int, ...]
    colours: Tensor

    def digest(self) -> str:
        """Of all its numbers."""
        weights = self.proxy.state_dict().values()
        targets = (*self.targets.mean, *self.targets.scale, *self.targets.known)
        found = hashlib.sha256(str(self.layers).encode())
        for value in (self.labels, self.colours, *targets, *weights):
            found.update(f"{value.dtype} {tuple(value.shape)}".encode())
            found.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


def goal_of(world: World, chosen: Sequence[int] | np.ndarray, options: PyramidOptions) -> Goal:
    """The goal of a set with these masks of the train split.

    Raises D3S2Error for no mask, masks of several sizes, masks that show fewer than two classes
    known to the statistics, and a layer that the proxy does not have.
    """
    if not len(chosen):
        raise D3S2Error("no mask is chosen: give the numbers of one or more.")
    sizes = sorted({world.train.read_labels(int(index)).shape for index in chosen})
    if len(sizes) > 1:
        raise D3S2Error(
            f"the masks have sizes {sizes[0]} and {sizes[1]}: optimise masks of one size together "
            "(set image_size)."
        )
    device = next(world.proxy.parameters()).device
    targets = world.targets
    layers = layer_numbers(world.proxy.layers, options.layers)
    labels = read_masks(world.train, chosen, device)
    present = torch.bincount(labels.flatten(), minlength=256)[: len(targets.known[0])] > 0
    if int((present & targets.known[layers[0]]).sum()) < 2:
        raise D3S2Error(
            f"the {len(chosen)} masks show fewer than two classes: choose masks of several, "
            "between which features can flow."
        )
    return Goal(labels, world.proxy, targets, layers, colour_matrix(world.train).to(device))


class SetOptimisation:
    """A set between two steps; `losses` float, one for each step done.

    Every step follows from (seed, number of the step) and the levels alone. `state` and `load` are
    what a checkpoint keeps.
    """

    def __init__(self, goal: Goal, options: PyramidOptions, seed: int) -> None:
        self.goal = goal
        self.options = options
        self.seed = seed
        self.made_from = digest([asdict(options), seed, goal.digest()])
        size = (int(goal.labels.shape[1]), int(goal.labels.shape[2]))
        device = str(goal.labels.device)
        self.pyramid = Pyramid(len(goal.labels), size, goal.colours, seed, device)
        self.losses: list[float] = []
        self._renew_adam()

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.losses)

    def advance(self) -> float:
        """One step for the whole set; its loss, before the step."""
        rate = max(1, round(self.options.growth * self.options.steps))
        levels = min(len(self.pyramid.sizes), 1 + self.step // rate)
        while len(self.pyramid.levels) < levels:
            self.pyramid.grow()
            self._renew_adam()
        self.adam.zero_grad(set_to_none=True)
        loss = self._gradients()
        if not math.isfinite(loss):
            raise D3S2Error(
                f"the loss of step {self.step + 1} is {loss}: lower travel, which is "
                f"{self.options.travel}."
            )
        self.adam.step()
        self.losses.append(loss)
        return loss

    @torch.no_grad()
    def images(self) -> Tensor:
        """float32[N, 3, H, W] in [-1, 1]: the set as it is now."""
        return self.pyramid.images()

    def _renew_adam(self) -> None:
        rate = self.options.travel / self.options.steps
        self.adam = torch.optim.Adam(self.pyramid.levels, rate)

    def _gradients(self) -> float:
        """Give the levels their gradients, and the loss.

        In one pass where the whole set fits. In chunks the first pass sums up the centres, and the
        second takes the gradient of sum <d loss / d total, total>, chunk by chunk: as totals add
        up over the images, this is the same gradient.
        """
        count = len(self.goal.labels)
        rng = random_numbers(self.seed, "views", self.step)
        drawn = draw_views(count, self.options.smallest_crop, self.options.noise, rng)
        views = Views(*(part.to(self.goal.labels.device) for part in drawn))
        size = self.options.chunk or count
        rows = [slice(start, min(start + size, count)) for start in range(0, count, size)]
        if len(rows) == 1:
            loss = self._loss(self._centres(rows[0], views))
            loss.backward()
            return loss.item()
        with torch.no_grad():
            parts = (self._centres(part, views) for part in rows)
            joined = reduce(_joined, parts)
        leaves = [one._replace(total=one.total.requires_grad_()) for one in joined]
        loss = self._loss(leaves)
        pulls = torch.autograd.grad(loss, [one.total for one in leaves])
        for part in rows:
            found = self._centres(part, views)
            pairs = zip(found, pulls, strict=True)
            sum((one.total * pull).sum() for one, pull in pairs).backward()
        return loss.item()

    def _loss(self, centres: Sequence[Centres]) -> Tensor:
        return flow_matching(centres, self.goal.targets, self.goal.layers)

    def _centres(self, rows: slice, views: Views) -> list[Centres]:
        """The sums of these images in each layer."""
        images = self.pyramid.images(rows)
        labels = self.goal.labels[rows]
        if self.options.augment:
            part = Views(*(value[rows] for value in views))
            images, labels = shown(images, labels, part, self._noise(rows, images))
        features = self.goal.proxy(images).features
        return [self._layer_centres(features[layer], labels) for layer in self.goal.layers]

    def _layer_centres(self, feature: Tensor, labels: Tensor) -> Centres:
        num_classes = len(self.goal.targets.known[0])
        masks = soft_masks(labels, num_classes, (int(feature.shape[2]), int(feature.shape[3])))
        return class_centres(feature, masks)

    def _noise(self, rows: slice, images: Tensor) -> Tensor:
        """N(0, 1) in the shape of these images, each from its own number: chunks do not matter."""
        numbers = range(rows.start, rows.stop)
        drawn = [
            torch.randn(
                images.shape[1:], generator=random_numbers(self.seed, "noise", self.step, n)
            )
            for n in numbers
        ]
        return torch.stack(drawn).to(images.device)

    def state(self) -> dict[str, Any]:
        """What `load` goes on from."""
        return {
            "made_from": self.made_from,
            "losses": self.losses,
            "levels": [level.detach() for level in self.pyramid.levels],
            "adam": self.adam.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Put a `state` back."""
        self.losses = list(state["losses"])
        self.pyramid.levels = [level.requires_grad_() for level in state["levels"]]
        self._renew_adam()
        self.adam.load_state_dict(state["adam"])


def _joined(first: list[Centres], second: list[Centres]) -> list[Centres]:
    return [one.join(other) for one, other in zip(first, second, strict=True)]


def optimise_set(
    world: World,
    chosen: Sequence[int] | np.ndarray,
    options: PyramidOptions = PyramidOptions(),
    folder: Path | None = None,
    progress: bool = True,
    save_every: int = SAVE_EVERY,
) -> tuple[Tensor, list[float]]:
    """Optimise one image for each mask, all together, from the world's seed.

    Args:
        chosen: numbers of masks of the train split, of one size.
        folder: of the checkpoint, from which a call that was broken off goes on to the same bytes
            (on a CPU with as many threads). One of other options, masks or networks, or a damaged
            one, is overwritten. None = none is kept.
        progress: show how far it is (see `core.long_work`).
        save_every: steps between two checkpoints.
    Returns:
        float32[N, 3, H, W] in [-1, 1] on the CPU, in the order of `chosen`; the loss of each step.
    Raises:
        D3S2Error: as `goal_of`, and for a loss that is no number.
    """
    work = SetOptimisation(goal_of(world, chosen, options), options, world.seed)
    path = folder and Path(folder) / CHECKPOINT
    if path and path.is_file():
        kept = read_state(path, str(work.goal.labels.device))
        if kept.get("made_from") == work.made_from:
            work.load(kept)
    with Steps("optimising a set", options.steps, shown=progress) as steps:
        steps.skip(work.step)
        while work.step < options.steps:
            work.advance()
            steps.add()
            if path and (work.step % save_every == 0 or work.step == options.steps):
                with atomic_path(path) as partial:
                    torch.save(work.state(), partial)
    return work.images().cpu(), work.losses
