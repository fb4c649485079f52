"""Many distillations and trainings, and the table that compares them.

Every (method, budget, seed) is a distillation of its own and a training on it, with one trainer,
the same starting weights and order of batches for all methods of a seed: ids are handed over
sorted. Of one seed, arms that draw share their draw and those that paint share the noise of each
mask. What is finished is only read, so that a call that was interrupted goes on, and a later one
adds rows.
"""

from __future__ import annotations

import csv
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json, write_csv, write_json
from d3s2.core.long_work import Steps
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.folder import open_folder
from d3s2.guidance.quality import recognition
from d3s2.methods.distil import distil, read_bill, with_set
from d3s2.methods.method import Method
from d3s2.methods.photographs import Photographs
from d3s2.methods.world import Shared, World
from d3s2.models.proxy import ProxySegmenter
from d3s2.training.job import TrainingJob, TrainingResult
from d3s2.training.on_cluster import train_spread
from d3s2.training.side_by_side import how_many_at_once, train_all
from d3s2.training.students import MASK2FORMER, network_of

HEADER = (
    "method",
    "budget",
    "seed",
    "distillation",
    "images",
    "miou",
    "head",
    "body",
    "tail",
    "judge",
    "seconds_an_image",
    "evaluations_an_image",
    "peak_mb",
    "png_kb",
    "split",
)
"""A row of a measurement; see `Row`."""
Place = tuple[str, int, int]
"""(method, budget, seed): one row."""


@dataclass(frozen=True)
class Series:
    """Which trainings are made: of each budget, a number of masks, each method with each seed.

    distillations: sets of each method that its seeds share, 0 = every seed has one of its own.
    """

    methods: Sequence[Method]
    budgets: Sequence[int]
    seeds: Sequence[int]
    distillations: int = 0

    def number(self, seed: int) -> int:
        """Which set (draw, noise) a seed is trained on."""
        return seed % self.distillations if self.distillations else seed

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.methods) * len(self.budgets) * len(self.seeds)


class Command(NamedTuple):
    """What makes a file, for its readers: how it begins, what names the methods, and whether it
    takes budgets. The other options follow from the rows.
    """

    begins: str
    methods: str = "--methods"
    says_budgets: bool = True


