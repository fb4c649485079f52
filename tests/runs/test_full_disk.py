"""A disk that fills at each kind of write: one sentence, nothing lost, and with room the same
bytes. `test_faults.py` has a whole run on a full disk.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook, new_output
from torch import nn
from training_jobs import make_job, write_finished_training, write_splits

from d3s2.core.errors import D3S2Error, DiskFull
from d3s2.core.files import atomic_path, write_csv, write_json, write_npz, write_png, write_text
from d3s2.data import fetch
from d3s2.data.splits import open_splits
from d3s2.models.fitting import Fit, Schedule
from d3s2.models.generator import save_half
from d3s2.models.proxy import ProxySegmenter
from d3s2.runs.config import resolve
from d3s2.runs.notebooks import publish
from d3s2.runs.stages import STAGE_LOG, Stage
from d3s2.training import mask2former
from d3s2.training.job import PREDICTIONS, RESULT, WEIGHTS, finished_key
from d3s2.training.reuse import still_to_train
from d3s2.training.side_by_side import train_all

pytestmark = pytest.mark.processes

NOISE = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)


@contextmanager
def only(disk: Path, free_kb: int) -> Iterator[None]:
    """Fill a disk so far."""
    usage = shutil.disk_usage(disk)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(usage.free - 1024 * free_kb))
    try:
        yield
    finally:
        ballast.unlink()


def files_below(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# ----------------------------------------------------------------------------------- kinds of files
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(256, 256)


def published(folder: Path) -> None:
    output = new_output("stream", text=str(NOISE.tolist()))
    cell = new_code_cell("print(noise)", outputs=[output], execution_count=1)
    executed = folder.parent.parent / "executed.ipynb"
    nbformat.write(new_notebook(cells=[cell]), executed)
    publish(executed, folder / "published.ipynb")


def weights(folder: Path) -> None:
    with atomic_path(folder / "weights.safetensors") as partial:
        mask2former.save_weights(network(), partial)


KINDS: dict[str, Callable[[Path], None]] = {
    "json": lambda folder: write_json(folder / "a.json", NOISE[0].tolist() * 20),
    "text": lambda folder: write_text(folder / "a.md", str(NOISE.tolist())),
    "csv": lambda folder: write_csv(folder / "a.csv", NOISE[:, :, 0].tolist()),
    "npz": lambda folder: write_npz(folder / "a.npz", noise=NOISE),
    "image": lambda folder: write_png(folder / "a.png", NOISE),
    "image of the data": lambda folder: write_png(folder / "a.png", NOISE, sync=False),
    "trained weights": weights,
    "half weights": lambda folder: save_half(ProxySegmenter(5), folder),
    "checkpoint": lambda folder: Fit(network(), Schedule(4)).save(folder),
    "published notebook": published,
}


@pytest.mark.parametrize("free_kb", [0, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_a_sentence_for_each_kind_of_file(
    small_disk: Path, tmp_path: Path, kind: str, free_kb: int
) -> None:
    """What was there stays, also the file's earlier version, and nothing half is left beside it."""
    elsewhere, here = tmp_path / "elsewhere" / "run", small_disk / "run"
    elsewhere.mkdir(parents=True)
    here.mkdir()
    torch.manual_seed(0)
    KINDS[kind](elsewhere)
    wanted = files_below(elsewhere)
    before = nbformat.writes(new_notebook(cells=[new_code_cell("print(noise)")])).encode()
    content = before if kind == "published notebook" else b"earlier"
    earlier = {} if kind == "half weights" else dict.fromkeys(wanted, content)
    for name, content in earlier.items():
        (here / name).write_bytes(content)
    with only(small_disk, free_kb):
        torch.manual_seed(0)
        with pytest.raises(DiskFull, match=r"The disk is full: .*run the same again"):
            KINDS[kind](here)
        left = files_below(here)
        assert {name: left[name] for name in earlier} == earlier
        if kind != "half weights":  # a stage's folder, which is not finished
            assert left.keys() == earlier.keys()
    torch.manual_seed(0)
    KINDS[kind](here)
    assert files_below(here) == wanted


def test_another_error_on_a_disk_with_room_keeps_its_name(tmp_path: Path) -> None:
    for error in (RuntimeError("of PyTorch"), OSError("without a number"), KeyError("x")):
        with pytest.raises(type(error)) as found, atomic_path(tmp_path / "a"):
            raise error
        assert found.value is error and list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------- a stage's steps
