"""Work that is a pure function of (inputs, item): in this process, in local processes, or on a Dask
cluster.

What a call gives depends only on the function, the item and the shared values, and callers cut
their work into items without asking how many workers there are. So where it runs decides nothing
but the time it takes. A task that was lost with its worker is given to another one.

Dask moves functions, items and results between its processes by pickle, without asking for a
password: a scheduler must listen on a trusted network only. "local" listens on loopback; nothing is
pickled without a scheduler.

Networks do not travel: of each tensor that lies in a .safetensors file, bit by bit, only the place
is sent, and a worker reads it there, once a process. So workers must see these files at the same
paths, as they must the data. Whatever lies in no such file travels whole.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import io
import os
import pickle
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from d3s2.core.code_version import code_version
from d3s2.core.errors import D3S2Error
from d3s2.core.files import sha256
from d3s2.core.long_work import over

SCHEDULER = "D3S2_SCHEDULER"
"""Environment variable, how a run tells its notebooks: empty = in this process, "local", or a
scheduler's address.
"""
CONNECT_SECONDS = 30
_GLIBC_KEEPS = {-1: 256 * 2**20, -3: 32 * 2**20}
"""mallopt's M_TRIM_THRESHOLD, the bytes free at the end of the heap that are kept, and
M_MMAP_THRESHOLD, from which size on memory goes back to the system whenever it is freed; 32 MiB is
the most that glibc takes."""


def each(
    function: Callable[..., Any], items: Sequence[Any], *shared: Any, scheduler: str | None = None
) -> Iterator[tuple[int, Any]]:
    """(position, function(item, *shared)) of every item, as they become ready.

    function: of a module, so that workers can import it. scheduler: default, what the run was told
    (`SCHEDULER`).
    Raises what the function raises; D3S2Error for a cluster that cannot be reached, whose workers
    die again and again over the same item, or have other sources of d3s2.
    """
    where = os.environ.get(SCHEDULER, "") if scheduler is None else scheduler
    if where:
        yield from _on_dask(function, items, shared, where)
    else:
        yield from ((position, function(item, *shared)) for position, item in enumerate(items))


def ordered(
    function: Callable[..., Any], items: Sequence[Any], *shared: Any, scheduler: str | None = None
) -> Iterator[Any]:
    """The results of `each` in the order of the items."""
    early: dict[int, Any] = {}
    following = 0
    for position, result in each(function, items, *shared, scheduler=scheduler):
        early[position] = result
        while following in early:
            yield early.pop(following)
            following += 1


def own_core() -> int | None:
    """In a worker of the scheduler "local": the core that is this worker's alone; anywhere else
    None.

    Side by side, processes that each take all cores stall one another many times over.
    """
    from distributed import get_worker

    try:
        number = get_worker().name
    except ValueError:
        return None  # not in a worker
    counted = isinstance(number, int)  # as LocalCluster names its workers
    if not counted or not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    return cores[number % len(cores)]


def _on_dask(
    function: Callable[..., Any], items: Sequence[Any], shared: Sequence[Any], where: str
) -> Iterator[tuple[int, Any]]:
    from distributed import KilledWorker, as_completed

    client = _client(where)
    call = functools.partial(_task, function, _threads(), _version(function))
    # As a task, the shared values can be made again when the workers that held them are gone;
    # scattered ones could not.
    warnings.filterwarnings("ignore", "Sending large graph")
    constants = client.submit(_same, packed(shared), pure=False)
    futures = [client.submit(call, item, constants, pure=False) for item in items]
    places = {future.key: position for position, future in enumerate(futures)}
    try:
        for future in as_completed(futures, loop=client.loop):
            yield places[future.key], future.result()
    except KilledWorker as error:
        raise D3S2Error(
            f"Workers of the cluster {where!r} died again and again over the same item, most "
            "likely for want of memory: give them more, then run the same again."
        ) from error
    finally:
        client.cancel([*futures, constants])


@functools.cache
def _client(where: str) -> Any:
    """One connection a process and scheduler; with "local", that scheduler and its workers too, on
    loopback.
    """
    import dask
    from dask.system import CPU_COUNT
    from distributed import Client, LocalCluster

    dask.config.set({"distributed.comm.timeouts.connect": CONNECT_SECONDS})
    try:
        if where == "local":
            target = LocalCluster(n_workers=CPU_COUNT, threads_per_worker=1, dashboard_address=None)
            atexit.register(target.close)
        else:
            target = where
        client = Client(target, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise D3S2Error(
            f"scheduler is {where!r}, which does not answer ({error}): give the address that `dask "
            "scheduler` prints, such as tcp://host:8786, or 'local'."
        ) from error
    atexit.register(client.close)
    return client


def _task(
    function: Callable[..., Any], threads: int, version: str, item: Any, shared: bytes
) -> Any:
    """What a worker does: the same call in the same conditions, or an error that says what
    differs.
    """
    reuse_memory()
    found = _version(function)
    if found != version:
        raise D3S2Error(
            "The cluster's workers have other sources of d3s2 than this process: install the same "
            "version there."
        )
    if threads:
        import torch

        torch.set_num_threads(threads)  # how a sum is split can decide its last digit
    with _opening:  # one reads for all threads of this process
        values = _opened(shared)
    return function(item, *values)


@functools.cache
def reuse_memory() -> bool:
    """Let this process keep the memory of tensors it is done with, for the next ones, where the C
    library is glibc; whether it does.

    Dask starts its workers so that what is freed goes back to the system at once. Each new tensor
    then begins with the system clearing its pages: feature statistics take twice the time.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    taken = [library.mallopt(option, most) for option, most in _GLIBC_KEEPS.items()]
    return all(taken)


