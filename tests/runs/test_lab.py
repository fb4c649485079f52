"""JupyterLab is never open to others without a token."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

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
    (copy / "00_start_here.ipynb").write_text("mine")
    assert (lab.folder() / "00_start_here.ipynb").read_text() == "mine"


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


@pytest.mark.processes
def test_a_server_on_all_addresses_asks_for_its_token(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != lab.TOKEN}
    environment |= {
        "D3S2_HOME": str(tmp_path),
        "HOME": str(tmp_path),
        "JUPYTER_RUNTIME_DIR": str(tmp_path),
    }
    command = [
        sys.executable,
        "-m",
        "d3s2.runs.cli",
        "lab",
        "--address",
        "0.0.0.0",
        "--port",
        "18731",
        "--allow-root",
    ]
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        lines = iter(server.stderr.readline, "")
        url = next(
            found.group(1)
            for line in lines
            if (found := re.search(r"(http://127\.0\.0\.1:\d+)/lab\?token=", line))
        )
        token = next(
            found.group(1) for line in lines if (found := re.search(r"token=(\w{32,})", line))
        )
        assert status(f"{url}/api/contents") == 403
        request = urllib.request.Request(
            f"{url}/api/contents", headers={"Authorization": f"token {token}"}
        )
        assert b"00_start_here.ipynb" in urllib.request.urlopen(request, timeout=20).read()
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)
