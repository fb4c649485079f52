"""What a long run is made of, counted, and how quickly this machine does a little of it.

Counted are floating point operations (FLOPs) of the networks at their own configuration, on tensors
that have a shape and no content. Measured are a few blocks of such networks, in a second or two,
and the preparing of a few images.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.folder import complete_png
from d3s2.models.hub import Source, locate
from d3s2.models.stable_diffusion import PRECISIONS

UNET = {
    "cross_attention_dim": 768,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
"""Stable Diffusion 1.5's published configuration, for a model that is not on this machine yet."""
TOKENS = 77
SECONDS = 1.0
"""How long each speed is measured."""
SMALL = 128
"""Side of the image on which the trained network's operations are counted: they grow with the
number of pixels, and its attention masks need tensors with content.
"""


class Sampling(NamedTuple):
    """FLOPs of one image: a step of the denoiser, and what guidance adds to it."""

    denoiser: float
    decoder: float
    proxy: float

    def step(self, guided: bool, passes: int, full: bool, checkpointing: bool) -> float:
        """Of one step. passes: of the denoiser, 2 with classifier-free guidance; a gradient takes
        twice the way forward, less what the weights need not know, and with checkpointing the way
        forward once more.
        """
        found = passes * self.denoiser
        if guided:
            back = 2.0 + checkpointing  # forward, backward to the input alone
            found += back * self.decoder + 2.0 * self.proxy
            found += (1.0 + checkpointing) * passes * self.denoiser if full else 0.0
        return found


# ------------------------------------------------------------------------------------------ counted
def sampling_flops(
    sources: tuple[Source, Source], proxy: nn.Module, size: tuple[int, int]
) -> Sampling:
    """FLOPs of one image of this size (H, W), by the configurations of the models where they are
    on this machine, else by the published ones. proxy: in evaluation mode.
    """
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

    model, control = sources
    with FakeTensorMode(allow_non_fake_inputs=True):
        unet = UNet2DConditionModel.from_config(_config(model, "unet") or UNET)
        controlnet = ControlNetModel.from_config(_config(control, "") or UNET)
        vae = AutoencoderKL.from_config(_config(model, "vae") or VAE)
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        z = torch.zeros(1, 4, size[0] // factor, size[1] // factor)
        text = torch.zeros(1, TOKENS, unet.config.cross_attention_dim)
        picture = torch.zeros(1, 3, *size)
        t = torch.tensor(500)

        def denoise() -> None:
            down, middle = controlnet(z, t, text, picture, return_dict=False)
            unet(
                z,
                t,
                text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            )

        counted = [flops(denoise), flops(lambda: vae.decode(z))]
    return Sampling(*counted, proxy_flops(proxy, size))


def proxy_flops(proxy: nn.Module, size: tuple[int, int]) -> float:
    """FLOPs of an mmsegmentation model on one image of this size, forward."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return flops(lambda: proxy.encode_decode(torch.zeros(1, 3, *size), _metas(size)))


def trained_flops(network: nn.Module, size: tuple[int, int]) -> float:
    """FLOPs of the network of chapter 04 on one image of this size, forward."""
    small = (SMALL, SMALL)
    image = torch.zeros(1, 3, *small)
    counted = flops(lambda: network.encode_decode(image, _metas(small)))
    return counted * math.prod(size) / math.prod(small)


def moments_flops(classes: int, size: tuple[int, int], stride: int = 4, width: int = 64) -> float:
    """FLOPs of the products of one image's shares of cells with the finest layer's features and
    with their squares (our estimate: the other layers together take as much again).
    """
    cells = size[0] * size[1] / stride**2
    return 2.0 * 2.0 * 2.0 * classes * cells * width


def flops(work: Callable[[], Any]) -> float:
    """Of convolutions, matrix products and attention; what is elementwise is not counted."""
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_ON_CPU) as counter:
        work()
    return float(counter.get_total_flops())


def _attention(query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> int:
    """FLOPs of attention between shapes [B, heads, tokens, width]."""
    return sdpa_flop_count(query, key, value)


_ON_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
"""What PyTorch's counter knows by the GPU's names only."""


def _config(source: Source, part: str) -> dict[str, Any] | None:
    try:
        return read_json(locate(source) / part / "config.json")
    except D3S2Error:
        return None


def _metas(size: tuple[int, int]) -> list[dict[str, tuple[int, ...]]]:
    names = ("img_shape", "ori_shape", "pad_shape", "batch_input_shape")
    return [dict.fromkeys(names, size)]


# ----------------------------------------------------------------------------------------- measured
def speed(precision: str, device: str) -> float:
    """FLOPs a second of a residual block and attention, about as they are in these networks."""
    kind = PRECISIONS[precision]
    block = nn.Sequential(nn.GroupNorm(32, 320), nn.SiLU(), nn.Conv2d(320, 320, 3, padding=1)).to(
        device, kind
    )
    x = torch.randn(1, 320, 32, 32, device=device, dtype=kind)
    words = torch.randn(1, 8, 1024, 40, device=device, dtype=kind)

    def work() -> Tensor:
        nn.functional.scaled_dot_product_attention(words, words, words)
        return block(x)

    counted = flops(work)
    return counted / _seconds(work, device)


def _seconds(work: Callable[[], Any], device: str) -> float:
    """Of one call, as a mean over `SECONDS`."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    with torch.no_grad():
        work()  # the first one sets up
        wait()
        began = time.perf_counter()
        calls = 0
        while time.perf_counter() - began < SECONDS:
            work()
            wait()
            calls += 1
    return (time.perf_counter() - began) / calls


class Preparing(NamedTuple):
    """Of one image and its mask, by one process: seconds, and bytes on disk."""

    seconds: float
    bytes: float


def preparing(dataset: SegmentationDataset | None, size: tuple[int, int]) -> Preparing:
    """Of some images of a data set, or of a soft picture of this size where there is none yet."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x", "y", "z", "a.png")
        began = time.perf_counter()
        written = images = 0
        while time.perf_counter() - began < SECONDS and images < 20:
            for read in _readers(dataset, size, images):
                path.unlink(missing_ok=True)
                complete_png(path, read())
                written += path.stat().st_size
            images += 1
        return Preparing((time.perf_counter() - began) / images, written / images)


def _readers(
    dataset: SegmentationDataset | None, size: tuple[int, int], number: int
) -> list[Callable[[], np.ndarray]]:
    if dataset is not None:
        index = number * 37 % len(dataset)
        return [partial(dataset.read_image, index), partial(dataset.read_labels, index)]
    rng = np.random.default_rng(number)
    rows, columns = np.indices(size)
    soft = 128 + 60 * np.sin(rows / 19) * np.cos(columns / 23)
    picture = soft[..., None] + rng.normal(0, 4, (*size, 3))
    mask = (rows // 40 % 8).astype(np.uint8)
    return [lambda: picture.clip(0, 255).astype(np.uint8), lambda: mask]
