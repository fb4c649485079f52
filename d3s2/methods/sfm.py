"""SFM as a row of the table: masks by a rule, and images that are optimised for them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from d3s2.core.files import remove
from d3s2.data.tensors import to_uint8
from d3s2.methods.method import ByExamples, Example
from d3s2.methods.painted import Rank, greedy_masks
from d3s2.methods.set_optimisation import CHECKPOINT, PyramidOptions, optimise_set
from d3s2.methods.world import World


@dataclass(frozen=True)
class FlowMatched(ByExamples):
    """SFM (arXiv 2602.05391) for regions: see `flow_matching`, `set_optimisation`.

    Args:
        rank: which masks; also: what it uses besides images and masks, of `world.USES`.
        options: of the optimisation.
        checkpoints: the folder from which an optimisation that was broken off goes on; None = the
            one of the set, while it is written.
    """

    name: str = "sfm"
    says: str = "pixels optimised until the set's class centres lie to one another as the data's"
    rank: Rank = greedy_masks
    also: frozenset[str] = frozenset()
    options: PyramidOptions = field(default_factory=PyramidOptions)
    checkpoints: Path | None = None

    @property
    def uses(self) -> frozenset[str]:  # type: ignore[override]
        """Photographs (by their colours and statistics), masks, the proxy, and what its rule
        takes.
        """
        return frozenset({"images", "masks", "proxy"}) | self.also

    def select(self, world: World) -> np.ndarray:
        """int64[budget]."""
        return self.rank(world).first(world.budget)

    def units(self, chosen: np.ndarray) -> list[np.ndarray]:
        """One: every image of the set decides over the others."""
        return [chosen]

    def make(self, world: World, unit: np.ndarray) -> Sequence[Example]:
        """One image for each mask; the mask is its label."""
        images, losses = optimise_set(world, unit, self.options, self.checkpoints)
        record = {
            "seed": world.seed,
            "tries": 1,
            "labels": "mask",
            "together": len(unit),
            "steps": len(losses),
            "loss": round(losses[-1], 6),
        }
        train = world.train
        return [
            Example(
                train.ids[index],
                image,
                train.read_labels(index).astype(np.uint8),
                {"mask": train.ids[index]} | record,
            )
            for index, image in zip(unit.tolist(), to_uint8(images), strict=True)
        ]

    def write(self, world: World, folder: Path) -> None:
        """See `Method.write`; the checkpoint lies in the set's folder until the set is written."""
        checkpoints = self.checkpoints or folder / "units"
        ByExamples.write(replace(self, checkpoints=checkpoints), world, folder)
        remove(checkpoints / CHECKPOINT)
