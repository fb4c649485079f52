"""The run that a notebook belongs to, opened in one line.

    run = open_run(globals())

gives its settings, its data, and what the chapters before have written. Models are opened by
`weights.load_models`, so that the chapters that need none do not wait for PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from d3s2.core import machine
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.folder import open_folder
from d3s2.data.splits import open_splits
from d3s2.runs import config
from d3s2.runs.parameters import Settings
from d3s2.runs.stages import Stage
from d3s2.selection import Ranking, budget_size, random_ranking
from d3s2.statistics.pixels import PixelCounts


@dataclass(frozen=True)
class Run:
    """One run: its settings, and everything that follows from them, opened on first use."""

    settings: Settings

    @cached_property
    def train(self) -> SegmentationDataset:
        """The real training split, in the ordinary layout; prepared first where missing."""
        return self._splits[0]

    @cached_property
    def val(self) -> SegmentationDataset:
        """The validation split."""
        return self._splits[1]

    @cached_property
    def _splits(self) -> tuple[SegmentationDataset, SegmentationDataset]:
        return open_splits(self.settings)

    @cached_property
    def device(self) -> str:
        """ "cpu" or "cuda"; PyTorch then uses the run's number of threads."""
        machine.set_threads(self.settings.threads)
        return machine.pick_device(self.settings.device)

    @cached_property
    def size(self) -> int:
        """The budget as a number of masks."""
        return budget_size(self.settings.budget, len(self.train))

    def stage(self, name: str, parameters: Mapping[str, Any], **more: Any) -> Stage:
        """A stage of this run; see `Stage` for the rest."""
        return Stage(self.settings.run_dir, name, parameters, **more)

    def find(self, name: str) -> Stage:
        """The finished stage of an earlier chapter. Raises D3S2Error, naming the notebook to run
        first, when it is missing, unfinished or damaged.
        """
        return Stage.find(self.settings.run_dir, name)

    # ------------------------------------------------------------- what earlier chapters wrote
    @cached_property
    def counts(self) -> PixelCounts:
        """Chapter 01: pixels of each class in each mask."""
        return PixelCounts.load(self.find("statistics").folder / "counts.npz")

    @cached_property
    def moments(self) -> Any:
        """Chapter 01: the class statistics of the proxy's features, as `ClassMoments`."""
        from d3s2.statistics.features import ClassMoments  # imports PyTorch: seconds

        return ClassMoments.load(self.find("statistics").folder / "moments.npz")

    def ranking(self, name: str = "greedy") -> Ranking:
        """Chapter 02: all masks in the order in which a rule picked them."""
        return Ranking.load(self.find("selection").folder / f"{name}.npz")

    def random_masks(self, seed: int) -> np.ndarray:
        """int64[size]: masks of the training split, drawn at random with this seed."""
        return random_ranking(len(self.train), seed).first(self.size)

    @cached_property
    def distilled(self) -> SegmentationDataset:
        """Chapter 03: the distilled set."""
        return open_folder(self.find("distilled").folder, "train")


def open_run(names: Mapping[str, Any], begin: bool = False) -> Run:
    """The run of a notebook, from its globals: the names that its parameters cell sets.

    A value that is None is the run's own; one that was set becomes the run's, for the notebooks
    that come after. begin: begin the run anew (notebook 00): what is None is then the profile's.
    Raises D3S2Error for wrong values (see `config.resolve`).
    """
    settings = config.resolve(names, remember=not begin)
    config.note(settings)
    return Run(settings)
