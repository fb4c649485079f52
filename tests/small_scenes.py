"""A few of the embedded scenes on disk, for tests that need real images and masks."""

from __future__ import annotations

from pathlib import Path

from d3s2.data.dataset import SegmentationDataset
from d3s2.data.folder import write_classes
from d3s2.data.opening import open_dataset
from d3s2.data.scenes import scenes_classes, write_split


def small_scenes(folder: Path, count: int) -> SegmentationDataset:
    """Draw `count` training scenes into `folder` and open them."""
    write_split(folder, "train", count)
    write_classes(folder / "classes.csv", scenes_classes())
    return open_dataset("folder", folder, "train")
