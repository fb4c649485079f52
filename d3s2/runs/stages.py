"""What a run leaves on disk: stages, each with a manifest that says what it was made from.

A *stage* is one folder of the run folder (`statistics`, `selection`, ...). Its key is a digest of
everything that decides its bytes: parameters, keys of the stages it reads, source of the modules
that write it and versions of the libraries these import, and data from outside such as a dataset's
fingerprint. While it is written it holds `in_progress.json`; once whole, `manifest.json` with the
SHA-256 of every file. Neither holds a time, a path or a machine's name, so equal runs give equal
bytes. A stage is whole when the manifest's key is that of what the manifest says it is made of, its
files have their bytes, and there are no others (but logs, and hidden files such as the desktop's).

The usual cell:

    stage = run.stage("selection", parameters, inputs=[statistics], modules=["d3s2.selection"])
    if not stage.is_current():
        folder = stage.begin()      # items of an interrupted run with the same key are still there
        ...                         # write what is missing, each file through `atomic_path`
        stage.finish()
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d3s2.core.code_version import code_version, library_versions
from d3s2.core.errors import D3S2Error
from d3s2.core.files import (
    digest,
    explain,
    explained,
    read_json,
    remove,
    remove_abandoned,
    sha256,
    write_csv,
    write_json,
)
from d3s2.runs.locks import begin_writing, end_writing, run_lock

__all__ = ["Stage", "read_json", "run_lock", "supersede", "verify", "write_csv", "write_json"]
"""Files are written and read by the same few functions everywhere; a notebook finds them here."""

MANIFEST, IN_PROGRESS, SUPERSEDED = "manifest.json", "in_progress.json", "superseded"
STAGE_LOG = "D3S2_STAGE_LOG"
"""Environment variable: a file to which every stage that is used as finished adds its run folder,
name and key (see `runner`).
"""

WRITERS = {
    "statistics": "01_data_statistics",
    "weights": "01_data_statistics",
    "selection": "02_mask_selection",
    "distilled": "03_guided_sampling",
    "training": "04_train_mask2former",
    "report": "04_train_mask2former",
}
"""Which notebook writes a stage: only for the error message of `find`."""


# ------------------------------------------------------------------------------------------- stages
class Stage:
    """One folder of a run, identified by the key of what it is made from.

    Args:
        run_dir: the run's folder.
        name: the stage's folder inside it.
        parameters: the settings that decide its bytes (JSON values). Leave out what must not:
        device, threads, paths.
        inputs: stages it reads; their keys go into its own.
        modules: modules of d3s2 that write it, for `code_version`.
        external: digests of what comes from outside, such as {"dataset": fingerprint}.
    """

    def __init__(
        self,
        run_dir: str | Path,
        name: str,
        parameters: Mapping[str, Any],
        inputs: Sequence[Stage] = (),
        modules: Sequence[str] = (),
        external: Mapping[str, str] | None = None,
    ):
        self.run_dir, self.name = Path(run_dir), name
        self.folder = self.run_dir / name
        self.parameters = json.loads(json.dumps(dict(parameters), allow_nan=False))
        self._made_of = {
            "schema": 1,
            "name": name,
            "parameters": self.parameters,
            "inputs": {stage.name: stage.key for stage in inputs},
            "code": code_version(*modules),
            "libraries": library_versions(*modules),
            "external": dict(external or {}),
        }
        self.key = digest(self._made_of)

    @classmethod
    def find(cls, run_dir: str | Path, name: str) -> Stage:
        """Open the finished stage of an earlier notebook: `folder`, `key`, `parameters`.

        Raises D3S2Error, naming the notebook to run, when the stage is missing, unfinished or
        damaged, or was made from other stages than those that lie beside it.
        """
        folder = Path(run_dir) / name
        notebook = WRITERS.get(name)
        fix = (
            f"run notebook {notebook} first"
            if notebook
            else "run the notebook that writes it first"
        )
        if not (folder / MANIFEST).is_file():
            state = "unfinished" if (folder / IN_PROGRESS).is_file() else "missing"
            raise D3S2Error(f"The stage {name!r} is {state} in {run_dir}: {fix}.")
        manifest = read_json(folder / MANIFEST)
        if damage := _damage(folder, manifest):
            raise D3S2Error(
                f"The stage {name!r} is damaged ({damage}): {fix} again, it will be made anew."
            )
        _refuse_strangers(folder, manifest)
        _refuse_other_inputs(Path(run_dir), manifest, fix)
        stage = cls.__new__(cls)
        stage.run_dir, stage.name, stage.folder = Path(run_dir), name, folder
        stage.parameters, stage.key = manifest["parameters"], manifest["key"]
        stage._made_of = _made_of(manifest)
        return stage

    def is_current(self) -> bool:
        """True when the stage is finished, has this key, and every file still has its bytes; says
        so if not the last. Raises D3S2Error for files that somebody put beside them: those are to
        be moved away, which is cheaper than to make the stage again.
        """
        manifest = _read_marker(self.folder / MANIFEST)
        if manifest is None or manifest.get("key") != self.key:
            return False
        damage = _damage(self.folder, manifest)
        if damage:
            warnings.warn(f"the stage {self.name!r} will be made again: {damage}", stacklevel=2)
            return False
        _refuse_strangers(self.folder, manifest)
        self._note()
        return True

    def begin(self) -> Path:
        """Make the folder ready for writing and return it.

        What an interrupted run with the same key left is kept, so that finished items need not be
        made again. A folder of another key, a finished one and a foreign one are moved to
        `superseded/`; nothing is deleted but temporary files whose process has ended. Until
        `finish`, or this process's end, no other process may begin a stage of the run folder.

        Raises D3S2Error, naming the process, when another one writes there.
        """
        begin_writing(self.run_dir, self.name)
        marker = {**self._made_of, "key": self.key}
        unfinished = not (self.folder / MANIFEST).exists()
        if not (unfinished and _read_marker(self.folder / IN_PROGRESS) == marker):
            supersede(self.run_dir, self.name)
            write_json(self.folder / IN_PROGRESS, marker)
        remove_abandoned(self.folder)
        return self.folder

    def finish(self) -> None:
        """Hash every file (but logs: `logs/`, `*.log`) and write `manifest.json`: from now on the
        stage is current. Raises D3S2Error when the folder is no longer this stage's: another
        notebook began it with other parameters, and what lies there is of both.
        """
        marker = _read_marker(self.folder / IN_PROGRESS) or _read_marker(self.folder / MANIFEST)
        if marker is None or marker.get("key") != self.key:
            raise D3S2Error(
                f"The stage {self.name!r} in {self.run_dir} was begun again by another notebook "
                "while this one wrote it: run one at a time, then this notebook again."
            )
        files = {name: _entry(self.folder / name) for name in _listed(self.folder)}
        write_json(self.folder / MANIFEST, {**self._made_of, "key": self.key, "files": files})
        remove(self.folder / IN_PROGRESS)
        end_writing(self.run_dir, self.name)
        self._note()

    def _note(self) -> None:
        if log := os.environ.get(STAGE_LOG):
            entry = {
                "run_dir": str(self.run_dir.absolute()),
                "name": self.name,
                "key": self.key,
            }
            with explained(Path(log)), open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


def verify(run_dir: str | Path, name: str, key: str) -> bool:
    """True when the stage on disk is finished, has this key, all its files still have their bytes,
    and there are no others.
    """
    folder = Path(run_dir) / name
    manifest = _read_marker(folder / MANIFEST)
    if manifest is None or manifest.get("key") != key or _damage(folder, manifest):
        return False
    return not _strangers(folder, manifest)


def supersede(run_dir: str | Path, name: str) -> Path | None:
    """Move a stage's folder to `<run_dir>/superseded/<name>-<key>`, numbered if taken; None if
    there is nothing.
    """
    folder = Path(run_dir) / name
    try:
        if not folder.exists() or not any(folder.iterdir()):
            return None
        marker = _read_marker(folder / MANIFEST) or _read_marker(folder / IN_PROGRESS) or {}
        label = f"{name}-{str(marker.get('key', 'unknown'))[:8]}"
        target = folder.parent / SUPERSEDED / label
        number = 1
        while target.exists():
            number += 1
            target = target.with_name(f"{label}-{number}")
        target.parent.mkdir(exist_ok=True)
        os.replace(folder, target)
    except OSError as error:
        raise explain(error, folder) from error
    return target


def _read_marker(path: Path) -> dict[str, Any] | None:
    """A manifest or in-progress file; None when it is missing or damaged: then the stage is simply
    not current.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _listed(folder: Path) -> list[str]:
    """What a manifest lists, sorted: not the logs, which hold times, not the markers, and nothing
    hidden (temporary files, what a desktop or an editor leaves).
    """
    names = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        is_log = "logs" in relative.parts[:-1] or relative.suffix == ".log"
        is_hidden = any(part.startswith(".") for part in relative.parts)
        is_marker = relative.as_posix() in (MANIFEST, IN_PROGRESS)
        if path.is_file() and not (is_log or is_hidden or is_marker):
            names.append(relative.as_posix())
    return names


