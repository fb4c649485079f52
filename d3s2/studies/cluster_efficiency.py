"""What a cluster's workers add, and what goes to them: python -m d3s2.studies.cluster_efficiency

Feature statistics of embedded scenes by Dask workers of one thread each, on this machine: by one
worker, then by more. Efficiency is the time of one worker over the time of n times n; 1 = no second
is lost. Time is what a clock on the wall shows, so nothing else may run meanwhile, and where there
are more workers than cores no efficiency can be 1. Each number of workers has a process of its own,
whose first round, in which libraries and networks are loaded, does not count.

Beside it stands what the standard library's pool of as many processes reaches with the same items:
cores share memory and clock, and what that loses no cluster can win back.

What goes through the scheduler is counted as it is serialised: what all items share goes to each
worker once; an item goes there, and its result comes back. Dask's envelope of each task comes on
top.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import json
import multiprocessing
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from distributed import LocalCluster

from d3s2.core import machine, parallel
from d3s2.core.errors import D3S2Error, exit_code
from d3s2.core.places import EMBEDDED_WEIGHTS
from d3s2.data.dataset import SegmentationDataset
from d3s2.models.load import load_proxy
from d3s2.statistics.features import ClassMoments, feature_statistics
from d3s2.studies.drawn_masks import draw_scenes

BATCH = 8
"""Images of an item."""


def moments_of(indices: range, dataset: SegmentationDataset, proxy: Any) -> ClassMoments:
    """An item: feature statistics of the images at these positions."""
    return feature_statistics(dataset.subset(indices), proxy, BATCH, progress=False)


class Sent(NamedTuple):
    """Bytes: of what the items share, which each worker gets once; there and back for an image."""

    shared: int
    there: float
    back: float


def sent(dataset: SegmentationDataset, proxy: Any) -> Sent:
    """Count what `parallel` sends for the statistics of a data set."""
    item = range(min(BATCH, len(dataset)))
    result = moments_of(item, dataset, proxy)
    return Sent(
        len(parallel.packed((dataset, proxy))),
        len(pickle.dumps(item)) / len(item),
        len(pickle.dumps(result)) / len(item),
    )


def seconds_with(workers: int, images: int, rounds: int, folder: Path) -> float:
    """Median seconds of all items by so many workers, which this process starts and, at its end,
    stops.
    """
    dataset, proxy = draw_scenes(folder, images), load_proxy(EMBEDDED_WEIGHTS / "proxy")
    items = parallel.chunks(images, BATCH)
    cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
    atexit.register(cluster.close)  # after the client, which is made later
    address = cluster.scheduler_address
    return _median_seconds(
        lambda: parallel.ordered(moments_of, items, dataset, proxy, scheduler=address), rounds
    )


def seconds_without(workers: int, images: int, rounds: int, folder: Path) -> float:
    """Median seconds of all items by a pool of so many processes of one thread, without Dask."""
    dataset = draw_scenes(folder, images)
    items = parallel.chunks(images, BATCH)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, machine.set_threads, (1,)) as pool:
        item = functools.partial(_moments_in_pool, dataset)
        return _median_seconds(lambda: pool.map(item, items), rounds)


def _moments_in_pool(dataset: SegmentationDataset, indices: range) -> ClassMoments:
    return moments_of(indices, dataset, _proxy_of_this_process())


@functools.cache
def _proxy_of_this_process() -> Any:
    return load_proxy(EMBEDDED_WEIGHTS / "proxy")


def _median_seconds(results: Callable[[], Iterable[ClassMoments]], rounds: int) -> float:
    """Of so many rounds in which all results come back, after one that does not count."""
    spent = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        list(results())
        spent.append(time.perf_counter() - began)
    return statistics.median(spent[1:])


def table(
    seconds: Mapping[int, float], without: Mapping[int, float], images: int, cores: int
) -> str:
    """A line for each number of workers; the first one is what the others are compared with.

    seconds, without: number of workers to the seconds of all images, by Dask and by a pool.
    """
    dask, pool = efficiencies(seconds), efficiencies(without)
    lines = []
    for workers, spent in seconds.items():
        more = f", {workers} on {cores} cores" if workers > cores else ""
        rate = f"{images / spent:7.1f} images a second"
        beside = f"without Dask {without[workers]:7.2f} s   {pool[workers]:.2f}"
        lines.append(
            f"{workers:3d} workers {spent:7.2f} s {rate}   {dask[workers]:.2f}; {beside}{more}"
        )
    return "\n".join(lines)


def efficiencies(seconds: Mapping[int, float]) -> dict[int, float]:
    """Of each number of workers, by that of the first one."""
    first, alone = next(iter(seconds.items()))
    return {workers: first * alone / (workers * spent) for workers, spent in seconds.items()}


def _in_its_own_process(option: str, workers: int, images: int, rounds: int) -> float:
    given = {option: workers, "--images": images, "--rounds": rounds}
    words = [str(word) for pair in given.items() for word in pair]
    command = [sys.executable, "-m", "d3s2.studies.cluster_efficiency", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise D3S2Error(f"measuring {workers} workers failed: {done.stderr.strip()[-400:]}")
    return float(json.loads(done.stdout))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module's text; 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m d3s2.studies.cluster_efficiency", description="Measure Dask workers."
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="how many")
    parser.add_argument("--images", type=int, default=512, help="scenes in a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count")
    parser.add_argument("--one", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--one-pool", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)

    def work() -> None:
        if min(*options.workers, options.images, options.rounds) < 1:
            raise D3S2Error("workers, images and rounds count from 1.")
        images, rounds = options.images, options.rounds
        machine.set_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            if options.one:
                print(json.dumps(seconds_with(options.one, images, rounds, Path(folder))))
                return
            if options.one_pool:
                print(json.dumps(seconds_without(options.one_pool, images, rounds, Path(folder))))
                return
            found = sent(draw_scenes(Path(folder), BATCH), load_proxy(EMBEDDED_WEIGHTS / "proxy"))
        print(
            f"through the scheduler: {found.shared:,} bytes to each worker, then for an image "
            f"{found.there:.0f} there and {found.back:,.0f} back"
        )
        seconds, without = (
            {n: _in_its_own_process(option, n, images, rounds) for n in options.workers}
            for option in ("--one", "--one-pool")
        )
        print(table(seconds, without, images, machine.cores()))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
