"""What a training answers for each validation image: written, packed and read one by one.

All pixels of a large validation split at once would be gigabytes. While a network is judged its
answers lie as PNGs in a folder of their own, where several processes can put them; `pack` makes one
file of them, in which each image has an array of its own size under its id.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from d3s2.core.files import atomic_path, write_png


def keep(folder: Path, name: str, labels: np.ndarray) -> None:
    """Put the answer uint8[H, W] for the image of this id into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_png(_place(folder, name), labels, sync=False, compress_level=1)


def pack(folder: Path, names: Sequence[str], path: Path) -> None:
    """Write the answers for these ids as an .npz, which `numpy.load` reads one by one, and remove
    the folder. The same answers give the same bytes.
    """
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in names:
            with Image.open(_place(folder, name)) as picture:
                labels = np.array(picture)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, labels, allow_pickle=False)
    shutil.rmtree(folder)


def _place(folder: Path, name: str) -> Path:
    return folder / f"{name}.png"
