"""A generator of your own: a function that the setting `generator` names by module and name.

`package.module:function` is called as `stable_diffusion.load_stable_diffusion` is, with (options,
names, colors, device), and gives back what has the parts of a `LayoutGenerator`. `files(options)`
beside it, where its module has that, says which files it reads. The module is imported: its code
runs with your rights, because you named it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from d3s2.core.code_version import code_version, is_module
from d3s2.core.errors import D3S2Error
from d3s2.core.files import digest, sha256
from d3s2.models.diffusion_parts import DiffusionOptions

PARTS_OF_A_GENERATOR = (
    "unet",
    "schedule",
    "noise_shape",
    "decode",
    "render",
    "unconditioned",
    "num_classes",
    "bounded",
    "padded",
    "one_batch",
)
"""What the sampler and the painting of a set ask a generator for."""


def open_custom(
    name: str, options: DiffusionOptions, names: Sequence[str], colors: np.ndarray, device: str
) -> Any:
    """The generator that the function `name` makes.

    Raises D3S2Error for a function that cannot be found, and for a generator that lacks a part or
    was made for another number of classes.
    """
    generator = _function(name)(options, tuple(names), colors, device)
    for part in PARTS_OF_A_GENERATOR:
        if not hasattr(generator, part):
            raise D3S2Error(
                f"The generator of {name!r} lacks {part}: derive its class from "
                "d3s2.models.generator.LayoutGenerator, which says what each part is."
            )
    if not hasattr(generator.schedule, "steps"):
        raise D3S2Error(
            f"The schedule of {name!r} lacks steps: give a DiffusionSchedule or a FlowSchedule."
        )
    if generator.num_classes != len(names):
        raise D3S2Error(
            f"The generator of {name!r} is for {generator.num_classes} classes, the data has "
            f"{len(names)}: make it for those it is given the names of."
        )
    return generator


def files_of(name: str, options: DiffusionOptions) -> list[Path]:
    """The files that the function says it reads. Raises D3S2Error for one that is missing."""
    listed = getattr(_module(name), "files", None)
    paths = [Path(path) for path in listed(options)] if callable(listed) else []
    for path in paths:
        if not path.is_file():
            raise D3S2Error(f"{path}, which the generator {name!r} reads, is missing.")
    return paths


def code_of(name: str) -> str:
    """SHA-256 over the source that the function comes from: all modules of its package, or its own
    if it is in none; of d3s2's modules, what `code_version` covers.

    Raises D3S2Error for a module without a source.
    """
    module = _module(name)
    if is_module(module.__name__):
        return code_version(module.__name__)
    if module.__file__ is None:
        raise D3S2Error(f"The module of generator {name!r} has no source file.")
    top = importlib.import_module(module.__name__.partition(".")[0])
    if not hasattr(top, "__path__"):
        return sha256(Path(module.__file__))
    found = {}
    for folder in map(Path, top.__path__):
        for path in sorted(folder.rglob("*.py")):
            found[path.relative_to(folder).as_posix()] = sha256(path)
    return digest(found)


def _module(name: str) -> ModuleType:
    """The module of `package.module:function`. Raises D3S2Error where it cannot be imported."""
    place, _, _ = name.partition(":")
    try:
        return importlib.import_module(place)
    except Exception as error:  # whatever it is that a user's module raises
        raise D3S2Error(
            f"generator is {name!r} but {place} cannot be imported "
            f"({type(error).__name__}: {error}): install it beside d3s2, or put its folder on "
            "PYTHONPATH."
        ) from error


def _function(name: str) -> Callable[..., Any]:
    """What `package.module:function` names. Raises D3S2Error where nothing can be called there."""
    module = _module(name)
    _, _, function = name.partition(":")
    found = getattr(module, function, None)
    if not callable(found):
        what = "has no" if found is None else "has something that cannot be called under"
        raise D3S2Error(
            f"generator is {name!r} but {module.__name__} {what} {function!r}: name a function "
            "that takes (options, names, colors, device)."
        )
    return found
