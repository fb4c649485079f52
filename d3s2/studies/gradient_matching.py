"""What a step of SFM costs beside one of gradient matching:
python -m d3s2.studies.gradient_matching

One set of the embedded scenes, one frozen network, three ways to the gradient for its pixels:

* SFM: the cosine of the flows of class centres; the real centres are computed once, beforehand;
* linear gradient matching: the cosine of the gradients of a random linear head on each layer, for
  class-balanced cross-entropy. It takes a gradient of a gradient, in the head alone, and the
  features of a batch of real images anew, as another head is drawn in every step;
* gradient matching: the same of all weights of the network, so that the gradient of the gradient
  goes through all of it.

The three take turns within one run, so that a busy machine slows all alike, and the medians are
compared. Memory is counted on a CPU: the tensors that a step makes and that are alive at once, the
networks and the images not among them; on a GPU it is the allocator's. At W = 0, and with all real
images in the batch, the second way gives the first one's gradient (a test sees to it). All of it is
our choice; the abstract of SFM (arXiv 2602.05391) claims a tenth of the memory and a quarter of the
time against methods and networks that are not these.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from d3s2.core import machine
from d3s2.core.errors import D3S2Error, exit_code
from d3s2.core.places import EMBEDDED_WEIGHTS
from d3s2.data.scenes import CLASSES, draw_scene
from d3s2.data.tensors import to_float
from d3s2.guidance.losses import FeatureTargets
from d3s2.methods.flow_matching import EPS, class_centres, flow_matching, layer_numbers
from d3s2.models.load import load_proxy
from d3s2.models.proxy import ProxySegmenter
from d3s2.statistics.features import ClassMoments, soft_masks
from d3s2.studies.memory import LiveBytes

SMALLEST = 1e-12
"""Area under which a class counts as absent, in cells."""


class Batch:
    """Images float[B, 3, H, W] in [-1, 1] and their labels int64[B, H, W]."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    @staticmethod
    def of_scenes(numbers: Sequence[int], device: str = "cpu") -> Batch:
        """These scenes of the embedded train split."""
        drawn = [draw_scene(0, "train", number) for number in numbers]
        images = torch.cat([to_float(image[None], device) for image, _ in drawn])
        labels = torch.stack([torch.from_numpy(mask).long() for _, mask in drawn])
        return Batch(images, labels.to(device))


@dataclass(frozen=True)
class Bench:
    """What the steps share. proxy: frozen; layers: numbers of those compared; targets: the real
    statistics; real: a batch of real images; labels: int64[B, H, W] of the set.
    """

    proxy: ProxySegmenter
    layers: tuple[int, ...]
    targets: FeatureTargets
    real: Batch
    labels: Tensor

    def masks(self, feature: Tensor, labels: Tensor) -> Tensor:
        """Soft masks float[B, C, h, w] on a layer's grid."""
        size = (int(feature.shape[2]), int(feature.shape[3]))
        return soft_masks(labels, len(self.targets.known[0]), size).to(feature.dtype)

    def features(self, images: Tensor) -> list[Tensor]:
        """The compared layers, in units of their channels' deviation."""
        found = self.proxy(images).features
        scales = [(self.targets.scale[number] + EPS).sqrt() for number in self.layers]
        return [
            found[number] / scale[:, None, None]
            for number, scale in zip(self.layers, scales, strict=True)
        ]


# ---------------------------------------------------------------------------------------- the steps
def flow_step(bench: Bench, images: Tensor) -> Tensor:
    """SFM's gradient for the pixels of a set, float[B, 3, H, W]."""
    leaf = images.detach().requires_grad_()
    found = bench.proxy(leaf).features
    chosen = [found[number] for number in bench.layers]
    centres = [class_centres(layer, bench.masks(layer, bench.labels)) for layer in chosen]
    return torch.autograd.grad(flow_matching(centres, bench.targets, bench.layers), leaf)[0]


def head_gradient(features: Tensor, masks: Tensor, head: Tensor, graph: bool) -> Tensor:
    """The gradient [C, D] of class-balanced cross-entropy in a linear head float[C, D].

    features: float[B, D, h, w]; masks: float[B, C, h, w]. Each class present weighs the same,
    whatever its area.
    """
    head = head.detach().requires_grad_()
    areas = masks.sum((0, 2, 3))
    there = areas > SMALLEST
    weights = masks / areas.clamp(min=SMALLEST)[:, None, None] / there.sum()
    scores = torch.einsum("cd,bdhw->bchw", head[there], features)
    loss = -(F.log_softmax(scores, 1) * weights[:, there]).sum()
    return torch.autograd.grad(loss, head, create_graph=graph)[0]


