"""Small copies of the public data sets' layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6, 3), 90, np.uint8)).save(path)


def mask(path: Path, values: list[int], palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.resize(np.array(values, np.uint8), (4, 6)))
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tolist())
    image.save(path)


def make_ade20k(root: Path, values: list[int] | None = None) -> Path:
    for part, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        picture(root / "ADEChallengeData2016" / "images" / part / f"{name}.jpg")
        mask(
            root / "ADEChallengeData2016" / "annotations" / part / f"{name}.png",
            values or [0, 1, 7, 150],
        )
    return root


def make_cocostuff(root: Path, values: list[int] | None = None, suffix: str = "") -> Path:
    for part in ("train2017", "val2017"):
        picture(root / "images" / part / "000000000009.jpg")
        mask(
            root / "annotations" / part / f"000000000009{suffix}.png",
            values or [0, 10, 12, 91, 181, 255],
        )
    return root


def make_voc(root: Path, values: list[int] | None = None) -> Path:
    base = root / "VOCdevkit" / "VOC2012"
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in {
        "train": ["2007_000032"],
        "val": ["2007_000033"],
        "trainaug": ["2007_000032", "2008_000002"],
    }.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    for name in (
        "2007_000032",
        "2007_000033",
        "2008_000002",
        "2009_000001",
    ):  # the last one is for detection only
        picture(base / "JPEGImages" / f"{name}.jpg")
    for name in ("2007_000032", "2007_000033"):
        mask(base / "SegmentationClass" / f"{name}.png", values or [0, 1, 20, 255], palette=True)
        mask(base / "SegmentationClassAug" / f"{name}.png", [3])
    mask(base / "SegmentationClassAug" / "2008_000002.png", [0, 15])
    return root
