"""The card of a distilled set: a README.md as Hugging Face's hub reads it, of what the set's own
card.json says and of nothing that is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from d3s2 import __version__
from d3s2.core.errors import printable
from d3s2.data.dataset import SegmentationDataset

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))
"""The hub's words for a number of examples below the bound."""
LARGEST = "100K<n<1M"
UNKNOWN = "not said in card.json"
LICENCE = """\
d3s2 does not know it, and none is named above. The masks are copies from the source, the images
are copies from it or were painted after it by a generator: the terms of the source, of the
generator and of the networks that guided it are yours to look up. Name a licence in the first lines
of this file before you publish the set."""


def dataset_card(
    card: Mapping[str, Any], dataset: SegmentationDataset, size: tuple[int, int]
) -> str:
    """The text of the README.md.

    card: what `card.json` of the set holds; dataset: its images; size: (H, W) of the first of them.
    """
    from huggingface_hub import DatasetCard, DatasetCardData  # heavy: the network's client

    data = DatasetCardData(
        pretty_name=_line(card.get("name", dataset.name)),
        size_categories=_size(len(dataset)),
        task_categories=["image-segmentation"],
        task_ids=["semantic-segmentation"],
        tags=["dataset-distillation"],
    )
    text = "\n\n".join(
        [
            f"# {_cell(card.get('name', dataset.name))}",
            _facts(card, dataset, size),
            _files(),
            "## Classes",
            _classes(dataset),
            *_recipe(card),
            "## Licence",
            LICENCE,
        ]
    )
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n"))


def _facts(card: Mapping[str, Any], dataset: SegmentationDataset, size: tuple[int, int]) -> str:
    """What is known of the set, as a table."""
    recipe = card.get("recipe")
    recipe = recipe if isinstance(recipe, Mapping) else {}
    facts = {
        "source": card.get("source", UNKNOWN),
        "images of the source": card.get("of", UNKNOWN),
        "images here": f"{len(dataset)}, the first of {size[0]} x {size[1]} pixels",
        "masks they are of": card.get("masks", len(dataset)),
        "method": card.get("method", recipe.get("method", UNKNOWN)),
        "seed": card.get("seed", recipe.get("seed", UNKNOWN)),
        "made by": f"d3s2 {__version__}",
    }
    if "says" in card:
        facts["in words"] = card["says"]
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _files() -> str:
    return "\n".join(
        [
            "## Files",
            "",
            '`load_dataset("imagefolder", data_dir=...)` of Hugging Face\'s `datasets` gives rows '
            "of `image` and `mask`.",
            "Masks are 8-bit PNGs whose pixels are the ids below; 255 is left out of training and "
            "counts.",
            "`mmseg_config.py` trains a Mask2Former on them with mmsegmentation.",
        ]
    )


def _classes(dataset: SegmentationDataset) -> str:
    """Ids, names and colours, as a table."""
    rows = [
        f"| {number} | {_cell(info.name)} | {', '.join(map(str, info.color))} |"
        for number, info in enumerate(dataset.classes)
    ]
    return "\n".join(["| id | class | red, green, blue |", "|---:|---|---|", *rows])


def _recipe(card: Mapping[str, Any]) -> list[str]:
    """The recipe that the images were painted by, where there is one."""
    if "recipe" not in card:
        return []
    text = json.dumps(card["recipe"], indent=1, sort_keys=True, ensure_ascii=False)
    return ["## Recipe", f"```json\n{text}\n```"]


def _size(images: int) -> str:
    return next((word for bound, word in SIZES if images < bound), LARGEST)


def _line(value: object) -> str:
    """A value in one line."""
    return printable(" ".join(str(value).split()))


def _cell(value: object) -> str:
    """A value as a table of Markdown takes it: in one line, and without strokes."""
    return _line(value).replace("|", "\\|")
