"""Read arrays from .npz files, without pickle. `artifacts.write_npz` writes them."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from d3s2.errors import D3S2Error


def load_npz(path: Path, required: Sequence[str]) -> dict[str, np.ndarray]:
    """All arrays of a file. Raises D3S2Error when it is missing, damaged, holds Python objects or lacks a required one."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            data = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise D3S2Error(f"cannot read {path} ({error}): run notebook 01 again to write it.") from error
    missing = [name for name in required if name not in data]
    if missing:
        raise D3S2Error(f"{path} lacks {', '.join(missing)}: run notebook 01 again to write it.")
    return data
