"""What data sets cost on 1, 8 and 64 GPUs, on paper: python -m d3s2.studies.on_paper

Counts (images, steps, iterations; `runs.estimate`) times constants that are measured here in half a
minute, on one core: preparing an image, counting a mask, and greedy selection, whose growth is
measured too. The networks' FLOPs are counted at their own configuration and divided by the speed of
a GPU, which is measured where there is one and else assumed (`--tflops`). All of it divides evenly,
which real machines never quite reach; cores are counted with each GPU (`--cores`).

The third set is of no data: as many images as are said, with ADE20K's classes and profile, and 1 %
of them painted and trained on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from d3s2.core import machine
from d3s2.core.errors import D3S2Error, exit_code
from d3s2.core.long_work import duration
from d3s2.runs import config, speed
from d3s2.runs.estimate import BACKWARD, DEFAULT_PROXY, Work, image_flops
from d3s2.statistics.pixels import count_pixels
from d3s2.studies.drawn_masks import draw_masks
from d3s2.studies.selection_speed import long_tail, ours

LARGE = 100_000_000
SETS = {
    "ADE20K": ("ade20k", 0),
    "COCO-Stuff": ("cocostuff", 0),
    "100 million images": ("ade20k", LARGE),
}
"""Profile, and images for training; 0 = its own."""
GPUS = (1, 8, 64)
TERA = 1e12
GIB = 2**30
A_MASK = 8
"""Classes of a mask, each an entry of 16 bytes in the table that selection reads."""
SIZES = (10_000, 100_000)
"""Masks from which the growth of selection is taken."""
MASKS = 32


@dataclass(frozen=True)
class Constants:
    """Seconds on one core of preparing an image and of counting a mask, both of 512 x 512; of
    selecting 1 % of 100,000 masks, and the exponent of its growth; FLOPs a second of a GPU.
    """

    preparing: float
    counting: float
    selecting: float
    exponent: float
    gpu: float

    def selection(self, masks: int) -> float:
        """Seconds of selecting 1 % of so many masks, on one core."""
        return self.selecting * (masks / SIZES[-1]) ** self.exponent


@dataclass(frozen=True)
class Counts:
    """What a run of a data set is, in numbers: images to train and to judge on; those whose
    features are taken; FLOPs of a feature's image, of painting all, of all trainings and of their
    evaluations; trainings, and images of a batch.
    """

    images: int
    judged: int
    seen: int
    features: float
    painting: float
    trainings: float
    batches: tuple[int, int]


def counts(profile: str, images: int) -> Counts:
    """Of a profile, with so many images, 0 = its own."""
    from d3s2.models.mmseg_proxy import build
    from d3s2.runs.model_choice import diffusion_options
    from d3s2.training.mask2former import SHIPPED

    names = {"profile": profile, "device": "cpu", "train_images": images}
    settings = config.resolve(names, remember=False)
    work = Work(settings)
    train, val = work.images
    proxy = build(settings.proxy_config or DEFAULT_PROXY)
    sampling = speed.sampling_flops(diffusion_options(settings).sources(), proxy, work.size)
    classes = proxy.decode_head.num_classes
    forward = speed.trained_flops(build(str(SHIPPED)), work.size)
    passes = BACKWARD * work.iterations * settings.batch_size + work.trainings * val
    return Counts(
        images=train,
        judged=val,
        seen=min(settings.feature_images or train, train),
        features=sampling.proxy + speed.moments_flops(classes, work.size),
        painting=work.painted * image_flops(settings, sampling),
        trainings=passes * forward,
        batches=(work.trainings, settings.batch_size),
    )


def parts(of: Counts, by: Constants, gpus: int, cores: int) -> dict[str, float]:
    """Seconds of each part of a run on so many GPUs, each with so many cores."""
    trainings, batch = of.batches
    return {
        "preparing images": (of.images + of.judged) * by.preparing / (gpus * cores),
        "counting masks": of.images * by.counting / (gpus * cores),
        "features": of.seen * of.features / by.gpu / gpus,
        "selecting (one core)": by.selection(of.images),
        "painting": of.painting / by.gpu / gpus,
        "training": of.trainings / by.gpu / min(gpus, trainings * batch),
    }


def table(sets: Mapping[str, Counts], by: Constants, cores: int) -> str:
    """Markdown: a column for each data set and number of GPUs; what takes longest is bold."""
    columns = [
        (f"{name}, {gpus} GPU{'s' * (gpus > 1)}", parts(of, by, gpus, cores))
        for name, of in sets.items()
        for gpus in GPUS
    ]
    lines = [
        "| " + " | ".join(["part", *(head for head, _ in columns)]) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for part in columns[0][1]:
        cells = [_cell(found, part) for _, found in columns]
        lines.append("| " + " | ".join([part, *cells]) + " |")
    together = [duration(sum(found.values())) for _, found in columns]
    lines.append("| " + " | ".join(["together", *together]) + " |")
    return "\n".join(lines)


def _cell(found: Mapping[str, float], part: str) -> str:
    words = duration(found[part])
    return f"**{words}**" if found[part] == max(found.values()) else words


def memory(masks: int) -> float:
    """GiB of the table of shares that selection holds: a value and a class of 8 bytes each for
    every class of a mask, and where a mask begins.
    """
    return masks * (A_MASK * 16 + 8) / GIB


# ----------------------------------------------------------------------------------------- measured
def measure(tflops: float) -> Constants:
    """The constants of this machine. tflops: of a GPU, where there is none here."""
    seconds = [_seconds_of_selection(masks) for masks in SIZES]
    growth = np.log(seconds[1] / seconds[0]) / np.log(SIZES[1] / SIZES[0])
    own = speed.speed("bfloat16", "cuda") if torch.cuda.is_available() else tflops * TERA
    return Constants(
        preparing=speed.preparing(None, (512, 512)).seconds,
        counting=_seconds_of_a_mask(),
        selecting=seconds[1],
        exponent=float(growth),
        gpu=own,
    )


def _seconds_of_selection(masks: int) -> float:
    matrix = long_tail(masks, 150)
    began = time.process_time()
    ours(matrix, masks // 100)
    return time.process_time() - began


def _seconds_of_a_mask() -> float:
    with tempfile.TemporaryDirectory() as folder:
        dataset = draw_masks(Path(folder), MASKS)
        count_pixels(dataset, progress=False)
        began = time.process_time()
        count_pixels(dataset, progress=False)
        return (time.process_time() - began) / MASKS


def report(tflops: float, cores: int) -> str:
    """The constants, the table, and what the largest set asks for besides time."""
    by = measure(tflops)
    assumed = "measured" if torch.cuda.is_available() else "assumed"
    sets = {name: counts(*of) for name, of in SETS.items()}
    return "\n".join(
        [
            f"one core: preparing an image {by.preparing:.3f} s, counting a mask "
            f"{1e3 * by.counting:.2f} ms, selecting 1 % of {SIZES[-1]:,} masks "
            f"{by.selecting:.2f} s, growing with exponent {by.exponent:.2f}",
            f"a GPU: {by.gpu / TERA:.0f} TFLOPs a second ({assumed}), with {cores} cores",
            "",
            table(sets, by, cores),
            "",
            f"table of shares that selection holds for {LARGE:,} masks: {memory(LARGE):.0f} GiB",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module's text; 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m d3s2.studies.on_paper", description="What data sets cost, on paper."
    )
    parser.add_argument("--tflops", type=float, default=100, help="of a GPU, where none is here")
    parser.add_argument("--cores", type=int, default=8, help="that come with each GPU")
    options = parser.parse_args(arguments)

    def work() -> None:
        if not options.tflops > 0 or options.cores < 1:
            raise D3S2Error("tflops is a positive number, and cores count from 1.")
        machine.set_threads(1)
        print(report(options.tflops, options.cores))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
