"""Start JupyterLab on the notebooks, safely: beyond this machine only with a token."""

from __future__ import annotations

import ipaddress
import os
import shutil
import sys
from pathlib import Path

from d3s2.core import places
from d3s2.core.errors import D3S2Error

TOKEN = "JUPYTER_TOKEN"  # noqa: S105 - the variable's name, not a token


def start(address: str = "127.0.0.1", port: int = 8888, allow_root: bool = False) -> None:
    """Become JupyterLab; does not return. Raises D3S2Error where that would open this machine to
    everybody.
    """
    command = command_line(address, port, os.environ.get(TOKEN))
    os.execvp(command[0], command + (["--allow-root"] if allow_root else []))


def command_line(address: str, port: int, token: str | None) -> list[str]:
    """The command: Jupyter draws a random token itself unless `token` (None: not set) gives one.

    Raises D3S2Error for an empty token or one that can be guessed, where others than this machine
    can connect.
    """
    if token is not None and len(token) < 16 and not _is_loopback(address):
        raise D3S2Error(
            f"{TOKEN} has {len(token)} characters but {address} can be reached from outside, and a "
            f"notebook can do whatever you can: unset {TOKEN} (a random one is drawn) or take at "
            "least 16 characters."
        )
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        f"--ip={address}",
        f"--port={port}",
        f"--notebook-dir={folder()}",
    ]
    return command if _is_loopback(address) else [*command, "--no-browser"]


def folder() -> Path:
    """The checkout's notebooks; a copy in <home>/notebooks where those cannot be written, as in a
    container.
    """
    source = places.notebooks_folder()
    if os.access(source, os.W_OK):
        return source
    target = places.home() / "notebooks"
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_file() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return target


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
