"""A data set, whatever its layout, written in the ordinary one at the size of a run: by all cores,
and on from where it was broken off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from d3s2.core.errors import D3S2Error
from d3s2.core.local_pool import spread
from d3s2.core.long_work import Steps
from d3s2.core.parallel import chunks
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.folder import complete_png, open_folder, write_classes

PIECE = 8
"""Images that a process prepares at a time."""
WORTHWHILE = 500
"""Images from which on several processes are used, which take a second or two to begin."""


def materialise(
    dataset: SegmentationDataset, folder: Path | str, progress: bool = True, processes: int = 0
) -> SegmentationDataset:
    """Write a dataset (at its `size`) in the ordinary layout, as lossless PNG, and open what was
    written.

    Every file appears whole or not at all, and files that are there and hold the same pixels are
    kept: a broken run goes on where it stopped. processes: see `parallel.spread`; they write the
    same bytes whatever their number. Raises D3S2Error when the folder already holds other classes,
    other ids or other pixels.
    """
    folder = Path(folder)
    write_classes(folder / "classes.csv", dataset.classes)
    label = f"writing {folder.name}/{dataset.split}"
    pieces = chunks(len(dataset), PIECE)
    count = 1 if len(dataset) < WORTHWHILE else processes
    with Steps(label, len(dataset), shown=progress) as steps:
        for done in spread(_complete, pieces, dataset, folder, processes=count):
            steps.add(done)
    written = open_folder(folder, dataset.split)
    if written.ids != dataset.ids:
        extra = sorted(set(written.ids) - set(dataset.ids))
        raise D3S2Error(
            f"{folder / dataset.split} also holds {len(extra)} images of something else, such as "
            f"{extra[:1]}: choose an empty folder."
        )
    return replace(written, name=dataset.name)


def _complete(indices: Sequence[int], dataset: SegmentationDataset, folder: Path) -> int:
    """Write the images and masks at these positions; returns their number."""
    for index in indices:
        name = f"{dataset.ids[index]}.png"
        for part, read in (("images", dataset.read_image), ("labels", dataset.read_labels)):
            complete_png(folder / dataset.split / part / name, read(index))
    return len(indices)
