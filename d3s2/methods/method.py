"""What a method is: it turns a world into an ordinary data set on disk.

Most methods are values of `painted.Painted`, rows whose parts are chapter 03's, or of
`coresets.Photographs`. One that makes its images in a way of its own is any class with the members
of `ByExamples`: it selects masks, says which of them are made together, and makes them. Writing,
going on after a break, the bill and the card are then not its business.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json, write_json, write_png
from d3s2.core.long_work import Steps
from d3s2.data.folder import open_folder, write_classes, write_image_folder
from d3s2.methods.world import World


class Example(NamedTuple):
    """One image of a distilled set."""

    id: str
    image: np.ndarray  # uint8[H, W, 3]
    labels: np.ndarray  # uint8[H, W], 255 = ignore
    record: dict[str, Any]  # how it was made: what JSON can hold


@runtime_checkable
class Method(Protocol):
    """A way to a training set. uses: of `world.USES`; after: the name of a method whose set it
    builds on, "" = none; varies: whether another seed makes another set.
    """

    name: str
    says: str
    uses: frozenset[str]
    after: str
    varies: bool

    def write(self, world: World, folder: Path) -> None:
        """Write `<folder>/train/{images,labels}`, `classes.csv` and `records/`; what is complete
        in the folder is kept.
        """


def check_method(method: object) -> None:
    """Raise D3S2Error for what lacks a member of `Method`."""
    if not isinstance(method, Method):
        wanted = "name, says, uses, after, varies and write"
        raise D3S2Error(f"{method!r} is no method: it must have {wanted} (see ByExamples).")


class ByExamples:
    """A method that makes examples in memory. A subclass gives name, says, uses, `select` and
    `make`.
    """

    name: str
    says: str = ""
    uses: frozenset[str] = frozenset({"images", "masks"})
    after: str = ""
    varies: bool = True

    def select(self, world: World) -> np.ndarray:
        """int64[k]: numbers of the masks of the training split, none twice."""
        raise NotImplementedError

    def units(self, chosen: np.ndarray) -> list[np.ndarray]:
        """The masks in groups that are made together, and anew after a break; one each."""
        return [chosen[place : place + 1] for place in range(len(chosen))]

    def make(self, world: World, unit: np.ndarray) -> Sequence[Example]:
        """The examples of the masks of one unit, in a form that follows from them and the world
        alone.
        """
        raise NotImplementedError

    def write(self, world: World, folder: Path) -> None:
        """See `Method.write`. Raises D3S2Error for a selection that is none, and for examples that
        do not fit the data.
        """
        chosen = checked_selection(self.name, self.select(world), world)
        write_classes(folder / "classes.csv", world.train.classes)
        units = self.units(chosen)
        with Steps(self.name, len(units)) as steps:
            for number, unit in enumerate(units):
                _write_unit(self, world, unit, folder, number)
                steps.add()
        write_image_folder(folder / "train", open_folder(folder, "train").ids)


def checked_selection(name: str, chosen: np.ndarray, world: World) -> np.ndarray:
    """int64[k] of a method's selection. Raises D3S2Error for another size than the budget's, a
    mask taken twice, and one that there is not.
    """
    chosen = np.asarray(chosen)
    if len(chosen) != world.budget or len(np.unique(chosen)) != len(chosen):
        raise D3S2Error(
            f"{name} selects {len(chosen)} masks, {len(np.unique(chosen))} of them different: the "
            f"budget is {world.budget} different ones."
        )
    if chosen.min() < 0 or chosen.max() >= len(world.train):
        wrong = int(chosen.min()) if chosen.min() < 0 else int(chosen.max())
        raise D3S2Error(f"{name} selects mask {wrong}: there are 0 to {len(world.train) - 1}.")
    return chosen.astype(np.int64)


def _write_unit(
    method: ByExamples, world: World, unit: np.ndarray, folder: Path, number: int
) -> None:
    """Make and write one unit, unless its note, written last, says that it is there."""
    note = folder / "units" / f"{number}.json"
    if note.is_file() and read_json(note) == unit.tolist():
        return
    for example in method.make(world, unit):
        _check(method.name, example, world.train.num_classes)
        write_png(folder / "train" / "images" / f"{example.id}.png", example.image)
        write_png(folder / "train" / "labels" / f"{example.id}.png", example.labels)
        record = {"id": example.id, "method": method.name} | example.record
        write_json(folder / "records" / f"{example.id}.json", record)
    write_json(note, unit.tolist())


def _check(name: str, example: Example, num_classes: int) -> None:
    """Raise D3S2Error unless image and labels belong together and the labels are classes."""
    height, width = example.labels.shape
    if example.image.shape != (height, width, 3) or example.image.dtype != np.uint8:
        raise D3S2Error(
            f"{name} makes of {example.id} an image {example.image.dtype}"
            f"{list(example.image.shape)} with labels of {height}x{width}: it must be "
            f"uint8[{height}, {width}, 3]."
        )
    wrong = np.unique(example.labels[(example.labels >= num_classes) & (example.labels != 255)])
    if example.labels.dtype != np.uint8 or len(wrong):
        found = f"label {wrong[0]}" if len(wrong) else f"labels of type {example.labels.dtype}"
        raise D3S2Error(
            f"{name} gives {example.id} {found}: uint8, 0 to {num_classes - 1}, or 255."
        )
