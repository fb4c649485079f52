"""Where things lie, and how commands are typed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from d3s2.core import places


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment with a program `tool`, which the shell does not find."""
    folder = tmp_path / "here" / "env" / "bin"
    folder.mkdir(parents=True)
    (folder / "tool").write_text("#!/bin/sh\n")
    (folder / "tool").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_command_is_its_name_where_the_shell_finds_it(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(environment))
    assert places.command("tool") == "tool"
    assert places.command("nothing") == "nothing"


def test_else_it_is_its_path_as_short_as_it_gets(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert places.command("tool") == "here/env/bin/tool"
    monkeypatch.chdir(environment)
    assert places.command("tool") == "./tool"
    monkeypatch.chdir("/")
    assert Path("/", places.command("tool")) == environment / "tool"


def test_another_program_of_that_name_is_not_meant(
    environment: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "tool"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    assert places.command("tool") == "here/env/bin/tool"
