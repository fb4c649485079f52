"""`d3s2 compare`: what methods are compared under follows from the settings of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from d3s2.core import machine
from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.held_out import open_test
from d3s2.methods.comparison import Command, Contest, Series, budgets_in, measure
from d3s2.methods.intervals import read_measurement, table
from d3s2.methods.table import METHODS, find
from d3s2.methods.world import Networks, SelectionRule, Shared
from d3s2.runs.network_choice import training_data, training_network
from d3s2.runs.parameters import Settings
from d3s2.runs.run import Run
from d3s2.runs.weights import load_judge, load_models
from d3s2.selection import budget_size
from d3s2.training.job import TrainingJob

REFERENCE = Path(__file__).parents[1] / "studies" / "reference" / "comparison.csv"
"""A comparison that is committed; the JSON beside it says by which command."""


def open_contest(settings: Settings, work: Path, split: str = "val") -> Contest:
    """What all methods are compared under in a run of these settings.

    work: where sets and trainings are kept; split: what trainings are judged on, "val", or "test",
    which scenes alone have. Raises D3S2Error for another split.
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


def compare(
    contest: Contest,
    out: Path,
    methods: Sequence[str],
    budgets: Sequence[float],
    seeds: Sequence[int],
    distillations: int = 0,
    command: Command | None = None,
) -> None:
    """Measure these methods, by name, at these budgets; see `comparison.measure`.

    Raises D3S2Error for an unknown method, and a budget that is none.
    """
    rows = [find(name) for name in methods]
    sizes = [budget_size(budget, len(contest.shared.train)) for budget in budgets]
    measure(contest, out, Series(rows, sizes, list(seeds), distillations), command)


def report(out: Path, against: Sequence[str] = ("random", "balanced", "unguided")) -> str:
    """The tables of a measurement, one a budget, as Markdown: see `intervals.table`."""
    parts = []
    for budget in budgets_in(out):
        found = read_measurement(out, "d3s2 compare", budget)
        parts.append(f"{budget} masks\n\n{table(found, against)}")
    return "\n".join(parts)
