"""Paired differences and their intervals, the table of arms, and a real measurement in
miniature.
"""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json
from d3s2.runs import config
from d3s2.statistics.features import ClassMoments
from d3s2.studies import ablation
from d3s2.studies.ablation import (
    ARMS,
    Workshop,
    measure_arms,
    paired_difference,
    read_scores,
    table,
)

SCORES = st.dictionaries(st.integers(0, 9), st.floats(0, 100), min_size=2)


@given(SCORES, st.floats(-50, 50))
def test_a_constant_gain_has_no_uncertainty(scores, gain):
    found = paired_difference({seed: value + gain for seed, value in scores.items()}, scores)
    assert found.mean == pytest.approx(gain, abs=1e-9) and found.half_width == pytest.approx(
        0, abs=1e-9
    )
    assert found.pairs == len(scores)


@given(SCORES, SCORES)
def test_the_difference_turns_its_sign_and_takes_common_seeds_only(a, b):
    if not set(a) & set(b):
        with pytest.raises(D3S2Error, match="no seed in common"):
            paired_difference(a, b)
        return
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there.mean == pytest.approx(-back.mean) and there.half_width == pytest.approx(
        back.half_width
    )
    assert there.pairs == len(set(a) & set(b))
    alone = {seed: a[seed] for seed in set(a) & set(b)}
    assert paired_difference(alone, b) == there


def test_the_interval_holds_the_true_gain_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.normal(2.0, 3.0, size=(4000, 5))
    found = [paired_difference(dict(enumerate(row)), dict.fromkeys(range(5), 0.0)) for row in draws]
    share = np.mean([abs(one.mean - 2.0) <= one.half_width for one in found])
    assert 0.935 < share < 0.965  # three standard errors around 95 %
    clear = np.mean([one.is_clear for one in found])
    assert 0.05 < clear < 0.9  # five pairs do not always show a gain of two thirds of the deviation


def test_one_pair_shows_nothing():
    found = paired_difference({0: 60.0}, {0: 40.0})
    assert found.mean == 20 and found.half_width == float("inf") and not found.is_clear


def test_the_table_says_differences_not_only_means():
    text = table({"random": {0: 40.0, 1: 50.0}, "d3s2": {0: 52.0, 1: 62.0}})
    lines = text.splitlines()
    assert lines[0] == "| arm | trainings | mIoU (%) | minus random |"
    assert lines[2] == "| random | 2 | 45.0 ± 7.1 |  |"
    assert lines[3] == "| d3s2 | 2 | 57.0 ± 7.1 | +12.0 ± 0.0 |"


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("D3S2_HOME", str(tmp_path / "home"))
    return config.resolve(
        {"profile": "smoke", "iterations": 2, "budget": 4, "threads": 1, "jobs": 1}, remember=False
    )


@pytest.mark.notebooks  # it trains three times
def test_a_measurement_distils_trains_writes_and_does_nothing_twice(
    settings, tmp_path, monkeypatch, capsys
):
    short = replace(ARMS["d3s2"].recipe, steps=2)
    monkeypatch.setitem(ARMS, "d3s2", replace(ARMS["d3s2"], recipe=short))
    work, out = tmp_path / "work", tmp_path / "ablation.csv"
    measure_arms(work, out, ["d3s2"], 2, 1, settings)
    made = {
        path: path.stat().st_mtime_ns for path in [*work.rglob("*.png"), *work.rglob("result.json")]
    }
    assert len(made) == 2 * 4 + 2
    scores, seconds, facts = read_scores(out)
    assert sorted(scores["d3s2"]) == [0, 1] and list(seconds) == ["d3s2"] and seconds["d3s2"] > 0
    assert (
        facts["images"] == 4
        and facts["iterations"] == 2
        and facts["command"].endswith("--arms d3s2")
    )
    measure_arms(
        work, out, ["random", "d3s2"], 1, 1, settings
    )  # a second measurement adds to the file
    assert {path: path.stat().st_mtime_ns for path in made} == made
    with open(out, newline="") as stream:
        rows = [(row["arm"], int(row["seed"])) for row in csv.DictReader(stream)]
    assert rows == [("random", 0), ("d3s2", 0), ("d3s2", 1)]
    facts |= {
        "command": "python -m d3s2.studies.ablation --seeds 2 --distillations 1 --arms random d3s2"
    }
    assert read_scores(out)[2] == facts
    with pytest.raises(D3S2Error, match="measured with iterations 2, now it is 3"):
        measure_arms(work, out, ["random"], 1, 1, replace(settings, iterations=3))


