"""What a run has to work with: versions, device, cores, memory.

Importing this module is light: PyTorch and Dask are imported by the functions that ask them.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

from d3s2.core import places
from d3s2.core.errors import D3S2Error

PACKAGES = (
    "torch",
    "onedl-mmengine",
    "onedl-mmcv",
    "onedl-mmdetection",
    "onedl-mmsegmentation",
    "diffusers",
    "transformers",
    "numpy",
    "scipy",
    "papermill",
)
"""What a result can depend on; their versions go into `run.json`."""


def versions() -> dict[str, str]:
    """Installed versions of Python and of `PACKAGES`; "missing" where there is none."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def pinned() -> dict[str, str]:
    """The versions in the checkout's constraints.txt by package name; empty when there is no
    checkout.
    """
    path = places.notebooks_folder().parent / "constraints.txt"
    if not path.is_file():
        return {}
    return dict(
        re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    )


def pick_device(choice: str = "auto") -> str:
    """ "cpu" or "cuda". Raises D3S2Error when "cuda" is asked for and PyTorch sees no GPU."""
    import torch

    if choice == "cuda" and not torch.cuda.is_available():
        raise D3S2Error(
            "device is 'cuda' but PyTorch sees no GPU: use device=cpu, or mend the driver "
            "(nvidia-smi)."
        )
    if choice != "auto":
        return choice
    return "cuda" if torch.cuda.is_available() else "cpu"


def require_gpus(count: int) -> None:
    """Raise D3S2Error when PyTorch sees fewer than `count` GPUs."""
    import torch

    if torch.cuda.device_count() < count:
        raise D3S2Error(
            f"gpus is {count} but PyTorch sees {torch.cuda.device_count()}: set gpus to what "
            "`nvidia-smi` lists."
        )


def device_name(choice: str = "auto") -> str:
    """The device in words, e.g. "CPU, 4 cores" or the GPU's name."""
    if pick_device(choice) == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return f"CPU, {cores()} core{'s' if cores() > 1 else ''}"


def cores() -> int:
    """Cores that this process may use, at least 1.

    Dask's answer: the least of the machine's cores, the CPU affinity, and the container's quota
    (cgroup v1 and v2), of which a part of a core counts as one.
    """
    from dask.system import cpu_count

    return cpu_count()


def memory_mb() -> int:
    """Memory that this process may use, in MiB.

    Dask's answer: the least of the machine's memory, the container's limit (cgroup v1 and v2, soft
    ones too), and the hard limit of resident memory (`ulimit -Hm`).
    """
    from distributed.system import memory_limit

    return memory_limit() // 2**20


def set_threads(threads: int = 0) -> int:
    """Let PyTorch use this many CPU threads, 0 = all `cores()`, and never more than those: then
    they only wait for each other. Returns the number.

    The memory of tensors that it is done with is kept for the next ones: left to itself, glibc
    gives much of it back, and the system clears the same pages anew at every step.
    """
    import torch

    from d3s2.core.parallel import reuse_memory

    reuse_memory()

    count = min(threads or cores(), cores())
    torch.set_num_threads(count)
    return count


def peak_memory() -> int:
    """Largest resident memory this process has had so far, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20


def forget_peak_memory() -> None:
    """Let `peak_memory` begin anew with what is in memory now; Linux alone can, elsewhere it
    stays.
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def facts(device: str = "auto") -> dict[str, object]:
    """What belongs into a run's record beside its settings: versions, device, cores, memory."""
    return {
        "versions": versions(),
        "device": device_name(device),
        "cores": cores(),
        "memory_mb": memory_mb(),
        "system": f"{platform.system()} {platform.machine()}",
    }
