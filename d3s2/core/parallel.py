"""Work that is a pure function of (inputs, item): in this process, in local processes, or on a Dask
cluster.

What a call gives depends only on the function, the item and the shared values, and callers cut
their work into items without asking how many workers there are. So where it runs decides nothing
but the time it takes. A task that was lost with its worker is given to another one.

Dask moves functions, items and results between its processes by pickle, without asking for a
password: a scheduler must listen on a trusted network only. "local" listens on loopback; nothing is
pickled without a scheduler.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from d3s2.core.code_version import code_version
from d3s2.core.errors import D3S2Error

SCHEDULER = "D3S2_SCHEDULER"
"""Environment variable, how a run tells its notebooks: empty = in this process, "local", or a
scheduler's address.
"""
CONNECT_SECONDS = 30


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
    # As tasks, the shared values can be made again when the workers that held them are gone;
    # scattered ones could not.
    warnings.filterwarnings("ignore", "Sending large graph")
    constants = [client.submit(_same, value, pure=False) for value in shared]
    futures = [client.submit(call, item, *constants, pure=False) for item in items]
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
        client.cancel([*futures, *constants])


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


def _task(function: Callable[..., Any], threads: int, version: str, item: Any, *shared: Any) -> Any:
    """What a worker does: the same call in the same conditions, or an error that says what
    differs.
    """
    found = _version(function)
    if found != version:
        raise D3S2Error(
            "The cluster's workers have other sources of d3s2 than this process: install the same "
            "version there."
        )
    if threads:
        import torch

        torch.set_num_threads(threads)  # how a sum is split can decide its last digit
    return function(item, *shared)


@functools.cache
def _version(function: Callable[..., Any]) -> str:
    module = function.__module__
    return code_version(module) if module.startswith("d3s2.") else ""


def _threads() -> int:
    return sys.modules["torch"].get_num_threads() if "torch" in sys.modules else 0


def _same(value: Any) -> Any:
    return value


def chunks(items: int, size: int) -> list[range]:
    """Consecutive ranges of at most `size` that cover 0 .. items - 1."""
    return [range(start, min(start + size, items)) for start in range(0, items, size)]


def with_bar(parts: Iterable[Any], total: int, label: str, progress: bool) -> Iterable[Any]:
    """The parts, with a progress bar on a terminal."""
    # disable=None: tqdm draws on a terminal only, so executed notebooks and logs stay clean
    return tqdm(parts, total=total, desc=label, disable=None if progress else True, leave=False)
