"""A network of a few channels, and a world of six scenes, for tests of methods."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from small_scenes import small_scenes
from torch import Tensor

from d3s2.guidance.losses import FeatureTargets
from d3s2.methods.world import Networks, Shared, World
from d3s2.models.proxy import ProxyOutput, ProxySegmenter
from d3s2.statistics.features import feature_statistics


class Tired(ProxySegmenter):
    """The same network, which answers only so often, and is then interrupted."""

    left = 0

    def forward(self, images: Tensor) -> ProxyOutput:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().forward(images)


def tiny(kind: type[ProxySegmenter] = ProxySegmenter) -> ProxySegmenter:
    """Random weights, always the same."""
    torch.manual_seed(0)
    return kind(num_classes=20, channels=(4, 6, 8)).requires_grad_(False).eval()


def bare_world(folder: Path) -> SimpleNamespace:
    """What the optimisation of a set takes of a world, to be changed by a test."""
    train = small_scenes(folder / "data", 6)
    proxy = tiny()
    targets = FeatureTargets.from_moments(feature_statistics(train, proxy, progress=False))
    return SimpleNamespace(train=train, targets=targets, proxy=proxy, seed=0)


def new_world(folder: Path, proxy: ProxySegmenter | None = None, seed: int = 0) -> World:
    """A world without a generator and with a budget of three."""
    train = small_scenes(folder / "data", 6)
    nobody = SimpleNamespace(unet=None)
    networks = Networks(nobody, proxy or tiny(), "tiny")  # type: ignore[arg-type]
    return World(Shared(train, folder / "work", lambda: networks), budget=3, seed=seed)
