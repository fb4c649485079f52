"""nbgrader's door: its API on a course's folder, with the settings that lie there."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

from nbgrader.apps.api import NbGraderAPI
from nbgrader.coursedir import CourseDirectory
from sqlalchemy.exc import SAWarning
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from d3s2.core.errors import D3S2Error


def settings(folder: Path) -> Config:
    """The course's `nbgrader_config.py`. Raises D3S2Error where there is none."""
    file = folder / "nbgrader_config.py"
    if not file.is_file():
        raise D3S2Error(
            f"{folder} is no course's folder: make one with `python -m d3s2.course.assignments`."
        )
    return PyFileConfigLoader(file.name, str(folder.absolute())).load_config()


def course(folder: Path, config: Config | None = None) -> NbGraderAPI:
    """nbgrader on this folder, with its own settings or the given ones.

    nbgrader calls `alembic` by name: this environment's programs are put first.
    """
    programs = str(Path(sys.executable).parent)
    if programs not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([programs, os.environ.get("PATH", os.defpath)])
    warnings.filterwarnings("ignore", category=SAWarning)  # of nbgrader's own, at every submission
    found = settings(folder) if config is None else config
    return NbGraderAPI(CourseDirectory(config=found), config=found)