@functools.cache
def _version(function: Callable[..., Any]) -> str:
    module = function.__module__
    return code_version(module) if module.startswith("d3s2.") else ""


def _threads() -> int:
    return sys.modules["torch"].get_num_threads() if "torch" in sys.modules else 0


def _same(value: Any) -> Any:
    return value


# ------------------------------------------------------------------------------------ what is sent
class _Place(NamedTuple):
    """Where a tensor lies on disk, and what was made of it."""

    file: str
    checksum: str
    key: str
    dtype: str
    device: str
    is_parameter: bool
    requires_grad: bool


_opening = threading.Lock()
_read: WeakValueDictionary[_Place, Any] = WeakValueDictionary()
"""The tensors read in this process, as long as anybody uses them."""


def packed(value: Any) -> bytes:
    """Pickle a value, with places instead of the tensors that networks got from files."""
    stream = io.BytesIO()
    _pickler(stream).dump(value)
    return stream.getvalue()


@functools.lru_cache(maxsize=2)
def _opened(content: bytes) -> Any:
    """The reverse of `packed`, once a process. Raises D3S2Error where a file is not the same."""
    return _Unpickler(io.BytesIO(content)).load()


def _pickler(stream: io.BytesIO) -> Any:
    from cloudpickle import Pickler

    places: dict[int, _Place] = {}  # by the tensor's identity

    class PlacingPickler(Pickler):
        """A network comes before its tensors, and says where they lie."""

        def persistent_id(self, value: Any) -> _Place | None:
            torch = sys.modules.get("torch")
            if torch is None:
                return None
            if isinstance(value, torch.nn.Module):
                places.update(_places(value))
            return places.get(id(value)) if isinstance(value, torch.Tensor) else None

    return PlacingPickler(stream)


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, place: _Place) -> Any:
        if place not in _read:
            tensor = _load(place)
            _read[place] = tensor
            return tensor
        return _read[place]


def _places(network: Any) -> dict[int, _Place]:
    """Where the tensors lie of a network that diffusers or transformers loaded from a folder."""
    from safetensors import safe_open

    folder = getattr(getattr(network, "config", None), "_name_or_path", "")
    found: dict[int, _Place] = {}
    if not folder or not Path(folder).is_dir():
        return found
    for path in sorted(Path(folder).absolute().glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
            for name, tensor in network.state_dict(keep_vars=True).items():
                key = name if name in keys else name.partition(".")[2]
                if key in keys and _is_same(tensor, file.get_tensor(key)):
                    found[id(tensor)] = _place(path, key, tensor)
    return found


def _place(path: Path, key: str, tensor: Any) -> _Place:
    import torch

    return _Place(
        file=str(path),
        checksum=_checksum(str(path), path.stat().st_mtime_ns),
        key=key,
        dtype=str(tensor.dtype).removeprefix("torch."),
        device=str(tensor.device),
        is_parameter=isinstance(tensor, torch.nn.Parameter),
        requires_grad=tensor.requires_grad,
    )


def _is_same(tensor: Any, stored: Any) -> bool:
    """Whether a tensor is what the stored one becomes in its precision, on its device."""
    import torch

    if tensor.shape != stored.shape or not tensor.is_contiguous():
        return False
    return torch.equal(tensor.detach(), stored.to(tensor.device, tensor.dtype))


def _load(place: _Place) -> Any:
    import torch
    from safetensors import safe_open

    path = Path(place.file)
    if not path.is_file() or _checksum(place.file, path.stat().st_mtime_ns) != place.checksum:
        raise D3S2Error(
            f"{place.file} is missing on a worker, or another file than here: let the workers see "
            "the same files at the same paths."
        )
    with safe_open(path, framework="pt") as file:
        tensor = file.get_tensor(place.key).to(place.device, getattr(torch, place.dtype))
    if place.is_parameter:
        return torch.nn.Parameter(tensor, requires_grad=place.requires_grad)
    return tensor.requires_grad_(place.requires_grad)


@functools.cache
def _checksum(file: str, changed: int) -> str:
    """SHA-256 of a file, once a process as long as it is not `changed`."""
    return sha256(Path(file))


def chunks(items: int, size: int) -> list[range]:
    """Consecutive ranges of at most `size` that cover 0 .. items - 1."""
    return [range(start, min(start + size, items)) for start in range(0, items, size)]


def with_bar(parts: Iterable[Any], total: int, label: str, progress: bool) -> Iterator[Any]:
    """The parts, while it is shown how many of them are done (see `long_work`)."""
    return over(parts, total, label, progress)
