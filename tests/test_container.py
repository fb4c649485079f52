"""The image, built and run for real with buildah on a base of Debian packages: no Docker engine is
needed.

Needs root, buildah and mmdebstrap (Debian: `apt-get install --no-install-recommends buildah
mmdebstrap`). The base and the installed packages stay in buildah's storage, so that only the first
build takes minutes; `buildah rmi localhost/d3s2-tests localhost/d3s2-tests-base` frees it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from notebook_maker import write_notebook
from smoke_run import SmokeRun

ROOT = Path(__file__).resolve().parent.parent
BASE, IMAGE = "localhost/d3s2-tests-base", "localhost/d3s2-tests"
UID = 1000
UNIT_TESTS = (
    "core/test_files",
    "core/test_machine",
    "guidance/test_losses",
    "guidance/test_sampler",
    "models/test_mmcv_ops",
    "runs/test_config",
    "runs/test_stages",
    "test_selection",
)
"""What depends most on the machine; the others test the same sources again."""

MISSING = [tool for tool in ("buildah", "mmdebstrap") if not shutil.which(tool)]
pytestmark = [
    pytest.mark.notebooks,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"{' and '.join(MISSING)} missing: apt-get install them to try the Dockerfile",
    ),
    pytest.mark.skipif(
        hasattr(os, "geteuid") and os.geteuid() != 0,
        reason="building on a base made here needs root",
    ),
]


def call(*command: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **more
    )


def checked(*command: str | Path, **more: object) -> str:
    done = call(*command, **more)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def make_base(folder: Path) -> None:
    """An image with Debian's Python 3.11, if there is none yet."""
    if call("buildah", "inspect", "--type", "image", BASE).returncode == 0:
        return
    tar = folder / "base.tar"
    checked(
        "mmdebstrap",
        "--variant=minbase",
        "--include=ca-certificates,python3,python3-venv",
        "bookworm",
        tar,
    )
    container = checked("buildah", "from", "scratch").strip()
    checked("buildah", "add", container, tar, "/")
    checked("buildah", "commit", "--rm", "--format", "docker", container, BASE)
    tar.unlink()


