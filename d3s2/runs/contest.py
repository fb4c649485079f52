"""`d3s2 compare`: what methods are compared under follows from the settings of a run."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from d3s2.core import machine, parallel
from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.held_out import open_test
from d3s2.methods.comparison import Command, Contest, Series, budgets_in, measure
from d3s2.methods.intervals import read_measurement, table
from d3s2.methods.method import Method
from d3s2.methods.painted import Painted
from d3s2.methods.standings import (
    COMMAND,
    across_networks,
    details,
    file_of,
    measured_networks,
)
from d3s2.methods.table import METHODS, find
from d3s2.methods.world import Networks, SelectionRule, Shared
from d3s2.runs.execution import variable
from d3s2.runs.network_choice import training_data, training_network
from d3s2.runs.parameters import Settings
from d3s2.runs.run import Run
from d3s2.runs.weights import load_judge, load_models
from d3s2.selection import budget_size
from d3s2.training.job import TrainingJob
from d3s2.training.students import MASK2FORMER, NETWORK_NAMES, with_network

COPIES = re.compile(r"(.+) x ([1-9]\d*)")
"""The name of a row that paints several images of each mask: "d3s2 x 4"."""
PAINTED_OVER = re.compile(r"(.+) at (0\.\d+)")
"""The name of a row that paints over the photographs of its masks: "d3s2 at 0.5"."""

REFERENCE = Path(__file__).parents[1] / "studies" / "reference" / "comparison.csv"
"""A comparison that is committed; the JSON beside it says by which command."""


def open_contest(
    settings: Settings, work: Path, split: str = "val", scheduler: str = ""
) -> Contest:
    """What all methods are compared under in a run of these settings.

    work: where sets and trainings are kept; split: what trainings are judged on, "val", or "test",
    which scenes alone have; scheduler: where images are painted and trainings run, see `parallel`.
    Raises D3S2Error for another split.
    """
    if split not in ("val", "test"):
        raise D3S2Error(f"split is {split!r}: trainings are judged on 'val' or 'test'.")
    run = Run(settings)
    machine.set_threads(settings.threads)
    judged = run.val if split == "val" else open_test(settings, progress=False)
    rule = SelectionRule(settings.presence_threshold, settings.beta, settings.delta)
    return Contest(
        Shared(run.train, work, lambda: _networks(run), rule),
        _template(run, judged, split),
        METHODS,
        load_judge(run),
        settings.jobs,
        scheduler,
    )


def _networks(run: Run) -> Networks:
    models = load_models(run)
    return Networks(models.generator, models.proxy, models.digest())


def _template(run: Run, judged: SegmentationDataset, split: str) -> TrainingJob:
    """The training that every set gets, as chapter 04 trains."""
    settings = run.settings
    data = training_data(settings, run.train, judged)
    return TrainingJob(
        "template",
        num_classes=run.train.num_classes,
        work_dir="",
        val_split=split,
        iterations=settings.iterations,
        batch_size=settings.batch_size,
        size=run.train.read_image(0).shape[:2],
        device=run.device,
        out_of_memory=settings.out_of_memory,
        **data,
        **training_network(settings),
    )


# ------------------------------------------------------------------------------------ what is asked
def row_of(name: str) -> Method:
    """A method by its name; "d3s2 x 4" is `d3s2` with four images of each mask, "d3s2 at 0.5" is
    `d3s2` begun at the photographs of its masks, noised so far that half of the steps are left.

    Raises D3S2Error for an unknown one, for copies of a method that does not paint or a strength
    for it, and for a strength where runs have a start already.
    """
    if name in METHODS:
        return find(name)
    if copied := COPIES.fullmatch(name):
        return _with_copies(name, row_of(copied[1]), int(copied[2]))
    if begun := PAINTED_OVER.fullmatch(name):
        return _painted_over(name, row_of(begun[1]), float(begun[2]))
    return find(name)


def _with_copies(name: str, method: Method, copies: int) -> Method:
    if not isinstance(method, Painted) or copies < 2:
        raise D3S2Error(
            f"{name!r}: only methods that paint have several images of each mask, 2 or more; "
            f"{method.name} is {method.says!r}."
        )
    recipe = replace(method.recipe, images_per_mask=copies)
    return replace(method, name=name, recipe=recipe)


def _painted_over(name: str, method: Method, strength: float) -> Method:
    if not isinstance(method, Painted) or method.recipe.strength < 1:
        raise D3S2Error(
            f"{name!r}: only methods that paint from pure noise can begin at photographs instead; "
            f"{method.name} is {method.says!r}."
        )
    recipe = replace(method.recipe, strength=strength)
    return replace(method, name=name, recipe=recipe, says=f"{method.says}, over the photographs")


def rows_of(names: Sequence[str], images_per_mask: int = 1) -> list[Method]:
    """The methods of these names, () = all; those that paint with so many images of each mask.

    Raises D3S2Error as `row_of`, for a method that is named twice, and a number below 1.
    """
    if images_per_mask < 1:
        raise D3S2Error(f"images_per_mask is {images_per_mask}: it counts from 1.")
    rows = [row_of(name) for name in names or METHODS]
    if images_per_mask > 1:
        rows = [_copied(row, images_per_mask) for row in rows]
    twice = [row.name for row in rows if [each.name for each in rows].count(row.name) > 1]
    if twice:
        raise D3S2Error(f"method {twice[0]!r} is named twice: name each one once.")
    return rows


def _copied(row: Method, copies: int) -> Method:
    paints_one = isinstance(row, Painted) and row.recipe.images_per_mask == 1
    return row_of(f"{row.name} x {copies}") if paints_one else row


def networks_of(text: str) -> list[str]:
    """The networks in "mask2former,lraspp". Raises D3S2Error for an unknown one, and for none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in NETWORK_NAMES]
    if unknown or not names:
        raise D3S2Error(
            f"--networks has {unknown[0] if unknown else text!r}: choose of "
            f"{', '.join(NETWORK_NAMES)}."
        )
    return list(dict.fromkeys(names))


