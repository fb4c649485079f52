"""Open a split of a data set by the name of its layout."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from d3s2.core.errors import D3S2Error
from d3s2.data.benchmarks import FORMATS, open_benchmark
from d3s2.data.camvid import open_camvid
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.folder import open_folder
from d3s2.data.pairing import Tell, refuse

OPENERS = {"folder": open_folder, "camvid": open_camvid}
OPENERS |= {name: partial(open_benchmark, name) for name in FORMATS}
"""What opens each layout: a function of the data's folder, the split, the size to resize to, and
what to do about a fault, all as in `open_dataset`.
"""


def open_dataset(
    format: str,
    root: Path | str,
    split: str,
    size: tuple[int, int] | None = None,
    tell: Tell = refuse,
) -> SegmentationDataset:
    """Open one split of a dataset on disk; pixels are read (and checked) one by one later.

    format: a key of `OPENERS`; size: (H, W) to resize to while reading; tell: what to do about a
    fault of single files, by default refuse it. Raises D3S2Error for an unknown format, and for
    everything that the layout's own module finds.
    """
    if format not in OPENERS:
        raise D3S2Error(f"unknown data format {format!r}: use {', '.join(map(repr, OPENERS))}.")
    return OPENERS[format](root, split, size, tell)
