"""How much memory one guided step of Stable Diffusion takes: python -m d3s2.studies.memory
[--measure]

Without --measure nothing is computed and no weights are needed: the networks of Stable Diffusion
1.5, its ControlNet and a proxy are built at their true size from tensors that have a shape and no
content, one step of the sampler runs on them, and the bytes of all tensors alive at once are
counted. Not counted: workspaces of the kernels, fragmentation, and the device's own context,
together usually one to two GB on a GPU. With --measure the step is also taken, on the GPU if there
is one, with random weights (which decide neither time nor memory), each in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from d3s2.core import machine
from d3s2.guidance.losses import segmentation_consistency
from d3s2.guidance.sampler import Denoiser
from d3s2.models.mmseg_proxy import MmsegProxy, build
from d3s2.models.stable_diffusion import PRECISIONS, ControlledUNet, StableDiffusion

UNET = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
}
VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 512,
}
CONTROLNET = {
    "cross_attention_dim": 768,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
}
"""Stable Diffusion 1.5's and its ControlNet's published configuration."""
TEXT_ENCODER_WEIGHTS = 123_060_480
PROXY = "segformer/segformer_mit-b2_8xb2-160k_ade20k-512x512.py"
GIB = 2**30


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, while they are alive; `peak` is the
    most at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._alive, self._total = 0, {}, 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = StorageWeakRef(leaf.untyped_storage())
                known = self._alive.get(storage.cdata)
                if known is None or known[0].expired():
                    size = leaf.untyped_storage().nbytes()
                    self._total += size - (known[1] if known else 0)
                    self._alive[storage.cdata] = (storage, size)
        if self._total > self.peak:  # some of it may be gone already: look only when it matters
            self._alive = {
                key: entry for key, entry in self._alive.items() if not entry[0].expired()
            }
            self._total = sum(size for _, size in self._alive.values())
            self.peak = max(self.peak, self._total)
        return result


class _Silence(nn.Module):
    """Stands for the text encoder, whose answers are computed once and kept."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, classes: Tensor, layout: Tensor | None) -> Tensor:
        return torch.zeros(len(classes), 77, 768, dtype=self.kind, device=classes.device)


def true_size_model(checkpointing: bool, vae_memory: str) -> StableDiffusion:
    """Stable Diffusion 1.5 with ControlNet, in the default dtype and with random weights (or none,
    under FakeTensorMode).
    """
    unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
    controlnet = ControlNetModel(**CONTROLNET)
    for part in (unet, controlnet, vae):
        part.requires_grad_(False).eval()
        if checkpointing:
            part.enable_gradient_checkpointing()
    if vae_memory != "whole":
        vae.enable_slicing()
    with unset_fake_temporarily():  # the schedule is numbers
        scheduler = DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
        )
        controlled = ControlledUNet(
            unet, controlnet, _Silence(unet.dtype), scheduler, np.zeros((150, 3), np.uint8)
        )
        return StableDiffusion(controlled, scheduler, vae)


def guided_step(
    model: StableDiffusion,
    proxy: nn.Module,
    z: Tensor,
    labels: Tensor,
    full: bool,
    cfg_scale: float = 3.0,
) -> Tensor:
    """The gradient of the segmentation loss at one timestep, as `guidance.sample` takes it, without
    its checks of numbers.
    """
    z = z.requires_grad_(full)
    classes = torch.ones(len(z), model.num_classes, device=z.device)
    denoiser = Denoiser(model, labels, classes, cfg_scale)
    with torch.set_grad_enabled(full):
        v = denoiser.v(z, 500)
        x0 = 0.5 * z - 0.5 * v
    leaf = z if full else x0.detach().requires_grad_()
    loss = segmentation_consistency(
        proxy(model.decode(x0 if full else leaf).clamp(-1, 1)).logits, labels
    )
    return torch.autograd.grad(loss.sum(), leaf)[0]


