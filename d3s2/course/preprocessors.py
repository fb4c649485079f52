"""What nbgrader does with a submission in this course: steps of its own and two of ours.

`assignments/nbgrader_config.py` puts them into nbgrader, so that `nbgrader autograde`, the button
of its formgrader and `python -m d3s2.course.grading` do the same.
"""

from __future__ import annotations

import atexit
import functools
from pathlib import Path
from typing import Any

import nbformat
from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor
from nbformat import NotebookNode
from nbgrader.preprocessors import (
    AssignLatePenalties,
    CheckCellMetadata,
    ClearHiddenTests,
    ClearOutput,
    DeduplicateIds,
    GetGrades,
    LimitOutput,
    NbGraderPreprocessor,
    OverwriteCells,
    OverwriteKernelspec,
    SaveAutoGrades,
)
from traitlets import Float, Integer

from d3s2.course.judging import judge
from d3s2.course.nursery import Limits, Nursery
from d3s2.course.rebuilding import rebuild


@functools.cache
def the_nursery() -> Nursery:
    """The one of this process; it ends with it."""
    found = Nursery()
    atexit.register(found.close)
    return found


class Rebuild(NbGraderPreprocessor):
    """Puts the assignment's own cells back (see `rebuilding`)."""

    def preprocess(
        self, nb: NotebookNode, resources: dict[str, Any]
    ) -> tuple[NotebookNode, dict[str, Any]]:
        """nbgrader's call: the notebook rebuilt, the resources as they are."""
        course = self.parent.parent.coursedir  # of the exporter's converter
        said = resources["nbgrader"]
        versions = []
        for folder in (course.source_directory, course.release_directory):
            place = Path(course.format_path(folder, ".", said["assignment"]))
            versions.append(nbformat.read(place / f"{said['notebook']}.ipynb", as_version=4))
        built, remarks = rebuild(nb, *versions)
        for remark in remarks:
            self.log.warning(remark)
        return built, resources


class JudgeApart(NbGraderPreprocessor):
    """Takes the place of nbgrader's Execute: the submission in one process, the tests in another
    (see `judging`).
    """

    cell_seconds = Float(20.0, help="Seconds of a cell, or of a call").tag(config=True)
    whole_seconds = Float(120.0, help="Seconds of a submission").tag(config=True)
    memory = Integer(1024, help="MB beside Python and its libraries").tag(config=True)

    def preprocess(
        self, nb: NotebookNode, resources: dict[str, Any]
    ) -> tuple[NotebookNode, dict[str, Any]]:
        """nbgrader's call: the notebook with what came into its cells."""
        judge(nb, the_nursery(), Limits(self.cell_seconds, self.whole_seconds, self.memory))
        return nb, resources


SANITIZE = [
    Rebuild,
    ClearOutput,
    DeduplicateIds,
    OverwriteKernelspec,
    OverwriteCells,
    CheckCellMetadata,
]
AUTOGRADE = [
    JudgeApart,
    LimitOutput,
    SaveAutoGrades,
    AssignLatePenalties,
    CheckCellMetadata,
]
FEEDBACK = [GetGrades, ClearHiddenTests, CSSHTMLHeaderPreprocessor]