def _entry(path: Path) -> dict[str, int | str]:
    """What a manifest says of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _made_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Of a manifest, what the key is the digest of."""
    return {name: value for name, value in manifest.items() if name not in ("key", "files")}


def _damage(folder: Path, manifest: object) -> str:
    """In words, what is wrong with a manifest, or the first of its files that is missing or
    altered; empty when all is well.
    """
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return f"{folder / MANIFEST} is incomplete"
    if not {"key", "parameters"} <= manifest.keys():
        return f"{folder / MANIFEST} is incomplete"
    if manifest["key"] != digest(_made_of(manifest)):
        return f"{folder / MANIFEST} was edited: its key is not that of what it says"
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if _entry(path) != entry:
            return f"{path} is not what was written"
    return ""


def _strangers(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Files that the manifest does not know, sorted."""
    return [name for name in _listed(folder) if name not in manifest["files"]]


def _refuse_strangers(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise D3S2Error for the first file of a whole stage that the stage did not write."""
    if strangers := _strangers(folder, manifest):
        raise D3S2Error(
            f"The stage {folder.name!r} holds {folder / strangers[0]}, which it did not write "
            f"({len(strangers)} such): move it out of the run folder, then run again."
        )


def _refuse_other_inputs(run_dir: Path, manifest: Mapping[str, Any], fix: str) -> None:
    """Raise D3S2Error where a stage that this one was made from has been made anew since, as when a
    notebook was executed by hand with another value: their numbers do not belong together.
    """
    for name, key in manifest.get("inputs", {}).items():
        folder = run_dir / name
        found = _read_marker(folder / MANIFEST) or _read_marker(folder / IN_PROGRESS)
        if found and found.get("key") != key:
            raise D3S2Error(
                f"The stage {manifest['name']!r} was made from another {name!r} than the one in "
                f"{run_dir}: {fix} again, or all with d3s2 run."
            )
