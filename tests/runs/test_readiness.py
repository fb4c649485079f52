"""What the machine is found to be, and the lines of `d3s2 check`."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path

import pytest

from d3s2.core import machine
from d3s2.core.errors import D3S2Error
from d3s2.runs import config, readiness
from d3s2.runs.progress import Display, Meter, clock


def lines(**names: object) -> dict[str, bool]:
    return {
        check.text: check.ok for check in readiness.check(config.resolve(names, remember=False))
    }


def test_versions_are_those_of_the_pins() -> None:
    pins, found = machine.pinned(), machine.versions()
    assert pins["torch"] == "2.13.0"
    for name in machine.PACKAGES:
        assert found[name].split("+")[0] == pins[name]


def test_threads_cores_and_memory() -> None:
    import torch

    before = torch.get_num_threads()
    assert machine.set_threads(1) == 1 == torch.get_num_threads()
    assert machine.set_threads(0) == machine.cores() >= 1
    torch.set_num_threads(before)
    assert 0 < machine.peak_memory() < machine.memory_mb()


@pytest.mark.parametrize(
    ("cpu", "memory", "cores_at_most", "memory_at_most"),
    [
        ("150000 100000", "1073741824", 2, 1024),
        ("max 100000", "max", 10**6, 10**9),
        (None, None, 10**6, 10**9),
    ],
)
def test_limits_of_a_container(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cpu: str | None,
    memory: str | None,
    cores_at_most: int,
    memory_at_most: int,
) -> None:
    if cpu and memory:
        (tmp_path / "cpu.max").write_text(f"{cpu}\n")
        (tmp_path / "memory.max").write_text(f"{memory}\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert 1 <= machine.cores() <= cores_at_most
    assert 0 < machine.memory_mb() <= memory_at_most


def test_device() -> None:
    import torch

    assert machine.pick_device("cpu") == "cpu"
    if torch.cuda.is_available():
        assert machine.pick_device("auto") == machine.pick_device("cuda") == "cuda"
    else:
        assert machine.pick_device("auto") == "cpu"
        with pytest.raises(D3S2Error, match="no GPU"):
            machine.pick_device("cuda")


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
