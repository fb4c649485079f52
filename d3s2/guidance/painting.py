"""From selected masks to a distilled dataset on disk: one image a mask, each with a record of how
it was made.

An image follows from (method, mask id, seed): its noise comes from its own random generator, seeded
by the mask's id, so methods compared at one seed start from the same noise. Images are made in
fixed groups of the ranking; a run that was killed repeats the group it was in and gives the same
bytes as an unbroken one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from d3s2.core import parallel
from d3s2.core.errors import D3S2Error, what_to_lower
from d3s2.core.files import read_json, write_json, write_png
from d3s2.data.dataset import IGNORE, SegmentationDataset
from d3s2.data.folder import open_folder, write_classes
from d3s2.data.tensors import class_sets, pad_batch, read_masks, to_float, to_uint8
from d3s2.guidance.losses import (
    ClassAreas,
    FeatureTargets,
    SetMemory,
    feature_matching,
    pixel_losses,
    segmentation_consistency,
)
from d3s2.guidance.quality import (
    SCORES,
    best,
    class_agreement,
    class_mean_losses,
    ignore_doubtful,
    judge,
)
from d3s2.guidance.sampler import Guidance, Losses, NoiseStream, finish, sample
from d3s2.models.generator import LayoutGenerator
from d3s2.models.proxy import ProxySegmenter
from d3s2.statistics.features import ClassMoments


@dataclass(frozen=True)
class LossOptions:
    """Forms of the two losses; the defaults are our choice.

    balance: segmentation loss as the mean over classes, not over pixels. kappa: weight of the
    deviations in the feature loss, 0 = means only. layers: names of the proxy's layers to compare,
    () = all. scope: "image", or "set", which steers the statistics of all images made so far and
    this one together. renew: in the set scope, after how many images "so far" is brought up to
    date; images that share it can be made in any order and company.
    """

    balance: bool = False
    kappa: float = 1.0
    layers: tuple[str, ...] = ()
    scope: str = "image"
    renew: int = 8

    def __post_init__(self) -> None:
        if self.scope not in ("image", "set"):
            raise D3S2Error(f"scope is {self.scope!r}: use 'image' or 'set'.")
        if self.renew < 1 or not self.kappa >= 0:
            raise D3S2Error(
                f"renew is {self.renew} and kappa {self.kappa}: renew counts from 1, kappa is 0 "
                "or more."
            )


@dataclass(frozen=True)
class Recipe:
    """Everything that decides an image besides its mask and the weights.

    candidates: images tried for each mask, of which the one with the best `score` (see
    `quality.SCORES`) is kept.
    ignore_margin: pixels whose proxy loss is above so many times their class's real mean become
    255; 0 = none, FreeMask: 1.25.
    group: images made together; never changes an image.
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

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise D3S2Error(f"score is {self.score!r}: choose {', '.join(SCORES)}.")
        if self.candidates < 1 or self.group < 1 or not self.ignore_margin >= 0:
            raise D3S2Error(
                f"candidates is {self.candidates}, group {self.group} and ignore_margin "
                f"{self.ignore_margin}: "
                "the first two count from 1, the last is 0 or more."
            )


def image_seed(seed: int, mask_id: str, candidate: int = 0) -> int:
    """The seed of one image's noise: the first 63 bits of SHA-256 over the run's seed, the mask's
    id and, from 1, the try.
    """
    text = f"{seed}:{mask_id}" + (f":{candidate}" if candidate else "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def guidance_losses(
    proxy: ProxySegmenter,
    labels: Tensor,
    targets: FeatureTargets,
    options: LossOptions = LossOptions(),
    memory: SetMemory | None = None,
) -> Losses:
    """Both losses of chapter 03 for a batch of masks int64[B, H, W]; they share one pass through
    the proxy.

    Raises D3S2Error for a layer that the proxy does not have.
    """
    unknown = sorted(set(options.layers) - set(proxy.layers))
    if unknown:
        raise D3S2Error(
            f"The proxy has no layer {unknown[0]!r}: choose from {', '.join(proxy.layers)}."
        )
    layers = [proxy.layers.index(name) for name in options.layers] or None
    areas = ClassAreas(labels, len(targets.mean[0]))

    def losses(images: Tensor) -> dict[str, Tensor]:
        output = proxy(images)
        return {
            "segmentation": segmentation_consistency(output.logits, labels, options.balance),
            "feature": feature_matching(
                output.features, areas, targets, options.kappa, layers=layers, memory=memory
            ),
        }

    return losses


