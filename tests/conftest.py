"""What tests of several modules share."""

from __future__ import annotations

import locale
from collections.abc import Iterator

import pytest
from hypothesis import Phase, settings
from smoke_run import SmokeRun

# For `make mutants`: the same examples each time, and no search for the smallest one that fails
settings.register_profile(
    "mutants",
    phases=(Phase.explicit, Phase.generate),
    database=None,
    derandomize=True,
    deadline=None,
)


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
