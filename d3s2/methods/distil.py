"""One distillation: a method, a world, a folder with an ordinary data set, its card and its bill.

A folder is named by what decides its bytes: the method's row and the code of its parts, the data
and networks, budget and seed. What is finished is only read; what changed lies elsewhere.
"""

from __future__ import annotations

import errno
import inspect
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from d3s2.core import machine
from d3s2.core.code_version import code_version, is_module
from d3s2.core.errors import D3S2Error
from d3s2.core.files import digest, read_json, write_json
from d3s2.data.folder import open_folder, read_classes
from d3s2.methods.method import Method, check_method
from d3s2.methods.world import World

BILL = "bill.json"
"""Written last: a folder with it is finished."""


@dataclass(frozen=True)
class Bill:
    """What a distilled set cost besides the networks, which all methods share.

    seconds_an_image: of one process; evaluations_an_image: images that the generator was asked
    about; peak_mb: of the process, the networks and Python included; png_kb: of all images; images:
    how many there are.
    """

    images: int
    seconds_an_image: float
    evaluations_an_image: float
    peak_mb: int
    png_kb: int


def distil(method: Method, world: World) -> Path:
    """The folder of a method's set, made or completed where it is not there.

    `world` is of the budget and the seed; it holds the set that the method builds on. Raises
    D3S2Error for a method without the members of `Method`, for whatever it takes without declaring
    it, and for one that fails: what it had finished is kept.
    """
    check_method(method)
    seen = world.seen_by(method.name, method.uses)
    folder = place_of(method, seen)
    if (folder / BILL).is_file():
        return folder
    before = len(list(folder.glob("records/*.json")))
    machine.forget_peak_memory()
    began, for_all = time.perf_counter(), world.shared.spent
    with _counted(world, method) as evaluations, _explained(method, folder):
        method.write(seen, folder)
    seconds = time.perf_counter() - began - (world.shared.spent - for_all)
    made = open_folder(folder, "train")
    new = max(1, len(made) - before)
    if not (folder / "card.json").is_file():
        write_json(folder / "card.json", _card(method, world, made.ids))
    written = sum(path.stat().st_size for path in made.image_paths)
    bill = {
        "images": len(made),
        "seconds_an_image": round(seconds / new, 3),
        "evaluations_an_image": round(evaluations[0] / new, 1),
        "peak_mb": machine.peak_memory(),
        "png_kb": round(written / 1000),
    }
    write_json(folder / BILL, bill)
    return folder


def read_bill(folder: Path) -> Bill:
    """What the set in this folder cost."""
    return Bill(**read_json(folder / BILL))


def place_of(method: Method, world: World) -> Path:
    """The folder of a method's set in this world."""
    row, modules = described(method)
    first = world.first_set(method.after).name if method.after else ""
    rule = list(world.shared.rule)
    code = code_version(*sorted(modules)) if modules else ""
    decides = digest([row, code, world.shared.fingerprint, rule, world.budget, world.seed, first])
    slug = method.name.replace(" ", "-")
    return world.shared.work / "sets" / f"{slug}-{world.budget}-{world.seed}-{decides[:8]}"


def described(value: Any) -> tuple[Any, set[str]]:
    """(what decides a value, as JSON can hold it, and the modules of d3s2 whose code it runs).

    Functions and classes count by their name and their module's sources; one that is written
    elsewhere, in a notebook, by its own source.
    """
    if isinstance(value, Mapping):
        parts = {str(key): described(each) for key, each in value.items()}
    elif isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (str, bytes)):
        ordered = sorted(value) if isinstance(value, (set, frozenset)) else value
        parts = {str(number): described(each) for number, each in enumerate(ordered)}
    elif inspect.isroutine(value) or inspect.isclass(value):
        return _described_code(value)
    elif isinstance(value, (str, int, float, bool, type(None))):
        return value, set()
    elif isinstance(value, Path):
        return str(value), set()
    else:
        names = [field.name for field in fields(value)] if is_dataclass(value) else vars(value)
        names = [name for name in names if name != "says"]  # words decide nothing
        parts = {name: described(getattr(value, name)) for name in names}
        parts["is"] = _described_code(type(value))
    found = {key: each for key, (each, _) in parts.items()}
    return found, set().union(*(modules for _, modules in parts.values()))


def _described_code(code: Any) -> tuple[str, set[str]]:
    name = f"{code.__module__}.{code.__qualname__}"
    if is_module(code.__module__):
        return name, {code.__module__}
    try:
        return f"{name}\n{inspect.getsource(code)}", set()
    except (OSError, TypeError):
        return name, set()


def _card(method: Method, world: World, ids: Sequence[str]) -> dict[str, Any]:
    """What a stranger needs to know of a set whose method writes no card of its own."""
    train = world.shared.train
    return {
        "name": f"{train.name}-{method.name}",
        "source": f"{train.name}/{train.split}",
        "images": len(ids),
        "of": len(train),
        "method": method.name,
        "says": method.says,
        "uses": sorted(method.uses),
        "seed": world.seed,
        "ids": list(ids),
    }


@contextmanager
def _counted(world: World, method: Method) -> Iterator[list[int]]:
    """Counts the images that the generator is asked about, in the one number of the list."""
    count = [0]
    if "generator" not in method.uses:
        yield count
        return
    network = world.shared.networks.generator.unet
    if not isinstance(network, nn.Module):
        yield count
        return

    def add(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        count[0] += len(inputs[0])

    hook = network.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        hook.remove()


@contextmanager
def _explained(method: Method, folder: Path) -> Iterator[None]:
    """Make one sentence of whatever a method's own code, or a hook of it, raises."""
    try:
        yield
    except D3S2Error:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        words = (str(error).strip().splitlines() or [""])[0]
        raise D3S2Error(
            f"{method.name} failed in {Path(place.filename).name}, line {place.lineno} "
            f"({type(error).__name__}{': ' if words else ''}{words}): mend it, then run the same "
            f"again; what is finished of its set is kept in {folder}."
        ) from error


def with_set(world: World, name: str, folder: Path) -> World:
    """The world in which this method's set is there.

    Raises D3S2Error for a set of other classes than the data's.
    """
    listed = folder / "classes.csv"
    train = world.shared.train
    if listed.is_file() and (found := read_classes(listed)[0]) != tuple(train.classes):
        pairs = zip(found, train.classes, strict=False)
        place = next((number for number, (a, b) in enumerate(pairs) if a != b), "")
        first = f", the first that differs is number {place}" if place != "" else ""
        raise D3S2Error(
            f"the set of {name!r} in {folder} has {len(found)} classes that are not the "
            f"{len(train.classes)} of {train.name}{first}: take one that was distilled from these "
            "data."
        )
    return replace(world, sets={**world.sets, name: folder})
