"""Differences, their units and their families, against values known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d3s2.core.errors import D3S2Error
from d3s2.core.files import write_csv, write_json
from d3s2.methods.intervals import (
    Compared,
    Difference,
    Measurement,
    caption,
    holm,
    paired_difference,
    read_measurement,
    student,
    table,
    winner,
)

SCORES = st.dictionaries(st.integers(0, 9), st.floats(0, 100), min_size=2)
P_VALUES = st.dictionaries(st.text(min_size=1), st.floats(0, 1), min_size=1)
TWO = {0: 0, 1: 1, 2: 0, 3: 1, 4: 0}
"""Five seeds that take turns with two distillations."""


# ----------------------------------------------------------------------------------- one difference
@settings(deadline=None)
@given(SCORES, st.floats(-50, 50))
def test_a_constant_gain_has_no_uncertainty(scores, gain):
    found = paired_difference({seed: value + gain for seed, value in scores.items()}, scores)
    assert found.mean == pytest.approx(gain, abs=1e-9)
    assert found.half_width == pytest.approx(0, abs=1e-9)
    assert found.units == len(scores)


@settings(deadline=None)
@given(SCORES, SCORES)
def test_the_difference_turns_its_sign_and_takes_common_seeds_only(a, b):
    if not set(a) & set(b):
        with pytest.raises(D3S2Error, match="no seed in common"):
            paired_difference(a, b)
        return
    there = paired_difference(a, b)
    back = paired_difference(b, a)
    assert there.mean == pytest.approx(-back.mean)
    assert there.half_width == pytest.approx(back.half_width)
    assert there.units == len(set(a) & set(b))
    assert there.p == pytest.approx(back.p, nan_ok=True)


def test_the_interval_holds_the_true_gain_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(2.0, 3.0, size=(4000, 5))
    found = [student(row) for row in draws]
    share = np.mean([abs(one.mean - 2.0) <= one.half_width for one in found])
    assert 0.935 < share < 0.965  # three standard errors around 95 %
    assert all(one.is_clear == (one.p < 0.05) for one in found)


def test_a_known_interval():
    """1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.3027; p of t = 3.4641 is 0.0742."""
    found = student([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.units == 3
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), abs=1e-5)
    assert found.p == pytest.approx(0.0741799, abs=1e-6)


def test_one_unit_shows_nothing():
    found = paired_difference({0: 60.0}, {0: 40.0})
    assert found.mean == 20 and found.half_width == float("inf") and not found.is_clear
    assert math.isnan(found.p)
    with pytest.raises(D3S2Error, match="none was measured"):
        student([])


# ----------------------------------------------------------------------------------- what a unit is
def test_seeds_that_share_a_distillation_are_one_unit():
    """The first set's seeds are above by 1, 2, 3, the second's by 5 and 7: two means, 2 and 6."""
    b = dict.fromkeys(range(5), 50.0)
    a = {0: 51.0, 2: 52.0, 4: 53.0, 1: 55.0, 3: 57.0}
    found = paired_difference(a, b, TWO)
    assert (found.mean, found.units) == (4.0, 2)
    assert found == paired_difference(a, b, sets_b=TWO) == student([2.0, 6.0])
    assert paired_difference(a, b).units == 5


def test_sets_of_both_arms_join_their_seeds():
    a = {seed: float(seed) for seed in range(4)}
    zero = dict.fromkeys(a, 0.0)
    assert paired_difference(
        a, zero, {0: 0, 1: 0, 2: 1, 3: 2}, {0: 7, 1: 8, 2: 8, 3: 9}
    ) == student(
        [1.0, 3.0]  # 0 and 1 share a set of the one, 1 and 2 of the other
    )


@settings(deadline=None)
@given(SCORES, st.integers(1, 4))
def test_trainings_of_one_set_never_count_as_more_than_one(scores, distillations):
    sets = {seed: seed % distillations for seed in scores}
    zero = dict.fromkeys(scores, 0.0)
    assert paired_difference(scores, zero, sets).units == len(set(sets.values()))


def test_a_copied_training_narrows_no_interval():
    """Twice the same trainings of the same sets: the interval of a distillation stays, that of
    trainings would shrink.
    """
    gains = {0: 1.0, 1: 3.0}
    twice = {0: 1.0, 1: 3.0, 2: 1.0, 3: 3.0}
    zero = dict.fromkeys(twice, 0.0)
    once = paired_difference(gains, zero, {0: 0, 1: 1})
    assert paired_difference(twice, zero, {seed: seed % 2 for seed in twice}) == once
    assert paired_difference(twice, zero).half_width < once.half_width


# ----------------------------------------------------------------------------------------- families
def test_holm_by_hand():
    """statsmodels' formula, `maximum.accumulate(p_sorted * (m - arange(m)))`, cut at 1, for the
    p-values of its own example.
    """
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": 0.9}
    found = holm(p)
    order = sorted(p, key=p.get)
    steps = np.sort(list(p.values())) * (5 - np.arange(5))
    expected = np.minimum(np.maximum.accumulate(steps), 1)
    assert [found[name] for name in order] == pytest.approx(expected.tolist())
    assert found == pytest.approx({"a": 0.04, "b": 0.09, "c": 0.09, "d": 0.025, "e": 0.9})


@settings(deadline=None)
@given(P_VALUES)
def test_holm_keeps_order_and_lies_between_nothing_and_bonferroni(p):
    found = holm(p)
    assert list(found) == list(p)
    for name, value in found.items():
        assert p[name] <= value <= min(1, len(p) * p[name]) + 1e-12
    order = sorted(p, key=p.get)
    assert [found[name] for name in order] == sorted(found.values())


def test_holm_of_one_is_the_value_itself_and_a_single_unit_shows_nothing():
    assert holm({"a": 0.03}) == {"a": 0.03}
    assert holm({"a": float("nan"), "b": 0.01}) == {"a": 1.0, "b": 0.02}


def test_what_is_clear_alone_need_not_be_clear_in_company():
    rng = np.random.default_rng(1)
    scores = {"base": dict.fromkeys(range(5), 0.0)}
    scores |= {f"arm {n}": dict(enumerate(rng.normal(0, 1, 5))) for n in range(40)}
    family = Measurement(scores).against("base")
    alone = [name for name, one in family.items() if one.difference.is_clear]
    assert alone and not [name for name in alone if family[name].is_clear]
    assert len(family) == 40


# ------------------------------------------------------------------------------------------- a file
HEADER = ("method", "seed", "distillation", "miou", "seconds_an_image")


@pytest.fixture
def measured(tmp_path) -> Measurement:
    """`new` paints every seed anew, `old` has two sets for four seeds, `real` is a fixed set."""
    rows: list[tuple[object, ...]] = []
    for seed in range(4):
        rows.append(("real", seed, "", 50.0, ""))
        rows.append(("random", seed, seed, 40.0 + seed, ""))
        rows.append(("new", seed, seed, 60.0 + seed, 2.0))
        rows.append(("old", seed, seed % 2, 55.0 + 10 * (seed % 2), 1.0 + seed % 2))
    path = tmp_path / "out.csv"
    write_csv(path, [HEADER, *rows])
    write_json(path.with_suffix(".json"), {"command": "python -m x"})
    return read_measurement(path, "python -m x")


def test_the_file_says_which_trainings_share_a_set(measured):
    assert measured.sets["old"] == {0: 0, 1: 1, 2: 0, 3: 1} and "real" not in measured.sets
    assert measured.seconds == {"new": 2.0, "old": 1.5} and measured.facts["command"]
    assert measured.means("old") == [55.0, 65.0] and measured.means("real") == [50.0] * 4
    assert measured.difference("new", "real").units == 4
    assert measured.difference("old", "real") == student([5.0, 15.0])
    assert measured.difference("old", "new") == student([-6.0, 3.0])


def test_the_unit_has_a_name(measured):
    assert measured.unit("new", "real") == measured.unit("real", "old") == "distillation"
    assert measured.unit("random", "real") == "draw" and measured.unit("real") == "training"


def test_a_family_leaves_out_what_was_not_measured(measured):
    family = measured.family([("new", "real"), ("new", "nothing"), ("old", "real")])
    assert list(family) == ["new - real", "old - real"]
    by_hand = holm({name: one.difference.p for name, one in family.items()})
    assert {name: one.corrected for name, one in family.items()} == by_hand
    assert list(measured.against("real", ["new", "real"])) == ["new"]
    assert winner(measured.against("real")) == "new"
    with pytest.raises(D3S2Error, match="nothing was compared"):
        winner({})


def test_words_follow_from_the_numbers(measured):
    family = measured.against("real")
    assert str(family["new"]) == "higher" and str(family["random"]) == "lower"
    assert str(family["old"]) == "not told apart"  # 10 higher, but two sets
    assert "2 units" in family["old"].sentence("old")
    assert family["old"].sentence("old").endswith("not told apart")
    assert "distillations" in caption(measured, ["old", "real"], 3)
    assert "over 2 " in caption(measured, ["old", "new", "real"], 3)
    assert "over 4 draws" in caption(measured, ["random", "real"], 1)


@pytest.mark.parametrize(
    ("p", "words"),
    [(0.0005, "p 0.001 "), (0.00049, "p < .001 "), (0.0, "p < .001 "), (0.25, "p 0.250 ")],
)
def test_no_chance_is_said_to_be_zero(p, words):
    found = Compared(Difference(1.0, 0.5, 5, p), p)
    assert words in found.sentence("a")
    nothing = Compared(Difference(1.0, float("inf"), 1, float("nan")), float("nan"))
    assert "p " not in nothing.sentence("a")


def test_the_table_names_its_unit_and_its_family(measured):
    lines = table(measured, ["real"]).splitlines()
    assert lines[0] == "| arm | units | mIoU (%) | minus real |"
    assert "| old | 2 distillations, 4 trainings | 60.0 ± 7.1 | +10.0 ± 63.5 |" in lines
    assert "| random | 4 draws | 41.5 ± 1.3 | -8.5 ± 2.1 * |" in lines
    assert "| real | 4 trainings | 50.0 ± 0.0 |  |" in lines
    assert "(3 against real)" in lines[-1]
    some = table(measured, ["real"], ["random"]).splitlines()
    assert some == [line for line in lines if not line.startswith(("| old", "| new", "| real"))]


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(D3S2Error, match="measure it with `python -m y`"):
        read_measurement(tmp_path / "none.csv", "python -m y")
