"""The colours in which a ControlNet for segmentation expects a layout, class by class.

Layouts stay ids until they are painted for the network, and colours are never decoded: of ADE20K's
150 classes, road and skyscraper share one. ControlNet v1.1 seg was trained on ADE20K's colours and
on those of COCO panoptic. COCO-Stuff's 171 classes are neither: `coco` paints each in the colour of
the panoptic class that COCO merged it into, and the twelve that COCO dropped in black, as unknown.
Or train your own ControlNet on the data set's own colours: `dataset`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from d3s2.core.errors import D3S2Error
from d3s2.data.class_lists import classes_of
from d3s2.data.dataset import ClassInfo

PALETTES = ("ade20k", "coco", "dataset")
UNKNOWN = (0, 0, 0)

# Which stuff classes COCO's panoptic task merged, as its task page lists them (cocodataset.org,
# "panoptic").
MERGED = {
    "tree-merged": "branch tree bush leaves",
    "fence-merged": "cage fence railing",
    "ceiling-merged": "ceiling-tile ceiling-other",
    "sky-other-merged": "clouds sky-other fog",
    "cabinet-merged": "cupboard cabinet",
    "table-merged": "desk-stuff table",
    "floor-other-merged": "floor-marble floor-other floor-tile",
    "pavement-merged": "floor-stone pavement",
    "mountain-merged": "hill mountain",
    "grass-merged": "moss grass straw",
    "dirt-merged": "mud dirt",
    "paper-merged": "napkin paper",
    "food-other-merged": "salad vegetable food-other",
    "building-other-merged": "skyscraper building-other",
    "rock-merged": "stone rock",
    "wall-other-merged": "wall-other wall-concrete wall-panel",
    "rug-merged": "mat rug carpet",
}
DROPPED = (
    "furniture-other",
    "metal",
    "plastic",
    "solid-other",
    "structural-other",
    "waterdrops",
    "textile-other",
    "cloth",
    "clothes",
    "plant-other",
    "wood",
    "ground-other",
)
VOC_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "tvmonitor": "tv",
}
"""PASCAL VOC's spelling of COCO's things; its background is unknown."""


def control_colors(classes: Sequence[ClassInfo], palette: str) -> np.ndarray:
    """uint8[C, 3]: the colour of each class in a ControlNet's protocol, black where it has none.

    palette: "ade20k" or "coco" (classes are found by name), or "dataset" (their own colours).
    Raises D3S2Error for another palette, and for a class that the protocol neither knows nor is
    known to lack.
    """
    if palette == "dataset":
        return np.array([info.color for info in classes], dtype=np.uint8)
    if palette not in PALETTES:
        raise D3S2Error(f"control palette is {palette!r}: choose {', '.join(PALETTES)}.")
    known = _ade20k() if palette == "ade20k" else _coco()
    unknown = [info.name for info in classes if info.name not in known]
    if unknown:
        raise D3S2Error(
            f"The control palette {palette!r} has no colour for class {unknown[0]!r} "
            f"({len(unknown)} such): choose another palette, or 'dataset' with a ControlNet "
            "trained on the data set's own colours."
        )
    return np.array([known[info.name] for info in classes], dtype=np.uint8)


def _ade20k() -> dict[str, tuple[int, int, int]]:
    return {info.name: info.color for info in classes_of("ade20k")}


def _coco() -> dict[str, tuple[int, int, int]]:
    panoptic = {info.name: info.color for info in classes_of("coco_panoptic")}
    found = panoptic | dict.fromkeys(("background", *DROPPED), UNKNOWN)
    for merged, names in MERGED.items():
        found |= dict.fromkeys(names.split(), panoptic[merged])
    for name, coco in VOC_NAMES.items():
        found[name] = panoptic[coco]
    return found
