"""What a figure shows are the numbers that it is given: read back from its lines, bars, dots and
maps.
"""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from d3s2 import plots
from d3s2.data.dataset import ClassInfo

NAMES = ["sky", "road", "kite"]
CLASSES = [ClassInfo(name, (9 * i, 80, 200 - i)) for i, name in enumerate(NAMES)]
RNG = np.random.default_rng(4)
A, B = RNG.uniform(0.05, 0.95, (2, 3))
MAP = RNG.uniform(-3, 3, (3, 2))
TABLE = RNG.uniform(1, 9, (3, 3))
LENGTHS = np.array([3.0, 7.0, 19.0])


def shown(figure: Figure) -> set[float]:
    """All numbers that a figure's artists hold, to six digits."""
    found: list[np.ndarray] = []
    for axes in figure.axes:
        found += [np.ravel(line.get_xydata()) for line in axes.lines]
        found += [np.ma.filled(part.get_offsets(), np.nan).ravel() for part in axes.collections]
        bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        found += [np.array([bar.get_width(), bar.get_height()]) for bar in bars]
        found += [np.ravel(np.asarray(image.get_array(), float)) for image in axes.images]
    return set(np.round(np.concatenate(found), 6).tolist())


def numbers(*arrays: object) -> set[float]:
    """The numbers of some arrays, to six digits."""
    return set(np.round(np.concatenate([np.ravel(array) for array in arrays]), 6).tolist())


CASES = {
    "distribution": lambda: (plots.class_distribution(A, B, CLASSES), (A, B)),
    "lines": lambda: (plots.lines(LENGTHS, {"a": A, "b": B}, "x", "y"), (LENGTHS, A, B)),
    "gains": lambda: (plots.gains_curve(np.sort(A)[::-1], 2), (np.cumsum(np.sort(A)[::-1]),)),
    "bars": lambda: (plots.class_bars({"random": A, "greedy": B}, NAMES), (A, B)),
    "coverage": lambda: (
        plots.coverage_curves(LENGTHS, {"Gini": {"random": TABLE, "greedy": B}}),
        (LENGTHS, TABLE.mean(0), B),
    ),
    "features": lambda: (plots.class_feature_map(MAP, NAMES), (MAP,)),
    "distances": lambda: (plots.distance_map(TABLE, NAMES), (TABLE,)),
    "heat": lambda: (plots.heat_row([MAP, TABLE], ["fine", "coarse"]), (MAP, TABLE)),
    "losses": lambda: (
        plots.loss_curves({"random": [list(zip(LENGTHS, A, strict=True))], "full": [[(5.0, 0.4)]]}),
        (LENGTHS, A, 5.0, 0.4),
    ),
    "points": lambda: (plots.sampled_points(TABLE, {"anywhere": MAP}), (TABLE, MAP)),
    "cost": lambda: (
        plots.cost_and_score({"unguided": (A[0], 52.1, 0.4), "d3s2": (A[1], 53.7, 0.3)}),
        (A[:2], 52.1, 53.7, 52.1 - 0.4, 52.1 + 0.4, 53.7 - 0.3, 53.7 + 0.3),
    ),
    "differences": lambda: (
        plots.differences({"a": (3.2, 1.1), "b": (1.6, 2.3)}, "mIoU"),
        (3.2, 1.6),
    ),
    "convergence": lambda: (
        plots.convergence({"full": {600: [41.5], 1200: [50.25]}}, {"d3s2": (700, 45.125)}),
        (600, 1200, 41.5, 50.25, 45.125),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_figure_shows_the_numbers_that_it_is_given(name: str) -> None:
    figure, given = CASES[name]()
    lacking = numbers(*given) - shown(figure)
    assert not lacking, sorted(lacking)


def test_co_occurrence_is_the_share_of_a_rows_images_that_hold_the_column() -> None:
    together = np.array([[8, 2, 0], [2, 5, 1], [0, 1, 4]])
    figure = plots.co_occurrence_map(together, NAMES)
    (image,) = figure.axes[0].images
    np.testing.assert_allclose(image.get_array(), together / np.diag(together)[:, None])
