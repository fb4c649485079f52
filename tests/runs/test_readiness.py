"""The lines of `d3s2 check`, the progress display, the meter."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path

import pytest

from d3s2.runs import config, readiness
from d3s2.runs.progress import Display, Meter, clock


def lines(**names: object) -> dict[str, bool]:
    return {
        check.text: check.ok for check in readiness.check(config.resolve(names, remember=False))
    }


def test_check_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = lines(profile="camvid", run_dir=str(tmp_path / "file" / "run"))
    missing = [text for text, ok in found.items() if not ok]
    assert any("data_root" in text for text in missing)
    assert any("cannot be written" in text for text in missing)
    assert any(text.startswith("Python") and ok for text, ok in found.items())
    assert any(text.startswith("mmsegmentation imports") and ok for text, ok in found.items())


@pytest.mark.processes
def test_check_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "d3s2.runs.cli",
            "check",
            "--run-dir",
            str(tmp_path),
            "-p",
            "data_format=folder",
            "-p",
            f"data_root={tmp_path / 'nowhere'}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "[OK] Python 3.11" in done.stdout
    assert "[FAIL] data: " in done.stdout and "nowhere" in done.stdout


def test_scenes_weights_are_whole() -> None:
    found = {text: ok for text, ok in lines().items() if text.startswith("weights")}
    assert found and all(found.values())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_and_in_a_file() -> None:
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        display = Display(stream)
        display.begin("01_data_statistics")
        display.cells(3, 12)
        display.end("0:05")
    assert "[######..................] 3/12 cells" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K01_data_statistics: 0:05\n")
    assert file.getvalue() == "01_data_statistics: running\n01_data_statistics: 0:05\n"


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0, 59.9, 60, 3661)] == ["0:00", "0:59", "1:00", "61:01"]


def test_meter_sees_the_memory_of_children() -> None:
    code = (
        "import sys; x = bytearray(200 * 2**20); x[::4096] = b'1' * len(x[::4096]); "
        "sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    with Meter(interval=0.05) as meter:
        end = time.monotonic() + 30
        while meter.peak_mb < 190 and time.monotonic() < end:
            time.sleep(0.05)
    child.communicate()
    assert 190 < meter.peak_mb < 400