def peak(
    precision: str, jacobian: str, checkpointing: bool, vae_memory: str, size: int, batch: int
) -> tuple[float, float]:
    """(weights, peak) in GiB; the peak includes the weights and those of the text encoder."""
    proxy = MmsegProxy(build(PROXY))
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.set_default_dtype(PRECISIONS[precision])
        try:
            model = true_size_model(checkpointing, vae_memory)
        finally:
            torch.set_default_dtype(torch.float32)
        weights = sum(
            p.numel() * p.element_size()
            for m in (model.unet, model.vae, proxy)
            for p in m.parameters()
        )
        weights += TEXT_ENCODER_WEIGHTS * torch.empty(0, dtype=PRECISIONS[precision]).element_size()
        z, labels = (
            torch.zeros(batch, *model.noise_shape(size, size)),
            torch.zeros(batch, size, size, dtype=torch.long),
        )
        with LiveBytes() as live:
            guided_step(model, proxy, z, labels, jacobian == "full")
    return weights / GIB, (weights + live.peak) / GIB


def take_step(
    precision: str, jacobian: str, checkpointing: bool, vae_memory: str, size: int, batch: int
) -> tuple[float, float]:
    """(seconds, peak in GiB) of one guided step, really taken, in this process, which must not have
    done anything before.

    The peak is the GPU's allocated memory, or the most that the whole process had in a CPU's; both
    without a text encoder.
    """
    device = machine.pick_device()
    torch.manual_seed(0)
    torch.set_default_dtype(PRECISIONS[precision])
    try:
        model = true_size_model(checkpointing, vae_memory)
    finally:
        torch.set_default_dtype(torch.float32)
    for part in (model.unet, model.vae):
        part.to(device)
    proxy = MmsegProxy(build(PROXY)).to(device)
    z, labels = (
        torch.randn(batch, *model.noise_shape(size, size)),
        torch.zeros(batch, size, size, dtype=torch.long),
    )
    began = time.perf_counter()
    gradient = guided_step(model, proxy, z.to(device), labels.to(device), jacobian == "full")
    if not bool(gradient.isfinite().all()):  # which also waits for the GPU
        raise FloatingPointError(f"the gradient of a step in {precision}, {jacobian} is not finite")
    seconds = time.perf_counter() - began
    most = torch.cuda.max_memory_allocated() if device == "cuda" else machine.peak_memory() * 2**20
    return seconds, most / GIB


def _alone(*arguments: object) -> tuple[float, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(take_step, *arguments).result()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m d3s2.studies.memory", description="Count the memory of a guided step."
    )
    parser.add_argument(
        "--size", type=int, default=512, help="height and width of the images in pixels"
    )
    parser.add_argument("--batch", type=int, default=1, help="images sampled together")
    parser.add_argument(
        "--measure", action="store_true", help="also take the step, on the GPU if there is one"
    )
    parser.add_argument(
        "--checkpointing", choices=("both", "yes", "no"), default="both", help="rows of the table"
    )
    options = parser.parse_args(arguments)
    choices = {"both": (False, True), "yes": (True,), "no": (False,)}[options.checkpointing]
    how = (
        f"counted, and measured on {machine.device_name()}"
        if options.measure
        else "counted, not measured"
    )
    print(
        f"{options.batch} image(s) of {options.size} x {options.size}; {how}; counts are without "
        "kernel workspaces"
    )
    print(
        f"{'precision':10s} {'jacobian':9s} {'checkpointing':14s} {'weights GiB':>12s} "
        f"{'peak GiB':>9s}" + (f" {'measured GiB':>13s} {'seconds':>8s}" if options.measure else "")
    )
    for precision in ("float32", "bfloat16"):
        for jacobian in ("detach", "full"):
            for checkpointing in choices:
                case = (precision, jacobian, checkpointing, "slicing", options.size, options.batch)
                weights, most = peak(*case)
                kept, line = "yes" if checkpointing else "no", ""
                if options.measure:
                    seconds, measured = _alone(*case)
                    line = f" {measured:13.2f} {seconds:8.1f}"
                print(
                    f"{precision:10s} {jacobian:9s} {kept:14s} {weights:12.2f} {most:9.2f}{line}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
