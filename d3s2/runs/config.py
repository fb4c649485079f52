"""The values of a run's parameters: resolved once, noted in its folder, the same in every notebook.

`d3s2 run` resolves them before the first notebook: a value that was set (`-p`, a parameter file)
wins over the profile's. It notes all of them in the run folder's `run.json` and tells them to every
notebook, whichever declares them. A notebook that is opened by hand, or through plain papermill,
reads them from `run.json`; what is set in its own parameters cell becomes the run's value. All
profile values are our choice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json, write_json
from d3s2.core.places import home
from d3s2.data.fetch import ARCHIVES, own_folder, to_fetch
from d3s2.runs.parameters import FIELDS, Settings, check_together, listing, typed
from d3s2.runs.profiles import PROFILES

PARAMETERS = "D3S2_PARAMETERS"
"""Environment variable, how `d3s2 run` tells its notebooks every parameter that was set: JSON."""
RUN_FILE = "run.json"


def resolve(names: Mapping[str, Any], *, remember: bool = True) -> Settings:
    """The complete settings from a notebook's globals, or any mapping of names to values.

    Args:
        names: a value, or None (or absent) for the run's own; other names than parameters do not
            count, since a notebook has many.
        remember: take what is None from the run folder's `run.json`; False = begin anew, from the
            profile only.

    Raises D3S2Error for an unknown profile, a value of the wrong type or out of range, and a run
    folder that was begun with another profile.
    """
    told = {name: typed(name, value) for name, value in _told().items()}
    given = told | {
        name: typed(name, names[name]) for name in FIELDS if names.get(name) is not None
    }
    noted = _noted(given) if remember else {}
    profile = given.get("profile") or noted.get("profile", "scenes")
    if profile not in PROFILES:
        raise D3S2Error(f"profile is {profile!r}: choose {listing(PROFILES)}.")
    values = PROFILES[profile] | noted | given | {"profile": profile}
    values["run_dir"] = str(run_folder(given))
    values["data_root"] = values["data_root"] or _fetched(values["data_format"])
    if values["data_root"]:
        values["data_root"] = str(Path(values["data_root"]).expanduser().absolute())
    settings = Settings(**values)
    check_together(settings, PROFILES["scenes"])
    return settings


def _fetched(data_format: str) -> str:
    """Where `d3s2 fetch --profile` has put a public data set, whole; "" where it has not."""
    folder = own_folder(data_format)
    archives = ARCHIVES.get(data_format)
    return str(folder) if archives and not to_fetch(archives, folder) else ""


def run_folder(given: Mapping[str, Any]) -> Path:
    """The folder of a run: as given, else <home>/runs/<profile>."""
    chosen = given.get("run_dir") or home() / "runs" / given.get("profile", "scenes")
    return Path(chosen).expanduser().absolute()


def note(settings: Settings, facts: Mapping[str, Any] | None = None) -> Path:
    """Write the run folder's `run.json`, if it would change: the settings, which every notebook of
    the run reads, and facts for the record; None keeps those that are there.
    """
    path = Path(settings.run_dir) / RUN_FILE
    before = _read(path)
    kept = {name: value for name, value in before.items() if name != "settings"}
    after = {**(kept if facts is None else facts), "settings": asdict(settings)}
    if after != before:
        write_json(path, after)
    return path


def _told() -> dict[str, Any]:
    """The parameters that `d3s2 run` was given, in the process of one of its notebooks."""
    return json.loads(os.environ.get(PARAMETERS) or "{}")


def _noted(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in the run folder's `run.json`; empty when it was not begun yet."""
    path = run_folder(given) / RUN_FILE
    if not path.is_file():
        return {}
    record = read_json(path)
    noted = record.get("settings", {}) if isinstance(record, dict) else None
    if not isinstance(noted, dict):
        raise D3S2Error(
            f"{path} holds no settings of a run: move it away, or choose another run_dir."
        )
    if given.get("profile", noted.get("profile")) != noted.get("profile"):
        raise D3S2Error(
            f"{path.parent} was begun with profile {noted.get('profile')!r}, not "
            f"{given['profile']!r}: run notebook 00_start_here with the new one first, or choose "
            "another run_dir."
        )
    return {name: typed(name, value) for name, value in noted.items() if name in FIELDS}


def _read(path: Path) -> dict[str, Any]:
    """`run.json`, or nothing where it is missing or damaged: then it is written anew."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
