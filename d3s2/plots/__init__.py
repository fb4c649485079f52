"""Figures: every function takes arrays (and a palette) and returns a matplotlib Figure. None shows
or saves.
"""

from d3s2.plots.charts import (
    class_bars,
    class_distribution,
    class_feature_map,
    co_occurrence_map,
    coverage_curves,
    distance_map,
    gains_curve,
    lines,
)
from d3s2.plots.house_style import (
    DPI,
    GRID,
    INK,
    SERIES,
    SOFT,
    Picture,
    new_figure,
    series_color,
    style,
)
from d3s2.plots.pictures import class_legend, colorize, heat_row, image_rows, show_pairs
from d3s2.plots.training_charts import (
    convergence,
    cost_and_score,
    differences,
    iou_by_rarity,
    loss_curves,
    matching_matrix,
    query_masks,
    sampled_points,
    score_dots,
)

__all__ = [
    "DPI",
    "GRID",
    "INK",
    "SERIES",
    "SOFT",
    "Picture",
    "class_bars",
    "class_distribution",
    "class_feature_map",
    "class_legend",
    "co_occurrence_map",
    "colorize",
    "convergence",
    "cost_and_score",
    "coverage_curves",
    "differences",
    "distance_map",
    "gains_curve",
    "heat_row",
    "image_rows",
    "iou_by_rarity",
    "lines",
    "loss_curves",
    "matching_matrix",
    "new_figure",
    "query_masks",
    "sampled_points",
    "score_dots",
    "series_color",
    "show_pairs",
    "style",
]
