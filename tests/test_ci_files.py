"""The hosted checks and the commit hooks: they can be read, are pinned, and call only what there is
here.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import mutants
import pytest
import yaml

from d3s2.core import places
from d3s2.runs import cli, config, runner

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
RUFF = Path(sys.executable).with_name("ruff")


def steps(**wanted: str) -> list[tuple[str, dict[str, Any]]]:
    """(job, step) of every step of the workflow that has these keys."""
    return [
        (name, step)
        for name, job in WORKFLOW["jobs"].items()
        for step in job["steps"]
        if wanted.keys() <= step.keys()
    ]


def commands() -> list[list[str]]:
    """Every command that the workflow runs, as words."""
    texts = [part for _, step in steps(run="") for part in step["run"].split("&&")]
    return [shlex.split(text) for text in texts]


def hooks() -> dict[str, dict[str, Any]]:
    return {hook["id"]: hook for repository in HOOKS["repos"] for hook in repository["hooks"]}


# ----------------------------------------------------------------------------------------- workflow
def test_the_workflow_lints_tests_builds_and_keeps_the_notebooks() -> None:
    assert list(WORKFLOW["jobs"]) == ["lint", "test", "newer-pythons", "image"]
    assert WORKFLOW[True].keys() == {"push", "pull_request"}  # YAML 1.1 reads the key `on` as true
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert all(
        job["timeout-minutes"] <= 90 and "latest" not in job["runs-on"]
        for job in WORKFLOW["jobs"].values()
    )
    said = [" ".join(command) for command in commands()]
    for wanted in (
        "ruff format --check",
        "ruff check",
        "lint-imports",
        "make test",
        "make unit PYTHON=python",
        "docker build",
        "d3s2 check",
        "d3s2 run --profile smoke",
    ):
        assert any(wanted in text for text in said), wanted
    kept = [step for _, step in steps(uses="") if "upload-artifact" in step["uses"]]
    assert len(kept) == 2 and all(step["if"] == "always()" for step in kept)
    for path in "\n".join(step["with"]["path"] for step in kept).split():
        assert path.removeprefix("home/").startswith("runs/smoke/")
        assert Path(path).name in (runner.EXECUTED, "report")


def test_actions_are_pinned_and_pythons_are_ours() -> None:
    lines = re.findall(r"uses: (.*)", (ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert lines and all(
        re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line) for line in lines
    ), lines
    asked = (ROOT / "pyproject.toml").read_text()
    oldest, beyond = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', asked).groups()
    newer = WORKFLOW["jobs"]["newer-pythons"]["strategy"]["matrix"]["python-version"]
    assert newer == [f"3.{minor}" for minor in range(int(oldest) + 1, int(beyond))]
    for job, step in steps(**{"with": ""}):
        if version := step["with"].get("python-version"):
            of_matrix = "${{ matrix.python-version }}"
            assert version == (of_matrix if job == "newer-pythons" else f"3.{oldest}")


def test_the_mutants_of_every_room_are_tried() -> None:
    text = (ROOT / ".github" / "workflows" / "mutants.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow[True].keys() == {"schedule", "workflow_dispatch"}
    job = workflow["jobs"]["mutants"]
    assert job["strategy"]["matrix"]["room"] == list(mutants.ROOMS)
    assert job["steps"][-1]["run"] == 'make mutants ARGS="${{ matrix.room }}"'
    assert set(re.findall(r"uses: (.*)", text)) <= set(
        re.findall(r"uses: (.*)", (ROOT / ".github" / "workflows" / "ci.yml").read_text())
    )


def test_a_bot_proposes_new_versions_of_what_is_pinned() -> None:
    """But not of what must fit each other: the packages that requirements.in keeps exact."""
    bot = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text(encoding="utf-8"))
    looked_at = {"github-actions": ".github/workflows/ci.yml", "docker": "Dockerfile"}
    looked_at["pip"] = "requirements.in"
    found = {update["package-ecosystem"]: update for update in bot["updates"]}
    assert bot["version"] == 2 and found.keys() == looked_at.keys()
    for name, update in found.items():
        assert update["directory"] == "/" and (ROOT / looked_at[name]).is_file()
        assert update["schedule"]["interval"] == "monthly"
    left = [rule["dependency-name"] for rule in found["pip"]["ignore"]]
    assert left == ["torch", "onedl-*", "numpy"]
    text = (ROOT / "requirements.in").read_text()
    assert all(re.search(rf"^{name.rstrip('*')}", text, re.MULTILINE) for name in left)


def test_its_commands_exist() -> None:
    makefile, dockerfile = (ROOT / "Makefile").read_text(), (ROOT / "Dockerfile").read_text()
    for words in commands():
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
            given = dict(word.split("=", 1) for word in words[2:])
            assert given.keys() <= {"ARGS", "PYTHON"} and "export PYTHON" in makefile, words
            cli._parser().parse_args(["run", *shlex.split(given.get("ARGS", ""))])
        elif words[:2] == ["docker", "run"]:
            cli._parser().parse_args(words[words.index("d3s2") + 1 :])
            assert (
                not [word for word in words if word.endswith(":/d3s2")]
                or "D3S2_HOME=/d3s2" in dockerfile
            )
        elif words[:2] == ["docker", "build"]:
            assert f"ARG {words[words.index('--build-arg') + 1]}=" in dockerfile
        elif words[:2] == ["pip", "install"] and not re.fullmatch(r"[\w-]+==[\d.]+", words[2]):
            pattern = re.search(r"\$\(grep '(.*)' requirements.in\)", words[2]).group(1)
            assert (
                len(
                    re.findall(
                        rf"{pattern}.*", (ROOT / "requirements.in").read_text(), re.MULTILINE
                    )
                )
                == 1
            )
        else:
            assert words[0] in ("ruff", "lint-imports", "hadolint", "install", "pip"), words
    assert places.home() / "runs" / "smoke" == Path(
        config.resolve({"profile": "smoke"}, remember=False).run_dir
    )


# -------------------------------------------------------------------------------------------- hooks
def test_hooks_use_what_the_project_has_pinned() -> None:
    found = hooks()
    assert found.keys() == {
        "ruff",
        "layout",
        "imports",
        "notebooks",
        "dockerfile",
        "no-big-files",
        "yaml",
    }
    for hook in found.values():
        pins = hook.get("additional_dependencies", [])
        assert all(re.fullmatch(r"[\w-]+==[\d.]+", pin) for pin in pins)
        assert hook["entry"].startswith(".venv/bin/") if hook["language"] == "system" else pins
    assert re.search(r"^ruff==", (ROOT / "requirements.in").read_text(), re.MULTILINE)


@pytest.mark.processes
def test_the_notebook_hook_checks_every_notebook() -> None:
    entry = shlex.split(hooks()["notebooks"]["entry"])[1:]
    done = subprocess.run(
        [sys.executable, *entry], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert f"{len(list((ROOT / 'notebooks').glob('*.ipynb')))} passed" in done.stdout


def tracked() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("this is no git checkout")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_big_file_but_the_weights() -> None:
    hook = hooks()["no-big-files"]
    limit = 1024 * int(re.search(r"--maxkb=(\d+)", hook["entry"]).group(1))
    files = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in tracked()}
    assert [
        name for name, size in files.items() if size > limit and not re.match(hook["exclude"], name)
    ] == []
    assert sum(size for name, size in files.items() if re.match(hook["exclude"], name)) < 25e6


@pytest.mark.skipif(
    not RUFF.exists(), reason="ruff is not in this environment: pip install -r requirements.in"
)
def test_ruff_has_nothing_to_say() -> None:
    done = subprocess.run(
        [RUFF, "check", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
