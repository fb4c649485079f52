"""From selected masks to a distilled dataset on disk: one image a mask or several, each with a
record of how it was made.

An image follows from (method, mask id, seed): its noise comes from its own random generator, seeded
by the mask's id, so methods compared at one seed start from the same noise. Images are made in
fixed groups of the ranking; a run that was killed repeats the group it was in and gives the same
bytes as an unbroken one.

Of a mask with several images the k-th, from 0, is the one that a set of one image a mask would have
with the seed + `COPY_SEEDS` k. They are made in turn, the first image of every mask, then the
second; their ids are the mask's, a hyphen and k.

Who paints is a `Painter`: the networks, and what tells one method from another, its condition, its
losses, its start noise, the images it begins at, its own move besides a step, its judge, and what
becomes of a finished image. All are handed in, so that another method brings functions of its own
and no copy of a loop.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from d3s2.core import parallel
from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json, write_json, write_png
from d3s2.core.halving import in_halves
from d3s2.core.long_work import Steps
from d3s2.data.dataset import IGNORE, SegmentationDataset
from d3s2.data.folder import open_folder, write_classes, write_image_folder
from d3s2.data.tensors import (
    class_sets,
    pad_batch,
    read_images,
    read_masks,
    to_float,
    to_uint8,
)
from d3s2.guidance.losses import (
    FeatureTargets,
    LossOptions,
    SetMemory,
    guidance_losses,
    pixel_losses,
)
from d3s2.guidance.quality import (
    SCORES,
    best,
    class_agreement,
    ignore_doubtful,
    judge,
    kept_class_losses,
)
from d3s2.guidance.sampler import (
    Fresh,
    Guidance,
    Losses,
    NoiseStream,
    Nudge,
    Start,
    finish,
    first_step,
    sample,
)
from d3s2.models.generator import LayoutGenerator
from d3s2.models.proxy import ProxySegmenter
from d3s2.statistics.features import ClassMoments

LossFactory = Callable[
    [ProxySegmenter, Tensor, FeatureTargets, LossOptions, SetMemory | None], Losses
]
"""(proxy, labels int64[B, H, W], targets, options, memory) to the losses of one batch of masks; see
`losses.guidance_losses`.
"""
Judge = Callable[[ProxySegmenter, FeatureTargets, Tensor, Tensor], Mapping[str, Sequence[float]]]
"""(proxy, targets, images float[B, 3, H, W] in [-1, 1], labels int64[B, H, W]) to numbers by name,
one an image, which go into its record; see `quality.judge`.
"""
StartNoise = Callable[[Sequence[str], Sequence[int], tuple[int, int, int]], Fresh]
"""(ids of the masks, their seeds, shape of one image's noise) to the noise of a run: the first draw
is where it starts, float[B, *shape], each later one the noise of a stochastic step.
"""
Beginnings = Callable[[SegmentationDataset, Sequence[int], str], Tensor]
"""(data set, numbers of its masks, device) to the images that a run of less than full strength
begins at, float[B, 3, H, W] in [-1, 1]; see `data.tensors.read_images`, the masks' own photographs.
"""

Condition = Callable[[Tensor, int], tuple[Tensor | None, Tensor | None]]
"""(labels int64[B, H, W], number of classes) to what the generator is told, (layout, class sets);
None drops one. See `layout_and_classes`.
"""
NudgeMaker = Callable[[Tensor, int], Nudge]
"""(the images that a run begins at as the generator works on them, float[B, D, h, w], the run's
steps) to the move besides each step; see `sampler.Nudge`.
"""


class Refined(NamedTuple):
    """What a method makes of finished images."""

    pixels: np.ndarray  # uint8[B, H, W, 3]
    tries: list[int]  # which try each of them is, from 0
    labels: Tensor  # int64[B, H, W], those to write
    notes: list[dict[str, float]]  # numbers for each record, by names of the method's own


Draw = Callable[[int, Sequence[int]], np.ndarray]
"""(a try, from 0, places in the batch) to uint8[n, H, W, 3], the images made of them."""
Refine = Callable[[ProxySegmenter, Tensor, Draw], Refined]
"""(proxy, labels int64[B, H, W], draw) to the images and labels to write. It stands in the place of
the recipe's tries, and of its filter.
"""

COPY_SEEDS = 1000
"""How far apart the seeds of a mask's images lie; runs with seeds below it share no noise."""

RECORD = ("id", "rank", "noise_seed", "method", "class_pixels", "ignored_pixels")
"""What every record says besides the judge's numbers."""
CHOICE = ("candidate", "scores")
"""What it says besides where there were several tries."""
COPY = ("mask", "copy")
"""What it says besides where a mask has several images: whose it is, and which, from 0."""
BEGUN = ("strength",)
"""What it says besides where the run began at a photograph."""


# -------------------------------------------------------------------------------------- who and how
def seeded_noise(
    ids: Sequence[str], seeds: Sequence[int], shape: tuple[int, int, int]
) -> NoiseStream:
    """Start noise of D3S2: standard normal, from each image's own seed."""
    return NoiseStream(seeds, shape)


def layout_and_classes(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """What D3S2 tells the generator: the mask, and the set of its classes."""
    return labels, class_sets(labels, num_classes)


@dataclass(frozen=True)
class Painter:
    """The networks that make images, and the parts in which methods differ.

    The functions must be those of a module, or frozen dataclasses with a `__call__`: painters
    travel to the workers of a cluster by pickle. The workers compare the sources of this module and
    its imports with ours, not those of what is handed in.

    Args:
        targets: statistics of the real data, for the losses and the judge.
        losses: what steers (see `LossFactory`).
        judge: what is noted of each image, and what the best of several tries is chosen by (see
            `Judge`); its names must differ from those of `RECORD`, `CHOICE`, `COPY` and `BEGUN`.
        noise: where images start (see `StartNoise`).
        beginnings: the images that they begin at, noised, where the recipe's strength is below 1
            (see `Beginnings`).
        condition: what the generator is told of a mask (see `Condition`).
        nudge: a move besides each step, of runs that begin at an image (see `NudgeMaker`); None =
            none.
        refine: what becomes of finished images (see `Refine`); None = the recipe's best try and
            filter.
    """

    generator: LayoutGenerator
    proxy: ProxySegmenter
    targets: FeatureTargets
    losses: LossFactory = guidance_losses
    judge: Judge = judge
    noise: StartNoise = seeded_noise
    beginnings: Beginnings = read_images
    condition: Condition = layout_and_classes
    nudge: NudgeMaker | None = None
    refine: Refine | None = None

    @property
    def device(self) -> str:
        """Where its networks are."""
        return str(self.proxy.device)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides an image besides its mask and the weights.

    Args:
        method: the name that records and card carry; it decides nothing.
        seed: of the run; an image's own is `image_seed`.
        steps: of the sampler, a divisor of the training's timesteps.
        group: images made together; never changes an image.
        candidates: images tried for each mask, of which the one with the best `score` (see
            `quality.SCORES`) is kept.
        ignore_margin: pixels whose proxy loss is above so many times their class's real mean become
            255; 0 = none, FreeMask: 1.25.
        strength: share of the steps that is run (see `sampler.first_step`), in (0, 1]; below 1 from
            the painter's `beginnings`, noised, 1 = from pure noise.
        images_per_mask: how many images each mask gets, each from noise of its own.
    Raises:
        D3S2Error: for an unknown score, counts below 1, a negative margin and a strength outside of
            its range.
    """

    method: str = "d3s2"
    seed: int = 0
    steps: int = 50
    guidance: Guidance = field(default_factory=Guidance)
    group: int = 8
    losses: LossOptions = field(default_factory=LossOptions)
    candidates: int = 1
    score: str = "segmentation_loss"
    ignore_margin: float = 0.0
    strength: float = 1.0
    images_per_mask: int = 1

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise D3S2Error(f"score is {self.score!r}: choose {', '.join(SCORES)}.")
        if self.candidates < 1 or self.group < 1 or not self.ignore_margin >= 0:
            raise D3S2Error(
                f"candidates is {self.candidates}, group {self.group} and ignore_margin "
                f"{self.ignore_margin}: the first two count from 1, the last is 0 or more."
            )
        if not 0 < self.strength <= 1:
            raise D3S2Error(
                f"strength is {self.strength}: give a share of the steps above 0, up to 1 = from "
                "pure noise."
            )
        if self.images_per_mask < 1:
            raise D3S2Error(f"images_per_mask is {self.images_per_mask}: it counts from 1.")

    def of_copy(self, copy: int) -> Recipe:
        """What makes the copy-th image of every mask, from 0: another seed, all else the same."""
        return replace(self, seed=self.seed + COPY_SEEDS * copy)


def image_id(mask_id: str, copy: int, recipe: Recipe) -> str:
    """The id of a mask's copy-th image, from 0: the mask's own, where it has one image alone."""
    return mask_id if recipe.images_per_mask == 1 else f"{mask_id}-{copy}"


def image_seed(seed: int, mask_id: str, candidate: int = 0) -> int:
    """The seed of one image's noise: the first 63 bits of SHA-256 over the run's seed, the mask's
    id and, from 1, the try.
    """
    text = f"{seed}:{mask_id}"
    if candidate:
        text += f":{candidate}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


# ----------------------------------------------------------------------------------------- painting
def generate(
    painter: Painter,
    labels: Tensor,
    ids: Sequence[str],
    recipe: Recipe,
    candidate: int = 0,
    memory: SetMemory | None = None,
    begin: Tensor | None = None,
) -> Tensor:
    """One image for each of a batch of masks; it follows from id, seed and beginning alone.

    Args:
        labels: int64[B, H, W], 255 = ignore, on the painter's device; ids: one a mask.
        candidate: which try, from 0.
        memory: the images made so far, for the set scope.
        begin: float[B, 3, H, W] in [-1, 1], there too: what a strength below 1 begins at; at
            strength 1 it is not looked at.
    Returns:
        float[B, 3, H, W], of which [-1, 1] is shown.
    Raises:
        D3S2Error: as `sampler.sample` and the painter's losses, and as `_start`.
    """
    generator = painter.generator
    seeds = [image_seed(recipe.seed, name, candidate) for name in ids]
    noise = painter.noise(ids, seeds, generator.noise_shape(*labels.shape[1:]))

    def padded(batch: Tensor) -> Tensor:
        return pad_batch(batch) if generator.padded else batch

    def fresh() -> Tensor:
        return padded(noise().to(labels.device))

    masks = padded(labels)
    told = painter.condition(masks, generator.num_classes)
    losses = painter.losses(painter.proxy, masks, painter.targets, recipe.losses, memory)
    start = _start(generator, recipe, begin, padded)
    nudge = _nudge(painter, recipe, start)
    how = (recipe.steps, recipe.guidance, losses)
    steps = sample(generator, fresh(), *told, *how, fresh=fresh, start=start, nudge=nudge)
    return finish(steps).image[: len(ids)]


def _nudge(painter: Painter, recipe: Recipe, start: Start | None) -> Nudge | None:
    """The move besides each step, if there is one. Raises D3S2Error where it has no image."""
    if painter.nudge is None:
        return None
    if start is None:
        raise D3S2Error(
            f"{recipe.method} moves towards the images that its runs begin at, but strength is "
            f"{recipe.strength}, pure noise: give a strength below 1."
        )
    return painter.nudge(start.clean, recipe.steps)


def _start(
    generator: LayoutGenerator,
    recipe: Recipe,
    begin: Tensor | None,
    padded: Callable[[Tensor], Tensor],
) -> Start | None:
    """Where runs of this recipe begin; None = in pure noise.

    Raises D3S2Error where there is nothing to begin at, and for a generator that cannot begin at
    images of this size.
    """
    if recipe.strength == 1:
        return None
    if begin is None:
        raise D3S2Error(
            f"strength is {recipe.strength}, but there are no images to begin at: give `begin`."
        )
    encode = getattr(generator, "encode", None)
    clean = None if encode is None else encode(begin)
    wanted = generator.noise_shape(*begin.shape[2:])
    if clean is None or tuple(clean.shape[1:]) != tuple(wanted):
        raise D3S2Error(
            f"strength is {recipe.strength}, but the generator does not say what it makes of an "
            f"image: give {type(generator).__name__} a method `encode` that answers "
            f"{'x'.join(map(str, wanted))} numbers an image, or take strength 1."
        )
    return Start(padded(clean), first_step(recipe.steps, recipe.strength))


def synthesise(
    painter: Painter,
    dataset: SegmentationDataset,
    indices: Sequence[int],
    folder: Path,
    recipe: Recipe,
    progress: Callable[[int, int], None] | None = None,
    out_of_memory: str = "stop",
) -> SegmentationDataset:
    """Write the images of each selected mask of `dataset` and open the result.

    Writes `<folder>/train/{images,labels}/<id>.png`, `classes.csv`, `records/<id>.json` and at the
    end `train/metadata.jsonl` and `card.json`; with an `ignore_margin`, `class_losses.json` before
    (one pass of the proxy over `dataset`). Groups that are complete on disk are kept.

    Args:
        indices: numbers of the masks, in the order of the ranking.
        progress: called with (done, total) after each group.
        out_of_memory: "stop", or "halve": a group that a GPU's memory is too small for is made in
            two halves, and these in halves, which never changes an image.
    Raises:
        D3S2Error: for repeated indices, an empty selection, a generator made for another number of
            classes, and a memory too small.
    """
    indices = [int(i) for i in indices]
    _check(painter.generator, dataset, indices)
    write_classes(folder / "classes.csv", dataset.classes)
    limits = None
    if recipe.ignore_margin:
        limits = kept_class_losses(painter.proxy, dataset, folder / "class_losses.json")
    job = _Job(painter, dataset, indices, recipe, limits)
    so_far = _MadeSoFar(job, folder)
    done = 0
    with Steps("painting", job.size) as steps:
        for groups in _blocks(len(indices), recipe):
            waiting = [ranks for ranks in groups if not _is_written(folder, job.ids(ranks))]
            kept = sum(map(len, groups)) - sum(map(len, waiting))
            steps.skip(kept)
            done += kept
            if waiting:
                job = replace(job, memory=so_far.before(groups[0].start))
            for number, made in parallel.each(_paint_group, waiting, job, out_of_memory):
                for painted in made:
                    _write(folder, painted)
                steps.add(len(waiting[number]))
                done += len(waiting[number])
                if progress is not None:
                    progress(done, job.size)
    made = open_folder(folder, "train")
    write_image_folder(folder / "train", made.ids)
    write_json(folder / "card.json", _card(job, folder))
    return made


def _check(
    generator: LayoutGenerator, dataset: SegmentationDataset, indices: Sequence[int]
) -> None:
    different = len(set(indices))
    if different == 0 or different != len(indices):
        raise D3S2Error(
            f"{len(indices)} masks selected, {different} of them different: the selection must "
            "hold each mask once and at least one."
        )
    if generator.num_classes != dataset.num_classes:
        raise D3S2Error(
            f"The generator knows {generator.num_classes} classes, {dataset.name} has "
            f"{dataset.num_classes}: train a generator for this dataset with `python -m "
            "d3s2.models.pretraining`."
        )


def _blocks(count: int, recipe: Recipe) -> list[list[range]]:
    """Groups of places in the set that are made together, each of one copy of its masks. The groups
    of a block do not wait for each other, those of the next one do: see `_pieces`.
    """
    pieces = _pieces(count, recipe)
    if recipe.losses.scope == "image":  # nothing to wait for
        return [[group for piece in pieces for group in _cut(piece, recipe.group)]]
    return [_cut(piece, recipe.group) for piece in pieces]


def _pieces(count: int, recipe: Recipe) -> list[range]:
    """The places in the set, by copy of the `count` masks; in the set scope cut up where the memory
    is renewed.
    """
    copies = _cut(range(count * recipe.images_per_mask), count)
    if recipe.losses.scope == "image":
        return copies
    return [piece for copy in copies for piece in _cut(copy, recipe.losses.renew)]


def _cut(places: range, size: int) -> list[range]:
    """Consecutive pieces of at most `size`."""
    return [places[start : start + size] for start in range(0, len(places), size)]


@dataclass(frozen=True)
class _Job:
    """What all groups of a block share; it travels to the workers once a block.

    A *place* in the set, from 0, counts its images: the first image of every mask by rank, then the
    second.
    """

    painter: Painter
    dataset: SegmentationDataset
    indices: Sequence[int]  # of the masks, by rank
    recipe: Recipe
    limits: Tensor | None  # float64[C], the classes' real mean losses, for the filter
    memory: SetMemory | None = None  # the images made before this block, for the set scope

    @property
    def size(self) -> int:
        """Images of the set."""
        return len(self.indices) * self.recipe.images_per_mask

    def copy(self, place: int) -> int:
        """Which of its mask's images stands there, from 0."""
        return place // len(self.indices)

    def rank(self, place: int) -> int:
        """The place of its mask in the ranking."""
        return place % len(self.indices)

    def masks(self, places: Sequence[int]) -> list[int]:
        """Numbers of the masks of these images."""
        return [self.indices[self.rank(place)] for place in places]

    def mask_ids(self, places: Sequence[int]) -> list[str]:
        """Names of the masks of these images."""
        return [self.dataset.ids[index] for index in self.masks(places)]

    def ids(self, places: Sequence[int]) -> list[str]:
        """Names of these images."""
        names = zip(self.mask_ids(places), map(self.copy, places), strict=True)
        return [image_id(name, copy, self.recipe) for name, copy in names]


class _Painted(NamedTuple):
    """One image as it will be written."""

    pixels: np.ndarray  # uint8[H, W, 3]
    labels: np.ndarray  # uint8[H, W]
    record: dict[str, Any]


class _Sight(NamedTuple):
    """What the proxy recognises in a batch of images, and what that makes of their labels."""

    recognised: Tensor  # int64[B, C], pixels of each class that the proxy labels as the mask does
    present: Tensor  # int64[B, C], pixels of each class in the mask
    labels: Tensor  # int64[B, H, W], those to write
    ignored: Tensor  # int64[B], pixels that became 255


def _paint_group(places: Sequence[int], job: _Job, out_of_memory: str) -> list[_Painted]:
    """`_paint_at_once`, or in halves where the GPU's memory is too small for that."""
    more = "vae_memory=tiling or jacobian=detach"
    work = partial(_paint_at_once, job=job)
    parts = in_halves(work, places, out_of_memory, "sampling_batch", more)
    return [painted for part in parts for painted in part]


def _paint_at_once(places: Sequence[int], job: _Job) -> list[_Painted]:
    """The images at these places of the set, all of one copy, of several tries the best."""
    painter = job.painter
    recipe = job.recipe.of_copy(job.copy(places[0]))
    masks = job.masks(places)
    ids = job.mask_ids(places)
    labels = read_masks(job.dataset, masks, painter.device)
    begin = None
    if recipe.strength < 1:
        begin = painter.beginnings(job.dataset, masks, painter.device)

    def draw(candidate: int, rows: Sequence[int]) -> np.ndarray:
        names = [ids[row] for row in rows]
        at = None if begin is None else begin[rows]
        made = generate(painter, labels[rows], names, recipe, candidate, job.memory, at)
        return _rounded(made, names)

    def judged(pixels: np.ndarray) -> Mapping[str, Sequence[float]]:
        images = to_float(pixels, painter.device)  # as they will be read: rounded to bytes
        return painter.judge(painter.proxy, painter.targets, images, labels)

    if painter.refine is not None:
        refined = painter.refine(painter.proxy, labels, draw)
        sight = _look(job, refined.pixels, labels, refined.labels)
        return _all_painted(job, places, refined, judged(refined.pixels), sight)
    everybody = range(len(ids))
    tries = [draw(candidate, everybody) for candidate in range(recipe.candidates)]
    verdicts = [judged(pixels) for pixels in tries]
    chosen = best(verdicts, recipe.score) if recipe.candidates > 1 else [0] * len(ids)
    pixels = np.stack([tries[candidate][k] for k, candidate in enumerate(chosen)])
    notes = [_choice(recipe, verdicts, k, candidate) for k, candidate in enumerate(chosen)]
    sight = _look(job, pixels, labels)
    refined = Refined(pixels, chosen, sight.labels, notes)
    verdict = _of_chosen(verdicts, chosen)
    return _all_painted(job, places, refined, verdict, sight)


def _of_chosen(
    verdicts: Sequence[Mapping[str, Sequence[float]]], chosen: Sequence[int]
) -> dict[str, list[float]]:
    """What was said of each image's chosen try."""
    return {
        name: [verdicts[candidate][name][k] for k, candidate in enumerate(chosen)]
        for name in verdicts[0]
    }


def _choice(
    recipe: Recipe, verdicts: Sequence[Mapping[str, Sequence[float]]], k: int, candidate: int
) -> dict[str, Any]:
    """What the record of the k-th image of a batch says of several tries; null stands for a score
    that is not finite.
    """
    if recipe.candidates == 1:
        return {}
    scores = [verdict[recipe.score][k] for verdict in verdicts]
    known = [score if math.isfinite(score) else None for score in scores]
    return {"candidate": candidate, "scores": known}


def _all_painted(
    job: _Job,
    places: Sequence[int],
    refined: Refined,
    verdict: Mapping[str, Sequence[float]],
    sight: _Sight,
) -> list[_Painted]:
    """The images of a batch, as they will be written."""
    written = refined.labels.cpu().numpy().astype(np.uint8)
    return [
        _Painted(refined.pixels[k], written[k], _record(job, place, k, refined, verdict, sight))
        for k, place in enumerate(places)
    ]


def _rounded(images: Tensor, ids: Sequence[str]) -> np.ndarray:
    """uint8[B, H, W, 3] of images float[B, 3, H, W]. Raises D3S2Error, naming the mask, where one
    is not finite: NaN would come out black.
    """
    finite = images.isfinite().flatten(1).all(1).tolist()
    if not all(finite):
        raise D3S2Error(
            f"The image of mask {ids[finite.index(False)]} is not finite and is not written: lower "
            "the guidance scales, or give the networks more precision."
        )
    return to_uint8(images)


@torch.no_grad()
def _look(job: _Job, pixels: np.ndarray, labels: Tensor, written: Tensor | None = None) -> _Sight:
    """How the proxy sees images uint8[B, H, W, 3] of these labels int64[B, H, W]; written: the
    labels to write, None = theirs, those doubtful left out where the recipe says so.
    """
    proxy = job.painter.proxy
    logits = proxy(pad_batch(to_float(pixels, job.painter.device))).logits[: len(labels)]
    recognised, present = class_agreement(logits, labels)
    if written is None:
        written = labels
        if job.limits is not None:
            losses = pixel_losses(logits, labels)
            written = ignore_doubtful(losses, labels, job.limits, job.recipe.ignore_margin)
    ignored = (written == IGNORE).flatten(1).sum(1) - (labels == IGNORE).flatten(1).sum(1)
    return _Sight(recognised, present, written, ignored)


def _record(
    job: _Job,
    place: int,
    k: int,
    refined: Refined,
    verdict: Mapping[str, Sequence[float]],
    sight: _Sight,
) -> dict[str, Any]:
    """How the image at this place of the set was made, the k-th of its batch, and what is seen in
    it. Raises D3S2Error for numbers of the verdict that are not finite.
    """
    copy = job.copy(place)
    recipe = job.recipe.of_copy(copy)
    name = job.mask_ids([place])[0]
    record = {
        "id": image_id(name, copy, recipe),
        "rank": job.rank(place),
        "noise_seed": image_seed(recipe.seed, name, refined.tries[k]),
        "method": recipe.method,
        "class_pixels": {
            str(number): [int(sight.recognised[k, number]), int(sight.present[k, number])]
            for number in sight.present[k].nonzero().flatten().tolist()
        },
        "ignored_pixels": int(sight.ignored[k]),
    }
    if recipe.images_per_mask > 1:
        record |= {"mask": name, "copy": copy}
    if recipe.strength < 1:
        record["strength"] = recipe.strength
    record |= refined.notes[k]
    said = {what: values[k] for what, values in verdict.items()}
    for what, value in said.items():
        if not math.isfinite(value):
            raise D3S2Error(
                f"The {what} of the image of mask {name} is {value}, which no record can hold: "
                "look at what the proxy answers."
            )
    return said | record


# --------------------------------------------------------------------------------------- the folder
def _is_written(folder: Path, ids: Sequence[str]) -> bool:
    """Whether all of these are there. A record is written last: it vouches for image and mask."""
    return all((folder / "records" / f"{name}.json").is_file() for name in ids)


def _write(folder: Path, painted: _Painted) -> None:
    name = painted.record["id"]
    write_png(folder / "train" / "images" / f"{name}.png", painted.pixels)
    write_png(folder / "train" / "labels" / f"{name}.png", painted.labels)
    write_json(folder / "records" / f"{name}.json", painted.record)


@dataclass
class _MadeSoFar:
    """Statistics of the images made so far, for the set scope. Always read from disk: a run that
    goes on after a break finds the same.
    """

    job: _Job
    folder: Path
    _moments: ClassMoments | None = None
    _known: int = 0

    @torch.no_grad()
    def before(self, place: int) -> SetMemory | None:
        """Of all images before this place, which a block starts with; None in the image scope, and
        before the first image.
        """
        if self.job.recipe.losses.scope == "image" or place == 0:
            return None
        for piece in _pieces(len(self.job.indices), self.job.recipe):
            if self._known <= piece.start < place:
                self._add(self.job.ids(piece))
        self._known = place
        return SetMemory.from_moments(self._moments, self.job.painter.device)

    def _add(self, ids: Sequence[str]) -> None:
        """Take the images and labels of these names, as they lie in the folder, into account."""
        proxy = self.job.painter.proxy
        device = self.job.painter.device
        images = to_float(self._read("images", ids), device)
        labels = torch.from_numpy(self._read("labels", ids).astype(np.int64)).to(device)
        features = [layer[: len(ids)] for layer in proxy(pad_batch(images)).features]
        if self._moments is None:
            widths = [layer.shape[1] for layer in features]
            self._moments = ClassMoments(self.job.dataset.num_classes, widths)
        self._moments.update(features, labels)

    def _read(self, part: str, ids: Sequence[str]) -> np.ndarray:
        paths = [self.folder / "train" / part / f"{name}.png" for name in ids]
        return np.stack([np.array(Image.open(path)) for path in paths])


def _card(job: _Job, folder: Path) -> dict[str, Any]:
    """What a stranger needs to know of the dataset: origin, method, settings, quality."""
    dataset = job.dataset
    recipe = job.recipe
    ids = job.ids(range(job.size))
    records = [read_json(folder / "records" / f"{name}.json") for name in ids]
    judged = sorted(set(records[0]).difference(RECORD, CHOICE, COPY, BEGUN))
    card = {
        "name": f"{dataset.name}-{recipe.method}",
        "source": f"{dataset.name}/{dataset.split}",
        "images": len(ids),
        "of": len(dataset),
        "recipe": asdict(recipe),
        "ids_in_order_of_selection": ids,
        "mean_quality": {key: _mean(record[key] for record in records) for key in judged},
        "class_agreement": _recalls(records, dataset.num_classes),
        "ignored_pixels": sum(record["ignored_pixels"] for record in records),
    }
    return card | ({"masks": len(job.indices)} if recipe.images_per_mask > 1 else {})


def _mean(values: Iterable[float]) -> float:
    return round(float(np.mean(list(values))), 6)


def _recalls(records: Sequence[dict[str, Any]], num_classes: int) -> list[float | None]:
    """Of each class the share of its pixels that the proxy recognises; None where it has none."""
    pixels = np.zeros((num_classes, 2), dtype=np.int64)
    for record in records:
        for number, counts in record["class_pixels"].items():
            pixels[int(number)] += counts
    return [
        round(int(recognised) / int(present), 6) if present else None
        for recognised, present in pixels
    ]
