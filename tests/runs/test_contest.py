"""What `d3s2 compare` is asked for, and what it refuses before it measures anything."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_scenes import small_scenes

from d3s2.core import parallel
from d3s2.core.errors import D3S2Error
from d3s2.methods.comparison import HEADER, Contest
from d3s2.methods.table import METHODS
from d3s2.runs import cli, contest
from d3s2.runs.contest import compare, networks_of, row_of, rows_of
from d3s2.selection import budget_size
from d3s2.studies.ablation import ARMS
from d3s2.training.job import TrainingJob
from d3s2.training.students import network_of


# ------------------------------------------------------------------------------------ what is asked
def test_a_name_with_a_number_paints_several_images_of_each_mask():
    four = row_of("d3s2 x 4")
    assert four.name == "d3s2 x 4" and four.recipe.images_per_mask == 4
    assert four == replace(ARMS["d3s2 x 4"], says=four.says)  # the study's set, made once for both
    assert row_of("d3s2") is METHODS["d3s2"] and row_of("unidd + proxy").name == "unidd + proxy"


def test_a_name_with_a_share_paints_over_photographs():
    half = row_of("d3s2 at 0.5")
    assert half.name == "d3s2 at 0.5" and half.recipe == replace(
        METHODS["d3s2"].recipe, strength=0.5
    )
    assert half.uses == METHODS["d3s2"].uses | {"images"}
    assert row_of("unguided at 0.25 x 3").recipe.strength == 0.25
    assert row_of("unguided x 3 at 0.25").recipe.images_per_mask == 3


def test_painters_alone_get_several_images_a_mask():
    rows = rows_of(["random", "d3s2", "sfm", "unguided x 2"], 3)
    assert [row.name for row in rows] == ["random", "d3s2 x 3", "sfm", "unguided x 2"]
    assert rows_of([]) == list(METHODS.values())
    assert rows_of(["diver on sfm"], 2)[0].after == "sfm"


@pytest.mark.parametrize(
    ("names", "copies", "words"),
    [
        (["d3s2", "sgd"], 1, "no method 'sgd': choose of random, uniform"),
        (["sgd x 4"], 1, "no method 'sgd'"),
        (["random x 4"], 1, "'random x 4': only methods that paint have several images"),
        (["d3s2 x 1"], 1, "2 or more"),
        (["d3s2 x 0"], 1, "no method 'd3s2 x 0'"),
        (["balanced at 0.5"], 1, "'balanced at 0.5': only methods that paint from pure noise"),
        (["edits at 0.5"], 1, "edits is 'photographs of medoids, painted over'"),
        (["diver on d3s2 at 0.5"], 1, "only methods that paint from pure noise"),
        (["sgd at 0.5"], 1, "no method 'sgd'"),
        (["d3s2 at 0.0"], 1, "strength is 0.0"),
        (["d3s2 at 1.5"], 1, "no method 'd3s2 at 1.5'"),
        (["random", "random"], 1, "method 'random' is named twice"),
        (["d3s2"], 0, "images_per_mask is 0: it counts from 1"),
    ],
)
def test_what_is_no_list_of_methods_is_refused(names, copies, words):
    with pytest.raises(D3S2Error, match=words):
        rows_of(names, copies)


def test_networks_are_named():
    assert networks_of("mask2former, unet,mask2former") == ["mask2former", "unet"]
    with pytest.raises(D3S2Error, match="--networks has 'resnet': choose of mask2former, lraspp"):
        networks_of("unet,resnet")
    with pytest.raises(D3S2Error, match="--networks has ','"):
        networks_of(",")


# --------------------------------------------------------------------------------------- the whole
@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
    """What `compare` asks to be measured, instead of measuring it."""
    found: list[tuple] = []

    def measure(how, out, plan, command):
        where = os.environ.get(parallel.SCHEDULER, "")
        found.append((network_of(how.template), out.name, plan, list(how.known), where))

    monkeypatch.setattr(contest, "measure", measure)
    return found


def small_contest(tmp_path: Path, **more: object) -> Contest:
    shared = SimpleNamespace(train=small_scenes(tmp_path / "scenes", 25))
    template = TrainingJob("t", "x", "x", num_classes=20, work_dir="")
    return Contest(shared, template, METHODS, **more)  # type: ignore[arg-type]


def test_each_network_is_measured_into_a_file_of_its_own(tmp_path, asked):
    rows = rows_of(["random", "d3s2 x 4"])
    compare(small_contest(tmp_path), tmp_path / "c.csv", rows, [20], [0, 1], networks=["lraspp"])
    ((network, name, plan, known, where),) = asked
    assert (network, name, where) == ("lraspp", "c-lraspp.csv", "")
    assert plan.budgets == [20] and plan.seeds == [0, 1] and known[-1] == "d3s2 x 4"
    compare(small_contest(tmp_path), tmp_path / "c.csv", rows, [1.0 / 25 * 20], [0])
    assert asked[1][:2] == ("mask2former", "c.csv") and asked[1][2].budgets == [20]


def test_a_scheduler_is_told_to_what_paints_and_to_what_trains(tmp_path, asked, monkeypatch):
    monkeypatch.delenv(parallel.SCHEDULER, raising=False)
    spread = small_contest(tmp_path, scheduler="local")
    compare(spread, tmp_path / "c.csv", rows_of(["random"]), [20], [0])
    assert asked[0][-1] == "local" and parallel.SCHEDULER not in os.environ


def test_fewer_masks_than_classes_are_warned_of(tmp_path, asked, recwarn):
    how, rows = small_contest(tmp_path), rows_of(["random"])
    compare(how, tmp_path / "c.csv", rows, [20, 25], [0])
    assert not recwarn.list
    with pytest.warns(
        UserWarning, match="a budget of 3, 19 masks is below one mask a class: there"
    ):
        compare(how, tmp_path / "c.csv", rows, [3, 19, 20], [0])
    with pytest.raises(D3S2Error, match="budget is 26 masks: give 1 to 25"):
        compare(how, tmp_path / "c.csv", rows, [20, 26], [0])
    assert len(asked) == 2


# --------------------------------------------------------------------------------- the command line
def said(capsys, *words: str) -> tuple[int, str]:
    code = cli.main(["compare", *words])
    return code, capsys.readouterr().err


@pytest.fixture
def never_opened(monkeypatch):
    """No data are opened."""

    def opened(*arguments: object) -> None:
        raise AssertionError("data were opened")

    monkeypatch.setattr(contest, "open_contest", opened)


def test_bad_words_are_refused_before_data_are_opened(tmp_path, capsys, never_opened):
    here = ("--run-dir", str(tmp_path))
    for words, sentence in (
        (("--methods", "sgd"), "there is no method 'sgd'"),
        (("--networks", "resnet"), "--networks has 'resnet'"),
        (("--budgets", "many"), "--budgets has 'many'"),
        (("--methods", "balanced", "--images-per-mask", "0"), "images_per_mask is 0"),
    ):
        code, error = said(capsys, *here, *words)
        assert code == 2 and sentence in error and error.count("\n") == 1


def test_what_a_profile_lacks_is_said_before_data_are_opened(tmp_path, capsys, never_opened):
    """UniDD's budgets of VOC, where nothing of that profile is there."""
    words = ("--profile", "voc2012", "--budgets", "3.5%,7%,14%", "--methods", "random", "unidd")
    code, error = said(capsys, *words, "--run-dir", str(tmp_path), "-p", "device=cpu")
    assert code == 2 and "Nothing was started" in error
    assert "data_root" in error and "stable-diffusion" in error


