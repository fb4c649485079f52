"""Distillations and trainings of several methods: what pairs share, and how it goes on."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_scenes import small_scenes
from tiny_painter import tiny_proxy

from d3s2.core.errors import D3S2Error
from d3s2.data.scenes import write_split
from d3s2.guidance.painting import Recipe
from d3s2.methods import comparison
from d3s2.methods.comparison import (
    HEADER,
    Command,
    Contest,
    Series,
    budgets_in,
    class_thirds,
    earlier,
    measure,
)
from d3s2.methods.intervals import read_measurement
from d3s2.methods.painted import Painted, greedy_masks
from d3s2.methods.photographs import Photographs, random_masks
from d3s2.training.job import TrainingJob, TrainingResult
from d3s2.training.students import with_network

RANDOM = Photographs("random", random_masks)
BALANCED = Photographs("balanced", greedy_masks, varies=False)
PLAIN = Painted("plain", "", Recipe(steps=5))
OVER = Painted("over", "", Recipe(steps=5, strength=0.8), after="random")
TWICE = replace(OVER, name="twice", after="over")
KNOWN = {row.name: row for row in (RANDOM, BALANCED, PLAIN, OVER, TWICE)}


@pytest.fixture
def contest(world, scenes, tmp_path) -> Contest:
    shared = replace(world.shared, work=tmp_path / "work")
    shared.counts, shared.moments = world.shared.counts, world.shared.moments
    template = TrainingJob(
        "template",
        train_root=str(scenes.root),
        val_root=str(scenes.root),
        num_classes=20,
        work_dir="",
        val_split="train",
        val_ids=scenes.ids[:3],
        iterations=2,
        batch_size=2,
    )
    return Contest(shared, template, KNOWN, tiny_proxy(), parallel=1)


@pytest.fixture
def quick(monkeypatch) -> list[list[TrainingJob]]:
    """Series whose score follows from their job; the lists in which they were asked for."""
    asked: list[list[TrainingJob]] = []

    def trained(jobs, parallel):
        asked.append(list(jobs))
        return [result_of(job) for job in jobs]

    monkeypatch.setattr(comparison, "train_all", trained)
    return asked


def result_of(job: TrainingJob) -> TrainingResult:
    score = float(len(job.name) + job.seed)
    per_class = tuple(float(c) for c in range(20))
    return TrainingResult(
        job.name, score, per_class, (), 1, len(job.train_ids), job.iterations, job.seed, "key"
    )


def rows_of(out: Path) -> list[dict[str, str]]:
    with open(out, newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_line_a_training_with_its_facts_beside(contest, quick, tmp_path):
    out = tmp_path / "out.csv"
    measure(
        contest, out, Series([RANDOM, PLAIN, BALANCED], [4, 2], [0, 1]), Command("d3s2 compare")
    )
    rows = rows_of(out)
    assert list(rows[0]) == list(HEADER) and len(rows) == 12
    assert [(row["method"], row["budget"], row["seed"]) for row in rows[:4]] == [
        ("random", "2", "0"),
        ("random", "2", "1"),
        ("balanced", "2", "0"),
        ("balanced", "2", "1"),
    ]
    assert {row["distillation"] for row in rows if row["method"] == "balanced"} == {""}
    assert [row["distillation"] for row in rows if row["method"] == "plain"] == list("0101")
    assert all(int(row["images"]) == int(row["budget"]) for row in rows)
    assert all(0 <= float(row["judge"]) <= 1 for row in rows)
    painted = [row for row in rows if row["method"] == "plain" and row["budget"] == "4"]
    assert all(row["evaluations_an_image"] == "5.0" for row in painted)
    facts = json.loads(out.with_suffix(".json").read_text())
    assert facts["iterations"] == 2 and facts["judged_images"] == 3 and facts["split"] == "train"
    assert facts["command"] == (
        "d3s2 compare --budgets 2,4 --seeds 2 --split train --methods random balanced plain"
    )
    found = read_measurement(out, "d3s2 compare", 4)
    assert found.scores["random"] == {0: 8.0, 1: 9.0} and set(found.seconds) == {"plain"}
    assert found.unit("plain") == "distillation" and found.unit("balanced") == "training"
    assert budgets_in(out) == [2, 4]
    with pytest.raises(D3S2Error, match="has no budget of 3 masks: it has 2, 4"):
        read_measurement(out, "d3s2 compare", 3)


def test_pairs_share_masks_order_and_seed(contest, quick, tmp_path):
    plan = Series([BALANCED, PLAIN, RANDOM, OVER], [4], [5])
    measure(contest, tmp_path / "out.csv", plan)
    (jobs,) = quick
    by_name = {job.name: job for job in jobs}
    assert by_name["balanced 5"].train_ids == by_name["plain 5"].train_ids
    assert by_name["random 5"].train_ids == by_name["over 5"].train_ids
    assert all(job.train_ids == tuple(sorted(job.train_ids)) and job.seed == 5 for job in jobs)
    assert len({job.train_root for job in jobs}) == len({job.work_dir for job in jobs}) == 4
    assert {job.val_ids for job in jobs} == {contest.template.val_ids}


def test_a_second_call_adds_rows_and_distils_nothing_again(contest, quick, tmp_path):
    out = tmp_path / "out.csv"
    measure(contest, out, Series([RANDOM], [4], [0]))
    sets = contest.shared.work / "sets"
    before = {path: path.stat().st_mtime_ns for path in sets.rglob("*")}
    measure(contest, out, Series([PLAIN, RANDOM], [4], [0, 1]))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [(row["method"], row["seed"]) for row in rows_of(out)] == [
        ("random", "0"),
        ("random", "1"),
        ("plain", "0"),
        ("plain", "1"),
    ]
    longer = replace(contest, template=replace(contest.template, iterations=3))
    with pytest.raises(D3S2Error, match="measured with iterations 2, now it is 3: give another"):
        measure(longer, out, Series([RANDOM], [4], [0]))


def test_what_is_interrupted_leaves_whole_pairs(contest, quick, tmp_path, monkeypatch):
    out = tmp_path / "out.csv"
    train = comparison.train_all

    def dies_at_seed_1(jobs, parallel):
        if jobs[0].seed == 1:
            raise KeyboardInterrupt
        return train(jobs, parallel)

    monkeypatch.setattr(comparison, "train_all", dies_at_seed_1)
    with pytest.raises(KeyboardInterrupt):
        measure(contest, out, Series([RANDOM, BALANCED], [4], [0, 1]))
    assert [(row["method"], row["seed"]) for row in rows_of(out)] == [
        ("random", "0"),
        ("balanced", "0"),
    ]


@pytest.mark.parametrize(
    ("methods", "budgets", "parallel", "scheduler", "trained_together"),
    [
        (["random", "plain"], [4], 2, "", [2, 2, 2]),  # a seed at a time fills both cores
        (["random"], [4], 2, "", [2, 1]),
        (["random", "plain", "balanced"], [4], 2, "", [6, 3]),
        (["random", "plain", "balanced"], [4], 1, "", [3, 3, 3]),
        (["random"], [2, 4], 4, "", [4, 2]),
        (["random"], [4], 2, "local", [1, 1, 1]),  # a cluster's size is not known here
    ],
)
def test_no_core_waits_while_seeds_are_left(
    contest, quick, tmp_path, monkeypatch, methods, budgets, parallel, scheduler, trained_together
):
    asked = []

    def trained(jobs, where):
        asked.append(len(jobs))
        return [result_of(job) for job in jobs]

    monkeypatch.setattr(comparison, "train_all", trained)
    monkeypatch.setattr(comparison, "train_spread", trained)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    contest = replace(contest, parallel=parallel, scheduler=scheduler)
    out = tmp_path / "out.csv"
    rows = measure(contest, out, Series([KNOWN[name] for name in methods], budgets, [0, 1, 2]))
    assert asked == trained_together
    assert len(rows) == len(rows_of(out)) == 3 * len(methods) * len(budgets)
    for (name, budget, seed), row in rows.items():
        assert row[:3] == [name, budget, seed] and row[4] == budget
        assert row[5] == len(f"{name} {seed}") + seed  # see `result_of`


def test_sets_are_shared_on_request(contest, quick, tmp_path):
    out = tmp_path / "out.csv"
    measure(contest, out, Series([RANDOM], [4], [0, 1, 2], distillations=2))
    assert [row["distillation"] for row in rows_of(out)] == ["0", "1", "0"]
    (first, *_, last) = [jobs[0] for jobs in quick]
    assert first.train_root == last.train_root and first.work_dir != last.work_dir


def test_a_chain_is_distilled_from_its_beginning(contest, quick, tmp_path):
    folder = contest.folder(TWICE, 4, 0)
    names = {path.name.split("-4-")[0] for path in (contest.shared.work / "sets").iterdir()}
    assert names == {"random", "over", "twice"} and folder.name.startswith("twice-4-0-")


def test_a_method_after_itself_or_after_nobody_is_refused(contest):
    lost = replace(OVER, name="lost", after="nobody")
    with pytest.raises(D3S2Error, match="lost builds on 'nobody': choose another one of random"):
        contest.folder(lost, 4, 0)
    a, b = replace(OVER, name="a", after="b"), replace(OVER, name="b", after="a")
    round_about = replace(contest, known={"a": a, "b": b})
    with pytest.raises(D3S2Error, match="builds on"):
        round_about.folder(a, 4, 0)


def test_thirds_go_from_the_most_to_the_least_frequent_class(contest):
    order = np.argsort(-contest.shared.counts.pixel_counts(), kind="stable")
    per_class = np.empty(20)
    per_class[order] = np.arange(20)
    head, body, tail = class_thirds(contest.shared, per_class)
    assert (head, body, tail) == (3.0, 10.0, 16.5)  # of 7, 7 and 6 classes
    per_class[order[-1]] = math.nan
    assert class_thirds(contest.shared, per_class)[2] == 16.0


def test_a_set_is_opened_as_data_and_judged_once(contest):
    folder, made = contest.folder(BALANCED, 3, 0), contest.opened(BALANCED, 3, 0)
    assert made.split == "train" and made.root == folder and len(made) == 3
    found = contest.judged(folder)
    kept = json.loads((folder / "judged.json").read_text())
    assert found == round(kept["class_mean"], 4) and 0 <= found <= 1
    (folder / "judged.json").write_text(json.dumps(kept | {"class_mean": 0.25}))
    assert contest.judged(folder) == 0.25
    assert replace(contest, judge=None).judged(folder) == ""


def test_another_split_and_no_judge(contest, quick, tmp_path):
    out = tmp_path / "out.csv"
    blind = replace(contest, judge=None)
    measure(blind, out, Series([RANDOM], [4], [0]))
    assert rows_of(out)[0]["judge"] == ""
    assert earlier(out, {"split": "train"})["random", 4, 0][0] == "random"
    with pytest.raises(D3S2Error, match="measured with split train, now it is test"):
        earlier(out, {"split": "test"})


def test_another_network_has_folders_and_a_file_of_its_own(contest, quick, tmp_path):
    out, other = tmp_path / "out.csv", tmp_path / "out-unet.csv"
    command = Command("d3s2 compare")
    measure(contest, out, Series([RANDOM], [4], [0]), command)
    unet = replace(contest, template=with_network(contest.template, "unet"))
    measure(unet, other, Series([RANDOM], [4], [0]), command)
    (first,), (second,) = quick
    assert second.student == "unet" and first.train_root == second.train_root
    assert Path(first.work_dir).name == Path(second.work_dir).name.replace("-unet-", "-trained-")
    assert len(list((contest.shared.work / "sets").iterdir())) == 1  # distilled once
    assert list(rows_of(out)[0]) == list(rows_of(other)[0]) == list(HEADER)
    facts = [json.loads(path.with_suffix(".json").read_text()) for path in (out, other)]
    assert "network" not in facts[0] and facts[1]["network"] == "unet"
    assert facts[1]["command"].endswith("--networks unet --methods random")
    with pytest.raises(D3S2Error, match="measured with network mask2former, now it is unet"):
        measure(unet, out, Series([RANDOM], [4], [1]))
    with pytest.raises(D3S2Error, match="measured with network unet, now it is mask2former"):
        measure(contest, other, Series([RANDOM], [4], [1]))


def test_a_file_of_before_there_were_other_networks_gets_more_rows(contest, quick, tmp_path):
    out = tmp_path / "out.csv"
    line = "random,4,0,0,4,41.5,50.0,40.0,30.0,0.9,,,900,30,train"
    out.write_text(",".join(HEADER) + f"\n{line}\n")
    facts = {"iterations": 2, "batch_size": 2, "judged_images": 3}
    facts |= {"command": "d3s2 compare", "distillations": "one a seed", "split": "train"}
    out.with_suffix(".json").write_text(json.dumps(facts))
    measure(contest, out, Series([RANDOM], [4], [1]))
    lines = out.read_text().splitlines()
    assert lines[1] == line and lines[2].startswith("random,4,1,1,4,9.0,")


def test_on_a_cluster_trainings_are_its_tasks(contest, tmp_path, monkeypatch):
    asked = []

    def spread(jobs, scheduler):
        asked.append((len(jobs), scheduler))
        return [result_of(job) for job in jobs]

    monkeypatch.setattr(comparison, "train_spread", spread)
    measure(replace(contest, scheduler="local"), tmp_path / "o.csv", Series([RANDOM], [4], [0]))
    assert asked == [(1, "local")] and len(rows_of(tmp_path / "o.csv")) == 1


class Hasty(Painted):
    """A method whose code fails at the second seed."""

    def write(self, world, folder):
        if world.seed:
            raise KeyError("colour")
        super().write(world, folder)


def test_a_method_that_fails_loses_nothing_finished(contest, quick, tmp_path):
    out = tmp_path / "out.csv"
    hasty = Hasty("hasty", "", Recipe(steps=5))
    with pytest.raises(D3S2Error, match=r"hasty failed in test_comparison.py, line \d+ \(KeyError"):
        measure(contest, out, Series([RANDOM, hasty, PLAIN], [4], [0, 1]))
    assert [(row["method"], row["seed"]) for row in rows_of(out)] == [
        ("random", "0"),
        ("plain", "0"),
        ("hasty", "0"),
    ]
    finished = (contest.shared.work / "sets").glob("*/bill.json")
    assert {path.parent.name[:-9] for path in finished} == {
        "random-4-0",
        "hasty-4-0",
        "plain-4-0",
        "random-4-1",
    }


@pytest.mark.notebooks  # it trains
def test_a_real_training_on_a_real_set(tmp_path, contest):
    folder = tmp_path / "scenes"
    small_scenes(folder, 4)
    write_split(folder, "val", 2)
    out = tmp_path / "out.csv"
    measure(contest, out, Series([BALANCED], [3], [0]))
    (row,) = rows_of(out)
    assert 0 <= float(row["miou"]) <= 100 and row["images"] == "3"
