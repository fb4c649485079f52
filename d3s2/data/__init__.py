"""Datasets: one type, the formats it is read from, and the embedded scenes."""

from d3s2.data.base import IGNORE, ClassInfo, SegmentationDataset
from d3s2.data.formats import materialise, open_dataset

__all__ = ["IGNORE", "ClassInfo", "SegmentationDataset", "materialise", "open_dataset"]
