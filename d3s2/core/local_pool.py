"""Work by all cores of this machine, for what is no network: reading, resizing, writing files."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from d3s2.core.errors import D3S2Error
from d3s2.core.machine import cores
from d3s2.core.parallel import SCHEDULER, ordered
from d3s2.core.processes import PARENT, end_with_parent


def spread(
    function: Callable[..., Any], items: Sequence[Any], *shared: Any, processes: int = 0
) -> Iterator[Any]:
    """The results of `ordered`, where the run was told of no scheduler from processes of this
    machine; each of them works with one core.

    processes: at most, 0 = one a core; one does the work here. Raises what the function raises, of
    the first item in order; D3S2Error where a process dies.
    """
    count = min(processes or cores(), len(items))
    alone = count < 2 or multiprocessing.current_process().daemon  # which may have no children
    if alone or os.environ.get(SCHEDULER):
        yield from ordered(function, items, *shared)
        return
    pool = ProcessPoolExecutor(
        count,
        multiprocessing.get_context("spawn"),  # a fork would copy the threads' locks as they are
        initializer=_begin,
        initargs=(os.getpid(), function, shared),
    )
    try:
        yield from pool.map(_call, items)
    except BrokenProcessPool as error:
        raise D3S2Error(
            "A process that prepared files died, most likely for want of memory: free some, then "
            "run the same again; it goes on from there."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_given: list[Any] = []
"""In a process of `spread`: the function and the shared values."""


def _begin(parent: int, function: Callable[..., Any], shared: Sequence[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this one
    os.environ[PARENT] = str(parent)
    end_with_parent()
    _given[:] = function, shared


def _call(item: Any) -> Any:
    function, shared = _given
    return function(item, *shared)
