"""How far work is from the least that it can take: python -m d3s2.studies.floors
[masks|features|step|training ...]

Each piece of work takes turns with its floor, what must be done by anybody, and with what one would
take instead, in one process with one thread (see `turns`); ratios are medians over the rounds, with
the smallest and the largest.

* masks: counting the classes of PNG masks, beside decoding the same files (of Pillow and OpenCV
  the faster one is the floor) and beside mmsegmentation's loader with NumPy's bincount;
* features: statistics of the proxy's features per class, beside the proxy's forward pass;
* step: a step of the unguided sampler, beside the forward pass of its U-Net, which is also tried in
  bfloat16 and with the channels last in memory;
* training: an iteration of chapter 04, beside mmengine's plain runner and mmsegmentation's own head
  and loader with the same configuration and data (see `training_floor`).
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from d3s2.core import machine
from d3s2.core.errors import D3S2Error, exit_code
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.tensors import class_sets, read_images, read_masks
from d3s2.guidance.sampler import finish, initial_noise, sample
from d3s2.models.load import load_generator, load_proxy
from d3s2.models.openmmlab import mmseg
from d3s2.runs import config
from d3s2.runs.speed import flops
from d3s2.statistics.features import feature_statistics
from d3s2.statistics.pixels import count_pixels
from d3s2.studies.drawn_masks import CLASSES, draw_masks, draw_scenes
from d3s2.studies.training_floor import iterations
from d3s2.studies.turns import Seconds, Works, beside, fastest, in_turns, ratio

BATCH = 32
"""Images that feature statistics take at once."""


@dataclass(frozen=True)
class Measured:
    """What was measured: in words; seconds of each piece of work; which of them are floors, of
    which the fastest counts; which is ours; what a call does, `of` units; and the aim.
    """

    words: str
    seconds: Seconds
    floors: tuple[str, ...]
    ours: str
    of: int
    unit: str
    aim: float

    def __str__(self) -> str:
        floor = fastest(self.seconds, self.floors)
        found = ratio(self.seconds[self.ours], self.seconds[floor])
        verdict = "reached" if found.median <= self.aim else "not reached"
        return (
            f"{self.words}\n{beside(self.seconds, floor, self.of, self.unit)}\n"
            f"  {self.ours} / {floor}: {found.median:.2f}; aim {self.aim}, {verdict}"
        )


# -------------------------------------------------------------------------------------------- masks
def masks(count: int, rounds: int, folder: Path) -> Measured:
    """Class statistics of drawn masks of 512 x 512 with 150 classes."""
    dataset = draw_masks(folder / "masks", count)
    size = sum(path.stat().st_size for path in dataset.label_paths) / count
    words = f"masks: {count} of 512 x 512, {CLASSES} classes, {size / 1e3:.1f} KB a file"
    works = mask_works(dataset)
    decoders = tuple(name for name in works if name.endswith("decoder"))
    seconds = in_turns(works, rounds)
    return Measured(words, seconds, decoders, "count_pixels", count, "a mask", 1.15)


def mask_works(dataset: SegmentationDataset) -> dict[str, Callable[[], object]]:
    """What reads all masks: two decoders, mmsegmentation with NumPy, and ours. The middle one gives
    int64[N, 256] counts.
    """
    paths = list(map(str, dataset.label_paths))
    loader = mmseg.datasets.transforms.LoadAnnotations()
    cv2.setNumThreads(0)

    def pillow() -> None:
        for path in paths:
            with Image.open(path) as picture:
                picture.load()

    def opencv() -> None:
        for path in paths:
            cv2.imread(path, cv2.IMREAD_UNCHANGED)

    def plain() -> np.ndarray:
        return np.stack([_bincount(loader, path) for path in paths])

    return {
        "Pillow's decoder": pillow,
        "OpenCV's decoder": opencv,
        "count_pixels": lambda: count_pixels(dataset, progress=False),
        "mmseg's loader + np.bincount": plain,
    }


def _bincount(loader: Callable[[dict], dict], path: str) -> np.ndarray:
    """int64[256] by mmsegmentation's loader."""
    asked = {"seg_map_path": path, "seg_fields": [], "reduce_zero_label": False, "label_map": None}
    return np.bincount(loader(asked)["gt_seg_map"].ravel(), minlength=256)


