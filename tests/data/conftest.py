"""What tests of data sets share."""

from __future__ import annotations

import functools

import pytest

from d3s2.core.code_version import code_version
from d3s2.data import splits

VERSION = functools.cache(code_version)


@pytest.fixture(autouse=True)
def version_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sources are read once: they do not change while the tests run."""
    monkeypatch.setattr(splits, "code_version", VERSION)
