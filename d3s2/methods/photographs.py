"""Coresets: the training set is a choice of real photographs with their masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from d3s2.methods.coresets import (
    facility_location,
    herding,
    k_center,
    rare_class_ranking,
)
from d3s2.methods.embeddings import embeddings
from d3s2.methods.method import ByExamples, Example
from d3s2.methods.painted import Rank
from d3s2.methods.world import World
from d3s2.selection import Ranking, random_ranking, uniform_ranking

TOGETHER = 64
"""Photographs copied between two looks at the clock."""


@dataclass(frozen=True)
class Photographs(ByExamples):
    """The photographs that a rule chooses. rank: the rule; also: what it uses besides images and
    masks, of `world.USES`; varies: whether another seed makes another set.
    """

    name: str
    rank: Rank
    says: str = ""
    also: frozenset[str] = frozenset()
    varies: bool = True

    @property
    def uses(self) -> frozenset[str]:  # type: ignore[override]
        """Images, masks, and what its rule takes."""
        return frozenset({"images", "masks"}) | self.also

    def select(self, world: World) -> np.ndarray:
        """int64[budget]."""
        return self.rank(world).first(world.budget)

    def units(self, chosen: np.ndarray) -> list[np.ndarray]:
        """Some at a time."""
        return [chosen[start : start + TOGETHER] for start in range(0, len(chosen), TOGETHER)]

    def make(self, world: World, unit: np.ndarray) -> Sequence[Example]:
        """Each photograph with its mask."""
        train = world.train
        return [
            Example(train.ids[i], train.read_image(i), train.read_labels(i).astype(np.uint8), {})
            for i in unit.tolist()
        ]


def random_masks(world: World) -> Ranking:
    """Drawn at random, anew for every seed: the baseline that every method has to beat."""
    return random_ranking(len(world.train), world.seed)


def uniform_masks(world: World) -> Ranking:
    """Round robin over the classes (UniDD's baseline by its name; the reading is ours)."""
    return uniform_ranking(world.counts, world.seed)


def rare_class_masks(world: World) -> Ranking:
    """DAFormer's rare class sampling, without replacement."""
    height, width = world.train.read_labels(0).shape
    return rare_class_ranking(world.counts, height * width, world.seed)


@dataclass(frozen=True)
class InFeatureSpace:
    """A rule over the photographs as the proxy sees them: points float[N, D], and a budget."""

    rule: Callable[[np.ndarray, int], Ranking]

    def __call__(self, world: World) -> Ranking:
        """The rule's choice."""
        train, proxy = world.train, world.proxy
        points = world.kept(
            "embeddings", "d3s2.methods.embeddings", lambda: embeddings(train, proxy)
        )
        return self.rule(points, world.budget)


K_CENTER = InFeatureSpace(k_center)
HERDING = InFeatureSpace(herding)
FACILITY_LOCATION = InFeatureSpace(facility_location)