# ------------------------------------------------------------------------------------ the networks
def features(count: int, rounds: int, folder: Path) -> Measured:
    """Feature statistics of embedded scenes by the shipped proxy."""
    dataset = draw_scenes(folder / "features", count)
    proxy = load_proxy(_weights() / "proxy")
    batches = [
        read_images(dataset, range(start, min(start + BATCH, count)))
        for start in range(0, count, BATCH)
    ]

    def forward() -> None:
        with torch.no_grad():
            for images in batches:
                proxy(images)

    ours = "feature_statistics"
    works = {
        "the proxy's forward pass": forward,
        ours: lambda: feature_statistics(dataset, proxy, BATCH, progress=False),
    }
    work = flops(lambda: proxy(batches[0][:1])) / 1e9
    words = (
        f"features: {count} scenes of 64 x 64, {BATCH} at once; proxy: {work:.2f} GFLOPs an image"
    )
    floors = ("the proxy's forward pass",)
    return Measured(words, in_turns(works, rounds), floors, ours, count, "an image", 1.2)


def step(batch: int, rounds: int, folder: Path, steps: int = 5) -> Measured:
    """Unguided steps of the shipped generator."""
    works = step_works(draw_scenes(folder / "step", batch), steps)
    floor = "the U-Net's forward pass"
    work = flops(works[floor]) / batch / steps / 1e9
    words = f"step: {batch} scenes of 64 x 64, {steps} steps; U-Net: {work:.2f} GFLOPs an image"
    seconds = in_turns(works, rounds)
    return Measured(words, seconds, (floor,), "sample, unguided", steps, "a step", 1.1)


def step_works(dataset: SegmentationDataset, steps: int) -> Works:
    """So many steps of a run on all masks, and as many forward passes of the U-Net inside, on the
    inputs of its first step.
    """
    generator = load_generator(_weights() / "generator")
    layout = read_masks(dataset, range(len(dataset)))
    classes = class_sets(layout, generator.num_classes)
    noise = initial_noise(range(len(layout)), generator.noise_shape(*layout.shape[1:]))
    inner, heard = generator.unet.unet, []
    hook = inner.register_forward_pre_hook(
        lambda _, given, named: heard.append((given, named)), with_kwargs=True
    )

    def ours() -> None:
        finish(sample(generator, noise, layout, classes, steps))

    ours()
    hook.remove()
    (x, *given), named = heard[0]

    def forward(kind: torch.dtype, layout: torch.memory_format) -> Callable[[], None]:
        unet = copy.deepcopy(inner).to(kind, memory_format=layout)
        inputs = x.to(kind, memory_format=layout)
        words = {name: value.to(kind) for name, value in named.items()}

        def work() -> None:
            with torch.no_grad():
                for _ in range(steps):
                    unet(inputs, *given, **words)

        return work

    return {
        "the U-Net's forward pass": forward(torch.float32, torch.contiguous_format),
        "sample, unguided": ours,
        "the U-Net, channels last": forward(torch.float32, torch.channels_last),
        "the U-Net in bfloat16": forward(torch.bfloat16, torch.contiguous_format),
    }


def training(count: int, rounds: int, folder: Path) -> Measured:
    """Iterations of the scaled-down Mask2Former on embedded scenes, four images each."""
    draw_scenes(folder / "training", 64, ("train", "val"))
    seconds = iterations(folder / "training", count, rounds, folder / "work")
    plain, ours = seconds
    words = f"training: scaled-down Mask2Former, batches of 4 scenes, {count} iterations a round"
    return Measured(words, seconds, (plain,), ours, 1, "a step", 1.0)


def _weights() -> Path:
    return config.resolve({"profile": "scenes"}, remember=False).weights_folder


# ------------------------------------------------------------------------------------- the command
WORK = {
    "masks": (masks, 300),
    "features": (features, 128),
    "step": (step, 8),
    "training": (training, 20),
}
"""What can be measured, and on how much: masks, images, images, iterations."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module's text; 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m d3s2.studies.floors", description="Measure work beside its floor."
    )
    parser.add_argument("work", nargs="*", default=[], help=f"of {', '.join(WORK)}; all")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--count", type=int, default=0, help="masks, images or iterations")
    options = parser.parse_args(arguments)

    def work() -> None:
        for name in options.work:
            if name not in WORK:
                raise D3S2Error(f"{name!r} is no work: choose {', '.join(WORK)}.")
        if options.rounds < 1 or options.count < 0:
            raise D3S2Error(
                "rounds and count are numbers from 1; without --count each has its own."
            )
        machine.set_threads(1)
        print(f"processor's seconds, 1 thread, {options.rounds} rounds in turns")
        for name in options.work or WORK:
            measure, count = WORK[name]
            with tempfile.TemporaryDirectory() as folder:
                print(measure(options.count or count, options.rounds, Path(folder)), flush=True)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
