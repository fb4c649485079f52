"""What changes the version of a piece of code, and what does not."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from d3s2.core.code_version import code_version, is_module, library_versions, sources
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


def test_the_sources_are_all_that_is_imported_and_no_more(package: Path) -> None:
    """Read as the interpreter would run them: packages first, whatever circle they make."""
    deep = {"d3s2.deep", "d3s2.deep.leaf", "d3s2.cycle", "d3s2.top"}
    for name, expected in {
        "plots": {"d3s2.plots"},
        "other": {"d3s2.other", "d3s2.deep", "d3s2.deep.side"},
        "top": deep,
        "deep.leaf": deep,
        "deep": {"d3s2.deep"},
        "relative": deep | {"d3s2.relative", "d3s2.plots"},
    }.items():
        found = sources(f"d3s2.{name}")
        assert found == sources(name) and found.keys() == expected, name
        for module, source in found.items():
            base = package.parent.joinpath(*module.split("."))
            file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
            assert source == file.read_text("utf-8")
    assert sources("plots", "other").keys() == {"d3s2.plots", *sources("other")}


def test_a_package_imports_beside_itself(package: Path) -> None:
    """`from .` means the package itself in its `__init__`, and the folder of any other module."""
    (package / "deep/__init__.py").write_text("from .side import x\nfrom .. import plots\n")
    assert sources("deep").keys() == {"d3s2.deep", "d3s2.deep.side", "d3s2.plots"}
    (package / "deep/leaf.py").write_text("from . import side\nfrom .... import nothing\n")
    (package / "deep/__init__.py").write_text("")
    assert sources("deep.leaf").keys() == {"d3s2.deep", "d3s2.deep.leaf", "d3s2.deep.side"}


def test_a_module_is_what_lies_in_the_package(package: Path) -> None:
    for name in ("d3s2.top", "d3s2.deep", "d3s2.deep.leaf"):
        assert is_module(name)
    for name in ("top", "deep.leaf", "d3s2x.top", "d3s2.no", "d3s2.top.f", "numpy"):
        assert not is_module(name)


def test_a_source_is_read_as_utf_8(package: Path, ascii_locale: None) -> None:
    (package / "plots.py").write_text("# Größe\n", encoding="utf-8")
    assert sources("plots") == {"d3s2.plots": "# Größe\n"}


@pytest.fixture
def installed(package: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Libraries by the names they are installed under; change a version and it is another one."""
    versions = {"Pillow": "11", "numpy": "2.2.6", "torch": "2.13.0+cpu", "psutil": "7", "tqdm": "4"}
    versions |= {"dask": "1", "two-a": "1.0", "two-b": "2.0"}
    named = {name: [name] for name in ("numpy", "torch", "psutil", "tqdm", "dask")}
    named |= {"PIL": ["Pillow"], "two": ["two-a", "two-b"]}
    monkeypatch.setattr(sys.modules["d3s2.core.code_version"], "_distributions", lambda: named)
    monkeypatch.setattr(metadata, "version", versions.__getitem__)
    for name, text in {
        "painter": "import os, numpy.linalg as la, two\nfrom d3s2.core import machine, parallel\n",
        "core/__init__": "",
        "core/machine": "import psutil, dask.system\nfrom ..shapes import x\n",
        "core/parallel": "from dask import delayed\n",
        "shapes": "def f():\n    from torch.nn import functional\nfrom PIL import Image\n"
        "import tqdm, not_installed\nfrom . import torchvision\nfrom .dask import x\n",
    }.items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / f"{name}.py").write_text(text)
    return versions


def test_libraries_are_those_that_are_computed_with(installed: dict[str, str]) -> None:
    shapes = {"pillow": "11", "torch": "2.13.0"}
    assert library_versions("shapes") == shapes
    assert library_versions("painter") == shapes | {
        "numpy": "2.2.6",
        "two-a": "1.0",
        "two-b": "2.0",
    }
    assert library_versions("core.parallel") == library_versions("plots") == {}


def test_a_new_version_is_another_one_but_not_a_build_for_another_device(
    installed: dict[str, str],
) -> None:
    before = code_version("shapes")
    for version, same in (("2.13.0+cu130", True), ("2.13.0", True), ("2.13.1", False)):
        installed["torch"] = version
        assert (code_version("shapes") == before) == same
    installed |= {"torch": "2.13.0", "numpy": "3", "psutil": "8", "tqdm": "5", "dask": "2"}
    assert code_version("shapes") == before


def test_what_is_installed_is_known_by_the_names_it_is_imported_by() -> None:
    found = library_versions("plots.widgets")
    assert found == {name: metadata.version(name) for name in ("ipywidgets", "numpy", "pillow")}
