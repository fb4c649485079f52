"""What tests of several modules share."""

from __future__ import annotations

import locale
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from smoke_run import SmokeRun

# `make test` runs several tests at once, each with cores of its own: jobs that share cores wait for
# each other many times longer than they compute. Children inherit the cores.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if WORKER and hasattr(os, "sched_setaffinity"):
    _all = sorted(os.sched_getaffinity(0))
    _share = max(1, len(_all) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    _first = int(WORKER.removeprefix("gw")) * _share % len(_all)
    os.sched_setaffinity(0, _all[_first : _first + _share])

# On a busy machine an example may take any time: that is no fault
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
# For `make mutants`: the same examples each time, and no search for the smallest one that fails
settings.register_profile(
    "mutants",
    phases=(Phase.explicit, Phase.generate),
    database=None,
    derandomize=True,
    deadline=None,
)


LONGEST = (
    "nbval",
    "smoke",
    "test_rehearsal",
    "test_grading",
    "test_lab_in_browser",
    "test_damage",
    "test_a_run",
    "test_devices",
)
"""Beginnings of the names of scopes that take minutes, in the order in which they begin."""
SMOKE = ("test_notebooks", "test_container", "test_faults", "test_solutions")
"""Files whose tests look at the same smoke run."""


def scope(nodeid: str) -> str:
    """Tests of one scope go to one worker, since they share what takes long to make: a file is a
    scope.
    """
    path, _, test = nodeid.partition("::")
    if test.startswith("test_nbval"):
        return "nbval"
    if path.endswith("test_corners.py") and test.startswith("test_a_run"):
        return test
    file = Path(path).stem
    return "smoke" if file in SMOKE else file


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several workers the long tests begin first, so that they do not end alone."""
    if not hasattr(config, "workerinput"):
        return

    def rank(item: pytest.Item) -> int:
        places = [
            place for place, name in enumerate(LONGEST) if scope(item.nodeid).startswith(name)
        ]
        starts = item.get_closest_marker("processes") or item.get_closest_marker("notebooks")
        return min([*places, len(LONGEST) + (not starts)])

    items.sort(key=rank)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hands out whole scopes, in the order in which the workers found the tests."""
    from xdist.scheduler import LoadScopeScheduling

    class Scopes(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope(nodeid)

    config.option.loadscopereorder = False
    return Scopes(config, log)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 2 MB."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only a user who may mount can make a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmokeRun, str]:
    """An unbroken smoke run and what it printed; minutes, so only once."""
    run = SmokeRun(tmp_path_factory.mktemp("unbroken"))
    return run, run.finish()


@pytest.fixture
def ascii_locale() -> Iterator[None]:
    """A machine on which a file opened without naming its encoding is read as ASCII."""
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    yield
    locale.setlocale(locale.LC_CTYPE, before)
