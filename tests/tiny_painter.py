"""Networks of a few operations that paint scenes in milliseconds, and a world around them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from d3s2.data.dataset import SegmentationDataset
from d3s2.methods.world import Networks, Shared
from d3s2.models.generator import LayoutGenerator, noise_schedule
from d3s2.models.proxy import ProxySegmenter


class Toy(torch.nn.Module):
    """A network whose v follows image, layout and class set; either may be dropped."""

    config = SimpleNamespace(num_classes=20)

    def forward(self, x, t, layout, classes):
        v = 0.5 * x.roll(1, -1)
        if layout is not None:
            v = v - 0.02 * layout[:, None].clamp(max=20)
        if classes is not None:
            v = v - (0.01 * classes.cumsum(1)).mean(1)[:, None, None, None]
        return v


def tiny_proxy() -> ProxySegmenter:
    """Random weights, the same each time."""
    torch.manual_seed(0)
    return ProxySegmenter(20, channels=(8, 16)).eval().requires_grad_(False)


def tiny_generator() -> LayoutGenerator:
    """The toy with the package's schedule."""
    return LayoutGenerator(Toy(), noise_schedule())


def tiny_shared(train: SegmentationDataset, work: Path) -> Shared:
    """What methods share, over these scenes."""
    networks = Networks(tiny_generator(), tiny_proxy(), "of tests")
    return Shared(train, work, lambda: networks)
