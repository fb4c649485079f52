"""From selected masks to a distilled dataset on disk: one image a mask, each with a record of how it was made.

An image follows from (method, mask id, seed): its noise comes from its own random generator, seeded by the mask's id,
so methods compared at one seed start from the same noise. Images are made in fixed groups of the ranking; a run that
was killed repeats the group it was in and gives the same bytes as an unbroken one.
"""
from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .artifacts import atomic_path, read_json, write_json
from .data import SegmentationDataset, open_dataset
from .data.base import IGNORE
from .data.formats import write_classes
from .errors import D3S2Error
from .generators import LayoutGenerator, class_sets, pad_batch
from .guidance import Guidance, Losses, NoiseStream, finish, sample
from .losses import ClassAreas, FeatureTargets, SetMemory, feature_matching, pixel_losses, segmentation_consistency
from .proxy import ProxySegmenter
from .quality import (
    SCORES,
    best,
    class_agreement,
    class_mean_losses,
    ignore_doubtful,
    judge,
    read_images,
    read_masks,
    to_float,
    to_uint8,
)
from .statistics import ClassMoments


@dataclass(frozen=True)
class LossOptions:
    """Forms of the two losses; the defaults are our choice.

    balance: segmentation loss as the mean over classes, not over pixels. kappa: weight of the deviations in the feature
    loss, 0 = means only. layers: names of the proxy's layers to compare, () = all. scope: "image", or "set", which steers
    the statistics of all images made so far and this one together. renew: in the set scope, after how many images "so
    far" is brought up to date; images that share it can be made in any order and company.
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
            raise D3S2Error(f"renew is {self.renew} and kappa {self.kappa}: renew counts from 1, kappa is 0 or more.")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides an image besides its mask and the weights.

    candidates: images tried for each mask, of which the one with the best `score` (see `quality.SCORES`) is kept.
    ignore_margin: pixels whose proxy loss is above so many times their class's real mean become 255; 0 = none, FreeMask: 1.25.
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
            raise D3S2Error(f"candidates is {self.candidates}, group {self.group} and ignore_margin {self.ignore_margin}: "
                            "the first two count from 1, the last is 0 or more.")


def image_seed(seed: int, mask_id: str, candidate: int = 0) -> int:
    """The seed of one image's noise: the first 63 bits of SHA-256 over the run's seed, the mask's id and, from 1, the try."""
    text = f"{seed}:{mask_id}" + (f":{candidate}" if candidate else "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def guidance_losses(proxy: ProxySegmenter, labels: Tensor, targets: FeatureTargets, options: LossOptions = LossOptions(),
                    memory: SetMemory | None = None) -> Losses:
    """Both losses of chapter 03 for a batch of masks int64[B, H, W]; they share one pass through the proxy.

    Raises D3S2Error for a layer that the proxy does not have.
    """
    unknown = sorted(set(options.layers) - set(proxy.layers))
    if unknown:
        raise D3S2Error(f"The proxy has no layer {unknown[0]!r}: choose from {', '.join(proxy.layers)}.")
    layers = [proxy.layers.index(name) for name in options.layers] or None
    areas = ClassAreas(labels, len(targets.mean[0]))

    def losses(images: Tensor) -> dict[str, Tensor]:
        output = proxy(images)
        return {"segmentation": segmentation_consistency(output.logits, labels, options.balance),
                "feature": feature_matching(output.features, areas, targets, options.kappa, layers=layers, memory=memory)}

    return losses


def generate(generator: LayoutGenerator, proxy: ProxySegmenter, targets: FeatureTargets, labels: Tensor, ids: Sequence[str],
             recipe: Recipe, candidate: int = 0, memory: SetMemory | None = None) -> Tensor:
    """Images float[B, 3, H, W] in [-1, 1] for masks int64[B, H, W] with these ids; each follows from its id and seed alone."""
    stream = NoiseStream([image_seed(recipe.seed, name, candidate) for name in ids], (3, *labels.shape[1:]))

    def fresh() -> Tensor:
        return pad_batch(stream().to(labels.device))

    layout = pad_batch(labels)
    classes = class_sets(layout, generator.unet.config.num_classes)
    losses = guidance_losses(proxy, layout, targets, recipe.losses, memory)
    steps = sample(generator, fresh(), layout, classes, recipe.steps, recipe.guidance, losses, fresh=fresh)
    return finish(steps).x[: len(ids)]