def head_step(bench: Bench, images: Tensor, heads: Sequence[Tensor]) -> Tensor:
    """Linear gradient matching's gradient for the pixels. heads: float[C, D_l], one a layer."""
    with torch.no_grad():
        real = bench.features(bench.real.images)
    leaf = images.detach().requires_grad_()
    losses = []
    for true, fake, head in zip(real, bench.features(leaf), heads, strict=True):
        wanted = head_gradient(true, bench.masks(true, bench.real.labels), head, graph=False)
        found = head_gradient(fake, bench.masks(fake, bench.labels), head, graph=True)
        losses.append(1 - F.cosine_similarity(found.flatten(), wanted.flatten(), dim=0))
    return torch.autograd.grad(torch.stack(losses).mean(), leaf)[0]


def network_step(bench: Bench, images: Tensor, network: ProxySegmenter) -> Tensor:
    """Gradient matching's gradient for the pixels. network: a copy of the proxy that can be
    trained; one cosine over all its weights.
    """
    weights = list(network.parameters())

    def gradient(shown: Tensor, labels: Tensor, graph: bool) -> Tensor:
        logits = network(shown).logits
        masks = bench.masks(logits, labels)
        areas = masks.sum((0, 2, 3)).clamp(min=SMALLEST)
        balanced = masks / areas[:, None, None] / (areas > SMALLEST).sum()
        loss = -(F.log_softmax(logits, 1) * balanced).sum()
        parts = torch.autograd.grad(loss, weights, create_graph=graph)
        return torch.cat([part.flatten() for part in parts])

    wanted = gradient(bench.real.images, bench.real.labels, graph=False)
    leaf = images.detach().requires_grad_()
    found = gradient(leaf, bench.labels, graph=True)
    return torch.autograd.grad(1 - F.cosine_similarity(found, wanted, dim=0), leaf)[0]


# -------------------------------------------------------------------------------------- measurement
def set_up(images: int, seed: int, device: str) -> tuple[Bench, Tensor]:
    """(bench, a set of noise): `images` masks, as many other real images, their statistics."""
    proxy = load_proxy(EMBEDDED_WEIGHTS / "proxy", device)
    real = Batch.of_scenes(range(images, 2 * images), device)
    with torch.no_grad():
        features = proxy(real.images).features
    moments = ClassMoments(len(CLASSES), [int(feature.shape[1]) for feature in features])
    moments.update(features, real.labels)
    masks = Batch.of_scenes(range(images), device)
    targets = FeatureTargets.from_moments(moments, device)
    bench = Bench(proxy, layer_numbers(proxy.layers), targets, real, masks.labels)
    rng = torch.Generator().manual_seed(seed)
    return bench, torch.randn(masks.images.shape, generator=rng).tanh().to(device)


def steps_of(bench: Bench, images: Tensor, seed: int) -> dict[str, Callable[[], Tensor]]:
    """The three ways to a gradient, by name; SFM first."""
    rng = torch.Generator().manual_seed(seed)
    widths = [bench.targets.mean[number].shape for number in bench.layers]
    heads = [torch.randn(shape, generator=rng).to(images) / shape[1] ** 0.5 for shape in widths]
    network = copy.deepcopy(bench.proxy).requires_grad_(True)
    return {
        "SFM": partial(flow_step, bench, images),
        "linear gradient matching": partial(head_step, bench, images, heads),
        "gradient matching": partial(network_step, bench, images, network),
    }


def seconds_of(steps: Mapping[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """Median seconds of each step; they take turns, after one round that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step().cpu()  # which also waits for a GPU
            if turn:
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in taken.items()}


def megabytes_of(step: Callable[[], Tensor], device: str) -> float:
    """The most that the tensors of a step take at once; see the module's text."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with LiveBytes() as live:
        step()
    return live.peak / 1e6


def report(images: int, rounds: int, seed: int, device: str) -> str:
    """The table. Raises D3S2Error for fewer than one image or round."""
    if min(images, rounds) < 1:
        raise D3S2Error(f"images is {images} and rounds {rounds}: both count from 1.")
    steps = steps_of(*set_up(images, seed, device), seed)
    memory = {name: megabytes_of(step, device) for name, step in steps.items()}
    seconds = seconds_of(steps, rounds)
    how = f"{device}, {torch.get_num_threads()} threads, median of {rounds} rounds"
    lines = [
        f"one step for {images} images of 64 x 64; {how}",
        f"{'':26s} {'s/step':>8s} {'ratio':>6s} {'MB':>8s} {'ratio':>6s}",
    ]
    for name in steps:
        times, sizes = (f"{found[name] / found['SFM']:6.2f}" for found in (seconds, memory))
        lines.append(f"{name:26s} {seconds[name]:8.3f} {times} {memory[name]:8.1f} {sizes}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module's text; 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m d3s2.studies.gradient_matching",
        description="Time and memory of a step of SFM and of gradient matching.",
    )
    parser.add_argument("--images", type=int, default=8, help="of the set, and of the real batch")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--seed", type=int, default=0, help="of the set's noise and the heads")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = all cores")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    options = parser.parse_args(arguments)

    def work() -> None:
        machine.set_threads(options.threads)
        device = machine.pick_device(options.device)
        print(report(options.images, options.rounds, options.seed, device))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