@pytest.mark.notebooks  # it trains
def test_several_images_a_mask_become_one_set(settings, tmp_path, monkeypatch):
    arm = replace(ARMS["d3s2 x 4"], images=2, recipe=replace(ARMS["d3s2 x 4"].recipe, steps=2))
    monkeypatch.setitem(ARMS, "d3s2 x 4", arm)
    measure_arms(tmp_path / "work", tmp_path / "out.csv", ["d3s2 x 4"], 1, 1, settings)
    (joined,) = (tmp_path / "work" / "sets").glob("*-joined")
    images = {path.stem: path.read_bytes() for path in (joined / "train" / "images").iterdir()}
    labels = {path.stem: path.read_bytes() for path in (joined / "train" / "labels").iterdir()}
    assert (
        len(set(images.values())) == 8
        and len(set(labels.values())) == 4
        and set(images) == set(labels)
    )
    assert {name[:-2] for name in images if labels[name] == labels[min(labels)]} == {
        min(labels)[:-2]
    }
    (result,) = (tmp_path / "work" / "training").glob("*/result.json")
    assert read_json(result)["train_images"] == 8


def test_arms_that_promise_the_same_masks_have_them(settings, tmp_path):
    shop = Workshop(settings, tmp_path)
    assert (shop.masks(ARMS["balanced"], 0) == shop.masks(ARMS["d3s2"], 3)).all()
    assert (shop.masks(ARMS["random"], 2) == shop.masks(ARMS["random masks"], 2)).all()
    assert (shop.masks(ARMS["random"], 0) != shop.masks(ARMS["random"], 1)).any()


def test_other_data_is_measured_and_painted_anew(settings, tmp_path, monkeypatch):
    """The same ids, masks and folder; other bytes."""
    made: list[str] = []

    def measured(*_, **__):
        made.append("moments")
        return ClassMoments(20, (16, 32))

    def painted(painter, dataset, masks, folder, recipe):
        made.append("images")
        folder.mkdir(parents=True)

    monkeypatch.setattr(ablation, "feature_statistics", measured)
    monkeypatch.setattr(ablation, "synthesise", painted)
    monkeypatch.setattr(ablation, "load_proxy", lambda *_: None)
    monkeypatch.setattr(ablation, "load_generator", lambda *_: None)
    monkeypatch.setattr(Workshop, "masks", lambda *_: np.arange(3))
    small = replace(settings, train_images=8, val_images=2)
    folders = []
    for content in ("a", "a", "b"):
        shop = Workshop(small, tmp_path)
        shop.train = replace(shop.train, hashes=lambda paths, to=content: [to * 64] * len(paths))
        folders.append(shop.distil("unguided", 0))
    assert folders[0] == folders[1] != folders[2]
    assert made == ["moments", "images"] * 2


def test_the_committed_measurement_can_be_read():
    scores, seconds, facts = read_scores()
    assert {"random", "balanced", "unguided", "d3s2"} <= set(scores)
    assert all(set(values) == set(scores["random"]) for values in scores.values())
    assert seconds["d3s2"] > seconds["unguided"] and str(facts["command"]).startswith(
        "python -m d3s2.studies.ablation"
    )


def test_what_is_missing_is_said(tmp_path, capsys):
    with pytest.raises(D3S2Error, match="measure it with"):
        read_scores(tmp_path / "none.csv")
    with pytest.raises(SystemExit):
        ablation.main(["--arms", "nonsense"])
    assert "invalid choice" in capsys.readouterr().err


def test_every_arm_says_something_of_its_own():
    assert len({arm.says for arm in ARMS.values()}) == len(ARMS)
    assert len({repr(arm) for arm in ARMS.values()}) == len(ARMS)
