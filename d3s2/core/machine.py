"""What a run has to work with: versions, device, cores, memory; and `check`, which says what is
missing.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import re
import resource
import sys
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
_CGROUP = Path("/sys/fs/cgroup")


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
    return ("cuda" if torch.cuda.is_available() else "cpu") if choice == "auto" else choice


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
    """Cores that this process may use: its CPU affinity, and the container's quota where there is
    one.
    """
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = _cgroup("cpu.max").split()
    if len(quota) == 2 and quota[0].isdecimal():
        allowed = min(allowed, math.ceil(int(quota[0]) / int(quota[1])))
    return max(allowed, 1)


def memory_mb() -> int:
    """Memory of the machine, or of the container where that is less, in MiB."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    limit = _cgroup("memory.max").strip()
    return min(total, int(limit) // 2**20) if limit.isdecimal() else total


def set_threads(threads: int = 0) -> int:
    """Let PyTorch use this many CPU threads, 0 = all `cores()`; returns the number."""
    import torch

    count = threads or cores()
    torch.set_num_threads(count)
    return count


def peak_memory() -> int:
    """Largest resident memory this process has had so far, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20


def facts(device: str = "auto") -> dict[str, object]:
    """What belongs into a run's record beside its settings: versions, device, cores, memory."""
    return {
        "versions": versions(),
        "device": device_name(device),
        "cores": cores(),
        "memory_mb": memory_mb(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cgroup(name: str) -> str:
    try:
        return (_CGROUP / name).read_text()
    except OSError:
        return ""