# ---------------------------------------------------------------------------------------- the whole
def compare(
    contest: Contest,
    out: Path,
    rows: Sequence[Method],
    budgets: Sequence[float],
    seeds: Sequence[int],
    distillations: int = 0,
    command: Command | None = None,
    networks: Sequence[str] = (MASK2FORMER,),
) -> None:
    """Measure these methods at these budgets, under one network after the other, each into a file
    of its own; see `comparison.measure` and `standings.file_of`.

    Raises D3S2Error for a budget that is none and a network that these data cannot have, and warns
    of a budget below one mask a class.
    """
    sizes = [budget_size(budget, len(contest.shared.train)) for budget in budgets]
    templates = {name: with_network(contest.template, name) for name in networks}
    known = {**contest.known, **{row.name: row for row in rows}}
    for sentence in _thin(sizes, contest.shared.train.num_classes):
        warnings.warn(sentence, stacklevel=2)
    series = Series(rows, sizes, list(seeds), distillations)
    scheduler = contest.scheduler or os.environ.get(parallel.SCHEDULER, "")
    with variable(parallel.SCHEDULER, scheduler):
        for name, template in templates.items():
            measure(
                replace(contest, template=template, known=known),
                file_of(out, name),
                series,
                command,
            )


def _thin(sizes: Sequence[int], num_classes: int) -> list[str]:
    """A sentence where a budget leaves some class without a mask of its own."""
    thin = [str(size) for size in sizes if size < num_classes]
    if not thin:
        return []
    return [
        f"a budget of {', '.join(thin)} masks is below one mask a class: there are {num_classes} "
        "classes, and methods that go class by class (uniform, edits) cannot reach them all."
    ]


def report(out: Path, against: Sequence[str] = ("random", "balanced", "unguided")) -> str:
    """The tables of a measurement, as Markdown: for each network and budget `intervals.table` and
    what stands in the other columns; then how the sets fare from network to network, see
    `standings`.

    Raises D3S2Error where nothing was measured.
    """
    files = measured_networks(out) or {MASK2FORMER: out}
    parts = []
    for network, path in files.items():
        trained = "" if network == MASK2FORMER else f", {network}"
        for budget in budgets_in(path):
            scores = table(read_measurement(path, COMMAND, budget), against)
            parts.append(f"{budget} masks{trained}\n\n{scores}\n{details(path, budget)}")
    for budget in sorted({budget for path in files.values() for budget in budgets_in(path)}):
        if beside := across_networks(out, budget):
            parts.append(f"{budget} masks, {' and '.join(files)}\n\n{beside}")
    return "\n".join(parts)
