"""What a long run will take: downloads, disk, hours. An estimate, and it says so.

Counts (images, steps, iterations, the guided share, pixels) times the networks' FLOPs, divided by
the speed that this machine shows in a few seconds (`speed`). Not in it: what is elementwise in the
networks, reading and augmenting while training, the matching of queries to masks, other users of
the machine.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from d3s2.core import machine
from d3s2.core.errors import D3S2Error
from d3s2.core.long_work import duration
from d3s2.core.places import home
from d3s2.data.benchmarks import COUNTS
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.opening import open_dataset
from d3s2.data.pairing import parse_size
from d3s2.data.splits import count_splits
from d3s2.runs.parameters import Settings
from d3s2.selection import budget_size

if TYPE_CHECKING:  # imports PyTorch
    from d3s2.runs.speed import Sampling

GB = 1e9
SETS = 4
"""Training sets of chapter 04: random, class-balanced, distilled, all."""
DEMOS = 30
"""Images that notebook 03 paints to show things: ten runs of three."""
BACKWARD = 3.0
"""An iteration takes three times the way forward (our choice, as is usual)."""
PREPARED = 1.8
"""Bytes a pixel of a prepared image with its mask, before any was measured."""
STATES = 4
"""What a checkpoint holds for each weight: itself, two moments, and the copy that is written."""
WEIGHTS = 69e6
"""Of Mask2Former with Swin-S, which is counted whatever `network` is."""
DEFAULT_PROXY = "segformer/segformer_mit-b2_8xb2-160k_ade20k-512x512.py"
"""Counted where the proxy is our own small network."""
MEMORY = 4.0 * GB
"""What the processes of a run take besides what grows with the data."""


@dataclass(frozen=True)
class Work:
    """What the settings ask for, in numbers."""

    settings: Settings

    @cached_property
    def images(self) -> tuple[int, int]:
        """(training, validation) images: those on the disk, else the published numbers."""
        wanted = self.settings
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return count_splits(wanted)
        except D3S2Error:
            known = COUNTS.get(wanted.data_format, {"train": 0, "val": 0})
            return wanted.train_images or known["train"], wanted.val_images or known["val"]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return parse_size(self.settings.image_size)

    @property
    def masks(self) -> int:
        """Those that are selected."""
        return budget_size(self.settings.budget, self.images[0])

    @property
    def painted(self) -> int:
        """Images of the distilled set."""
        return self.masks * self.settings.images_per_mask

    @property
    def trainings(self) -> int:
        """All that have the run's number of iterations."""
        return SETS * self.settings.train_seeds

    @property
    def iterations(self) -> int:
        """Of all trainings together."""
        return self.trainings * self.settings.iterations + self.settings.full_iterations

    def disk(self) -> dict[str, float]:
        """Bytes that the run writes, by what."""
        pixels = math.prod(self.size)
        train, val = self.images
        ends = self.trainings + bool(self.settings.full_iterations)
        return {
            "prepared data": (train + val) * pixels * PREPARED,
            "predictions": ends * val * pixels,
            "networks": 4.0 * WEIGHTS * (ends + STATES),
        }

    def memory(self) -> float:
        """Bytes that notebook 04 holds at once: masks and predictions of the validation images."""
        return MEMORY + 3.0 * self.images[1] * math.prod(self.size)


def wants(settings: Settings) -> bool:
    """Whether an estimate says anything: of runs with pretrained models; the others take
    minutes.
    """
    return settings.generator != "embedded"


def shortages(settings: Settings) -> Iterator[str]:
    """A sentence for each thing of which this machine has too little or another version."""
    work = Work(settings)
    needed = sum(work.disk().values())
    for place in {_existing(Path(settings.run_dir)), _existing(home())}:
        free = shutil.disk_usage(place).free
        if free < needed:
            yield (
                f"{place} has {free / GB:.0f} GB free and the run writes about "
                f"{needed / GB:.0f} GB (estimated): free some, or choose another run_dir and "
                "D3S2_HOME."
            )
            break
    memory = machine.memory_mb() * 2**20
    if memory < work.memory():
        yield (
            f"this machine has {memory / GB:.1f} GB of memory and the run takes about "
            f"{work.memory() / GB:.1f} GB (estimated): take fewer val_images or another machine."
        )
    pins = machine.pinned()
    for name, found in machine.versions().items():
        if found.partition("+")[0] != pins.get(name, found.partition("+")[0]):
            yield f"{name} is {found} but {pins[name]} is pinned: run make run again."


