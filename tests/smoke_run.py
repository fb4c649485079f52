"""One run of the whole sequence in the smoke profile, for the tests that look at what it gives."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

CELL_TIMEOUT = 1800


class SmokeRun:
    """`d3s2 run --profile smoke` as a user starts it, with its own home."""

    def __init__(self, home: Path):
        self.folder = home / "runs" / "smoke"
        self.environment = os.environ | {"D3S2_HOME": str(home)}
        self.command = [sys.executable, "-m", "d3s2.runs.cli", "run", "--profile", "smoke"]

    def given(self, values: Mapping[str, object]) -> SmokeRun:
        """The same run in the same folder, with these parameters."""
        other = copy.copy(self)
        words = [word for name, value in values.items() for word in ("-p", f"{name}={value}")]
        other.command = [*self.command, *words]
        return other

    def finish(self) -> str:
        done = subprocess.run(
            self.command,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=CELL_TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def files(self, *stages: str) -> dict[str, bytes]:
        paths = [
            path for stage in stages for path in (self.folder / stage).rglob("*") if path.is_file()
        ]
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in paths
            if path.suffix != ".log"
        }