def test_unidds_budgets_of_voc_are_numbers_of_masks():
    shares = [cli.budget_of(text) for text in ("3.5%", "7%", "14%")]
    assert [budget_size(share, 1464) for share in shares] == [51, 102, 205]


def test_show_prints_scores_thirds_bill_and_networks(tmp_path, capsys):
    for name, score in (("comparison", "40.0"), ("comparison-unet", "20.0")):
        line = f"random,4,0,0,4,{score},50.0,40.0,30.0,0.9,,,900,30,val"
        (tmp_path / f"{name}.csv").write_text(",".join(HEADER) + f"\n{line}\n")
        (tmp_path / f"{name}.json").write_text("{}")
    words = ["--run-dir", str(tmp_path), "--out", str(tmp_path / "comparison.csv"), "--show"]
    assert cli.main(["compare", *words]) == 0
    shown = capsys.readouterr().out
    assert "4 masks" in shown and "| random | 1 draw | 40.0 |" in shown
    assert "| random | 50.0 | 40.0 | 30.0 | 0.900 | 4 |  |  | 900 | 30 |" in shown
    assert "4 masks, unet\n" in shown and "| random | 1 draw | 20.0 |" in shown
    assert "| random | 40.0 |  | 20.0 |  |" in shown
    (tmp_path / "comparison.csv").unlink()  # of another network alone
    assert cli.main(["compare", *words]) == 0
    shown = capsys.readouterr().out
    assert "4 masks, unet\n" in shown and "under other networks" not in shown
    (tmp_path / "comparison-unet.csv").unlink()
    assert cli.main(["compare", *words]) == 2
    assert "comparison.csv is missing: measure it with" in capsys.readouterr().err
