"""What the machine is found to be: versions, device, and the limits of cores and memory."""

from __future__ import annotations

import io
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from d3s2.core import machine
from d3s2.core.errors import D3S2Error

ASK = "from d3s2.core import machine; print(machine.cores(), machine.memory_mb())"


def ask(before: Callable[[], None]) -> tuple[int, int]:
    """(cores, memory in MiB) as a process finds them that `before` has limited."""
    done = subprocess.run(
        [sys.executable, "-c", ASK], preexec_fn=before, capture_output=True, text=True, check=True
    )
    cores, memory = map(int, done.stdout.split())
    return cores, memory


def test_versions_are_those_of_the_pins() -> None:
    pins, found = machine.pinned(), machine.versions()
    assert pins["torch"] == "2.13.0"
    for name in machine.PACKAGES:
        assert found[name].split("+")[0] == pins[name]


def test_importing_the_module_is_light() -> None:
    code = (
        "import sys, d3s2.core.machine; print(*{'torch', 'dask', 'distributed'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []


def test_threads_cores_and_memory() -> None:
    import torch

    before = torch.get_num_threads()
    assert machine.set_threads(1) == 1 == torch.get_num_threads()
    for threads in (0, 1024):
        assert machine.set_threads(threads) == machine.cores() == torch.get_num_threads()
    torch.set_num_threads(before)
    assert 0 < machine.peak_memory() < machine.memory_mb()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_freed_memory_is_kept_for_the_next_tensors() -> None:
    code = (
        "from cluster_work import pages_cleared; from d3s2.core import machine; "
        "first = pages_cleared(0, 2**23); machine.set_threads(1); "
        "print(first, pages_cleared(0, 2**23))"
    )
    environment = os.environ | {
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    said = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    before, after = map(int, said.split())
    assert after < before / 10


@pytest.mark.processes
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds to cores")
def test_a_process_bound_to_some_cores_finds_no_more() -> None:
    mine = sorted(os.sched_getaffinity(0))
    for bound in (mine[-1:], mine[:2]):
        found, _ = ask(lambda cores=bound: os.sched_setaffinity(0, cores))
        assert found == min(len(bound), machine.cores())
    assert machine.cores() <= len(mine)


@pytest.mark.processes
def test_a_process_with_less_memory_finds_no_more() -> None:
    _, free = ask(lambda: None)
    assert free == machine.memory_mb() <= total_mb()
    limit = 512 * 2**20
    _, found = ask(lambda: resource.setrlimit(resource.RLIMIT_RSS, (limit, limit)))
    assert found == min(512, free)


def total_mb() -> int:
    """Memory of the machine itself, in MiB."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20


FILES = {
    "no limits": {},
    "cgroup v1": {
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "1073741824\n",
    },
    "cgroup v2": {
        "/proc/self/cgroup": "0::/\n",
        "/sys/fs/cgroup/cpu.max": "150000 100000\n",
        "/sys/fs/cgroup/memory.max": "1073741824\n",
    },
    "cgroup v2 without limits": {
        "/proc/self/cgroup": "0::/\n",
        "/sys/fs/cgroup/cpu.max": "max 100000\n",
        "/sys/fs/cgroup/memory.max": "max\n",
    },
}


@pytest.mark.parametrize("name", FILES)
def test_the_limits_of_a_container_are_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What we count on the libraries for, whatever this machine's own container says."""
    import dask.system
    import distributed.system

    def opened(path: str, *_: object) -> io.StringIO:
        if path not in FILES[name]:
            raise FileNotFoundError(path)
        return io.StringIO(FILES[name][path])

    for module in (dask.system, distributed.system):
        monkeypatch.setattr(module, "open", opened, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(8)}, raising=False)
    monkeypatch.setattr(dask.system, "psutil", None)  # which asks for the affinity again
    limited = name in ("cgroup v1", "cgroup v2")
    assert machine.cores() == (2 if limited else 8)  # a core and a half are two
    assert machine.memory_mb() == (min(1024, total_mb()) if limited else total_mb())


def test_device() -> None:
    import torch

    assert machine.pick_device("cpu") == "cpu"
    if torch.cuda.is_available():
        assert machine.pick_device("auto") == machine.pick_device("cuda") == "cuda"
    else:
        assert machine.pick_device("auto") == "cpu"
        with pytest.raises(D3S2Error, match="no GPU"):
            machine.pick_device("cuda")
