"""What chapters do, and say, when a GPU's memory is too small for what they do at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from d3s2.core.errors import D3S2Error

Found = TypeVar("Found")


def what_to_lower(images: int, batch: str, more: str) -> str:
    """The sentence for a GPU whose memory is too small for so many images at once.

    batch: the parameter that says how many, "" where none does; more: what else helps, also for a
    single image.
    """
    lower = f"lower {batch} or set" if batch else "set"
    several = f"{images} images at once: {lower} out_of_memory=halve, then take"
    case = several if images > 1 else "a single image: take"
    return f"The GPU's memory is too small for {case} {more}. What is finished is kept."


def in_halves(
    work: Callable[[Sequence], Found],
    items: Sequence,
    out_of_memory: str,
    batch: str,
    more: str,
) -> list[Found]:
    """[work(items)]; what is too much for the GPU's memory in two halves, and these in halves.

    work: what it gives for some items must not depend on the others, or be joined by the caller.
    out_of_memory: "stop", or "halve"; batch: the parameter that says how many items come at once,
    "" = none does; more: what else helps, also for a single item.
    Raises D3S2Error, with the sentence what to lower, where it stops.
    """
    try:
        return [work(items)]
    except torch.OutOfMemoryError as error:
        if out_of_memory == "stop" or len(items) == 1:
            raise D3S2Error(what_to_lower(len(items), batch, more)) from error
    torch.cuda.empty_cache()  # outside of the handler, whose error still holds the tensors
    middle = len(items) // 2
    halves = (items[:middle], items[middle:])
    found = [in_halves(work, half, out_of_memory, batch, more) for half in halves]
    return [*found[0], *found[1]]
