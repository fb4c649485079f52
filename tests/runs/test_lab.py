"""JupyterLab is never open to others without a token."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from d3s2.core import places
from d3s2.core.errors import D3S2Error
from d3s2.runs import lab


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.5", "machine.example"])
def test_beyond_loopback_a_weak_token_is_refused(address: str) -> None:
    for token in ("", "1234"):
        with pytest.raises(D3S2Error, match="can be reached from outside"):
            lab.command_line(address, 8888, token)
    for token in (None, "0123456789abcdef"):
        assert f"--ip={address}" in lab.command_line(address, 8888, token)


def test_on_loopback_it_is_the_users_choice() -> None:
    for address in ("127.0.0.1", "::1", "localhost"):
        assert lab.command_line(address, 8888, "")


def test_notebooks_that_cannot_be_written_are_copied_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D3S2_HOME", str(tmp_path))
    assert lab.folder() == places.notebooks_folder()
    monkeypatch.setattr(os, "access", lambda *_: False)  # for root every folder can be written
    copy = lab.folder()
    assert {path.name for path in copy.glob("*.ipynb")} == {
        path.name for path in places.notebooks_folder().glob("*.ipynb")
    }
    assert (copy / "../docs/notation.md").is_file()  # where they link to
    (copy / "00_start_here.ipynb").write_text("mine")
    assert (lab.folder() / "00_start_here.ipynb").read_text() == "mine"


def test_what_the_notebooks_link_to_is_served() -> None:
    """The served folder holds all that a notebook links to, in the image's copy too."""
    root = places.notebooks_folder().parent
    assert f"--notebook-dir={root}" in lab.command_line("127.0.0.1", 8888, None)
    targets = {
        found.split("/")[0]
        for path in places.notebooks_folder().glob("*.ipynb")
        for found in re.findall(r"\]\(\.\./([^)#]+)", path.read_text())
    }
    assert targets and targets <= set(lab.SHOWN)


def status(url: str, seconds: float = 30) -> int:
    """HTTP status of an address that may not be listened to yet."""
    end = time.monotonic() + seconds
    while True:
        try:
            return urllib.request.urlopen(url, timeout=20).status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            assert time.monotonic() < end, "nobody listens"
            time.sleep(0.2)


