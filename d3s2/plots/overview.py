"""The first picture of the README and of notebook 00, and the table beside it: of a finished run.

    python -m d3s2.plots.overview runs/scenes

writes into `notebooks/figures/`: `default_run.png`, the bare real images, masks and painted images
of the first masks selected, pixel by pixel; `default_run.json`, the run's results; `overview.png`,
the picture with names and zoom that the README shows. Do it after publishing a run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from d3s2.core import places
from d3s2.core.errors import D3S2Error, exit_code
from d3s2.core.files import atomic_path, read_json, write_json
from d3s2.data.folder import open_folder
from d3s2.data.splits import open_splits
from d3s2.plots.pictures import colorize, image_rows

SHOWN = 5
"""Masks in the picture: as many as have room at twice their size."""
PICTURE, RECORD, OVERVIEW = "default_run.png", "default_run.json", "overview.png"


@dataclass(frozen=True)
class ExampleRun:
    """What a run gave: real images, masks (in colour) and painted images uint8[N, H, W, 3] of the
    same masks; and a record: their ids, the machine, and the table's rows with set, images,
    iterations, miou (percent, one number a training).
    """

    real: np.ndarray
    masks: np.ndarray
    painted: np.ndarray
    record: dict[str, Any]

    def rows(self) -> dict[str, np.ndarray]:
        """Named, in the order in which the picture shows them."""
        return {
            "real image": self.real,
            "its mask": self.masks,
            "painted anew": self.painted,
        }

    def draw(self) -> Figure:
        """The README's picture."""
        return image_rows(self.rows())


def read_example(folder: str | Path | None = None) -> ExampleRun:
    """What `write` left, by default in the checkout. Raises D3S2Error where it is missing."""
    folder = Path(folder or places.notebooks_folder() / "figures")
    record = read_json(folder / RECORD)
    if not (folder / PICTURE).is_file():
        raise D3S2Error(f"{folder / PICTURE} is missing: python -m d3s2.plots.overview makes it.")
    with Image.open(folder / PICTURE, formats=["PNG"]) as file:
        whole = np.array(file.convert("RGB"))
    count = len(record["ids"])
    height, width = whole.shape[0] // 3, whole.shape[1] // count
    tiles = whole.reshape(3, height, count, width, 3).swapaxes(1, 2)
    return ExampleRun(*tiles, record)


def collect(run_dir: str | Path, count: int = SHOWN) -> ExampleRun:
    """Gather it from a finished run. Raises D3S2Error where the run has not come to its end."""
    run_dir = Path(run_dir)
    run = read_json(run_dir / "run.json")
    report = read_json(run_dir / "report" / "results.json")
    distilled = open_folder(run_dir / "distilled", "train")
    train, _ = open_splits(SimpleNamespace(**run["settings"]))
    ids = read_json(run_dir / "distilled" / "card.json")["ids_in_order_of_selection"][:count]
    places_of = [train.ids.index(name) for name in ids]
    made = [distilled.ids.index(name) for name in ids]
    return ExampleRun(
        real=np.stack([train.read_image(i) for i in places_of]),
        masks=np.stack([colorize(train.read_labels(i), train.palette) for i in places_of]),
        painted=np.stack([distilled.read_image(i) for i in made]),
        record={"ids": ids, "machine": run["device"], "rows": [*map(_row, report["rows"])]},
    )


def write(example: ExampleRun, folder: str | Path) -> list[Path]:
    """Write the three files; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [np.concatenate(list(stack), axis=1) for stack in example.rows().values()]
    with atomic_path(folder / PICTURE) as path:
        Image.fromarray(np.concatenate(rows)).save(path, format="PNG", optimize=True)
    with atomic_path(folder / OVERVIEW) as path:
        path.write_bytes(example.draw()._repr_png_())
    write_json(folder / RECORD, example.record)
    return [folder / name for name in (PICTURE, RECORD, OVERVIEW)]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """A line of the report without what the table does not show."""
    return {name: row[name] for name in ("set", "images", "iterations", "miou")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for a run that has not come to its end."""
    parser = argparse.ArgumentParser(prog="python -m d3s2.plots.overview")
    parser.add_argument("run_dir", help="folder of a finished run, such as runs/scenes")
    parser.add_argument(
        "--to", help="folder to write to; default: the checkout's notebooks/figures"
    )
    options = parser.parse_args(arguments)

    def work() -> None:
        folder = options.to or places.notebooks_folder() / "figures"
        for path in write(collect(options.run_dir), folder):
            print(path)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
