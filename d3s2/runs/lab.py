"""Start JupyterLab on the notebooks, safely: beyond this machine only with a token.

Where others can connect, no Jupyter configuration of the user or the machine is read: an empty
token, a login of one's own or a permissive identity provider there would open a notebook server to
everybody. Jupyter then draws a token itself. It never stands in the command, which every user of
the machine can list.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from jupyter_core.paths import jupyter_config_dir

from d3s2.core import places
from d3s2.core.errors import D3S2Error

TOKEN = "JUPYTER_TOKEN"  # noqa: S105 - the variable's name, not a token
TOKEN_FILE = "JUPYTER_TOKEN_FILE"  # noqa: S105 - as above
EXTENSIONS = ("jupyter_lsp", "jupyter_server_terminals")
"""What JupyterLab's own packages switch on by files of configuration, here by the command."""

FIRST_PAGE = "/lab/tree/notebooks"
SHOWN = ("notebooks", "docs")
"""Folders of the checkout that a reader opens: the notebooks, and what they link to."""


def start(address: str = "127.0.0.1", port: int = 8888, allow_root: bool = False) -> None:
    """Become JupyterLab; does not return. Raises D3S2Error where that would open this machine to
    everybody.
    """
    command = command_line(address, port, given_token(os.environ))
    if not _is_loopback(address):
        os.environ.update(closed(os.environ))
    os.execvp(command[0], command + (["--allow-root"] if allow_root else []))


def given_token(environment: Mapping[str, str]) -> str | None:
    """The token that Jupyter would take from its variables; None: it draws one. Raises D3S2Error
    for a file that cannot be read.
    """
    if environment.get(TOKEN) or TOKEN_FILE not in environment:
        return environment.get(TOKEN)
    path = environment[TOKEN_FILE]
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise D3S2Error(
            f"{TOKEN_FILE} is {path!r}, which cannot be read ({error}): name a file with a token, "
            "or unset it (a random one is drawn)."
        ) from error


def closed(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables with which a server asks for its token whatever is configured.

    What JupyterLab looks like stays the user's: themes and shortcuts lie in folders of their own.
    """
    settings = Path(jupyter_config_dir()) / "lab"
    return {
        "JUPYTER_NO_CONFIG": "1",
        "JUPYTER_SERVER_ALLOW_UNAUTHENTICATED_ACCESS": "false",
        "JUPYTERLAB_SETTINGS_DIR": environment.get(
            "JUPYTERLAB_SETTINGS_DIR", str(settings / "user-settings")
        ),
        "JUPYTERLAB_WORKSPACES_DIR": environment.get(
            "JUPYTERLAB_WORKSPACES_DIR", str(settings / "workspaces")
        ),
    }


def command_line(address: str, port: int, token: str | None) -> list[str]:
    """The command: Jupyter draws a random token itself unless `token` (None: not set) gives one.

    Raises D3S2Error for an empty token or one that can be guessed, where others than this machine
    can connect.
    """
    command = [
        sys.executable,
        "-P",  # no module of the folder in which this is typed
        "-m",
        "jupyterlab",
        f"--ip={address}",
        f"--port={port}",
        f"--notebook-dir={folder().parent}",  # not the notebooks alone: they link to docs/
        f"--LabApp.default_url={FIRST_PAGE}",
    ]
    if _is_loopback(address):
        return command
    if token is not None and len(token) < 16:
        raise D3S2Error(
            f"{TOKEN} has {len(token)} characters but {address} can be reached from outside, and a "
            f"notebook can do whatever you can: unset {TOKEN} (a random one is drawn) or take at "
            "least 16 characters."
        )
    installed = {name: True for name in EXTENSIONS if find_spec(name)}
    return [*command, "--no-browser", f"--ServerApp.jpserver_extensions={installed}"]


def folder() -> Path:
    """The checkout's notebooks; a copy in <home>/notebooks where those cannot be written, as in a
    container, with <home>/docs beside it.
    """
    source = places.notebooks_folder()
    if os.access(source, os.W_OK):
        return source
    for name in SHOWN:
        _copy_what_is_missing(source.parent / name, places.home() / name)
    return places.home() / "notebooks"


def _copy_what_is_missing(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_file() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
