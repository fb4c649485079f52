"""What tests of data sets share."""

from __future__ import annotations

import functools
import os

import pytest

from d3s2.core.code_version import code_version
from d3s2.data import splits

VERSION = functools.cache(code_version)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sources are read once, as they do not change while the tests run, and nobody waits until
    all that this machine has to write is on its disks.
    """
    monkeypatch.setattr(splits, "code_version", VERSION)
    monkeypatch.setattr(os, "sync", lambda: None)
