"""environment.yml, without conda: it can be read, its specs are conda's, and pip gets in it what
`make` installs.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "environment.yml").read_text(encoding="utf-8")
CONTENT = yaml.safe_load(TEXT)
EMPTY = "./packaging/imaug"
SPECS = [entry for entry in CONTENT["dependencies"] if isinstance(entry, str)]
PIP = [
    line for entry in CONTENT["dependencies"] if isinstance(entry, dict) for line in entry["pip"]
]


def names_of_file(name: str) -> dict[str, str]:
    """{package: version} of a file of pins; names as the index writes them."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", (ROOT / name).read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in found}


def test_it_has_the_keys_that_conda_reads() -> None:
    assert list(CONTENT) == ["name", "channels", "dependencies"]
    assert CONTENT["name"] == "d3s2" and CONTENT["channels"] == ["conda-forge"]
    assert [type(entry) for entry in CONTENT["dependencies"]] == [str, str, dict]
    assert list(CONTENT["dependencies"][2]) == ["pip"]


def test_conda_gives_only_python_and_pip() -> None:
    assert [spec.partition("=")[0] for spec in SPECS] == ["python", "pip"]
    for spec in SPECS:
        assert re.fullmatch(r"[a-z0-9_.-]+(=\d+(\.\d+)*)?", spec), (
            spec
        )  # name=1.2 means 1.2.*; with a star it is refused
    asked = re.search(
        r'requires-python = ">=([\d.]+),', (ROOT / "pyproject.toml").read_text()
    ).group(1)
    assert SPECS[0] == f"python={asked}"


def test_condas_own_parser_takes_the_specs() -> None:
    rattler = pytest.importorskip(
        "rattler", reason="pip install py-rattler to ask conda's own parser"
    )
    assert [str(rattler.MatchSpec(spec, strict=True)) for spec in SPECS] == ["python 3.11.*", "pip"]


def test_pip_gets_the_same_files_as_from_make() -> None:
    asked = sorted(shlex.split(line) for line in PIP)
    assert asked == [["-c", "constraints.txt"], ["-e", "."], ["-r", "requirements.in"], [EMPTY]]
    script = (ROOT / "install.sh").read_text()
    assert "requirements=requirements${1:+-$1}.in" in script  # without a word, requirements.in
    install = re.search(r"^set -- (.*)$", script, re.MULTILINE).group(1)
    words = shlex.split(install.replace("$requirements", "requirements.in"))
    assert sorted(words) == sorted(word for line in asked for word in line)
    assert script.count('pip install --python "$venv/bin/python" "$@"') == 1  # uv
    assert script.count('pip install --disable-pip-version-check "$@"') == 1
    docker = (ROOT / "Dockerfile").read_text()
    assert f"pip install --no-cache-dir -r requirements.in {EMPTY} -c constraints.txt" in docker


def test_the_empty_package_is_what_the_lock_asks_for() -> None:
    project = tomllib.loads((ROOT / EMPTY / "pyproject.toml").read_text())
    name, version = project["project"]["name"], project["project"]["version"]
    assert (
        "dependencies" not in project["project"] and not project["tool"]["setuptools"]["packages"]
    )
    assert version == names_of_file("constraints.txt")[name] + "+empty"
    assert metadata.version(name) == version
    assert [str(path) for path in metadata.files(name) if path.suffix == ".py"] == []


def test_every_package_has_one_version() -> None:
    wanted, locked = names_of_file("requirements.in"), names_of_file("constraints.txt")
    assert wanted and wanted.keys() <= locked.keys()
    assert [
        name
        for name, version in wanted.items()
        if not locked[name].startswith(version.removesuffix("*"))
    ] == []
    assert not {spec.partition("=")[0] for spec in SPECS} & locked.keys()


def test_it_says_what_could_not_be_tried() -> None:
    assert "no environment has ever been created from it" in TEXT
