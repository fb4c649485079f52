"""The same bytes in this process and on Dask clusters: real schedulers, real worker processes, on
loopback.
"""

from __future__ import annotations

import ast
import os
import pickle
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from cluster_work import pages_cleared, power, refuse, slow_then_write
from small_scenes import small_scenes
from tiny_diffusion import save_tiny

from d3s2.core import machine, parallel
from d3s2.core.errors import D3S2Error
from d3s2.data.opening import open_dataset
from d3s2.models.generator import LayoutGenerator
from d3s2.models.load import load_generator, load_proxy
from d3s2.models.proxy import ProxySegmenter
from d3s2.models.stable_diffusion import DiffusionOptions, load_stable_diffusion
from d3s2.runs.config import PROFILES, Settings
from d3s2.statistics.features import feature_statistics
from d3s2.statistics.pixels import count_pixels

pytestmark = pytest.mark.processes


class Cluster:
    """A scheduler and workers as separate processes, as on a real cluster."""

    def __init__(self, folder: Path, workers: int):
        self.folder, self.processes = folder, []
        # Workers import the functions of this module too.
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        nanny = {"MALLOC_TRIM_THRESHOLD_": "65536"}  # as Dask's nannies start theirs
        self.environment = os.environ | {"PYTHONPATH": path} | nanny
        self._start(
            "scheduler", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"
        )
        self.address = self._read("scheduler", r"(tcp://127\.0\.0\.1:\d+)")
        for number in range(workers):
            self.add(number)

    def add(self, number: int) -> subprocess.Popen[bytes]:
        return self._start(
            f"worker{number}",
            "worker",
            self.address,
            "--nthreads",
            "1",
            "--no-dashboard",
            "--no-nanny",
        )

    def _start(self, log: str, *arguments: str) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{log}.log", "wb") as stream:
            command = [sys.executable, "-m", "dask", *arguments]
            command += ["--local-directory", str(self.folder)] if arguments[0] == "worker" else []
            process = subprocess.Popen(
                command, stdout=stream, stderr=stream, cwd=self.folder, env=self.environment
            )
        self.processes.append(process)
        return process

    def _read(self, log: str, pattern: str) -> str:
        end = time.monotonic() + 60
        while not (found := re.search(pattern, (self.folder / f"{log}.log").read_text())):
            assert time.monotonic() < end, (self.folder / f"{log}.log").read_text()
            time.sleep(0.1)
        return found.group(1)

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[Cluster]:
    made = Cluster(folder, workers)
    try:
        yield made
    finally:
        if (
            parallel._client.cache_info().currsize
        ):  # close our side first, or it tries to reconnect for a while
            parallel._client(made.address).close()
            parallel._client.cache_clear()
        made.stop()


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, 3) as made:
        yield made


def test_in_process_nothing_is_started() -> None:
    assert list(parallel.ordered(power, range(5), 2)) == [1, 2, 4, 8, 16]
    assert list(parallel.each(power, [], 2)) == []
    assert parallel._client.cache_info().currsize == 0