def test_a_stage_on_a_full_disk_goes_on_with_what_it_has(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its beginning, an item, its end, and the note for the runner."""

    def make(run: Path) -> None:
        stage = Stage(run, "selection", {"long": "x" * 5000}, modules=["core.errors"])
        folder = stage.begin()
        for number in range(20):
            if not (folder / f"{number}.json").is_file():
                write_json(folder / f"{number}.json", [number] * 3000)
        stage.finish()

    make(tmp_path / "elsewhere")
    wanted = files_below(tmp_path / "elsewhere" / "selection")
    made, run = 0, small_disk / "run"
    run.mkdir()
    for free_kb in (0, 8, 12, 28, 60, 120):
        with only(small_disk, free_kb), pytest.raises(DiskFull):
            make(run)
        left = files_below(run / "selection") if (run / "selection").is_dir() else {}
        kept = {name: data for name, data in left.items() if name != "in_progress.json"}
        assert len(kept) >= made and kept.items() <= wanted.items(), free_kb
        made = len(kept)
    assert made > 5
    monkeypatch.setenv(STAGE_LOG, str(small_disk / "noted"))
    (small_disk / "noted").touch()
    make(run)
    assert files_below(run / "selection") == wanted
    stage = Stage(run, "selection", {"long": "x" * 5000}, modules=["core.errors"])
    (small_disk / "noted").write_bytes(b"")
    with only(small_disk, 0), pytest.raises(DiskFull, match="noted"):
        stage.is_current()
    assert stage.is_current()


# -------------------------------------------------------------------------------------------- data
def test_data_that_fills_the_disk_while_it_is_prepared(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = resolve({"profile": "smoke", "train_images": 30, "val_images": 8})
    monkeypatch.setenv("D3S2_HOME", str(tmp_path / "elsewhere"))
    open_splits(settings, progress=False)
    monkeypatch.setenv("D3S2_HOME", str(small_disk / "home"))
    with only(small_disk, 200), pytest.raises(DiskFull, match=r"small disk.*run the same again"):
        open_splits(settings, progress=False)
    kept = {path: path.stat().st_mtime_ns for path in (small_disk / "home").rglob("*.png")}
    assert len(kept) > 5
    open_splits(settings, progress=False)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    found = [files_below(home / "data") for home in (small_disk / "home", tmp_path / "elsewhere")]
    assert found[0] == found[1] and len(found[0]) == 2 * 38 + 2


BODY = NOISE.tobytes() * 5


class Endless(BaseHTTPRequestHandler):
    """Says not how long it will be; sends the rest of a file to whoever has its beginning."""

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "bytes=0-")
        first = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(BODY) - 1}/{len(BODY)}")
        self.send_header("ETag", '"1"')
        self.end_headers()
        with suppress(OSError):  # who asked has gone
            self.wfile.write(BODY[first:])

    def log_message(self, *_: object) -> None:
        pass


def test_a_fetched_file_that_fills_the_disk(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    said: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url, path = f"http://127.0.0.1:{server.server_address[1]}/x", small_disk / "x.bin"
        with only(small_disk, 700):
            with pytest.raises(DiskFull, match=r"The disk is full: .*x\.bin"):
                fetch.download(url, path, report=said.append)
            assert not path.exists()
            begun = (small_disk / "x.bin.part").read_bytes()
            assert 2**16 < len(begun) and BODY.startswith(begun)
        fetch.download(url, path, report=said.append)
        server.shutdown()
    assert path.read_bytes() == BODY and f"on from {len(begun)}" in " ".join(said)


# --------------------------------------------------------------------------------------- trainings
def test_a_finished_training_is_copied_whole_or_not_at_all(
    small_disk: Path, tmp_path: Path
) -> None:
    run = small_disk / "run"
    write_finished_training(run / "superseded" / "a", "k")
    (run / "superseded" / "a" / "logs" / "long.log").write_bytes(bytes(500_000))
    before = files_below(run)
    job = make_job(tmp_path, run / "training" / "a")
    with only(small_disk, 200), pytest.raises(DiskFull):
        still_to_train([job], ["k"], run / "superseded")
    assert files_below(run) == before
    assert still_to_train([job], ["k"], run / "superseded") == []
    assert finished_key(job.work_dir) == "k"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """Data, an unbroken training on it, and the bytes of one of its checkpoints."""
    folder = tmp_path_factory.mktemp("unbroken")
    data = write_splits(folder / "data")
    job = make_job(data, folder / "work")
    train_all([job], progress=None)
    state = sum(path.stat().st_size for path in (folder / "work").glob("*.safetensors"))
    return data, folder / "work", 3 * state  # weights, and two moments of each


@pytest.mark.parametrize("where", ["first checkpoint", "second checkpoint", "weights"])
def test_a_training_that_fills_the_disk_goes_on_with_room(
    trained: tuple[Path, Path, int], tmp_path: Path, where: str
) -> None:
    data, unbroken, checkpoint = trained
    disk = tmp_path / "disk"
    disk.mkdir()
    size = 4 * checkpoint
    options = ["-t", "tmpfs", "-o", f"size={size}", "none", disk]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("only a user who may mount can make a small disk")
    share = {"first checkpoint": 0.5, "second checkpoint": 1.6, "weights": 0.2}[where]
    job = make_job(data, disk / "work", checkpoint_every=50 if where == "weights" else 1)
    logs = disk / "work" / "logs"
    try:
        with only(disk, int(share * checkpoint / 1024)):
            with pytest.raises(D3S2Error, match=r"disk is full: training 'tiny'") as found:
                train_all([job], progress=None)
            assert "Traceback" not in str(found.value) and "\n" not in str(found.value)
            assert finished_key(disk / "work") == ""
            assert len(list(logs.glob("checkpoint-*.pt"))) == (where == "second checkpoint")
        train_all([job], progress=None)
        for name in (RESULT, WEIGHTS, PREDICTIONS):
            assert (disk / "work" / name).read_bytes() == (unbroken / name).read_bytes(), name
        assert not list(disk.rglob(".*.part*"))
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_disk_without_room_is_asked_only_where_it_lies(small_disk: Path, tmp_path: Path) -> None:
    """A full disk somewhere else explains nothing."""
    with only(small_disk, 0), pytest.raises(RuntimeError), atomic_path(tmp_path / "a"):
        raise RuntimeError(f"not of {os.fspath(small_disk)}")
