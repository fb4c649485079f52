"""On Windows itself a command is one sentence, not a traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest

from d3s2.runs import cli

COMMANDS = sorted(cli._names(cli._parser()))
WINDOWS = """
import shutil  # which asks from Python 3.12 on for a module that Windows alone has
import sys

sys.platform = "win32"
for name in ("fcntl", "resource", "termios"):  # Python has none of them there
    sys.modules[name] = None
from d3s2.runs import cli

sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_command_says_where_d3s2_can_be_used() -> None:
    """In a process that lacks what Python lacks there; help is given."""
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS, "check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == cli.EXIT_USAGE and done.stdout == ""
    assert done.stderr == f"d3s2: {cli.NO_WINDOWS}\n"
    assert "WSL2" in done.stderr and "container" in done.stderr
    helped = subprocess.run(
        [sys.executable, "-c", WINDOWS, "--help"], capture_output=True, text=True, check=False
    )
    assert helped.returncode == 0 and "export" in helped.stdout


WORDS = {"export": ["x", "--to", "y"], "publish": ["x"]}


@pytest.mark.parametrize("command", COMMANDS)
def test_so_does_every_command(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert cli.main([command, *WORDS.get(command, [])]) == cli.EXIT_USAGE
    assert capsys.readouterr().err == f"d3s2: {cli.NO_WINDOWS}\n"