@dataclass(frozen=True)
class Contest:
    """What all methods are compared under.

    template: a training on any set, to which data, name and seed are given; known: all methods by
    name, for those that build on another's set; judge: a segmenter that guides nobody, or None;
    parallel: trainings side by side, 0 = one a core; scheduler: where they run instead, "local" or
    the address of a Dask cluster.
    """

    shared: Shared
    template: TrainingJob
    known: Mapping[str, Method]
    judge: ProxySegmenter | None = None
    parallel: int = 0
    scheduler: str = ""

    def world(self, method: Method, budget: int, number: int) -> World:
        """The world of a distillation, with the sets that the method builds on distilled first.

        Raises D3S2Error for a method after one that there is not, or after itself.
        """
        names = []
        world = World(self.shared, budget, number)
        while method.after:
            if method.after not in self.known or method.after in names:
                raise D3S2Error(
                    f"{method.name} builds on {method.after!r}: choose another one of "
                    f"{', '.join(self.known)}."
                )
            names.append(method.after)
            method = self.known[method.after]
        for name in reversed(names):
            world = with_set(world, name, distil(self.known[name], world))
        return world

    def folder(self, method: Method, budget: int, number: int) -> Path:
        """The folder of a method's set, made on first use."""
        return distil(method, self.world(method, budget, number))

    def opened(self, method: Method, budget: int, number: int) -> SegmentationDataset:
        """A method's set as data, made on first use; its images are those of its split `train`."""
        return open_folder(self.folder(method, budget, number), "train")

    def judged(self, folder: Path) -> float | str:
        """How much of the set in this folder the judge recognises, by class-mean recall; kept
        beside it. "" without a judge.
        """
        if self.judge is None:
            return ""
        kept = folder / "judged.json"
        if not kept.is_file():
            found = recognition(self.judge, open_folder(folder, "train"))
            write_json(kept, {"pixels": found.pixels, "class_mean": found.class_mean})
        return round(read_json(kept)["class_mean"], 4)

    def job(self, method: Method, seed: int, folder: Path) -> TrainingJob:
        """The training on a set with one seed."""
        network = network_of(self.template)
        place = f"{folder.name}-{'trained' if network == MASK2FORMER else network}-{seed}"
        return replace(
            self.template,
            name=f"{method.name} {seed}",
            train_root=str(folder.resolve()),
            train_format="folder",
            train_split="train",
            train_ids=tuple(sorted(open_folder(folder, "train").ids)),
            work_dir=str(self.shared.work / "training" / self.template.val_split / place),
            seed=seed,
        )

    def trained(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        """The results of these trainings, side by side or on the cluster."""
        if self.scheduler:
            return train_spread(jobs, self.scheduler)
        return train_all(jobs, self.parallel)


def measure(
    contest: Contest, out: Path, plan: Series, command: Command | None = None
) -> dict[Place, list[object]]:
    """Distil and train what is missing, and write `out`: one line a training (see `HEADER`), and
    beside it, as JSON, how it was measured. Written whenever all methods of some seeds are trained,
    so that what is interrupted leaves complete pairs. Methods come in the order in which the
    contest knows them.

    Raises D3S2Error for an `out` that was measured in another way.
    """
    facts = _facts(contest, plan)
    rows = earlier(out, facts)
    pairs = [(budget, seed) for seed in plan.seeds for budget in plan.budgets]
    together = _pairs_together(contest, len(plan.methods))
    with Steps("trainings", plan.count) as steps:
        for begin in range(0, len(pairs), together):
            some = pairs[begin : begin + together]
            rows |= _measure_pairs(contest, plan, some)
            _write(out, _in_order(rows, list(contest.known)), facts, command)
            steps.add(len(plan.methods) * len(some))
    return rows


def _pairs_together(contest: Contest, methods: int) -> int:
    """How many pairs of budget and seed are trained at once, so that no core of this machine waits
    for another: on two cores three methods take two seeds at a time, and two methods one.
    """
    if contest.scheduler:
        return 1
    at_once = how_many_at_once([contest.template], contest.parallel)
    return at_once // math.gcd(at_once, methods)


def _facts(contest: Contest, plan: Series) -> dict[str, object]:
    """How a file is measured, all rows of it alike; a network other than Mask2Former has a file of
    its own.
    """
    facts = {
        "iterations": contest.template.iterations,
        "batch_size": contest.template.batch_size,
        "judged_images": len(contest.template.val_ids or ()),
        "distillations": plan.distillations or "one a seed",
        "split": contest.template.val_split,
    }
    network = network_of(contest.template)
    return facts if network == MASK2FORMER else facts | {"network": network}


def _measure_pairs(
    contest: Contest, plan: Series, pairs: Sequence[tuple[int, int]]
) -> dict[Place, list[object]]:
    """The rows of these (budget, seed): all their sets, then all their trainings side by side."""
    folders = {
        (method.name, budget, seed): contest.folder(method, budget, plan.number(seed))
        for budget, seed in pairs
        for method in plan.methods
    }
    known = {method.name: method for method in plan.methods}
    jobs = [contest.job(known[name], seed, path) for (name, _, seed), path in folders.items()]
    results = contest.trained(jobs)
    return {
        place: _row(contest, known[place[0]], place, plan.number(place[2]), folder, result)
        for (place, folder), result in zip(folders.items(), results, strict=True)
    }


def _row(
    contest: Contest,
    method: Method,
    place: Place,
    number: int,
    folder: Path,
    result: TrainingResult,
) -> list[object]:
    _, budget, seed = place
    bill = read_bill(folder)
    makes = not isinstance(method, Photographs)
    return [
        method.name,
        budget,
        seed,
        number if method.varies else "",
        bill.images,
        round(result.miou, 3),
        *(round(value, 2) for value in class_thirds(contest.shared, result.per_class_iou)),
        contest.judged(folder),
        bill.seconds_an_image if makes else "",
        bill.evaluations_an_image if makes else "",
        bill.peak_mb,
        bill.png_kb,
        contest.template.val_split,
    ]


def class_thirds(shared: Shared, per_class: Sequence[float]) -> tuple[float, float, float]:
    """Mean IoU of the most frequent third of the classes (head), of the middle (body) and of the
    rarest (tail), by pixels of the training split; classes without an IoU do not count.
    """
    order = np.argsort(-shared.counts.pixel_counts(), kind="stable")
    values = np.array(per_class, dtype=np.float64)[order]
    means = [_mean(third) for third in np.array_split(values, 3)]
    return means[0], means[1], means[2]


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


# -------------------------------------------------------------------------------------- the file
def budgets_in(out: Path) -> list[int]:
    """The budgets of a measurement, ascending. Raises D3S2Error where there is none."""
    if not out.is_file():
        raise D3S2Error(f"{out} is missing: measure it with `d3s2 compare`.")
    with open(out, newline="", encoding="utf-8") as stream:
        return sorted({int(row["budget"]) for row in csv.DictReader(stream)})


def earlier(out: Path, facts: Mapping[str, object]) -> dict[Place, list[object]]:
    """The rows of a measurement before, which this one adds to. Raises D3S2Error for one that was
    made in another way.
    """
    if not out.is_file():
        return {}
    before = {"network": MASK2FORMER} | read_json(out.with_suffix(".json"))
    now = {"network": MASK2FORMER} | dict(facts)
    other = [name for name, value in now.items() if before.get(name) != value]
    if other:
        raise D3S2Error(
            f"{out} was measured with {other[0]} {before.get(other[0])}, now it is "
            f"{now[other[0]]}: give another file with --out, or delete this one to begin anew."
        )
    with open(out, newline="", encoding="utf-8") as stream:
        kept = list(csv.DictReader(stream))
    return {
        (row["method"], int(row["budget"]), int(row["seed"])): [row[name] for name in HEADER]
        for row in kept
    }


def _in_order(
    rows: Mapping[Place, list[object]], known: Sequence[str]
) -> dict[Place, list[object]]:
    """By budget, by method, as they are known and others after them, and by seed."""
    names = list(dict.fromkeys([*known, *(name for name, _, _ in rows)]))
    order = sorted(rows, key=lambda row: (row[1], names.index(row[0]), row[2]))
    return {place: rows[place] for place in order}


def _write(
    out: Path,
    rows: Mapping[Place, Sequence[object]],
    facts: Mapping[str, object],
    command: Command | None,
) -> None:
    write_csv(out, [HEADER, *rows.values()])
    said = {} if command is None else {"command": _whole(command, rows, facts)}
    write_json(out.with_suffix(".json"), said | dict(facts))


def _whole(
    command: Command, rows: Mapping[Place, Sequence[object]], facts: Mapping[str, object]
) -> str:
    """The command that makes all these rows."""
    names, budgets, seeds = (list(dict.fromkeys(each)) for each in zip(*rows, strict=True))
    words = ["--budgets", ",".join(map(str, sorted(budgets)))] if command.says_budgets else []
    words += ["--seeds", str(max(seeds) - min(seeds) + 1)]
    if min(seeds):
        words += ["--seeds-from", str(min(seeds))]
    if facts["distillations"] != "one a seed":
        words += ["--distillations", str(facts["distillations"])]
    if facts["split"] != "val":
        words += ["--split", str(facts["split"])]
    if "network" in facts:
        words += ["--networks", str(facts["network"])]
    return f"{command.begins} {shlex.join([*words, command.methods, *names])}"
