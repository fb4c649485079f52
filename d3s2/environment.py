"""What a run has to work with: versions, device, cores, memory; and `check`, which says what is missing."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import re
import resource
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from d3s2 import artifacts, config
from d3s2.data.public import FORMATS, count_note
from d3s2.errors import D3S2Error

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
NEEDED_MEMORY_MB = 4096
NEEDED_DISK_MB = 1000


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
    """The versions in the checkout's constraints.txt by package name; empty when there is no checkout."""
    path = config.notebooks_folder().parent / "constraints.txt"
    if not path.is_file():
        return {}
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", path.read_text(encoding="utf-8"), re.MULTILINE))


def pick_device(choice: str = "auto") -> str:
    """ "cpu" or "cuda". Raises D3S2Error when "cuda" is asked for and PyTorch sees no GPU."""
    import torch

    if choice == "cuda" and not torch.cuda.is_available():
        raise D3S2Error("device is 'cuda' but PyTorch sees no GPU: use device=cpu, or mend the driver (nvidia-smi).")
    return ("cuda" if torch.cuda.is_available() else "cpu") if choice == "auto" else choice


def require_gpus(count: int) -> None:
    """Raise D3S2Error when PyTorch sees fewer than `count` GPUs."""
    import torch

    if torch.cuda.device_count() < count:
        raise D3S2Error(f"gpus is {count} but PyTorch sees {torch.cuda.device_count()}: set gpus to what `nvidia-smi` lists.")


def device_name(choice: str = "auto") -> str:
    """The device in words, e.g. "CPU, 4 cores" or the GPU's name."""
    if pick_device(choice) == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return f"CPU, {cores()} core{'s' if cores() > 1 else ''}"


def cores() -> int:
    """Cores that this process may use: its CPU affinity, and the container's quota where there is one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
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


# ----------------------------------------------------------------------------------------------------------- check
@dataclass(frozen=True)
class Check:
    """One line of `d3s2 check`."""

    ok: bool
    text: str

    def __str__(self) -> str:
        return f"[{'OK' if self.ok else 'FAIL'}] {self.text}"


def check(settings: config.Settings) -> Iterator[Check]:
    """What is installed, which device, and what of the profile's data and weights is missing; one `Check` a line."""
    version = platform.python_version()
    yield Check(sys.version_info[:2] == (3, 11), f"Python {version} (3.11 is needed)")
    yield from _check_versions()
    yield _check_mmseg()
    try:
        if pick_device(settings.device) == "cuda":
            require_gpus(settings.gpus)
        yield Check(True, f"device: {device_name(settings.device)}")
    except D3S2Error as error:
        yield Check(False, str(error))
    memory = memory_mb()
    yield Check(memory >= NEEDED_MEMORY_MB, f"memory: {memory} MB ({NEEDED_MEMORY_MB} MB are enough)")
    yield _check_folder(settings.run_dir)
    yield from _check_data(settings)
    yield from _check_weights(settings)


def _check_versions() -> Iterator[Check]:
    pins = pinned()
    for name, found in versions().items():
        pin = pins.get(name, found)
        if name == "python":
            continue
        fits = found.split("+")[0] == pin
        yield Check(fits, f"{name} {found}" + ("" if fits else f", but {pin} is pinned: run make run again"))


def _check_mmseg() -> Check:
    try:
        from d3s2 import mmcv_ops

        stand_in = mmcv_ops.install()
        import mmcv.ops  # noqa: F401 - importing is the test
        import mmseg.models  # noqa: F401
    except Exception as error:  # noqa: BLE001 - whatever it is, it becomes a line of the report
        return Check(False, f"mmsegmentation cannot be imported ({error}): delete .venv, then make run")
    return Check(True, f"mmsegmentation imports ({'operations in plain PyTorch' if stand_in else 'compiled operations'})")


def _check_folder(run_dir: str) -> Check:
    existing = next(path for path in (Path(run_dir), *Path(run_dir).parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        return Check(False, f"run folder {run_dir} cannot be written: choose another with run_dir")
    free = shutil.disk_usage(existing).free // 2**20
    return Check(free >= NEEDED_DISK_MB, f"run folder {run_dir} can be written, {free} MB free")


def _check_data(settings: config.Settings) -> Iterator[Check]:
    if settings.data_format == "scenes":
        yield Check(True, "data: scenes, drawn on first use")
    elif not settings.data_root:
        fetch = f"; fetch it with: d3s2 fetch {settings.data_format} /path/to/data" if settings.data_format in FORMATS else ""
        yield Check(False, f"data_format {settings.data_format!r} needs your folder: -p data_root=/path/to/data{fetch}")
    else:
        from d3s2.data import open_dataset

        for split in ("train", "val"):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # a number of images that surprises becomes a line of its own
                    dataset = open_dataset(settings.data_format, Path(settings.data_root), split)
                yield Check(True, f"data: {len(dataset)} {split} images, {dataset.num_classes} classes")
                if note := count_note(settings.data_format, split, len(dataset)):
                    yield Check(False, f"data: {note}")
            except D3S2Error as error:
                yield Check(False, f"data: {error}")


def _check_weights(settings: config.Settings) -> Iterator[Check]:
    from d3s2 import real_models

    yield from (Check(good, line) for good, line in real_models.check(settings))
    folder = config.weights_folder(settings)
    own = [part for part in ("proxy", "generator") if part not in real_models.parts(settings)]
    if settings.data_format != "scenes" and not folder.exists():
        if own:
            yield Check(True, f"weights: {' and '.join(own)} trained on first use, in the run folder")
        return
    for part in own:
        files = sorted((folder / part).rglob("*.safetensors"))
        yield Check(bool(files), f"weights: {part}" + ("" if files else f" is missing in {folder}"))
    record = folder / "weights.json"
    if record.is_file():
        files = artifacts.read_json(record)["files"]
        wrong = [name for name, entry in files.items()
                 if not (folder / name).is_file() or artifacts.sha256(folder / name) != entry["sha256"]]
        yield Check(not wrong, "weights: SHA-256 as recorded" if not wrong else f"weights: {wrong[0]} is damaged")


def _cgroup(name: str) -> str:
    try:
        return (_CGROUP / name).read_text()
    except OSError:
        return ""
