"""What tests of several modules share."""

from __future__ import annotations

import pytest
from smoke_run import SmokeRun


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmokeRun, str]:
    """An unbroken smoke run and what it printed; minutes, so only once."""
    run = SmokeRun(tmp_path_factory.mktemp("unbroken"))
    return run, run.finish()
