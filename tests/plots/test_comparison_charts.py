"""Charts of chapter 05: what stands where."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from d3s2 import plots
from d3s2.plots.charts import ORDERED
from d3s2.plots.house_style import SERIES

CURVES = {
    "random": {20: [10.0, 14.0], 40: [20.0, 21.0, 25.0]},
    "d3s2": {40: [30.0]},
    "edits": {80: [31.0, 33.0], 20: [5.0]},
}
THIRDS = {
    "random": {"head": [50.0, 54.0], "body": [30.0, 30.0], "tail": [1.0, 5.0]},
    "unidd": {"head": [40.0], "body": [20.0], "tail": [0.0]},
}


def strokes(cell) -> list[list[tuple[float, float]]]:
    """(lowest, highest) of the ranges of each method."""
    return [
        [(segment[0, 1], segment[1, 1]) for segment in lines.get_segments()]
        for lines in cell.collections
    ]


def test_curves_are_means_with_ranges_over_a_logarithmic_axis():
    cell = plots.budget_curves(CURVES).axes[0]
    assert cell.get_xscale() == "log"
    lines = cell.get_lines()
    assert [line.get_label() for line in lines] == list(CURVES)
    np.testing.assert_allclose(lines[0].get_ydata(), [12, 22])
    np.testing.assert_allclose(lines[1].get_ydata(), [30])
    np.testing.assert_allclose(lines[2].get_ydata(), [5, 32])  # budgets ascend
    assert strokes(cell) == [[(10, 14), (20, 25)], [(30, 30)], [(5, 5), (31, 33)]]
    assert cell.get_xticks().tolist() == [20, 40, 80]
    assert [text.get_text() for text in cell.get_xticklabels()] == ["20", "40", "80"]


def test_methods_of_one_budget_stand_beside_each_other_and_not_far_off():
    cell = plots.budget_curves(CURVES).axes[0]
    at_40 = [line.get_xdata()[i] for line, i in zip(cell.get_lines()[:2], (1, 0), strict=True)]
    assert at_40[0] < at_40[1] and all(abs(np.log10(x / 40)) < 0.05 for x in at_40)


def test_bars_are_means_with_ranges_in_groups():
    cell = plots.third_bars(THIRDS).axes[0]
    bars = [[bar.get_height() for bar in group] for group in cell.containers]
    assert bars == [[52, 30, 3], [40, 20, 0]]
    assert strokes(cell)[0] == [(50, 54), (30, 30), (1, 5)]
    assert [text.get_text() for text in cell.get_xticklabels()] == ["head", "body", "tail"]
    middles = [[bar.get_x() + bar.get_width() / 2 for bar in group] for group in cell.containers]
    np.testing.assert_allclose(np.mean(middles, axis=0), [0, 1, 2])


def test_a_method_keeps_its_colour_and_no_other_gets_it():
    many = {name: {40: [1.0]} for name in ("random", "d3s2", "edits", "unidd", "sfm")}
    colors = [line.get_color() for line in plots.budget_curves(many).axes[0].get_lines()]
    assert colors[:2] == [SERIES["random"], SERIES["d3s2"]]
    assert len(set(colors)) == 5 and set(colors[2:]) <= set(ORDERED)


@pytest.mark.parametrize(
    "figure",
    [
        lambda: plots.budget_curves(CURVES),
        lambda: plots.third_bars(THIRDS, "IoU"),
        lambda: plots.budget_curves({}),
        lambda: plots.third_bars({}),
    ],
)
def test_every_figure_draws_itself(figure):
    content = figure()._repr_png_()
    assert Image.open(io.BytesIO(content)).format == "PNG" and len(content) < 200_000
    assert content == figure()._repr_png_()
