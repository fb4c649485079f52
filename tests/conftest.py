"""What tests of several modules share."""

from __future__ import annotations

import locale
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

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

# For `make mutants`: the same examples each time, and no search for the smallest one that fails
settings.register_profile(
    "mutants",
    phases=(Phase.explicit, Phase.generate),
    database=None,
    derandomize=True,
    deadline=None,
)


LONGEST = ("nbval", "smoke", "corners", "damage", "rehearsal", "faults")
"""Kinds of tests that take minutes, in the order in which they begin."""


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks in its own
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several workers: tests that share what takes long to make go to one worker, and the long
    ones begin first.
    """
    if not hasattr(config, "workerinput"):
        return
    rank = {}
    for item in items:
        group = item.path.stem.removeprefix("test_")
        if "smoke" in getattr(item, "fixturenames", ()):
            group = "smoke"
        elif "nbval_home" in getattr(item, "fixturenames", ()):
            group = "nbval"
        long = item.get_closest_marker("notebooks") or item.get_closest_marker("processes")
        rank[item] = LONGEST.index(group) if group in LONGEST else len(LONGEST) + (not long)
        # each run to the corners is one by itself
        alone = group == "corners" and item.get_closest_marker("notebooks")
        item.add_marker(pytest.mark.xdist_group(item.name if alone else group))
    items.sort(key=lambda item: rank[item])


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
