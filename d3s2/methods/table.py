"""The table of methods: what a comparison can name.

A row says its masks, condition, start, losses, guidance rule, refinement and labels; what it leaves
out is D3S2's default. A reader's own method joins with `register`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from d3s2.core.errors import D3S2Error
from d3s2.guidance.painting import Condition, Recipe
from d3s2.guidance.sampler import Guidance
from d3s2.methods.diver import PullBack
from d3s2.methods.edits import Edits
from d3s2.methods.embeddings import pooled_features
from d3s2.methods.method import Method, check_method
from d3s2.methods.painted import Painted, Rank, greedy_masks
from d3s2.methods.photographs import (
    FACILITY_LOCATION,
    HERDING,
    K_CENTER,
    InFeatureSpace,
    Photographs,
    random_masks,
    rare_class_masks,
    uniform_masks,
)
from d3s2.methods.sfm import FlowMatched
from d3s2.methods.unidd import LAMBDA, FilterAndRelabel, classes_alone, nothing
from d3s2.methods.world import World
from d3s2.selection import Ranking

D3S2 = Guidance({"segmentation": 0.1, "feature": 0.1}, every=3)
"""What a run's profile asks for; see `guide_every` there."""
FROM_40 = 0.8
"""Strength of a run that begins with 40 of 50 steps left."""

EDITS_STRENGTH = 0.7
"""EDITS': share of the steps that its runs take from the medoid's photograph."""


@dataclass(frozen=True)
class EditsMasks:
    """EDITS' medoids in the order in which they are chosen; see `edits.Edits`."""

    how: Edits = field(default_factory=Edits)

    def __call__(self, world: World) -> Ranking:
        """As many as the budget."""
        train, proxy = world.train, world.proxy
        images = world.kept(
            "pooled", "d3s2.methods.embeddings", lambda: pooled_features(train, proxy)
        )
        texts = self.how.captions(train)
        found = self.how.choose_among(images, texts, world.counts, world.budget, world.seed)
        indices = np.array([one.index for one in found], dtype=np.int64)
        return Ranking(indices, np.full(len(indices), np.nan))


def _diver(first: str) -> Painted:
    return Painted(
        f"diver on {first}",
        f"painted anew from the images of {first!r}, pulled back to them",
        Recipe(strength=FROM_40),
        after=first,
        nudge=PullBack(),
    )


def _unidd(part: str, says: str, *, told: Condition, guided: bool, refined: bool) -> Painted:
    """A rung of UniDD's ladder; the whole has every part."""
    guidance = Guidance({"segmentation": LAMBDA}, (0.0, 1.0), "raw", "full")
    return Painted(
        f"unidd{part}",
        says,
        Recipe(guidance=guidance if guided else Guidance()),
        condition=told,
        refine=FilterAndRelabel() if refined else None,
        relabels=refined,
    )


def _coreset(name: str, rank: Rank, says: str, *, varies: bool) -> Photographs:
    also = frozenset({"proxy"}) if isinstance(rank, InFeatureSpace) else frozenset()
    return Photographs(name, rank, f"photographs, {says}", also, varies)


def _coresets() -> list[Method]:
    return [
        _coreset("random", random_masks, "drawn at random", varies=True),
        _coreset("uniform", uniform_masks, "round robin over the classes", varies=True),
        _coreset("rare classes", rare_class_masks, "rare classes drawn more often", varies=True),
        _coreset("k-center", K_CENTER, "farthest first in the proxy's features", varies=False),
        _coreset("herding", HERDING, "whose mean feature follows that of all", varies=False),
        _coreset("facility location", FACILITY_LOCATION, "one like every other", varies=False),
        _coreset("balanced", greedy_masks, "those of D3S2's masks", varies=False),
    ]


def _painters() -> list[Method]:
    return [
        Painted("unguided", "painted without guidance", Recipe()),
        Painted("d3s2", "painted with both of D3S2's losses", Recipe(guidance=D3S2)),
        _unidd(" plain", "painted, told nothing", told=nothing, guided=False, refined=False),
        _unidd(" + proxy", "the same, steered", told=nothing, guided=True, refined=False),
        _unidd(
            " + classes", "and told the classes", told=classes_alone, guided=True, refined=False
        ),
        _unidd("", "and filtered, relabelled", told=classes_alone, guided=True, refined=True),
        Painted(
            "edits",
            "photographs of medoids, painted over",
            Recipe(strength=EDITS_STRENGTH, guidance=Guidance(cfg_scale=2.0)),
            rank=EditsMasks(),
            also=frozenset({"images", "proxy"}),
        ),
        FlowMatched(),
        _diver("sfm"),
        _diver("d3s2"),
        _diver("random"),
    ]


def _rows() -> list[Method]:
    return [*_coresets(), *_painters()]


METHODS: dict[str, Method] = {row.name: row for row in _rows()}
"""All known methods by name, in the order of a table."""


def register(method: Method) -> Method:
    """Add a method of one's own to `METHODS`, or put it in the place of an earlier one of its own.

    Raises D3S2Error for one without the members of `Method`, and for the name of a method of this
    table.
    """
    check_method(method)
    if method.name in {row.name for row in _rows()}:
        raise D3S2Error(f"{method.name!r} is a method of this package: choose another name.")
    METHODS[method.name] = method
    return method


def find(name: str) -> Method:
    """A method by its name. Raises D3S2Error, listing them, for an unknown one."""
    if name not in METHODS:
        raise D3S2Error(f"there is no method {name!r}: choose of {', '.join(METHODS)}.")
    return METHODS[name]
