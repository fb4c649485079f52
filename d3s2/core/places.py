"""Where things lie: the checkout and its notebooks, the folder of data and runs, the weights of the
package.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
EMBEDDED_WEIGHTS = PACKAGE / "weights" / "scenes"


def home() -> Path:
    """Where `runs/` and `data/` go: $D3S2_HOME, else the checkout, else the working directory."""
    if chosen := os.environ.get("D3S2_HOME"):
        return Path(chosen).expanduser().absolute()
    return notebooks_folder().parent if notebooks_folder().is_dir() else Path.cwd()


def notebooks_folder() -> Path:
    """The checkout's `notebooks/`, which lies beside the package."""
    return PACKAGE.parent / "notebooks"


def command(name: str) -> str:
    """How a program of this environment is typed here: its name where the shell finds it, else its
    path, from the working directory where it lies below that.
    """
    own = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if not own.is_file() or (found and os.path.samefile(found, own)):
        return name
    if not own.is_relative_to(Path.cwd()):
        return str(own)
    return os.path.join(".", own.name) if own.parent == Path.cwd() else os.path.relpath(own)
