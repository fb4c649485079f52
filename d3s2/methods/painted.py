"""Methods that paint: rows whose parts are those of chapter 03.

Which masks, what the generator is told, where a run begins, which losses steer it and how, which
move is made besides a step, and what becomes of the finished image. One sampler runs them all, from
the same noise for the same mask and seed, so that two rows differ in what they say they differ in.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.folder import open_folder
from d3s2.data.tensors import read_images
from d3s2.guidance.losses import guidance_losses
from d3s2.guidance.painting import (
    Beginnings,
    Condition,
    LossFactory,
    NudgeMaker,
    Painter,
    Recipe,
    Refine,
    layout_and_classes,
    synthesise,
)
from d3s2.guidance.quality import kept_class_losses
from d3s2.methods.method import checked_selection
from d3s2.methods.world import World
from d3s2.selection import Ranking, greedy

Rank = Callable[[World], Ranking]
"""The masks of a world in the order of choice, at least as many as its budget."""


def greedy_masks(world: World) -> Ranking:
    """Chapter 02's class-balanced choice, the same for every seed."""
    return greedy(world.presence, world.class_weights, world.budget, world.shared.rule.delta)


@dataclass(frozen=True)
class FromSet:
    """Runs begin at the images of an earlier set of the same masks (see `painting.Beginnings`)."""

    folder: str

    def __call__(
        self, dataset: SegmentationDataset, indices: Sequence[int], device: str = "cpu"
    ) -> Tensor:
        """float32[B, 3, H, W]: its images of these masks of the data set."""
        first = open_folder(self.folder, "train")
        places = {name: place for place, name in enumerate(first.ids)}
        return read_images(first, [places[dataset.ids[index]] for index in indices], device)


@dataclass(frozen=True)
class Painted:
    """A method that paints its images with chapter 03's sampler.

    Args:
        recipe: of the painting; its method and seed are filled in.
        rank: which masks; also: what `rank` uses besides masks, of `world.USES`.
        after: the method whose masks are taken, and at whose images runs begin; "" = `rank`'s, and
            the photographs, at a strength below 1.
        condition, losses, nudge, refine: see `painting.Painter`.
        relabels: whether `refine` writes labels of its own.
        varies: whether another seed makes another set; noise does.
    """

    name: str
    says: str
    recipe: Recipe
    rank: Rank = greedy_masks
    also: frozenset[str] = frozenset()
    after: str = ""
    condition: Condition = layout_and_classes
    losses: LossFactory = guidance_losses
    nudge: NudgeMaker | None = None
    refine: Refine | None = None
    relabels: bool = False
    varies: bool = True

    @property
    def uses(self) -> frozenset[str]:
        """What follows from its parts; that the proxy also judges every image for its record is no
        use of it.
        """
        found = {"masks", "generator"} | self.also
        if self.refine or any(self.recipe.guidance.scales.values()) or self.recipe.ignore_margin:
            found.add("proxy")
        if self.recipe.strength < 1 and not self.after:
            found.add("images")
        return frozenset(found | ({"teacher labels"} if self.relabels else set()))

    def write(self, world: World, folder: Path) -> None:
        """Paint the set; see `painting.synthesise`."""
        chosen = checked_selection(self.name, self._masks(world), world)
        recipe = replace(self.recipe, method=self.name, seed=world.seed)
        if recipe.ignore_margin:
            _hand_over_class_losses(world, folder)
        synthesise(self._painter(world), world.train, chosen, folder, recipe)

    def _masks(self, world: World) -> np.ndarray:
        """int64[budget]: those of its rule, or of the set that it builds on."""
        if not self.after:
            return self.rank(world).first(world.budget)
        places = {name: place for place, name in enumerate(world.train.ids)}
        first = open_folder(world.first_set(self.after), "train").ids
        unknown = [name for name in first if name not in places]
        if unknown:
            raise D3S2Error(
                f"{self.name} builds on {self.after!r}, whose image {unknown[0]} is of no mask of "
                "that name: give a method with one image a mask."
            )
        return np.array([places[name] for name in first], dtype=np.int64)

    def _painter(self, world: World) -> Painter:
        shared = world.shared
        begin: Beginnings = FromSet(str(world.first_set(self.after))) if self.after else read_images
        return Painter(
            shared.networks.generator,
            shared.networks.proxy,
            shared.targets,
            losses=self.losses,
            beginnings=begin,
            condition=self.condition,
            nudge=self.nudge,
            refine=self.refine,
        )


def _hand_over_class_losses(world: World, folder: Path) -> None:
    """Put what the filter compares with into a set's folder: one pass over the data for all."""
    shared = world.shared
    known = shared.place("class-losses", "d3s2.guidance.quality").with_suffix(".json")
    with shared.unbilled():
        kept_class_losses(shared.networks.proxy, shared.train, known)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(known, folder / "class_losses.json")
