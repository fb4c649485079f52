"""Curves of every set: what is trained, what is read, and that nothing is trained twice."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from d3s2.core.errors import D3S2Error
from d3s2.runs import config
from d3s2.studies import ablation, curve
from d3s2.studies.ablation import ARMS, measure_arms, open_arms
from d3s2.studies.curve import Points, curve_job, measure_curve, read_curves, table
from d3s2.training.job import job_key


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("D3S2_HOME", str(tmp_path / "home"))
    return config.resolve(
        {"profile": "smoke", "train_images": 40, "val_images": 8, "iterations": 2, "budget": 4}
        | {"threads": 1, "jobs": 1, "run_dir": str(tmp_path / "run")},
        remember=False,
    )


def test_the_committed_curves_can_be_read():
    curves, facts = read_curves()
    assert "full" in curves and set(curves) <= set(curve.SETS)
    for points in curves.values():
        assert list(points) == sorted(points)
    whole = curves["full"]
    assert max(whole[max(whole)].values()) > max(whole[min(whole)].values())
    assert facts["command"].startswith("python -m d3s2.studies.curve")


def test_a_missing_curve_says_how_to_measure_it(tmp_path):
    with pytest.raises(D3S2Error, match=r"python -m d3s2.studies.curve"):
        read_curves(tmp_path / "none.csv")


def test_a_file_from_before_small_sets_had_curves_is_all_the_data(tmp_path):
    path = tmp_path / "old.csv"
    path.write_text("iterations,seed,miou,seconds\n1500,0,46.18,215\n3000,0,59.62,414\n")
    path.with_suffix(".json").write_text(json.dumps({"images": 4000}))
    curves, _ = read_curves(path)
    assert curves == {"full": {1500: {0: 46.18}, 3000: {0: 59.62}}}
    facts = {"images": 4000, "small": 40, "split": "val"}
    rows = curve._earlier(path, facts)
    assert rows["full", 1500, 0] == ["full", "1500", "0", "46.18", "215", "val"]
    with pytest.raises(D3S2Error, match="measured with split val, now it is test"):
        curve._earlier(path, facts | {"split": "test"})


def test_the_table_says_how_many_seeds_a_point_has():
    curves = {"full": {10: {0: 40.0, 1: 50.0}, 20: {0: 60.0}}, "random": {10: {0: 30.0, 1: 34.0}}}
    lines = table(curves).splitlines()
    assert lines[0] == "| training set | 10 | 20 |"
    assert lines[2] == "| full | 45.0 ± 7.1 (2) | 60.0 (one training) |"
    assert lines[3] == "| random | 32.0 ± 2.8 (2) |  |"


def test_all_sets_are_trained_as_long_and_the_short_ones_are_those_of_the_ablation(
    settings, tmp_path
):
    contest = open_arms(settings, tmp_path)
    full, balanced = (curve_job(contest, name, 7, 1, 4) for name in ("full", "balanced"))
    assert full.iterations == balanced.iterations == 7 and full.seed == balanced.seed == 1
    assert (
        full.train_ids == tuple(sorted(contest.shared.train.ids)) and len(balanced.train_ids) == 4
    )
    assert full.work_dir != balanced.work_dir != curve_job(contest, "balanced", 8, 1, 4).work_dir
    short = curve_job(contest, "balanced", settings.iterations, 1, 4)
    arm = ARMS["balanced"]
    of_ablation = contest.job(arm, 1, contest.folder(arm, 4, 1))
    assert job_key(short) == job_key(of_ablation) != job_key(balanced)


def test_all_seeds_of_a_length_are_trained_together(settings, tmp_path, monkeypatch):
    rounds = []

    def train(jobs, at_once, reuse):
        rounds.append([job.name for job in jobs])
        score = {job.name: 10.0 * job.iterations + job.seed for job in jobs}
        return [SimpleNamespace(miou=score[job.name], seconds=1.2) for job in jobs]

    monkeypatch.setattr(curve, "train_all", train)
    out = tmp_path / "curve.csv"
    measure_curve(tmp_path, out, Points(["balanced", "full"], [0, 3], [4, 2]), settings)
    assert rounds == [
        [f"{name} {seed}, {length}" for seed in (0, 3) for name in ("balanced", "full")]
        for length in (2, 4)
    ]
    expected = {length: {seed: 10.0 * length + seed for seed in (0, 3)} for length in (2, 4)}
    assert read_curves(out)[0] == {"balanced": expected, "full": expected}


@pytest.mark.notebooks  # it trains twice
def test_curves_go_on_where_they_were_and_take_what_the_ablation_trained(settings, tmp_path):
    work, out = tmp_path / "work", tmp_path / "curve.csv"
    measure_arms(open_arms(settings, work), tmp_path / "ablation.csv", ["balanced"], 4, [0])
    (of_ablation,) = ablation.read_scores(tmp_path / "ablation.csv").scores["balanced"].values()

    def weights():
        return {path: path.stat().st_mtime_ns for path in work.rglob("model.safetensors")}

    measure_curve(work, out, Points(["balanced"], [0], [2]), settings)
    assert read_curves(out)[0] == {"balanced": {2: {0: of_ablation}}}
    trained, copied = sorted(weights(), key=weights().get)
    assert trained.read_bytes() == copied.read_bytes()  # the same training, not another
    before = weights()
    measure_curve(work, out, Points(["balanced", "full"], [0], [2]), settings)
    assert before.items() < weights().items() and len(weights()) == 3
    curves, facts = read_curves(out)
    assert curves["balanced"] == {2: {0: of_ablation}} and list(curves["full"]) == [2]
    assert facts["command"].endswith("--sets balanced full --lengths 2 --seeds 0")
    with pytest.raises(D3S2Error, match="measured with batch_size"):
        measure_curve(work, out, Points(["full"], [0], [2]), replace(settings, batch_size=2))