def lines(settings: Settings) -> Iterator[str]:
    """The estimate in words; takes some seconds."""
    work = Work(settings)
    try:
        device = machine.pick_device(settings.device)
    except D3S2Error:  # no GPU here, as is said elsewhere
        device = "cpu"
    yield (
        "estimate, not a measurement: counts x FLOPs of the networks / speed of a few blocks "
        f"measured now on this {machine.device_name(device)}"
    )
    missing = _downloads(settings)
    listed = ", ".join(f"{name} {size / GB:.1f}" for name, size in missing.items())
    yield f"  to download    {sum(missing.values()) / GB:8.1f} GB  {listed or 'nothing'}"
    disk = work.disk()
    listed = ", ".join(f"{name} {size / GB:.1f}" for name, size in disk.items())
    yield f"  disk           {sum(disk.values()) / GB:8.1f} GB  {listed}; and what is downloaded"
    total = 0.0
    for name, seconds, how in hours(work, device):
        total += seconds
        yield f"  {name:<14} {duration(seconds):>11}  {how}"
    yield f"  {'together':<14} {duration(total):>11}  what is not counted comes on top"


def hours(work: Work, device: str) -> Iterator[tuple[str, float, str]]:
    """(what, seconds, what it was made from) of each part of a run on this machine."""
    from d3s2.models.mmseg_proxy import build
    from d3s2.runs import speed
    from d3s2.runs.model_choice import diffusion_options
    from d3s2.training.mask2former import SHIPPED

    settings = work.settings
    train, val = work.images
    one = speed.preparing(_dataset(settings), work.size)
    cores = machine.cores()
    count = train + val
    yield (
        "preparing",
        count * one.seconds / cores,
        f"{count} images x {one.seconds:.2f} s / {cores} cores",
    )
    single = speed.speed("float32", device)
    proxy = build(settings.proxy_config or DEFAULT_PROXY)
    sampling = speed.sampling_flops(diffusion_options(settings).sources(), proxy, work.size)
    seen = min(settings.feature_images or train, train)
    classes = proxy.decode_head.num_classes
    each = sampling.proxy + speed.moments_flops(classes, work.size)
    yield "statistics", seen * each / single, f"{seen} images x {_flops(each)}"
    own = speed.speed(settings.precision, device)
    image = image_flops(settings, sampling)
    painted = work.painted + DEMOS
    yield (
        "painting",
        painted * image / own,
        f"{_set_size(work)} and {DEMOS} in notebook 03 x {_flops(image)} / {_flops(own)} a second "
        f"in {settings.precision}",
    )
    trained = speed.speed(settings.training_precision, device)
    forward = speed.trained_flops(build(str(SHIPPED)), work.size)
    spent = forward * (BACKWARD * work.iterations * settings.batch_size + work.trainings * val)
    yield (
        "trainings",
        spent / trained / settings.gpus,
        f"{work.trainings} x {settings.iterations} iterations of {settings.batch_size} images x "
        f"{_flops(BACKWARD * forward)} / {_flops(trained)} a second in "
        f"{settings.training_precision}",
    )


def image_flops(settings: Settings, sampling: Sampling) -> float:
    """FLOPs of one distilled image: guided in its window, plain before and after, as far as its
    steps are run.
    """
    run = max(1, round(settings.strength * settings.steps))
    skipped = settings.steps - run
    begin, end = (
        max(skipped, round(share * settings.steps))
        for share in (settings.window_start, settings.window_end)
    )
    guided = end - begin
    guided = -(-guided // settings.guide_every)  # the others use the last gradient again
    if not (settings.lambda_seg or settings.lambda_feat):
        guided = 0
    passes = 1 if settings.cfg_scale == 1 else 2
    full, kept = settings.jacobian == "full", bool(settings.checkpointing)
    plain = sampling.step(False, passes, full, kept)
    steered = sampling.step(True, passes, full, kept)
    return guided * steered + (run - guided) * plain + sampling.decoder


def _set_size(work: Work) -> str:
    """The size of the distilled set in words."""
    each = work.settings.images_per_mask
    of = "" if each == 1 else f" ({each} of each of {work.masks} masks)"
    return f"{work.painted} images{of}"


def _flops(count: float) -> str:
    """Operations in words: "357.5 TFLOPs"."""
    return f"{count / 1e12:.1f} TFLOPs" if count >= 1e12 else f"{count / 1e9:.1f} GFLOPs"


def _dataset(settings: Settings) -> SegmentationDataset | None:
    """The training images, for a look at some of them; None where there are none yet."""
    if not settings.data_root:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            size = parse_size(settings.image_size)
            return open_dataset(settings.data_format, settings.data_root, "train", size)
    except D3S2Error:
        return None


def _downloads(settings: Settings) -> dict[str, float]:
    from d3s2.runs.provisions import provisions

    return {one.name: one.size for one in provisions(settings) if one.fetch}


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.exists())
