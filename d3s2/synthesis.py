"""From selected masks to a distilled dataset on disk: one image a mask, each with a record of how it was made.

An image follows from (method, mask id, seed): its noise comes from its own random generator, seeded by the mask's id,
so methods compared at one seed start from the same noise. Images are made in fixed groups of the ranking; a run that
was killed repeats the group it was in and gives the same bytes as an unbroken one.
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import clusters
from .artifacts import atomic_path, read_json, write_json
from .data import SegmentationDataset, open_dataset
from .data.base import IGNORE
from .data.formats import write_classes
from .errors import D3S2Error
from .generators import LayoutGenerator, class_sets
from .guidance import Guidance, Losses, finish, initial_noise, sample
from .losses import FeatureTargets, feature_matching, segmentation_consistency
from .proxy import ProxySegmenter


@dataclass(frozen=True)
class Recipe:
    """Everything that decides an image besides its mask and the weights."""

    method: str = "d3s2"
    seed: int = 0
    steps: int = 50
    guidance: Guidance = Guidance()
    group: int = 8


def image_seed(seed: int, mask_id: str) -> int:
    """The seed of one image's noise: the first 63 bits of SHA-256 over the run's seed and the mask's id."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{mask_id}".encode()).digest()[:8], "big") >> 1


def guidance_losses(proxy: ProxySegmenter, labels: Tensor, targets: FeatureTargets) -> Losses:
    """Both losses of chapter 03 for a batch of masks int64[B, H, W]; they share one pass through the proxy."""
    def losses(images: Tensor) -> dict[str, Tensor]:
        output = proxy(images)
        return {"segmentation": segmentation_consistency(output.logits, labels),
                "feature": feature_matching(output.features, labels, targets)}

    return losses


def read_masks(dataset: SegmentationDataset, indices: Sequence[int], device: str = "cpu") -> Tensor:
    """int64[B, H, W] labels of some of a dataset's images."""
    return torch.from_numpy(np.stack([dataset.read_labels(int(i)) for i in indices]).astype(np.int64)).to(device)


def read_images(dataset: SegmentationDataset, indices: Sequence[int], device: str = "cpu") -> Tensor:
    """float[B, 3, H, W] images in [-1, 1]."""
    stack = np.stack([dataset.read_image(int(i)) for i in indices])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """float[B, 3, H, W] in [-1, 1] to uint8[B, H, W, 3]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def generate(generator: LayoutGenerator, proxy: ProxySegmenter, targets: FeatureTargets, labels: Tensor, ids: Sequence[str],
             recipe: Recipe) -> Tensor:
    """Images float[B, 3, H, W] in [-1, 1] for masks int64[B, H, W] with these ids."""
    noise = initial_noise([image_seed(recipe.seed, name) for name in ids], (3, *labels.shape[1:])).to(labels.device)
    classes = class_sets(labels, generator.unet.config.num_classes)
    steps = sample(generator, noise, labels, classes, recipe.steps, recipe.guidance, guidance_losses(proxy, labels, targets))
    return finish(steps).x


@torch.no_grad()
def judge(proxy: ProxySegmenter, targets: FeatureTargets, images: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """What the proxy says of images float[B, 3, H, W]: both losses, and the share of valid pixels it labels as the mask."""
    output = proxy(images)
    valid = labels != IGNORE
    right = ((output.logits.argmax(1) == labels) & valid).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
    values = {"segmentation_loss": segmentation_consistency(output.logits, labels),
              "feature_loss": feature_matching(output.features, labels, targets), "proxy_agreement": right}
    return {name: [round(float(v), 6) for v in value] for name, value in values.items()}


def synthesise(generator: LayoutGenerator, proxy: ProxySegmenter, targets: FeatureTargets, dataset: SegmentationDataset,
               indices: Sequence[int], folder: Path, recipe: Recipe,
               progress: Callable[[int, int], None] | None = None) -> SegmentationDataset:
    """Write one image for each selected mask of `dataset` and open the result.

    Writes `<folder>/train/{images,labels}/<id>.png`, `classes.csv`, `records/<id>.json` and at the end `card.json`.
    Groups that are complete on disk are kept. `progress(done, total)` is called after each group.
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
    ranks = [range(start, min(start + recipe.group, len(indices))) for start in range(0, len(indices), recipe.group)]
    waiting = [group for group in ranks if not all(_is_written(folder, dataset.ids[int(indices[rank])]) for rank in group)]
    done = len(indices) - sum(map(len, waiting))
    made = clusters.each(_make_group, waiting, [int(i) for i in indices], generator, proxy, targets, dataset, recipe)
    for number, images in made:
        for image in images:
            _write(folder, *image)
        done += len(waiting[number])
        if progress is not None:
            progress(done, len(indices))
    write_json(folder / "card.json", _card(dataset, indices, folder, recipe))
    return open_dataset("folder", folder, "train")


def _is_written(folder: Path, name: str) -> bool:
    """The record is written last, so it vouches for image and mask."""
    return (folder / "records" / f"{name}.json").is_file()


def _make_group(ranks: Sequence[int], indices: Sequence[int], generator: LayoutGenerator, proxy: ProxySegmenter, targets: FeatureTargets,
                dataset: SegmentationDataset, recipe: Recipe) -> list[tuple[np.ndarray, np.ndarray, dict[str, Any]]]:
    """For each of these places in the ranking: image uint8[H, W, 3], labels uint8[H, W], record."""
    device = str(next(proxy.parameters()).device)
    group = [indices[rank] for rank in ranks]
    ids, labels = [dataset.ids[i] for i in group], read_masks(dataset, group, device)
    pixels = to_uint8(generate(generator, proxy, targets, labels, ids, recipe))
    written = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
    verdict = judge(proxy, targets, written, labels)
    records = [{"id": name, "rank": rank, "noise_seed": image_seed(recipe.seed, name), "method": recipe.method,
                **{key: value[k] for key, value in verdict.items()}} for k, (rank, name) in enumerate(zip(ranks, ids, strict=True))]
    return list(zip(pixels, labels.cpu().numpy().astype(np.uint8), records, strict=True))


def _write(folder: Path, image: np.ndarray, labels: np.ndarray, record: dict[str, Any]) -> None:
    _write_png(folder / "train" / "images" / f"{record['id']}.png", image)
    _write_png(folder / "train" / "labels" / f"{record['id']}.png", labels)
    write_json(folder / "records" / f"{record['id']}.json", record)


def _write_png(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as partial:
        Image.fromarray(array).save(partial, format="PNG")


def _card(dataset: SegmentationDataset, indices: Sequence[int], folder: Path, recipe: Recipe) -> dict[str, Any]:
    """What a stranger needs to know of the dataset: origin, method, settings, quality."""
    ids = [dataset.ids[int(i)] for i in indices]
    records = [read_json(folder / "records" / f"{name}.json") for name in ids]
    quality = {key: round(float(np.mean([r[key] for r in records])), 6)
               for key in ("segmentation_loss", "feature_loss", "proxy_agreement")}
    return {"name": f"{dataset.name}-{recipe.method}", "source": f"{dataset.name}/{dataset.split}", "images": len(ids),
            "of": len(dataset), "recipe": asdict(recipe), "ids_in_order_of_selection": ids, "mean_quality": quality}
