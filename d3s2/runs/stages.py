"""What a run leaves on disk: atomic files, and stages with a manifest that says what they were made
from.

A *stage* is one folder of the run folder (`statistics`, `selection`, ...). Its key is a digest of
everything that decides its bytes: parameters, keys of the stages it reads, source of the modules
that write it, and data from outside such as a dataset's fingerprint. While it is written it holds
`in_progress.json`; once whole, `manifest.json` with the SHA-256 of every file. Neither holds a
time, a path or a machine's name, so equal runs give equal bytes.

The usual cell:

    stage = Stage(settings.run_dir, "selection", parameters, inputs=[statistics],
    modules=["selection"]) if not stage.is_current():
        folder = stage.begin()      # items of an interrupted run with the same key are still there
        ...                         # write what is missing, each file through `atomic_path`
        stage.finish()
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from d3s2.core.code_version import code_version
from d3s2.core.errors import D3S2Error
from d3s2.core.files import (
    digest,
    explain,
    read_json,
    remove,
    sha256,
    write_csv,
    write_json,
)

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
            "external": dict(external or {}),
        }
        self.key = digest(self._made_of)

    @classmethod
    def find(cls, run_dir: str | Path, name: str) -> Stage:
        """Open the finished stage of an earlier notebook: `folder`, `key`, `parameters`.

        Raises D3S2Error, naming the notebook to run, when the stage is missing, unfinished or
        damaged.
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
        damage = (
            _damage(folder, manifest) if "key" in manifest else f"{folder / MANIFEST} is incomplete"
        )
        if damage:
            raise D3S2Error(
                f"The stage {name!r} is damaged ({damage}): {fix} again, it will be made anew."
            )
        stage = cls.__new__(cls)
        stage.run_dir, stage.name, stage.folder = Path(run_dir), name, folder
        stage.parameters, stage.key = manifest["parameters"], manifest["key"]
        stage._made_of = {
            field: manifest[field] for field in manifest if field not in ("key", "files")
        }
        return stage

    def is_current(self) -> bool:
        """True when the stage is finished, has this key, and every file still has its bytes; says
        so if not the last.
        """
        manifest = _read_marker(self.folder / MANIFEST)
        if manifest is None or manifest.get("key") != self.key:
            return False
        damage = _damage(self.folder, manifest)
        if damage:
            warnings.warn(f"the stage {self.name!r} will be made again: {damage}", stacklevel=2)
            return False
        self._note()
        return True

    def begin(self) -> Path:
        """Make the folder ready for writing and return it.

        What an interrupted run with the same key left is kept, so that finished items need not be
        made again. A folder of another key, a finished one and a foreign one are moved to
        `superseded/`; nothing is deleted but half-written temporary files.
        """
        marker = _read_marker(self.folder / IN_PROGRESS)
        unfinished = marker is not None and not (self.folder / MANIFEST).exists()
        if not (unfinished and marker.get("key") == self.key):
            supersede(self.run_dir, self.name)
            write_json(self.folder / IN_PROGRESS, {**self._made_of, "key": self.key})
        for leftover in self.folder.rglob(".*.part*"):
            remove(leftover)
        return self.folder

    def finish(self) -> None:
        """Hash every file (but logs: `logs/`, `*.log`) and write `manifest.json`: from now on the
        stage is current.
        """
        files = {
            path.relative_to(self.folder).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": sha256(path),
            }
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and not _is_unlisted(path.relative_to(self.folder))
        }
        write_json(self.folder / MANIFEST, {**self._made_of, "key": self.key, "files": files})
        remove(self.folder / IN_PROGRESS)
        self._note()

    def _note(self) -> None:
        if log := os.environ.get(STAGE_LOG):
            with open(log, "a", encoding="utf-8") as file:
                entry = {
                    "run_dir": str(self.run_dir.absolute()),
                    "name": self.name,
                    "key": self.key,
                }
                file.write(json.dumps(entry) + "\n")


def verify(run_dir: str | Path, name: str, key: str) -> bool:
    """True when the stage on disk is finished, has this key, and all its files still have their
    bytes.
    """
    manifest = _read_marker(Path(run_dir) / name / MANIFEST)
    return (
        manifest is not None
        and manifest.get("key") == key
        and not _damage(Path(run_dir) / name, manifest)
    )


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


def _is_unlisted(relative: Path) -> bool:
    """Logs hold times, so they belong to no manifest; nor do markers and temporary files."""
    return (
        "logs" in relative.parts[:-1]
        or relative.suffix == ".log"
        or str(relative) in (MANIFEST, IN_PROGRESS)
        or (relative.name.startswith(".") and ".part" in relative.name)
    )


def _damage(folder: Path, manifest: Mapping[str, Any]) -> str:
    """The first file that is missing or altered, in words; empty when all is well."""
    for name, entry in manifest.get("files", {}).items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
            return f"{path} is not what was written"
    return ""


# --------------------------------------------------------------------------------------------- lock
@contextmanager
def run_lock(run_dir: str | Path) -> Iterator[None]:
    """Hold the run folder for this process; the system releases it when the process ends, even by
    kill -9.

    Raises D3S2Error when another run holds it, or the folder cannot be made or written.
    """
    import fcntl  # not on Windows, where the rest of this module can still be used

    path = Path(run_dir) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - closed below, with the lock
    except OSError as error:
        raise explain(error, path) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise D3S2Error(
                f"Another run (process {owner}) is using {run_dir}: wait for it, or choose another "
                "run_dir."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
