"""A third split of the embedded scenes, which no run reads: for what is judged once, at the end.

    python -m d3s2.data.held_out

writes it beside the other two, where `open_folder(folder, "test")` finds it. Its scenes follow from
the seed of the data set, the split's own number and their index, as those of the others do, so that
none of them was ever drawn for training or validation. It is written when it is asked for.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from d3s2.core.errors import D3S2Error, exit_code
from d3s2.core.files import read_json, write_json
from d3s2.core.long_work import Steps
from d3s2.data import scenes
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.folder import open_folder
from d3s2.data.splits import SCENES_COUNTS, SCENES_SEED, DataSettings, open_splits

TEST = "test"
TEST_SCENES = 500
VOUCHED = "prepared-test.json"
"""Written last: vouches for every file of the split."""


@dataclass(frozen=True)
class ScenesOnly:
    """The settings that decide scenes, for the command: see `splits.DataSettings`."""

    train_images: int = SCENES_COUNTS[0]
    val_images: int = SCENES_COUNTS[1]
    data_format: str = "scenes"
    data_root: str = ""
    image_size: str = f"{scenes.SIZE}x{scenes.SIZE}"


def open_test(settings: DataSettings, progress: bool = True) -> SegmentationDataset:
    """The test split of scenes, in the folder of these settings' train and val, which are prepared
    first where they are missing; drawn on first use. It is the same whatever their numbers.

    A killed preparation goes on where it stopped. Raises D3S2Error for data that are no scenes, for
    files that were changed, and as `open_splits`.
    """
    if settings.data_format != "scenes":
        raise D3S2Error(
            f"data_format is {settings.data_format!r}, but only scenes have a test split of their "
            "own: open one of yours with open_dataset(data_format, data_root, 'test')."
        )
    folder = open_splits(settings, progress)[0].root
    if not (folder / VOUCHED).is_file():
        with Steps(f"drawing {TEST}", TEST_SCENES, shown=progress) as steps:
            scenes.write_split(folder, TEST, TEST_SCENES, SCENES_SEED, lambda _: steps.add())
    found = replace(open_folder(folder, TEST), name="scenes")
    facts = {TEST: found.fingerprint()}
    if not (folder / VOUCHED).is_file() and list(found.ids) == scenes.names(TEST_SCENES):
        os.sync()  # what the images' own writes left to the system
        write_json(folder / VOUCHED, facts)
    if not (folder / VOUCHED).is_file() or read_json(folder / VOUCHED) != facts:
        raise D3S2Error(
            f"{folder / TEST} is not the split that was drawn, or was changed: move it and "
            f"{folder / VOUCHED} away, and it will be drawn again."
        )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m d3s2.data.held_out",
        description="Write the test split of the embedded scenes.",
    )
    parser.add_argument(
        "--train-images", type=int, default=0, help="of the run beside whose data it is to lie"
    )
    parser.add_argument("--val-images", type=int, default=0, help="of the same run; 0 = all")
    options = parser.parse_args(arguments)

    def work() -> None:
        made = open_test(ScenesOnly(options.train_images, options.val_images))
        print(f"{len(made)} scenes: {made.root / TEST}")

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
