"""What pairs of arms share, and a real measurement in miniature."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json
from d3s2.data import held_out
from d3s2.data.dataset import IGNORE
from d3s2.data.folder import open_folder
from d3s2.methods.comparison import Contest
from d3s2.methods.distil import place_of
from d3s2.methods.painted import Painted
from d3s2.methods.table import METHODS
from d3s2.methods.world import World
from d3s2.runs import config
from d3s2.studies import ablation
from d3s2.studies.ablation import (
    ARMS,
    confirmation,
    measure_arms,
    open_arms,
    paints_selected,
    read_scores,
)
from d3s2.training.job import validation_split


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("D3S2_HOME", str(tmp_path / "home"))
    return config.resolve(
        {"profile": "smoke", "train_images": 40, "val_images": 8, "iterations": 2, "budget": 4}
        | {"threads": 1, "jobs": 1, "run_dir": str(tmp_path / "run")},
        remember=False,
    )


@pytest.fixture
def short(monkeypatch) -> None:
    """Arms that paint in two steps."""
    for name, arm in ARMS.items():
        if isinstance(arm, Painted):
            monkeypatch.setitem(ARMS, name, replace(arm, recipe=replace(arm.recipe, steps=2)))


@pytest.fixture
def contest(settings, tmp_path, short) -> Contest:
    return open_arms(settings, tmp_path / "work")


def folder_of(contest: Contest, name: str, number: int) -> Path:
    return contest.folder(ARMS[name], 4, number)


@pytest.mark.notebooks  # it trains four times
def test_a_measurement_distils_trains_writes_and_does_nothing_twice(contest, settings, tmp_path):
    work, out = tmp_path / "work", tmp_path / "ablation.csv"
    measure_arms(contest, out, ["d3s2"], 4, range(2))
    made = {
        path: path.stat().st_mtime_ns for path in [*work.rglob("*.png"), *work.rglob("result.json")]
    }
    assert len(made) == 2 * (4 + 4) + 2  # two sets: every seed has its own
    found = read_scores(out)
    assert found.sets == {"d3s2": {0: 0, 1: 1}} and found.seconds["d3s2"] > 0
    assert found.facts["iterations"] == 2 and found.facts["judged_images"] == 8
    assert found.facts["distillations"] == "one a seed" and found.facts["split"] == "val"
    # a second measurement adds to the file
    measure_arms(contest, out, ["d3s2", "random"], 4, range(2))
    assert {path: path.stat().st_mtime_ns for path in made} == made
    with open(out, newline="") as stream:
        rows = [
            (row["method"], int(row["seed"]), row["distillation"]) for row in csv.DictReader(stream)
        ]
    assert rows == [("random", 0, "0"), ("random", 1, "1"), ("d3s2", 0, "0"), ("d3s2", 1, "1")]
    command = "python -m d3s2.studies.ablation --seeds 2 --arms random d3s2"
    assert read_scores(out).facts == found.facts | {"command": command}
    longer = open_arms(replace(settings, iterations=3), work)
    with pytest.raises(D3S2Error, match="measured with iterations 2, now it is 3"):
        measure_arms(longer, out, ["random"], 4, [0])
    with pytest.raises(D3S2Error, match="measured with distillations one a seed, now it is 1"):
        measure_arms(contest, out, ["random"], 4, [0], 1)


def test_arms_of_the_table_are_the_tables_sets(contest):
    """What `d3s2 compare` made in the same folder is not made again."""
    for name in ("random", "balanced", "unguided"):
        row = METHODS[name]
        if isinstance(row, Painted):
            row = replace(row, recipe=replace(row.recipe, steps=2))
        world = World(contest.shared, 4, 1)
        assert place_of(row, world) == place_of(ARMS[name], world)
        assert row.says != ARMS[name].says


def test_differences_are_confirmed_on_seeds_that_nobody_has_seen(tmp_path):
    out = tmp_path / "out.csv"
    header = "method,seed,distillation,miou,seconds_an_image,split"
    out.write_text(f"{header}\nrandom,0,0,48.5,,val\neta 1,3,3,50.5,1.5,val\n")
    out.with_suffix(".json").write_text("{}")
    with pytest.raises(SystemExit):
        ablation.main(["--confirm", "d3s2"])  # the default against itself
    options = ablation._parser().parse_args(["--confirm", "eta 1", "--out", str(out)])
    ablation._confirm(options.confirm, options)
    assert options.arms == ["d3s2", "eta 1"] and options.seeds_from == 4 and options.seeds == 5
    assert options.out == confirmation(out) == tmp_path / "out-confirmed.csv"
    options = ablation._parser().parse_args(
        ["--confirm", "eta 1", "random", "eta 1", "--out", str(out), "--seeds-from", "100"]
    )
    ablation._confirm(options.confirm, options)
    assert options.seeds_from == 100 and options.arms == ["d3s2", "eta 1", "random"]


def test_several_images_a_mask_are_one_set(contest):
    made = open_folder(folder_of(contest, "d3s2 x 4", 0), "train")
    one = open_folder(folder_of(contest, "d3s2", 0), "train")
    assert len(made) == 16 and {name[:-2] for name in made.ids} == set(one.ids)
    first = made.read_image(made.ids.index(f"{one.ids[2]}-0"))
    assert (first == one.read_image(2)).all()
    assert len({made.read_image(k).tobytes() for k in range(16)}) == 16


def test_arms_that_promise_the_same_masks_have_them(contest):
    def masks(name: str, number: int) -> tuple[str, ...]:
        return open_folder(folder_of(contest, name, number), "train").ids

    assert masks("balanced", 0) == masks("d3s2", 3) == masks("unguided", 1)
    assert masks("random", 2) == masks("random masks", 2) != masks("random", 1)


def test_pairs_share_their_noise_and_their_order(contest):
    """What is compared seed by seed differs in the arm alone."""
    unguided, guided = (folder_of(contest, name, 3) for name in ("unguided", "d3s2"))
    other = folder_of(contest, "d3s2", 4)

    def seeds(folder):
        records = [read_json(path) for path in sorted(folder.glob("records/*.json"))]
        return {record["id"]: record["noise_seed"] for record in records}

    assert seeds(unguided) == seeds(guided) and len(seeds(guided)) == 4
    assert seeds(other).keys() == seeds(guided).keys()
    assert not set(seeds(other).values()) & set(seeds(guided).values())
    jobs = [
        contest.job(ARMS[name], 5, folder_of(contest, name, 3)) for name in ("balanced", "d3s2")
    ]
    assert jobs[0].train_ids == jobs[1].train_ids == tuple(sorted(jobs[1].train_ids))
    assert jobs[0].seed == jobs[1].seed == 5 and jobs[1].train_root == str(guided.resolve())
    again = contest.job(ARMS["balanced"], 6, folder_of(contest, "balanced", 3))
    assert again.work_dir != jobs[0].work_dir and again.train_root == jobs[0].train_root


def test_the_filter_ignores_pixels_and_changes_no_image(contest):
    plain, filtered = (folder_of(contest, name, 0) for name in ("unguided", "unguided filter"))
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
    (known,) = contest.shared.work.glob("class-losses-*.json")
    known.write_text(known.read_text().replace("0.", "9."))  # nothing is above that
    lenient = folder_of(contest, "FreeMask filter", 0)
    assert (lenient / "class_losses.json").read_text() == known.read_text()


def test_another_split_judges(settings, contest, tmp_path, monkeypatch):
    monkeypatch.setattr(held_out, "TEST_SCENES", 8)  # of 500
    assert contest.template.val_split == "val"
    held = open_arms(settings, tmp_path / "work", "test")
    folder = folder_of(contest, "balanced", 0)
    job = held.job(ARMS["balanced"], 0, folder)
    assert job.val_split == "test" and len(job.val_ids) == 8
    assert validation_split(job).split == "test"
    assert job.work_dir != contest.job(ARMS["balanced"], 0, folder).work_dir
    with pytest.raises(D3S2Error, match="split is 'train': trainings are judged on"):
        open_arms(settings, tmp_path, "train")


def test_the_committed_measurement_can_be_read():
    found = read_scores()
    scores = found.scores
    spoken_of = ("random", "balanced", "unguided", "d3s2")
    assert set(spoken_of) <= set(scores) <= set(ARMS)
    assert all(len(scores[name]) >= 5 for name in spoken_of)
    assert all(scores[name].keys() == scores["random"].keys() for name in spoken_of)
    assert all(values.keys() <= scores["random"].keys() for values in scores.values())
    assert all(len(values) >= 3 for values in scores.values())
    assert found.seconds["d3s2"] > found.seconds["unguided"]
    assert str(found.facts["command"]).startswith("python -m d3s2.studies.ablation")


def test_what_is_missing_is_said(tmp_path, capsys):
    with pytest.raises(D3S2Error, match="measure it with"):
        read_scores(tmp_path / "none.csv")
    with pytest.raises(SystemExit):
        ablation.main(["--arms", "nonsense"])
    assert "invalid choice" in capsys.readouterr().err


def test_every_arm_says_something_of_its_own():
    assert len({arm.says for arm in ARMS.values()}) == len(ARMS)
    assert len({repr(replace(arm, name="", says="")) for arm in ARMS.values()}) == len(ARMS)
    assert all(arm.name == name for name, arm in ARMS.items())


def test_arms_that_differ_in_the_painting_alone_are_known():
    real = {"random", "balanced", "random masks"}
    assert {name for name in ARMS if not paints_selected(name)} == real
