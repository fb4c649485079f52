"""The pins and the set-up script: one set of versions, and a sentence for what can go wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from d3s2.runs import readiness

ROOT = Path(__file__).resolve().parent.parent
INSTALL = (ROOT / "install.sh").read_text()


def pins(name: str) -> dict[str, str]:
    text = (ROOT / name).read_text()
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", text, re.MULTILINE))


@pytest.mark.parametrize("name", ["requirements.in", "requirements-course.in"])
def test_every_requirement_is_pinned_and_locked(name: str) -> None:
    wanted, locked = pins(name), pins("constraints.txt")
    lines = [
        line for line in (ROOT / name).read_text().splitlines() if line and line[0] not in "#-"
    ]
    assert len(wanted) == len(lines)
    for name, version in wanted.items():
        assert locked[name].startswith(version.removesuffix("*")), name


def test_lock_fits_the_cpu_and_the_cuda_build() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "+cpu" not in text and "://" not in text and "--hash" not in text
    assert any(name.startswith("nvidia-") for name in pins("constraints.txt"))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in (
        "install.sh",
        "requirements.in",
        "requirements-course.in",
        "constraints.txt",
        "pyproject.toml",
    ):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "packaging", tmp_path / "packaging")
    (tmp_path / "bin").mkdir()
    return tmp_path


def fake(checkout: Path, name: str, script: str) -> None:
    path = checkout / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def install(checkout: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{checkout / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        ["./install.sh"],
        cwd=checkout,
        env=os.environ | {"PATH": path} | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_wrong_python_is_a_sentence(checkout: Path) -> None:
    fake(checkout, "python9", "echo Python 9.9.9; exit 1")
    done = install(checkout, PYTHON="python9")
    assert done.returncode == 1
    assert "Python 3.11, 3.12 or 3.13 is needed" in done.stderr and "Python 9.9.9" in done.stderr


def test_pip_the_installer_and_check_take_the_same_pythons() -> None:
    asked = re.search(
        r'requires-python = ">=(3\.\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text()
    )
    oldest, newest = asked[1], f"3.{int(asked[2]) - 1}"
    assert oldest == ".".join(map(str, readiness.OLDEST_PYTHON))
    assert newest == ".".join(map(str, readiness.NEWEST_PYTHON))
    fits = re.search(r"not \((\d, \d+)\) <= sys.version_info\[:2\] <= \((\d, \d+)\)", INSTALL)
    assert [each.replace(", ", ".") for each in fits.groups()] == [oldest, newest]
    minor = range(int(oldest[2:]), int(newest[2:]) + 1)
    named = [f"3.{each}" for each in minor]
    assert f"{', '.join(named[:-1])} or {newest} is needed" in INSTALL
    tried = re.search(r"\$\{PYTHON:-([^}]*)\}; do", INSTALL)[1].split()
    assert tried == [*(f"python{each}" for each in named), "python3"]


@pytest.mark.parametrize("asked", ["", "made-up-python"], ids=["a new lock", "a version asked for"])
def test_two_pythons_never_share_an_environment(checkout: Path, asked: str) -> None:
    """One of 3.12 is put aside where 3.13 is taken: its own .venv/bin/python would stay in it."""
    fake(checkout, "uv", "exit 0")
    old = 'case "$2" in *print*) echo 3.12;; esac'
    new = 'case "$2" in *print*) echo 3.13;; esac; [ "$1" = -m ] && mkdir -p .venv/bin; exit 0'
    fake(checkout, "made-up-python", new)
    shutil.copy(checkout / "bin" / "made-up-python", checkout / "bin" / "python3.11")
    (checkout / ".venv" / "bin").mkdir(parents=True)
    fake(checkout, "../.venv/bin/python", old)
    fake(checkout, "../.venv/bin/d3s2", "exit 0")
    pins = re.search(r"^pins=(.*)$", INSTALL, re.MULTILINE)[1]
    stamp = subprocess.check_output(["sh", "-c", f'echo "{pins} $(pwd)"'], cwd=checkout)
    (checkout / ".venv" / ".installed").write_bytes(stamp if asked else b"of another lock")
    done = install(checkout, PYTHON=asked)
    assert done.returncode == 0 and "installed" in done.stdout, done.stderr
    assert len(list(checkout.glob(".venv.old.*/bin/python"))) == 1
    assert not (checkout / ".venv" / "bin" / "python").exists()


def test_a_full_disk_is_a_sentence(checkout: Path) -> None:
    fake(checkout, "df", "echo head; echo /dev/x 100 100 102400 99% /")
    done = install(checkout)
    assert done.returncode == 1
    assert "100 MB are free" in done.stderr and not (checkout / ".venv").exists()


@pytest.mark.processes
def test_an_unreachable_index_is_a_sentence(checkout: Path) -> None:
    nowhere = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
        "PIP_FIND_LINKS": "",
        "PIP_NO_CACHE_DIR": "1",
    }
    done = install(checkout, **nowhere)
    assert done.returncode == 1
    assert "package index could not be reached" in done.stderr and "Traceback" not in done.stderr
    assert not (checkout / ".venv" / ".installed").exists()


@pytest.mark.processes
@pytest.mark.parametrize("there", [True, False], ids=["uv finds all", "uv finds nothing"])
def test_uv_installs_where_it_can_and_pip_where_it_cannot(checkout: Path, there: bool) -> None:
    fake(checkout, "uv", f'echo "uv $*" >> "$(dirname "$0")/asked"; exit {0 if there else 1}')
    fake(checkout, "venv-python", f'echo "pip $*" >> {checkout / "bin" / "asked"}')
    python = """
        [ "$1" = -c ] && exit 0
        [ "$1" = --version ] && exec echo Python 3.11
        mkdir -p .venv/bin && cp bin/venv-python .venv/bin/python"""
    fake(checkout, "made-up-python", python)
    done = install(checkout, PYTHON="made-up-python")
    assert done.returncode == 0, done.stderr
    wanted = "-r requirements.in -e . ./packaging/imaug -c constraints.txt"
    by_uv = f"uv pip install --python .venv/bin/python {wanted}"
    by_pip = f"pip -m pip install --disable-pip-version-check {wanted}"
    asked = (checkout / "bin" / "asked").read_text().splitlines()
    assert asked == ([by_uv] if there else [by_uv, by_pip])
    assert (checkout / ".venv" / ".installed").exists()