def generate(
    generator: LayoutGenerator,
    proxy: ProxySegmenter,
    targets: FeatureTargets,
    labels: Tensor,
    ids: Sequence[str],
    recipe: Recipe,
    candidate: int = 0,
    memory: SetMemory | None = None,
) -> Tensor:
    """Images float[B, 3, H, W] in [-1, 1] for masks int64[B, H, W] with these ids; each follows
    from its id and seed alone.
    """
    shape = generator.noise_shape(*labels.shape[1:])
    stream = NoiseStream([image_seed(recipe.seed, name, candidate) for name in ids], shape)

    def padded(batch: Tensor) -> Tensor:
        return pad_batch(batch) if generator.padded else batch

    def fresh() -> Tensor:
        return padded(stream().to(labels.device))

    layout = padded(labels)
    classes = class_sets(layout, generator.num_classes)
    losses = guidance_losses(proxy, layout, targets, recipe.losses, memory)
    steps = sample(
        generator, fresh(), layout, classes, recipe.steps, recipe.guidance, losses, fresh=fresh
    )
    return finish(steps).image[: len(ids)]


def synthesise(
    generator: LayoutGenerator,
    proxy: ProxySegmenter,
    targets: FeatureTargets,
    dataset: SegmentationDataset,
    indices: Sequence[int],
    folder: Path,
    recipe: Recipe,
    progress: Callable[[int, int], None] | None = None,
    out_of_memory: str = "stop",
) -> SegmentationDataset:
    """Write one image for each selected mask of `dataset` and open the result.

    Writes `<folder>/train/{images,labels}/<id>.png`, `classes.csv`, `records/<id>.json` and at the
    end `card.json`; with an `ignore_margin`, `class_losses.json` before (one pass of the proxy over
    `dataset`). Groups that are complete on disk are kept. `progress(done, total)` is called after
    each group. out_of_memory: "stop", or "halve": a group that a GPU's memory is too small for is
    made in two halves, and these in halves, which never changes an image.
    Raises D3S2Error for repeated indices, an empty selection, and a generator made for another
    number of classes.
    """
    if len(indices) == 0 or len(set(map(int, indices))) != len(indices):
        raise D3S2Error(
            f"{len(indices)} masks selected, {len(set(map(int, indices)))} of them different: "
            "the selection must hold each mask once and at least one."
        )
    if generator.num_classes != dataset.num_classes:
        raise D3S2Error(
            f"The generator knows {generator.num_classes} classes, {dataset.name} has "
            f"{dataset.num_classes}: train a generator for this dataset with `python -m "
            "d3s2.models.pretraining`."
        )
    write_classes(folder / "classes.csv", dataset.classes)
    for part in ("train/images", "train/labels", "records"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    indices = [int(i) for i in indices]
    limits = _class_losses(proxy, dataset, folder) if recipe.ignore_margin else None
    memory, done = _Memory(proxy, dataset, indices, folder, recipe.losses), 0
    for groups in _blocks(len(indices), recipe):
        waiting = [
            group
            for group in groups
            if not all(_is_written(folder, dataset.ids[indices[rank]]) for rank in group)
        ]
        done += sum(map(len, groups)) - sum(map(len, waiting))
        made = parallel.each(
            _make_group,
            waiting,
            out_of_memory,
            indices,
            generator,
            proxy,
            targets,
            dataset,
            recipe,
            memory.before(groups[0][0]) if waiting else None,
            limits,
        )
        for number, images in made:
            for image in images:
                _write(folder, *image)
            done += len(waiting[number])
            if progress is not None:
                progress(done, len(indices))
    write_json(folder / "card.json", _card(dataset, indices, folder, recipe))
    return open_folder(folder, "train")


def _blocks(count: int, recipe: Recipe) -> list[list[range]]:
    """Groups of ranks that are made together. The groups of a block do not wait for each other,
    those of the next one do: in the set scope a block ends where the memory is renewed.
    """
    size = recipe.losses.renew if recipe.losses.scope == "set" else count
    ends = [(start, min(start + size, count)) for start in range(0, count, size)]
    return [
        [range(first, min(first + recipe.group, end)) for first in range(start, end, recipe.group)]
        for start, end in ends
    ]


def _is_written(folder: Path, name: str) -> bool:
    """The record is written last, so it vouches for image and mask."""
    return (folder / "records" / f"{name}.json").is_file()


def _make_group(
    ranks: Sequence[int], out_of_memory: str, *parts: Any
) -> list[tuple[np.ndarray, np.ndarray, dict[str, Any]]]:
    """`_make_at_once(ranks, *parts)`, or in halves where the GPU's memory is too small for that."""
    try:
        return _make_at_once(ranks, *parts)
    except torch.OutOfMemoryError as error:
        if out_of_memory == "stop" or len(ranks) == 1:
            raise D3S2Error(
                what_to_lower(len(ranks), "sampling_batch", "vae_memory=tiling or jacobian=detach")
            ) from error
    torch.cuda.empty_cache()  # outside of the handler, whose error still holds the tensors
    halves = ranks[: len(ranks) // 2], ranks[len(ranks) // 2 :]
    return [image for half in halves for image in _make_group(half, out_of_memory, *parts)]


def _make_at_once(
    ranks: Sequence[int],
    indices: Sequence[int],
    generator: LayoutGenerator,
    proxy: ProxySegmenter,
    targets: FeatureTargets,
    dataset: SegmentationDataset,
    recipe: Recipe,
    memory: SetMemory | None,
    limits: Tensor | None,
) -> list[tuple[np.ndarray, np.ndarray, dict[str, Any]]]:
    """For each of these places in the ranking: image uint8[H, W, 3], labels uint8[H, W], record."""
    device, group = str(proxy.device), [indices[rank] for rank in ranks]
    ids, labels = [dataset.ids[i] for i in group], read_masks(dataset, group, device)
    tries = [
        to_uint8(generate(generator, proxy, targets, labels, ids, recipe, candidate, memory))
        for candidate in range(recipe.candidates)
    ]
    verdicts = [judge(proxy, targets, to_float(pixels, device), labels) for pixels in tries]
    chosen = best(verdicts, recipe.score)
    pixels = np.stack([tries[c][k] for k, c in enumerate(chosen)])
    right, there, written = _inspect(proxy, pixels, labels, limits, recipe.ignore_margin)
    made = []
    for k, (rank, name, c) in enumerate(zip(ranks, ids, chosen, strict=True)):
        record = {
            "id": name,
            "rank": rank,
            "noise_seed": image_seed(recipe.seed, name, c),
            "method": recipe.method,
        }
        record |= {key: value[k] for key, value in verdicts[c].items()}
        record["class_pixels"] = {
            str(i): [int(right[k, i]), int(there[k, i])]
            for i in there[k].nonzero().flatten().tolist()
        }
        record["ignored_pixels"] = int((written[k] == IGNORE).sum() - (labels[k] == IGNORE).sum())
        if recipe.candidates > 1:
            record |= {"candidate": c, "scores": [verdict[recipe.score][k] for verdict in verdicts]}
        made.append((pixels[k], written[k].cpu().numpy().astype(np.uint8), record))
    return made


@torch.no_grad()
def _inspect(
    proxy: ProxySegmenter, pixels: np.ndarray, labels: Tensor, limits: Tensor | None, margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(pixels of each class recognised, there: int64[B, C]; the labels to write: int64[B, H,
    W]).
    """
    logits = proxy(pad_batch(to_float(pixels, str(proxy.device)))).logits[: len(labels)]
    right, there = class_agreement(logits, labels)
    if limits is None:
        return right, there, labels
    return right, there, ignore_doubtful(pixel_losses(logits, labels), labels, limits, margin)


def _class_losses(proxy: ProxySegmenter, dataset: SegmentationDataset, folder: Path) -> Tensor:
    """float64[C], from the file of a run before, else computed and written; null stands for a class
    never seen.
    """
    path = folder / "class_losses.json"
    if not path.is_file():
        values = class_mean_losses(proxy, dataset).tolist()
        write_json(path, [value if math.isfinite(value) else None for value in values])
    return torch.tensor(
        [math.inf if value is None else value for value in read_json(path)], dtype=torch.float64
    )


@dataclass
class _Memory:
    """Statistics of the images made so far, for the set scope. Always read from disk: a run that
    goes on after a break finds the same.
    """

    proxy: ProxySegmenter
    dataset: SegmentationDataset
    indices: Sequence[int]
    folder: Path
    options: LossOptions
    _moments: ClassMoments | None = None
    _known: int = 0

    @torch.no_grad()
    def before(self, rank: int) -> SetMemory | None:
        """Of all images before `rank`, which a block starts with; None in the image scope, and
        before the first image.
        """
        if self.options.scope == "image" or rank == 0:
            return None
        size = self.options.renew
        for start in range(self._known, rank, size):
            images, labels = self._read(
                [self.dataset.ids[i] for i in self.indices[start : start + size]]
            )
            features = [f[:size] for f in self.proxy(pad_batch(images)).features]
            widths = [layer.shape[1] for layer in features]
            self._moments = self._moments or ClassMoments(
                self.dataset.num_classes, widths, self.proxy.layers
            )
            self._moments.update(features, labels)
        self._known = rank
        return SetMemory.from_moments(self._moments, self.proxy.device)

    def _read(self, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Images float[B, 3, H, W] and labels int64[B, H, W] as they lie in the folder."""
        pixels, labels = (
            np.stack(
                [np.array(Image.open(self.folder / "train" / part / f"{name}.png")) for name in ids]
            )
            for part in ("images", "labels")
        )
        device = str(self.proxy.device)
        return to_float(pixels, device), torch.from_numpy(labels.astype(np.int64)).to(device)


def _write(folder: Path, image: np.ndarray, labels: np.ndarray, record: dict[str, Any]) -> None:
    write_png(folder / "train" / "images" / f"{record['id']}.png", image)
    write_png(folder / "train" / "labels" / f"{record['id']}.png", labels)
    write_json(folder / "records" / f"{record['id']}.json", record)


def _card(
    dataset: SegmentationDataset, indices: Sequence[int], folder: Path, recipe: Recipe
) -> dict[str, Any]:
    """What a stranger needs to know of the dataset: origin, method, settings, quality."""
    ids = [dataset.ids[int(i)] for i in indices]
    records = [read_json(folder / "records" / f"{name}.json") for name in ids]
    quality = {key: round(float(np.mean([r[key] for r in records])), 6) for key in SCORES}
    pixels = np.zeros((dataset.num_classes, 2), dtype=np.int64)
    for record in records:
        for number, counts in record["class_pixels"].items():
            pixels[int(number)] += counts
    recall = [round(int(right) / int(there), 6) if there else None for right, there in pixels]
    return {
        "name": f"{dataset.name}-{recipe.method}",
        "source": f"{dataset.name}/{dataset.split}",
        "images": len(ids),
        "of": len(dataset),
        "recipe": asdict(recipe),
        "ids_in_order_of_selection": ids,
        "mean_quality": quality,
        "class_agreement": recall,
        "ignored_pixels": sum(record["ignored_pixels"] for record in records),
    }