def test_a_token_in_a_file_counts_as_one(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("short\n")
    named = {lab.TOKEN_FILE: str(tmp_path / "token")}
    assert lab.given_token(named) == "short"
    assert lab.given_token(named | {lab.TOKEN: "mine"}) == "mine"
    assert lab.given_token({}) is None
    with pytest.raises(D3S2Error, match="cannot be read"):
        lab.given_token({lab.TOKEN_FILE: str(tmp_path / "nowhere")})


HOSTILE = """
from jupyter_server.auth import IdentityProvider, User
from jupyter_server.auth.login import LoginHandler

class Open(IdentityProvider):
    auth_enabled = False
    def get_user(self, handler):
        return User("anybody")

class Everybody(LoginHandler):
    @classmethod
    def get_user(cls, handler):
        return "anybody"

c.IdentityProvider.token = c.PasswordIdentityProvider.token = c.ServerApp.token = ""
c.PasswordIdentityProvider.hashed_password = c.ServerApp.password = ""
c.ServerApp.allow_unauthenticated_access = True
c.ServerApp.disable_check_xsrf = True
c.NotebookApp.token = c.NotebookApp.password = ""
"""


def hostile_folders(home: Path) -> dict[str, str]:
    """Configurations that switch every login off, in every place that Jupyter reads them from."""
    opening = {
        "provider": "c.ServerApp.identity_provider_class = Open\n",
        "handler": "c.ServerApp.login_handler_class = Everybody\n",
        "plain": "",
    }
    for name, line in opening.items():
        (home / name).mkdir()
        for app in ("jupyter", "jupyter_server", "jupyter_lab", "jupyter_notebook"):
            (home / name / f"{app}_config.py").write_text(HOSTILE + line)
    lines = {"IdentityProvider": {"token": ""}, "ServerApp": {"token": "", "password": ""}}
    (home / "plain" / "jupyter_server_config.json").write_text(json.dumps(lines))
    for app in ("jupyter", "jupyter_server", "jupyter_lab"):
        (home / f"{app}_config.py").write_text(HOSTILE)  # where the command is typed
    for module in ("json", "jupyterlab", "traitlets", "tornado"):
        (home / f"{module}.py").write_text(f"open({str(home / 'caught')!r}, 'w')")
    old = home / ".ipython" / "profile_default"
    old.mkdir(parents=True)
    (old / "ipython_notebook_config.py").write_text(HOSTILE)
    paths = os.pathsep.join(str(home / name) for name in ("handler", "plain"))
    return {
        "JUPYTER_CONFIG_DIR": str(home / "provider"),
        "JUPYTER_CONFIG_PATH": paths,
        "JUPYTER_SERVER_ALLOW_UNAUTHENTICATED_ACCESS": "true",
    }


@contextmanager
def running(home: Path, more: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """`d3s2 lab` on all addresses, with these environment variables, typed in `home`."""
    environment = {name: value for name, value in os.environ.items() if "JUPYTER" not in name}
    environment |= {"D3S2_HOME": str(home), "HOME": str(home), "JUPYTER_RUNTIME_DIR": str(home)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = ["lab", "--address", "0.0.0.0", "--port", port, "--allow-root"]
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "d3s2.runs.cli", *words],
        env=environment | more,
        cwd=home,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield server
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)


def first(pattern: str, server: subprocess.Popen[str]) -> str:
    """The first group of a pattern in what the server says."""
    said = ""
    for line in iter(server.stderr.readline, ""):
        said += line
        if found := re.search(pattern, line):
            return found.group(1)
    raise AssertionError(said)


def asked(url: str, token: str) -> bytes:
    request = urllib.request.Request(url, headers={"Authorization": f"token {token}"})
    return urllib.request.urlopen(request, timeout=20).read()


@pytest.mark.processes
@pytest.mark.parametrize("home", ["plain home", "hostile home"])
def test_a_server_on_all_addresses_asks_for_its_token(tmp_path: Path, home: str) -> None:
    configured = hostile_folders(tmp_path) if home == "hostile home" else {}
    with running(tmp_path, configured) as server:
        address = first(r"(http://127\.0\.0\.1:\d+/lab\S*)", server)
        found = re.fullmatch(r"(.*)/lab/tree/notebooks\?token=(\w{32,})", address)
        assert found, f"no token in {address}"
        url, token = found.groups()
        for path in ("contents", "kernels", "terminals", "sessions", "config/notebook"):
            assert status(f"{url}/api/{path}") == 403, path
        assert status(f"{url}/api/contents?token=") == status(f"{url}/api/contents?token=x") == 403
        assert b"00_start_here.ipynb" in asked(f"{url}/api/contents/notebooks", token)
        assert b"# Notation" in asked(f"{url}/api/contents/docs/notation.md", token)  # linked to
        assert asked(f"{url}/api/terminals", token) == b"[]"  # the packages' extensions are there
        assert b"JupyterLab" in asked(f"{url}/lab", token)
        command = " ".join(psutil.Process(server.pid).cmdline())
        assert "jupyterlab" in command and token not in command
    assert not (tmp_path / "caught").exists()  # no module of the folder it was typed in


@pytest.mark.processes
def test_a_token_of_ones_own_holds_against_ones_own_configuration(tmp_path: Path) -> None:
    token = "0123456789abcdef"
    with running(tmp_path, hostile_folders(tmp_path) | {lab.TOKEN: token}) as server:
        url = first(r"(http://127\.0\.0\.1:\d+)/lab", server)
        assert status(f"{url}/api/contents") == 403
        assert b"00_start_here.ipynb" in asked(f"{url}/api/contents/notebooks", token)
        assert token not in " ".join(psutil.Process(server.pid).cmdline())


@pytest.mark.processes
def test_options_of_jupyters_own_are_not_passed_on(tmp_path: Path) -> None:
    """Such as one that takes the token away."""
    for word in ("--ServerApp.token=", "--IdentityProvider.token=''", "--ip=0.0.0.0", "--config=x"):
        done = subprocess.run(
            [sys.executable, "-m", "d3s2.runs.cli", "lab", "--address", "0.0.0.0", word],
            env=os.environ | {"D3S2_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2 and "unrecognized arguments" in done.stderr


@pytest.mark.processes
def test_make_lab_and_the_image_start_it_through_d3s2() -> None:
    """And so never a server that asks for nothing."""
    root = places.notebooks_folder().parent
    # a make within a make adds lines of its own
    words = ["make", "--no-print-directory", "-n", "lab", "ARGS=--address 0.0.0.0"]
    said = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == ".venv/bin/d3s2 lab --address 0.0.0.0"
    dockerfile = (root / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["tini", "--", "d3s2"]' in dockerfile
    assert 'CMD ["lab", ' in dockerfile and "jupyter lab" not in dockerfile
