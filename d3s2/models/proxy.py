"""The proxy: a small segmentation network, frozen, that tells the sampler what the images should
look like.

It answers two questions about an image: which class is each pixel (logits), and what does each
class look like inside the network (features of several layers). The paper's proxy is unknown to us;
this one is our choice: a convolutional encoder-decoder of about a million parameters, small enough
that its gradient costs less than the generator's.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn
from torch.nn import functional as F


class ProxyOutput(NamedTuple):
    """`logits` float[B, C, H, W]; `features`: one float[B, D_l, h_l, w_l] per layer, finest first,
    decoder last.
    """

    logits: Tensor
    features: list[Tensor]


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Two 3 x 3 convolutions with batch normalisation (an affine map once frozen, so gradients stay
    well behaved).
    """
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.SiLU(),
    )


class ProxySegmenter(ModelMixin, ConfigMixin):
    """Encoder-decoder with skip connections; heights and widths must be multiples of 2 **
    (len(channels) - 1).
    """

    @register_to_config
    def __init__(self, num_classes: int = 20, channels: tuple[int, ...] = (32, 64, 96, 128)):
        super().__init__()
        pairs = list(itertools.pairwise(channels))
        self.encoder = nn.ModuleList([_stage(3, channels[0], 1)])
        self.encoder.extend(_stage(fine, deep, 2) for fine, deep in pairs)
        self.decoder = nn.ModuleList(_stage(deep + fine, fine, 1) for fine, deep in reversed(pairs))
        self.head = nn.Conv2d(channels[0], num_classes, 1)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the feature layers, in the order of `ProxyOutput.features`."""
        return (*(f"encoder{n + 1}" for n in range(len(self.encoder))), "decoder")

    def forward(self, images: Tensor) -> ProxyOutput:
        """Segment float[B, 3, H, W] images in [-1, 1]; computed, and answered, in the network's own
        precision.
        """
        x = images.to(self.dtype)
        features = []
        for stage in self.encoder:
            x = stage(x)
            features.append(x)
        for stage, skip in zip(self.decoder, features[-2::-1], strict=True):
            larger = F.interpolate(x, scale_factor=2.0, mode="bilinear")
            x = stage(torch.cat([larger, skip], 1))
        return ProxyOutput(self.head(x), [*features, x])
