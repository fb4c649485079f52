"""Chapter 04's pictures draw what they are given, and the committed curve can be read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.patches import Rectangle

from d3s2 import plots
from d3s2.core.errors import D3S2Error
from d3s2.studies import curve


def test_matched_pairs_are_framed():
    cost = np.arange(6.0).reshape(3, 2)
    figure = plots.matching_matrix(cost, [(0, 1), (2, 0)], list("abc"), list("de"))
    frames = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert [frame.get_xy() for frame in frames] == [(0.5, -0.5), (-0.5, 1.5)]
    assert [text.get_text() for text in figure.axes[0].texts] == [
        f"{value:.1f}" for value in range(6)
    ]


def test_classes_are_ordered_by_rarity_and_unknown_ones_have_no_bar():
    values = {"random": [10.0, 20.0, None], "d3s2": [30.0, 40.0, 50.0]}
    figure = plots.iou_by_rarity(values, np.array([0.2, 0.7, 0.1]), ["a", "b", "c"])
    labels = [label.get_text().split("\n")[0] for label in figure.axes[0].get_xticklabels()]
    assert labels == ["b", "a", "c"]
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    np.testing.assert_array_equal(heights, [20, 10, np.nan, 40, 30, 50])


def test_every_training_has_a_dot_and_every_set_a_mean():
    figure = plots.score_dots({"random": [40.0, 44.0], "full": [50.0]})
    assert [text.get_text() for text in figure.axes[0].texts] == ["42.0", "50.0"]


@pytest.mark.parametrize(
    "figure",
    [
        plots.loss_curves({"random": [[(10, 5.0), (20, 4.0)]], "full": [[(10, 6.0)], [(10, 5.5)]]}),
        plots.query_masks(np.zeros((6, 8, 3), np.uint8), np.zeros((7, 3, 4)), ["sky"] * 7),
        plots.sampled_points(np.zeros((4, 4)), {"anywhere": np.zeros((5, 2))}),
        plots.cost_and_score({"unguided": (0.5, 52.0, 0.4), "d3s2": (1.0, 53.0, 0.3)}),
        plots.differences({"d3s2": (3.0, 1.0), "one run": (1.0, float("inf"))}, "mIoU"),
        plots.convergence([(600, 40.0), (1200, 50.0)], {"d3s2": (600, 45.0)}),
    ],
)
def test_figures_are_drawn(figure):
    assert figure._repr_png_().startswith(b"\x89PNG")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12).map(sorted), st.floats(0, 0.08))
def test_names_keep_their_distance_and_their_order(places, gap):
    moved = plots.spread_out(places, gap)
    assert (np.diff(moved) >= gap - 1e-9).all() and moved.min() >= 0 and moved.max() <= 1 + 1e-9
    if len(places) == 1 or np.diff(places).min() >= gap:
        np.testing.assert_allclose(
            moved, np.minimum(places, 1 - gap * np.arange(len(places))[::-1]), atol=1e-12
        )


def test_the_committed_curve_rises_and_names_its_command():
    points, facts = curve.read_curve()
    assert [length for length, _ in points] == sorted(length for length, _ in points)
    assert points[-1][1] > points[0][1] and facts["command"].startswith(
        "python -m d3s2.studies.curve"
    )


def test_a_missing_curve_says_how_to_measure_it(tmp_path):
    with pytest.raises(D3S2Error, match=r"python -m d3s2.studies.curve"):
        curve.read_curve(tmp_path / "none.csv")


def test_a_difference_that_leaves_out_zero_is_filled():
    figure = plots.differences(
        {"clear": (3.0, 1.0), "unclear": (1.0, 2.0), "one run": (1.0, float("inf"))}, "mIoU"
    )
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() != "white" for dot in dots] == [True, False, False]


def test_a_training_too_short_to_note_its_loss_is_left_out():
    figure = plots.loss_curves({"random": [[]], "full": [[(10, 3.0), (20, 2.0)]]})
    assert [line.get_label() for line in figure.axes[0].lines] == ["full"]
