"""What changes the version of a piece of code, and what does not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from d3s2.core.code_version import code_version
from d3s2.core.errors import D3S2Error


# ------------------------------------------------------------------------------------- code version
@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package with every form of import, in the place of d3s2."""
    modules = {
        "__init__": "",
        "top": "def f():\n    from d3s2.deep import leaf\n",
        "other": "import d3s2.deep.side\n",
        "relative": "from .deep.leaf import x\nfrom . import plots\nimport numpy\n",
        "plots": "",
        "deep/__init__": "",
        "deep/leaf": "from ..cycle import y\nx = 1\n",
        "deep/side": "",
        "cycle": "from d3s2 import top\ny = 1\n",
    }
    for name, text in modules.items():
        path = tmp_path / "d3s2" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sys.modules["d3s2.core.code_version"], "PACKAGE", tmp_path / "d3s2")
    return tmp_path / "d3s2"


@pytest.mark.parametrize(
    ("edited", "stale"),
    [
        ("plots", {"relative"}),
        ("deep/leaf", {"top", "relative"}),
        ("deep/side", {"other"}),
        ("cycle", {"top", "relative"}),
        ("deep/__init__", {"top", "other", "relative"}),
        ("__init__", set()),
    ],
)
def test_an_edit_changes_the_version_of_its_importers_only(
    package: Path, edited: str, stale: set[str]
) -> None:
    names = ("top", "other", "relative")
    before = {name: code_version(name) for name in names}
    path = package / f"{edited}.py"
    path.write_text(path.read_text() + "z = 2\n")
    assert {name for name in names if code_version(name) != before[name]} == stale


def test_an_unknown_module_is_named(package: Path) -> None:
    with pytest.raises(D3S2Error, match="no_such"):
        code_version("no_such")