def test_results_keep_the_order_and_errors_arrive(three: Cluster) -> None:
    assert list(parallel.ordered(power, range(20), 3, scheduler=three.address)) == [
        3**n for n in range(20)
    ]
    assert dict(parallel.each(power, range(4), 3, scheduler=three.address)) == {
        n: 3**n for n in range(4)
    }
    with pytest.raises(D3S2Error, match="item 0 is no good"):
        list(parallel.each(refuse, [0], scheduler=three.address))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_freed_memory_is_used_again() -> None:
    code = (
        "from cluster_work import pages_cleared; from d3s2.core import parallel; "
        "first = pages_cleared(0, 2**23); "
        "print(first, parallel.reuse_memory(), pages_cleared(0, 2**23))"
    )
    environment = os.environ | {
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    said = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    before, done, after = said.split()
    assert done == "True" and int(after) < int(before) / 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_workers_use_freed_memory_again(three: Cluster) -> None:
    found = list(parallel.ordered(pages_cleared, range(3), 2**23, scheduler=three.address))
    assert max(found) < 40 * 2**23 // resource.getpagesize() / 10


def test_a_worker_killed_in_the_middle_loses_nothing(three: Cluster, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    victim = three.processes[1]
    done = []
    for _, item in parallel.each(slow_then_write, range(12), marks, scheduler=three.address):
        if not done:
            while not (mine := list(marks.glob(f"*-{victim.pid}"))):
                time.sleep(0.01)
            victim.send_signal(signal.SIGKILL)
            victim.wait()
        done.append(item)
    assert sorted(done) == list(range(12))
    started = sorted(int(path.name.split("-")[0]) for path in marks.iterdir())
    assert mine and len(started) > 12, "nothing had to be repeated, so the test showed nothing"


def test_no_worker_left_then_a_new_one(tmp_path: Path) -> None:
    with cluster(tmp_path, 1) as made:
        marks = tmp_path / "marks"
        marks.mkdir()
        results = parallel.each(slow_then_write, range(3), marks, scheduler=made.address)
        done = [next(results)]
        made.processes[1].kill()  # with it go the shared values it held
        made.add(9)
        assert dict([*done, *results]) == {0: 0, 1: 1, 2: 2}


def test_nobody_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "CONNECT_SECONDS", 1)
    for address in ("tcp://127.0.0.1:9", "nonsense"):
        with pytest.raises(D3S2Error, match="does not answer"):
            list(parallel.each(power, [1], 2, scheduler=address))


def test_workers_with_other_sources_are_refused() -> None:
    with pytest.raises(D3S2Error, match="other sources"):
        parallel._task(count_pixels, 0, "another version", None, b"")


# ------------------------------------------------------------------------------------ what is sent
def networks() -> tuple[LayoutGenerator, ProxySegmenter]:
    weights = Settings(**PROFILES["smoke"], profile="smoke").weights_folder
    return load_generator(weights / "generator"), load_proxy(weights / "proxy")


def outputs(generator: LayoutGenerator, proxy: ProxySegmenter) -> torch.Tensor:
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return torch.cat([generator.unet(x, torch.tensor(500), None, None), proxy(x).logits], 1)


def test_networks_are_sent_as_the_places_of_their_files() -> None:
    made = networks()
    small = len(parallel.packed(made))
    assert len(pickle.dumps(made)) > 10_000_000 and small < 400_000
    parallel._opened.cache_clear()
    again = parallel._opened(parallel.packed(made))
    assert torch.equal(outputs(*again), outputs(*made))
    assert not any(p.requires_grad for p in again[0].unet.parameters())
    assert parallel._opened(parallel.packed(made)) is again  # read once a process
    first = next(again[1].parameters())
    other = parallel._opened(parallel.packed((made[1], "another block")))
    assert next(other[0].parameters()) is first  # and not again for the next block


def test_stable_diffusion_is_sent_as_the_places_of_its_files(tmp_path: Path) -> None:
    names, colors = ("sky", "road"), np.array([[6, 230, 230], [140, 140, 140]], np.uint8)
    options = DiffusionOptions(*save_tiny(tmp_path), precision="float32")
    model = load_stable_diffusion(options, names, colors)
    parts = [model.unet.unet, model.unet.controlnet, model.vae, model.unet.prompts.encoder]
    places = {key: place for part in parts for key, place in parallel._places(part).items()}
    tensors = [tensor for part in parts for tensor in part.parameters()]
    assert {id(tensor) for tensor in tensors} <= set(places)  # not one of them travels
    again = parallel._opened(parallel.packed(model))
    z, layout = torch.randn(1, 4, 8, 8), torch.ones(1, 16, 16, dtype=torch.long)
    classes = torch.tensor([[0.0, 1.0]])
    for first, second in (
        (
            model.unet(z, torch.tensor(9), layout, classes),
            again.unet(z, torch.tensor(9), layout, classes),
        ),
        (model.decode(z), again.decode(z)),
    ):
        assert torch.equal(first, second)


def test_what_lies_in_no_file_travels_whole() -> None:
    generator, proxy = networks()
    with torch.no_grad():
        proxy.head.bias += 1  # trained further, say
    again = parallel._opened(parallel.packed((generator, proxy)))
    assert torch.equal(again[1].head.bias, proxy.head.bias)
    assert torch.equal(outputs(*again), outputs(generator, proxy))


def test_a_worker_with_other_weights_is_refused(tmp_path: Path) -> None:
    folder = Settings(**PROFILES["smoke"], profile="smoke").weights_folder / "proxy"
    shutil.copytree(folder, tmp_path / "proxy")
    sent = parallel.packed(load_proxy(tmp_path / "proxy"))
    weights = next((tmp_path / "proxy").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(D3S2Error, match="another file than here"):
        parallel._opened(sent)
    weights.unlink()
    with pytest.raises(D3S2Error, match="missing on a worker"):
        parallel._opened(sent)


# --------------------------------------------------------------------------- the project's own work
@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    small_scenes(folder, 150)
    return folder


def work(scenes: Path, folder: Path) -> dict[str, bytes]:
    """Statistics, feature statistics and synthesis with the shipped weights; the bytes of all that
    is written.
    """
    from d3s2.guidance.losses import FeatureTargets
    from d3s2.guidance.painting import Painter, Recipe, synthesise
    from d3s2.guidance.sampler import Guidance

    weights = Settings(**PROFILES["smoke"], profile="smoke").weights_folder
    train = open_dataset("folder", scenes, "train")
    proxy, generator = load_proxy(weights / "proxy"), load_generator(weights / "generator")
    count_pixels(train).save(folder / "counts.npz")
    moments = feature_statistics(train.subset(range(40)), proxy, batch_size=8)
    moments.save(folder / "moments.npz")
    recipe = Recipe(
        seed=3, steps=5, guidance=Guidance({"segmentation": 0.1, "feature": 0.1}), group=2
    )
    painter = Painter(generator, proxy, FeatureTargets.from_moments(moments))
    synthesise(painter, train, [5, 9, 2, 70], folder / "distilled", recipe)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_statistics_and_images_have_the_same_bytes_for_every_number_of_workers(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    alone = work(scenes, tmp_path / "alone")
    # both statistics; image, labels and record of four; classes, card and table of the set
    assert len(alone) == 2 + 3 * 4 + 3
    for workers in (1, 2, 3) if os.environ.get("D3S2_THOROUGH") else (2,):
        (tmp_path / str(workers)).mkdir()
        with cluster(tmp_path / str(workers), workers) as made:
            monkeypatch.setenv(parallel.SCHEDULER, made.address)
            assert work(scenes, tmp_path / f"with {workers}") == alone


def test_local_processes_on_loopback_end_with_the_run(scenes: Path, tmp_path: Path) -> None:
    code = f"""
import psutil
from d3s2.data.opening import open_dataset
from d3s2.statistics.pixels import count_pixels
if __name__ == "__main__":
    counts = count_pixels(open_dataset("folder", {str(scenes)!r}, "train"))
    counts.save({str(tmp_path / "counts.npz")!r})
    here = psutil.Process()
    for process in [here, *here.children(recursive=True)]:
        for connection in process.net_connections():
            assert connection.status != "LISTEN" or connection.laddr.ip == "127.0.0.1", connection
    print(len(here.children(recursive=True)), flush=True)
    import time; time.sleep(60)
"""
    (tmp_path / "script.py").write_text(code)
    script = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")],
        env=os.environ | {parallel.SCHEDULER: "local"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert int(script.stdout.readline()) >= 1
    children = psutil.Process(script.pid).children(recursive=True)
    script.kill()
    script.communicate()
    assert not psutil.wait_procs(children, timeout=20)[1]
    count_pixels(open_dataset("folder", scenes, "train")).save(tmp_path / "alone.npz")
    assert (tmp_path / "alone.npz").read_bytes() == (tmp_path / "counts.npz").read_bytes()
    assert np.load(tmp_path / "alone.npz", allow_pickle=False)["valid"].shape == (150,)


def test_local_workers_have_a_core_each_and_nobody_else_has(tmp_path: Path) -> None:
    """A run that a worker starts is bound to its core: on shared ones, runs that each take all
    cores stall one another.
    """
    (tmp_path / "script.py").write_text("""
from cluster_work import core
from d3s2.core import parallel
if __name__ == "__main__":
    print([found for _, found in parallel.each(core, range(16), scheduler="local")], flush=True)
""")
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(reversed(pair) for pair in ast.literal_eval(done.stdout))
    assert len(found) == len(set(found.values())) <= machine.cores()
    assert set(found.values()) <= os.sched_getaffinity(0)
    assert parallel.own_core() is None
