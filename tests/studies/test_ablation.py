"""What pairs of arms share, and a real measurement in miniature."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json
from d3s2.data import held_out
from d3s2.data.dataset import IGNORE
from d3s2.runs import config
from d3s2.statistics.features import ClassMoments
from d3s2.studies import ablation
from d3s2.studies.ablation import (
    ARMS,
    Trainings,
    Workshop,
    confirmation,
    measure_arms,
    read_scores,
)
from d3s2.training.job import validation_split


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("D3S2_HOME", str(tmp_path / "home"))
    return config.resolve(
        {"profile": "smoke", "train_images": 40, "val_images": 8, "iterations": 2, "budget": 4}
        | {"threads": 1, "jobs": 1},
        remember=False,
    )


@pytest.fixture
def short(monkeypatch) -> None:
    """Arms that paint in two steps."""
    for name, arm in ARMS.items():
        if arm.recipe is not None:
            monkeypatch.setitem(ARMS, name, replace(arm, recipe=replace(arm.recipe, steps=2)))


@pytest.mark.notebooks  # it trains four times
def test_a_measurement_distils_trains_writes_and_does_nothing_twice(settings, tmp_path, short):
    work, out = tmp_path / "work", tmp_path / "ablation.csv"
    measure_arms(work, out, Trainings(["d3s2"], range(2)), settings)
    made = {
        path: path.stat().st_mtime_ns for path in [*work.rglob("*.png"), *work.rglob("result.json")]
    }
    assert len(made) == 2 * (4 + 4) + 2  # two sets: every seed has its own
    found = read_scores(out)
    assert found.sets == {"d3s2": {0: 0, 1: 1}} and found.seconds["d3s2"] > 0
    assert found.facts["images"] == 4 and found.facts["iterations"] == 2
    assert found.facts["distillations"] == "one a seed" and found.facts["split"] == "val"
    # a second measurement adds to the file
    measure_arms(work, out, Trainings(["random", "d3s2"], range(2)), settings)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    with open(out, newline="") as stream:
        rows = [
            (row["arm"], int(row["seed"]), row["distillation"]) for row in csv.DictReader(stream)
        ]
    assert rows == [("random", 0, "0"), ("random", 1, "1"), ("d3s2", 0, "0"), ("d3s2", 1, "1")]
    command = "python -m d3s2.studies.ablation --seeds 2 --arms random d3s2"
    assert read_scores(out).facts == found.facts | {"command": command}
    with pytest.raises(D3S2Error, match="measured with iterations 2, now it is 3"):
        measure_arms(work, out, Trainings(["random"], [0]), replace(settings, iterations=3))
    with pytest.raises(D3S2Error, match="measured with distillations one a seed, now it is 1"):
        measure_arms(work, out, Trainings(["random"], [0], 1), settings)


@pytest.mark.notebooks  # it trains four times
def test_what_was_interrupted_ends_as_what_was_not(settings, tmp_path, short):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    measure_arms(whole, whole / "out.csv", Trainings(["unguided"], range(2)), settings)
    # Killed between the second painting and its training: one row, and a set without its cost.
    measure_arms(broken, broken / "out.csv", Trainings(["unguided"], [0]), settings)
    cost = Workshop(settings, broken).distil("unguided", 1) / "cost.json"
    cost.unlink()
    next(iter(cost.parent.glob("records/*.json"))).unlink()
    measure_arms(broken, broken / "out.csv", Trainings(["unguided"], range(2)), settings)
    files = [sorted(work.glob("sets/*/train/*/*.png")) for work in (whole, broken)]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    scores = [read_scores(work / "out.csv") for work in (whole, broken)]
    assert scores[0].scores == scores[1].scores and scores[0].sets == scores[1].sets
    assert scores[0].facts == scores[1].facts


def test_a_winner_is_confirmed_on_seeds_that_nobody_has_seen(tmp_path):
    out = tmp_path / "out.csv"
    header = "arm,seed,distillation,miou,seconds_an_image,split"
    out.write_text(f"{header}\nrandom,0,0,48.5,,val\neta 1,3,3,50.5,1.5,val\n")
    out.with_suffix(".json").write_text("{}")
    with pytest.raises(SystemExit):
        ablation.main(["--confirm", "d3s2"])  # the default against itself
    options = ablation._parser().parse_args(["--confirm", "eta 1", "--out", str(out)])
    ablation._confirm(options.confirm, options)
    assert options.arms == ["d3s2", "eta 1"] and options.seeds_from == 4 and options.seeds == 5
    assert options.out == confirmation(out) == tmp_path / "out-confirmed.csv"
    options = ablation._parser().parse_args(
        ["--confirm", "eta 1", "--out", str(out), "--seeds-from", "100"]
    )
    ablation._confirm(options.confirm, options)
    assert options.seeds_from == 100


@pytest.mark.notebooks  # it trains
def test_several_images_a_mask_become_one_set(settings, tmp_path, monkeypatch):
    arm = replace(ARMS["d3s2 x 4"], images=2, recipe=replace(ARMS["d3s2 x 4"].recipe, steps=2))
    monkeypatch.setitem(ARMS, "d3s2 x 4", arm)
    measure_arms(tmp_path / "work", tmp_path / "out.csv", Trainings(["d3s2 x 4"], [0]), settings)
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
    (result,) = (tmp_path / "work" / "training").rglob("result.json")
    assert read_json(result)["train_images"] == 8


def test_arms_that_promise_the_same_masks_have_them(settings, tmp_path):
    shop = Workshop(settings, tmp_path)
    assert (shop.masks(ARMS["balanced"], 0) == shop.masks(ARMS["d3s2"], 3)).all()
    assert (shop.masks(ARMS["random"], 2) == shop.masks(ARMS["random masks"], 2)).all()
    assert (shop.masks(ARMS["random"], 0) != shop.masks(ARMS["random"], 1)).any()


def test_every_seed_has_its_own_set_unless_told_otherwise():
    assert [Trainings([], []).number(seed) for seed in (0, 1, 7)] == [0, 1, 7]
    assert [Trainings([], [], 2).number(seed) for seed in (0, 1, 7)] == [0, 1, 1]


def test_pairs_share_their_masks_their_noise_and_their_order(settings, tmp_path, short):
    """What is compared seed by seed differs in the arm alone."""
    shop = Workshop(settings, tmp_path)
    unguided, guided = shop.distil("unguided", 3), shop.distil("d3s2", 3)
    other = shop.distil("d3s2", 4)

    def seeds(folder):
        records = [read_json(path) for path in sorted(folder.glob("records/*.json"))]
        return {record["id"]: record["noise_seed"] for record in records}

    assert seeds(unguided) == seeds(guided) and len(seeds(guided)) == 4
    assert seeds(other).keys() == seeds(guided).keys()
    assert not set(seeds(other).values()) & set(seeds(guided).values())
    random, painted = (shop.job(name, 5, 3) for name in ("random", "random masks"))
    assert random.train_ids == painted.train_ids == tuple(sorted(random.train_ids))
    balanced, ours = (shop.job(name, 5, 3) for name in ("balanced", "d3s2"))
    assert balanced.train_ids == ours.train_ids == tuple(sorted(ours.train_ids))
    assert balanced.seed == ours.seed == 5 and ours.train_root == str(guided)
    assert shop.job("random", 5, 4).train_ids != random.train_ids
    assert shop.job("random", 5, 3).work_dir != shop.job("random", 6, 3).work_dir


def test_the_filter_ignores_pixels_and_changes_no_image(settings, tmp_path, short):
    shop = Workshop(settings, tmp_path)
    plain, filtered = shop.distil("unguided", 0), shop.distil("unguided filter", 0)
    ignored = 0
    for path in sorted((plain / "train" / "images").iterdir()):
        assert path.read_bytes() == (filtered / "train" / "images" / path.name).read_bytes()
        before, after = (
            np.asarray(Image.open(folder / "train" / "labels" / path.name))
            for folder in (plain, filtered)
        )
        assert ((before == after) | (after == IGNORE)).all()
        ignored += ((before != after) & (after == IGNORE)).sum()
    assert ignored > 0
    # what the filter compares with is made once
    (known,) = tmp_path.glob("class-losses-*.json")
    known.write_text(known.read_text().replace("0.", "9."))  # nothing is above that
    lenient = shop.distil("FreeMask filter", 0)
    assert (lenient / "class_losses.json").read_text() == known.read_text()


def test_another_split_judges(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(held_out, "TEST_SCENES", 8)  # of 500
    shop = Workshop(settings, tmp_path)
    assert shop.judged.split == "val"
    held = Workshop(settings, tmp_path, "test")
    job = held.job("balanced", 0, 0)
    assert job.val_split == "test" and job.val_ids == held.judged.ids
    assert validation_split(job).split == "test"
    assert job.work_dir != shop.job("balanced", 0, 0).work_dir


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
    found = read_scores()
    scores = found.scores
    assert {"random", "balanced", "unguided", "d3s2"} <= set(scores) <= set(ARMS)
    assert all(set(values) == set(scores["random"]) for values in scores.values())
    assert found.seconds["d3s2"] > found.seconds["unguided"]
    assert str(found.facts["command"]).startswith("python -m d3s2.studies.ablation")


def test_a_file_from_before_splits_had_names_is_read_and_kept(settings, tmp_path):
    out = tmp_path / "out.csv"
    out.write_text("arm,seed,distillation,miou,seconds_an_image\nrandom,0,,48.5,\n")
    facts = {"images": 4, "distillations": 2}
    out.with_suffix(".json").write_text(json.dumps(facts))
    rows = ablation._earlier(out, facts | {"split": "val"})
    assert rows == {("random", 0): ["random", "0", "", "48.5", "", "val"]}
    with pytest.raises(D3S2Error, match="measured with split val, now it is test"):
        ablation._earlier(out, facts | {"split": "test"})


def test_what_is_missing_is_said(tmp_path, capsys):
    with pytest.raises(D3S2Error, match="measure it with"):
        read_scores(tmp_path / "none.csv")
    with pytest.raises(SystemExit):
        ablation.main(["--arms", "nonsense"])
    assert "invalid choice" in capsys.readouterr().err


def test_every_arm_says_something_of_its_own():
    assert len({arm.says for arm in ARMS.values()}) == len(ARMS)
    assert len({repr(arm) for arm in ARMS.values()}) == len(ARMS)
