"""The lines of `d3s2 check`, the progress display, the meter."""

from __future__ import annotations

import io
import json
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_benchmarks import make_ade20k

from d3s2.runs import config, progress, readiness
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
    assert f"[OK] Python {platform.python_version()} (3.11 to 3.13 is needed)" in done.stdout
    assert "[FAIL] data: " in done.stdout and "nowhere" in done.stdout


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """A folder of two splits: an unknown id, an unknown colour, a damaged image, a lone mask."""
    root = tmp_path / "mine"
    for split in ("train", "val"):
        for part, shape in (("images", (4, 4, 3)), ("labels", (4, 4))):
            (root / split / part).mkdir(parents=True)
            for name in "abc":
                picture = Image.fromarray(np.zeros(shape, np.uint8))
                picture.save(root / split / part / f"{name}.png")
    (root / "classes.csv").write_text("id,name,red,green,blue\n0,sky,1,2,3\n")
    Image.new("L", (4, 4), 7).save(root / "train/labels/a.png")
    Image.new("L", (4, 4), 7).save(root / "train/labels/b.png")
    Image.new("RGB", (4, 4), (9, 8, 7)).save(root / "val/labels/b.png")
    (root / "val/images/c.png").write_text("no image")
    (root / "train/images/c.png").unlink()
    return root


def data_lines(root: Path, data_format: str = "folder") -> dict[str, bool]:
    settings = config.resolve(
        {"profile": "camvid", "data_format": data_format, "data_root": str(root)}, remember=False
    )
    return {check.text: check.ok for check in readiness._check_data(settings)}


def test_check_says_all_that_is_wrong_with_a_folder_at_once(faulty: Path) -> None:
    found = data_lines(faulty)
    wrong = "\n".join(text for text, ok in found.items() if not ok)
    for words in (
        "c.png has no image (1 such)",
        "a.png holds id 7, which classes.csv does not list",
        "(2 files with this)",
        "b.png holds colour (9, 8, 7)",
        "c.png (cannot identify",
        "data: 2 train images, 1 classes",
        "unknown id 7: 32 pixels in 2 images",
        "data: 3 val images, 1 classes",
        "unknown colour (9, 8, 7): 16 pixels in 1 images",
        "    7,unnamed-7,16,16,56",
        "    1,unnamed-1,9,8,7",
    ):
        assert words in wrong
    assert all(text.startswith("data: ") for text in found)


def test_check_finds_nothing_wrong_with_a_mended_folder(faulty: Path) -> None:
    for split, name in (("train", "c"), ("val", "c")):
        Image.new("RGB", (4, 4)).save(faulty / split / "images" / f"{name}.png")
    with open(faulty / "classes.csv", "a") as stream:
        stream.write("7,road,16,16,56\n1,tree,9,8,7\n")
    found = data_lines(faulty)
    assert found and all(found.values())
    (train,) = (text for text in found if "train images" in text)
    assert train.splitlines()[3].split() == ["road", "32", "66.67%", "2"]


def test_faults_of_the_classes_are_said_once(faulty: Path) -> None:
    (faulty / "classes.csv").unlink()
    wrong = [text for text in data_lines(faulty) if "classes.csv" in text]
    assert len(wrong) == 1


def test_of_a_public_set_a_part_is_read_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in list(make_ade20k(tmp_path).rglob("ADE_train*.*")):
        shutil.copy(path, path.with_name(path.name.replace("1.", "2.")))
    monkeypatch.setattr(readiness, "LOOKED_INTO", 1)
    texts = list(data_lines(tmp_path, "ade20k"))
    assert "data: 2 train images, 150 classes; 1 of them, spread evenly, were read" in texts
    assert "data: 1 val images, 150 classes" in texts
    assert any("instead of 20210" in text for text in texts)


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


def test_a_log_shows_the_work_inside_a_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    log, path = io.StringIO(), tmp_path / ".03.progress"
    display = Display(log)
    display.begin("03_guided_sampling", path)
    for second in range(250):
        now[0] = 1000.0 + second
        made = 0 if second < 20 else 1 + second // 200
        path.write_text(json.dumps(["painting", made, 4, 0, float(second)]))
        display.tick()
    path.unlink()
    display.tick()
    display.end("3:20")
    assert log.getvalue().splitlines() == [
        "03_guided_sampling: running",
        "03_guided_sampling: painting: 0 of 4",
        "03_guided_sampling: painting: 1 of 4, 70.0 s each, 4 min left",
        "03_guided_sampling: painting: 2 of 4, 100.0 s each, 3 min left",
        "03_guided_sampling: 3:20",
    ]


def test_a_terminal_shows_it_in_the_live_line(tmp_path: Path) -> None:
    terminal, path = Terminal(), tmp_path / ".03.progress"
    path.write_text(json.dumps(["painting", 1, 4, 0, 30.0]))
    display = Display(terminal)
    display.begin("03", path)
    display.tick()
    assert "painting: 1 of 4" in terminal.getvalue()
    assert "(total" not in terminal.getvalue()


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0, 59.9, 60, 3661)] == ["0:00", "0:59", "1:00", "61:01"]


def test_meter_sees_the_memory_of_children() -> None:
    code = (
        "import sys; x = bytearray(200 * 2**20); x[::4096] = b'1' * len(x[::4096]); "
        "sys.stdin.read()"
    )
    with Meter(interval=0.05) as before:  # other tests may have left children
        time.sleep(0.3)
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    with Meter(interval=0.05) as meter:
        end = time.monotonic() + 30
        while meter.peak_mb - before.peak_mb < 190 and time.monotonic() < end:
            time.sleep(0.05)
    child.communicate()
    assert 190 < meter.peak_mb - before.peak_mb < 400
