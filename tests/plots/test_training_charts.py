"""The pictures of chapter 04 and A1 draw what they are given."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from d3s2 import plots


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
        plots.query_masks(
            {"image": np.zeros((6, 8, 3), np.uint8)}, {f"{n}": np.zeros((3, 4)) for n in range(7)}
        ),
        plots.sampled_points(np.zeros((4, 4)), {"anywhere": np.zeros((5, 2))}),
        plots.cost_and_score({"unguided": (0.5, 52.0, 0.4), "d3s2": (1.0, 53.0, 0.3)}),
        plots.differences({"d3s2": (3.0, 1.0), "one run": (1.0, float("inf"))}, "mIoU"),
        plots.convergence({"full": {600: [40.0], 1200: [50.0, 52.0]}}, {"d3s2": (600, 45.0)}),
        plots.convergence({}, {}),
    ],
)
def test_figures_are_drawn(figure):
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_curve_ends_where_its_trainings_end():
    curves = {"full": {600: [40.0], 1200: [50.0, 54.0]}, "random": {600: [45.0]}}
    cell = plots.convergence(curves, {"d3s2": (900, 48.0)}).axes[0]
    lines = {line.get_label(): line for line in cell.lines}
    np.testing.assert_array_equal(lines["full"].get_xydata(), [[600, 40], [1200, 52]])
    np.testing.assert_array_equal(lines["random"].get_xydata(), [[600, 45]])
    assert lines["d3s2, this run"].get_xydata().tolist() == [[900, 48]]
    assert max(line.get_xdata()[-1] for line in cell.lines) == 1200  # nothing is drawn further
    assert [tick.get_text() for tick in cell.get_xticklabels()] == ["600", "900", "1,200"]


def test_what_no_query_claims_is_pale_and_what_one_claims_is_the_image():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    half = np.zeros((32, 32))
    half[:, :16] = 1
    figure = plots.query_masks({"image": image, "truth": image}, {"none": 0 * half, "left": half})
    first, second, none, left = (drawn.get_array() for drawn in figure.images)
    large = image.repeat(2, 0).repeat(2, 1)  # whole screen pixels
    np.testing.assert_array_equal(first, large)
    np.testing.assert_array_equal(second, large)
    assert none.min() >= 0.8 * 255  # pale, never black
    np.testing.assert_array_equal(left[:, :60], large[:, :60])
    np.testing.assert_array_equal(left[:, -60:], none[:, -60:])
    assert [text.get_text() for text in figure.texts] == ["image", "truth", "none", "left"]


def test_colours_mean_something():
    """A set has its colour of all chapters; arms that have none share one."""
    figure = plots.score_dots({"d3s2": [1.0], "eta 1": [2.0], "early": [3.0]})
    dots = [line.get_color() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert dots[0] == plots.SERIES["d3s2"] and dots[1] == dots[2] == plots.INK
    rows = {"d3s2": (2.0, 50.0, 1.0), "eta 1": (1.0, 51.0, float("inf"))}
    cost, worth = plots.cost_and_score(rows).axes
    assert [tick.get_text() for tick in cost.get_yticklabels()] == list(rows)
    assert [line.get_xdata()[0] for line in cost.lines] == [2.0, 1.0]
    assert [list(line.get_xdata()) for line in worth.lines] == [[50.0], [49.0, 51.0], [51.0]]
    between = cost.xaxis.get_minorticklocs()  # 6, 7, 8 and 9 would stand upon one another
    assert {f"{value:.0e}"[0] for value in between} == {"2", "5"}


def test_a_difference_that_leaves_out_zero_is_filled():
    figure = plots.differences(
        {"clear": (3.0, 1.0), "unclear": (1.0, 2.0), "one run": (1.0, float("inf"))}, "mIoU"
    )
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() != "white" for dot in dots] == [True, False, False]


def test_in_a_family_the_family_says_what_is_filled():
    found = {"alone": (3.0, 1.0), "company": (3.0, 1.0)}
    figure = plots.differences(found, "mIoU", clear=["company"])
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() != "white" for dot in dots] == [False, True]


def test_a_training_too_short_to_note_its_loss_is_left_out():
    figure = plots.loss_curves({"random": [[]], "full": [[(10, 3.0), (20, 2.0)]]})
    assert [line.get_label() for line in figure.axes[0].lines] == ["full"]
