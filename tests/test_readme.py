"""What the README tells people to type exists."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml

from d3s2.runs import cli, config, sweep

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
LINES = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]


def command_lines() -> list[str]:
    """The arguments of every `d3s2 …`, in the virtual environment or in the container."""
    found = [
        re.search(r"(?:^\.venv/bin/d3s2|^docker run .* d3s2) ([a-z].*)", line) for line in LINES
    ]
    return [match.group(1) for match in found if match]


def test_there_are_some() -> None:
    assert {line.split()[0] for line in command_lines()} >= {"run", "sweep", "check", "results"}


@pytest.mark.parametrize("line", command_lines())
def test_commands_and_their_parameters_exist(line: str) -> None:
    options = cli._parser().parse_args(shlex.split(line, comments=True))
    fixed = cli.parameters(options) if hasattr(options, "parameters") else {}
    if options.command is cli._sweep:
        sweep.parse_grid(options.grid, fixed)
    config.resolve(fixed, remember=False)


def test_targets_and_build_arguments_exist() -> None:
    makefile, dockerfile = (ROOT / "Makefile").read_text(), (ROOT / "Dockerfile").read_text()
    targets, given = (
        re.findall(r"`?\bmake ([a-z]+)`", TEXT),
        re.findall(r"--build-arg (\w+)=", TEXT),
    )
    assert targets and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert given and all(f"ARG {name}=" in dockerfile for name in given)
    assert all(
        "EXPOSE " + port in dockerfile for port in re.findall(r"-p 127\.0\.0\.1:\d+:(\d+)", TEXT)
    )


def test_python_and_yaml_can_be_read() -> None:
    kinds = {kind: block for kind, block in BLOCKS if kind}
    assert kinds.keys() == {"python", "yaml"}
    ast.parse(kinds["python"])
    worker = yaml.safe_load(kinds["yaml"])["spec"]["template"]["spec"]
    assert worker["containers"][0]["volumeMounts"] == [
        {"name": worker["volumes"][0]["name"], "mountPath": "/d3s2"}
    ]
