"""In the image a first word that is no command of d3s2 is a program; elsewhere it is an error."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from d3s2.core import places
from d3s2.core.errors import D3S2Error
from d3s2.runs import cli, container


@pytest.fixture
def image(tmp_path: Path) -> dict[str, str]:
    """An environment like the image's, with one program that says what it was given, and where."""
    for name in ("hello", container.SERVER):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text('#!/bin/sh\nprintf "%s|" "$0" "$(pwd)" "$@"\nexit 7\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "D3S2_CONTAINER": "1", "D3S2_HOME": str(tmp_path)}


def d3s2(environment: dict[str, str], *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "d3s2.runs.cli", *words]
    environment = environment | {"PYTHONPATH": str(places.PACKAGE.parent)}
    return subprocess.run(
        command, env=environment, cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.processes
def test_a_program_takes_the_place_of_d3s2(image: dict[str, str], tmp_path: Path) -> None:
    """With its words as they are, its exit code, and where it was typed."""
    done = d3s2(image, "hello", "--port=1", "a b", cwd=tmp_path)
    assert done.stdout == f"{tmp_path}/bin/hello|{tmp_path}|--port=1|a b|" and done.stderr == ""
    assert done.returncode == 7


@pytest.mark.processes
def test_a_hubs_server_begins_where_notebooks_and_docs_lie(
    image: dict[str, str], tmp_path: Path
) -> None:
    done = d3s2(image, container.SERVER, cwd=tmp_path)
    begins = Path(done.stdout.split("|")[1])
    assert begins == places.notebooks_folder().parent
    assert (begins / "notebooks").is_dir() and (begins / "docs").is_dir()


@pytest.mark.processes
def test_elsewhere_it_is_a_typing_error(image: dict[str, str], tmp_path: Path) -> None:
    for value in ("", "0", None):
        environment = {name: text for name, text in image.items() if name != container.VARIABLE}
        environment |= {} if value is None else {container.VARIABLE: value}
        done = d3s2(environment, "hello", cwd=tmp_path)
        assert done.returncode == 2 and "invalid choice: 'hello'" in done.stderr


def test_commands_and_options_stay_d3s2s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a program has such a name."""
    names = cli._names(cli._parser())
    assert {"run", "lab", "check", "publish"} <= names and "hello" not in names
    inside = {container.VARIABLE: "1"}
    for words in ([], ["--help"], ["--version"], ["run"], *([name] for name in names)):
        monkeypatch.setattr(os, "execvp", lambda *given: pytest.fail(str(given)))
        container.pass_on(words, names, inside)


def test_a_word_that_is_nothing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv(container.VARIABLE, "1")
    monkeypatch.setenv("PATH", "")
    assert cli.main(["rnu"]) == 2
    assert "d3s2: 'rnu' is neither a command of d3s2 nor a program" in capsys.readouterr().err
    with pytest.raises(D3S2Error, match="comes with the package jupyterhub"):
        container.pass_on([container.SERVER], {"run"}, {container.VARIABLE: "1"})


def test_the_image_says_that_it_is_one() -> None:
    dockerfile = (places.PACKAGE.parent / "Dockerfile").read_text()
    assert f"    {container.VARIABLE}=1 \\\n" in dockerfile
    assert 'ENTRYPOINT ["tini", "--", "d3s2"]' in dockerfile