def pip_mounts(folder: Path) -> list[str]:
    """Options that give the build this machine's way to packages: pip's settings, and the files
    that they name.
    """
    lines = checked(sys.executable, "-m", "pip", "config", "list").splitlines()
    pairs = [re.fullmatch(r"(?::env:|global|install)\.([\w-]+)='(.*)'", line) for line in lines]
    settings = dict(found.groups() for found in pairs if found)
    settings.setdefault("cert", os.environ.get("SSL_CERT_FILE", ""))
    config = folder / "pip.conf"
    body = [f"{name} = {value}".replace("\\n", "\n  ") for name, value in settings.items() if value]
    config.write_text("\n".join(["[global]", *body, ""]))
    mounts = {"/etc/pip.conf": str(config)}
    for value in " ".join(settings.values()).replace("\\n", " ").split():
        path = Path(value.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            shown = path.parent if path.name == "simple" else path  # an index beside its files
            mounts[str(shown)] = str(shown)
    return [
        part
        for inside, outside in mounts.items()
        for part in ("--volume", f"{outside}:{inside}:ro")
    ]


class Image:
    """The built image and its context, a copy of the checkout."""

    def __init__(self, folder: Path):
        self.context, self.folder, self.log = folder / "context", folder, ""
        names = checked(
            "git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT
        ).split("\n")
        for name in filter(lambda name: (ROOT / name).is_file(), names):
            (self.context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.context / name)
        make_base(folder)
        self.mounts = pip_mounts(folder)
        self.build(IMAGE)

    def build(self, tag: str) -> float:
        """Seconds that it took."""
        before, started = (
            call("buildah", "images", "--quiet", "--no-trunc", tag).stdout.strip(),
            time.perf_counter(),
        )
        self.log = checked(
            "buildah",
            "build",
            "--isolation",
            "chroot",
            "--format",
            "docker",
            "--layers",
            "--pull-never",
            "--build-arg",
            f"BASE_IMAGE={BASE}",
            *self.mounts,
            "--tag",
            tag,
            ".",
            cwd=self.context,
        )
        seconds = time.perf_counter() - started
        if (
            before
            and before != call("buildah", "images", "--quiet", "--no-trunc", tag).stdout.strip()
        ):
            call("buildah", "rmi", before)
        return seconds

    def inspect(self) -> dict:
        return json.loads(checked("buildah", "inspect", "--type", "image", IMAGE))["Docker"]

    def run(
        self, *arguments: str | Path, volumes: dict[Path, str] | None = None, entry: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """`docker run --rm --volume … d3s2 <arguments>`: the image's entry point, user and
        environment.
        """
        container = checked("buildah", "from", "--pull-never", IMAGE).strip()
        mounts = [
            part
            for outside, inside in (volumes or {}).items()
            for part in ("--volume", f"{outside}:{inside}")
        ]
        command = [*(self.inspect()["config"]["Entrypoint"] if entry else []), *arguments]
        try:
            return call(
                "buildah", "run", "--isolation", "chroot", *mounts, container, "--", *command
            )
        finally:
            checked("buildah", "rm", container)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return Image(tmp_path_factory.mktemp("image"))


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "home"
    folder.mkdir()
    os.chown(folder, UID, UID)
    yield folder


def test_the_image_says_how_it_wants_to_be_run(image: Image) -> None:
    config = image.inspect()["config"]
    assert config["User"] == str(UID) and config["Entrypoint"] == ["tini", "--", "d3s2"]
    assert (
        config["Cmd"] == ["lab", "--address", "0.0.0.0"]
        and config["Healthcheck"]["Test"][0] == "CMD"
    )
    assert {
        "NVIDIA_VISIBLE_DEVICES=all",
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        "D3S2_HOME=/d3s2",
        "HF_HOME=/d3s2/hub",  # else fetched models would end with the container
    } <= set(config["Env"])
    health = image.run(*config["Healthcheck"]["Test"][1:], entry=False)
    assert health.returncode == 0, health.stderr  # no JupyterLab is asked for here
    if (
        "+cpu"
        in image.run("python", "-c", "import torch; print(torch.__version__)", entry=False).stdout
    ):
        assert size(IMAGE) < 2e9


def size(tag: str) -> int:
    """Bytes of all layers, unpacked."""
    text = json.loads(checked("buildah", "images", "--json", tag))[0]["size"]
    number, unit = re.fullmatch(r"([\d.]+) ?(\w+)", text).groups()
    return int(float(number) * {"MB": 1e6, "GB": 1e9}[unit])


def test_after_an_edit_only_the_last_steps_are_repeated(image: Image) -> None:
    source = image.context / "d3s2" / "core" / "errors.py"
    source.write_text(source.read_text() + "\n# edited\n")
    seconds = image.build(IMAGE)
    assert (
        "Successfully built d3s2" in image.log
        and "Installing collected packages: d3s2" in image.log
    )
    assert "Downloading" not in image.log and "Building wheel for onedl" not in image.log
    assert seconds < 60, f"{seconds:.0f} s"  # 5 s on a quiet machine
    assert (
        "# edited"
        in image.run("tail", "-n", "1", "/opt/d3s2/d3s2/core/errors.py", entry=False).stdout
    )


def test_check_and_unit_tests_pass_inside(image: Image, volume: Path) -> None:
    check = image.run("check", volumes={volume: "/d3s2"})
    assert check.returncode == 0 and "[FAIL]" not in check.stdout, check.stdout
    files = [f"tests/{name}.py" for name in UNIT_TESTS]
    tests = image.run(
        "python",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *files,
        volumes={volume: "/d3s2"},
        entry=False,
    )
    assert tests.returncode == 0, tests.stdout[-4000:]


def test_a_failing_notebook_gives_its_exit_code(image: Image, volume: Path, tmp_path: Path) -> None:
    write_notebook(tmp_path / "notebooks" / "00_start.ipynb", "1 / 0")
    os.chmod(tmp_path, 0o755)
    volumes = {volume: "/d3s2", tmp_path / "notebooks": "/mine"}
    done = image.run("run", "--profile", "smoke", "--notebooks", "/mine", volumes=volumes)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    executed = volume / "runs" / "smoke" / "executed" / "00_start.ipynb"
    assert executed.is_file() and executed.stat().st_uid == UID


def test_the_smoke_run_gives_the_same_table_as_outside(
    image: Image, volume: Path, smoke: tuple[SmokeRun, str]
) -> None:
    outside, _ = smoke
    done = image.run("run", "--profile", "smoke", volumes={volume: "/d3s2"})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    inside = volume / "runs" / "smoke"
    assert (inside / "report" / "results.md").read_text() == (
        outside.folder / "report" / "results.md"
    ).read_text()
    assert (inside / "report" / "results.json").stat().st_uid == UID
