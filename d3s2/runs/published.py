"""Weights that others publish: where `d3s2 fetch` puts them, and what to say where they lack."""

from __future__ import annotations

from pathlib import Path

from d3s2.core.places import command, home


def named_or_published(name: str, address: str) -> Path:
    """The file that a parameter names, else the place of what is published at `address`."""
    if name:
        return Path(name).expanduser()
    return home() / "models" / (address.rsplit("/", 1)[-1] or "checkpoint.pth")


def missing(what: str, path: Path, address: str, parameter: str) -> str:
    """A sentence with the command that fetches a missing file, or the parameter that names one."""
    fetch = f"fetch it: {command('d3s2')} fetch file {address} {path}"
    return f"{what}, {path}, is missing; " + (
        fetch if address else f"name it with -p {parameter}=FILE"
    )
