"""Coresets: the training set is a choice of real photographs with their masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from d3s2.methods.painted import Rank
from d3s2.methods.protocol import ByExamples, Example
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