def synthesise(generator: LayoutGenerator, proxy: ProxySegmenter, targets: FeatureTargets, dataset: SegmentationDataset,
               indices: Sequence[int], folder: Path, recipe: Recipe,
               progress: Callable[[int, int], None] | None = None) -> SegmentationDataset:
    """Write one image for each selected mask of `dataset` and open the result.

    Writes `<folder>/train/{images,labels}/<id>.png`, `classes.csv`, `records/<id>.json` and at the end `card.json`; with
    an `ignore_margin`, `class_losses.json` before (one pass of the proxy over `dataset`). Groups that are complete on
    disk are kept. `progress(done, total)` is called after each group.
    Raises D3S2Error for repeated indices, an empty selection, and a generator made for another number of classes.
    """
    if len(indices) == 0 or len(set(map(int, indices))) != len(indices):
        raise D3S2Error(f"{len(indices)} masks selected, {len(set(map(int, indices)))} of them different: "
                        "the selection must hold each mask once and at least one.")
    if generator.unet.config.num_classes != dataset.num_classes:
        raise D3S2Error(f"The generator knows {generator.unet.config.num_classes} classes, {dataset.name} has "
                        f"{dataset.num_classes}: train a generator for this dataset with `python -m d3s2.prepare`.")
    write_classes(folder / "classes.csv", dataset.classes)
    for part in ("train/images", "train/labels", "records"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    painter = _Painter(generator, proxy, targets, dataset, [int(i) for i in indices], folder, recipe)
    for ranks in _groups(len(indices), recipe):
        if not all(_is_written(folder, dataset.ids[painter.indices[rank]]) for rank in ranks):
            painter.paint(ranks)
        if progress is not None:
            progress(ranks[-1] + 1, len(indices))
    write_json(folder / "card.json", _card(dataset, indices, folder, recipe))
    return open_dataset("folder", folder, "train")


def _groups(count: int, recipe: Recipe) -> Iterator[range]:
    """Ranks that are made together; in the set scope no group reaches over a renewal of the memory."""
    block = recipe.losses.renew if recipe.losses.scope == "set" else count
    for start in range(0, count, block):
        end = min(start + block, count)
        yield from (range(first, min(first + recipe.group, end)) for first in range(start, end, recipe.group))


def _is_written(folder: Path, name: str) -> bool:
    """The record is written last, so it vouches for image and mask."""
    return (folder / "records" / f"{name}.json").is_file()


@dataclass
class _Painter:
    """Makes groups of images in the order of the ranking; keeps what later groups need of the earlier ones."""

    generator: LayoutGenerator
    proxy: ProxySegmenter
    targets: FeatureTargets
    dataset: SegmentationDataset
    indices: list[int]
    folder: Path
    recipe: Recipe
    _moments: ClassMoments | None = None
    _remembered: int = 0

    def paint(self, ranks: range) -> None:
        """Make the images of these ranks and write them with their labels and records."""
        group = [self.indices[rank] for rank in ranks]
        ids, labels = [self.dataset.ids[i] for i in group], read_masks(self.dataset, group, str(self.proxy.device))
        memory = self._memory(ranks[0])
        tries = [to_uint8(generate(self.generator, self.proxy, self.targets, labels, ids, self.recipe, candidate, memory))
                 for candidate in range(self.recipe.candidates)]
        verdicts = [judge(self.proxy, self.targets, self._floats(pixels), labels) for pixels in tries]
        chosen = best(verdicts, self.recipe.score)
        pixels = np.stack([tries[c][k] for k, c in enumerate(chosen)])
        right, there, written = self._inspect(pixels, labels)
        for k, (rank, name, c) in enumerate(zip(ranks, ids, chosen)):
            record = {"id": name, "rank": rank, "noise_seed": image_seed(self.recipe.seed, name, c), "method": self.recipe.method}
            record |= {key: value[k] for key, value in verdicts[c].items()}
            record["class_pixels"] = {str(i): [int(right[k, i]), int(there[k, i])] for i in there[k].nonzero().flatten().tolist()}
            record["ignored_pixels"] = int((written[k] == IGNORE).sum() - (labels[k] == IGNORE).sum())
            if self.recipe.candidates > 1:
                record |= {"candidate": c, "scores": [verdict[self.recipe.score][k] for verdict in verdicts]}
            _write_png(self.folder / "train" / "images" / f"{name}.png", pixels[k])
            _write_png(self.folder / "train" / "labels" / f"{name}.png", written[k].cpu().numpy().astype(np.uint8))
            write_json(self.folder / "records" / f"{name}.json", record)

    def _floats(self, pixels: np.ndarray) -> Tensor:
        return to_float(pixels, str(self.proxy.device))

    @torch.no_grad()
    def _inspect(self, pixels: np.ndarray, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(pixels of each class recognised, there: int64[B, C]; the labels to write: int64[B, H, W])."""
        logits = self.proxy(pad_batch(self._floats(pixels))).logits[: len(labels)]
        right, there = class_agreement(logits, labels)
        if not self.recipe.ignore_margin:
            return right, there, labels
        return right, there, ignore_doubtful(pixel_losses(logits, labels), labels, self._class_losses(), self.recipe.ignore_margin)

    def _class_losses(self) -> Tensor:
        """float64[C], from the file of a run before, else computed and written; null stands for a class never seen."""
        path = self.folder / "class_losses.json"
        if not path.is_file():
            values = class_mean_losses(self.proxy, self.dataset).tolist()
            write_json(path, [value if math.isfinite(value) else None for value in values])
        return torch.tensor([math.inf if value is None else value for value in read_json(path)], dtype=torch.float64)

    @torch.no_grad()
    def _memory(self, rank: int) -> SetMemory | None:
        """The statistics of the images up to the last renewal before `rank`, always read from disk: a run that goes on
        after a break finds the same.
        """
        options = self.recipe.losses
        if options.scope == "image" or rank < options.renew:
            return None
        for start in range(self._remembered, rank // options.renew * options.renew, options.renew):
            images, labels = self._read([self.dataset.ids[i] for i in self.indices[start : start + options.renew]])
            features = [f[: options.renew] for f in self.proxy(pad_batch(images)).features]
            self._moments = self._moments or ClassMoments(self.dataset.num_classes, [f.shape[1] for f in features], self.proxy.layers)
            self._moments.update(features, labels)
            self._remembered = start + options.renew
        return SetMemory.from_moments(self._moments, self.proxy.device)

    def _read(self, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Images float[B, 3, H, W] and labels int64[B, H, W] as they lie in the folder, which may hold half a group more."""
        pixels, labels = (np.stack([np.array(Image.open(self.folder / "train" / part / f"{name}.png")) for name in ids])
                          for part in ("images", "labels"))
        return self._floats(pixels), torch.from_numpy(labels.astype(np.int64)).to(self.proxy.device)


def _write_png(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as partial:
        Image.fromarray(array).save(partial, format="PNG")


def _card(dataset: SegmentationDataset, indices: Sequence[int], folder: Path, recipe: Recipe) -> dict[str, Any]:
    """What a stranger needs to know of the dataset: origin, method, settings, quality."""
    ids = [dataset.ids[int(i)] for i in indices]
    records = [read_json(folder / "records" / f"{name}.json") for name in ids]
    quality = {key: round(float(np.mean([r[key] for r in records])), 6) for key in SCORES}
    pixels = np.zeros((dataset.num_classes, 2), dtype=np.int64)
    for record in records:
        for number, counts in record["class_pixels"].items():
            pixels[int(number)] += counts
    recall = [round(int(right) / int(there), 6) if there else None for right, there in pixels]
    return {"name": f"{dataset.name}-{recipe.method}", "source": f"{dataset.name}/{dataset.split}", "images": len(ids),
            "of": len(dataset), "recipe": asdict(recipe), "ids_in_order_of_selection": ids, "mean_quality": quality,
            "class_agreement": recall, "ignored_pixels": sum(record["ignored_pixels"] for record in records)}
