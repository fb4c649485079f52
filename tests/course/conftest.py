"""One course and one process that runs submissions, for all tests of a worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from course_made import Made

from d3s2.course.nursery import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest.fixture(scope="session")
def course(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("course"))
