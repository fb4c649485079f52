"""The table of methods: what a comparison can name.

A row says its masks, condition, start, losses, guidance rule, refinement and labels; what it leaves
out is D3S2's default. A reader's own method joins with `register`.
"""

from __future__ import annotations

from d3s2.core.errors import D3S2Error
from d3s2.guidance.painting import Recipe
from d3s2.guidance.sampler import Guidance
from d3s2.methods.diver import PullBack
from d3s2.methods.painted import Painted, greedy_masks
from d3s2.methods.photographs import Photographs, random_masks, uniform_masks
from d3s2.methods.protocol import Method

D3S2_LOSSES = {"segmentation": 0.1, "feature": 0.1}
FROM_40 = 0.8
"""Strength of a run that begins with 40 of 50 steps left."""


def _diver(first: str) -> Painted:
    return Painted(
        f"diver on {first}",
        f"painted anew from the images of {first!r}, pulled back to them",
        Recipe(strength=FROM_40),
        after=first,
        nudge=PullBack(),
    )


def _rows() -> list[Method]:
    return [
        Photographs("random", random_masks, "photographs drawn at random"),
        Photographs("uniform", uniform_masks, "photographs, round robin over the classes"),
        Photographs("balanced", greedy_masks, "the photographs of D3S2's masks", varies=False),
        Painted("unguided", "painted without guidance", Recipe()),
        Painted(
            "d3s2", "painted with both of D3S2's losses", Recipe(guidance=Guidance(D3S2_LOSSES))
        ),
        _diver("d3s2"),
        _diver("balanced"),
    ]


METHODS: dict[str, Method] = {row.name: row for row in _rows()}
"""All known methods by name, in the order of a table."""


def register(method: Method) -> Method:
    """Add a method of one's own to `METHODS`, or put it in the place of an earlier one of its own.

    Raises D3S2Error for one without the members of `Method`, and for the name of a method of this
    table.
    """
    if not isinstance(method, Method):
        wanted = "name, says, uses, after, varies and write"
        raise D3S2Error(f"{method!r} is no method: it must have {wanted} (see ByExamples).")
    if method.name in {row.name for row in _rows()}:
        raise D3S2Error(f"{method.name!r} is a method of this package: choose another name.")
    METHODS[method.name] = method
    return method


def find(name: str) -> Method:
    """A method by its name. Raises D3S2Error, listing them, for an unknown one."""
    if name not in METHODS:
        raise D3S2Error(f"there is no method {name!r}: choose of {', '.join(METHODS)}.")
    return METHODS[name]
