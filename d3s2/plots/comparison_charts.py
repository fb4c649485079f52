"""Charts of chapter 05: scores of many methods in, a Figure out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from d3s2.plots.charts import distinct_colors, legend_beside
from d3s2.plots.house_style import INK, new_figure, style

APART = 0.02
"""Of the axis of budgets, in decades: how far methods stand apart, so that no range hides one."""
DASHES = ("-", "--", ":", "-.")
MARKS = ("o", "s", "D", "^", "v")


def budget_curves(
    scores: Mapping[str, Mapping[int, Sequence[float]]], ylabel: str = "mIoU (%)"
) -> Figure:
    """Scores against the budget, a method a line: the mean at each budget, with a stroke from the
    lowest to the highest score. scores[method][masks]: one number a distillation or training.

    A method of one budget is a mark without a line. No line goes beyond what was measured.
    """
    figure, axes = new_figure(7.2, 3.4)
    cell = style(axes[0, 0], "masks (log scale)", ylabel)
    cell.set_xscale("log")
    middle = (len(scores) - 1) / 2
    looks = zip(
        distinct_colors(scores), itertools.cycle(DASHES), itertools.cycle(MARKS), strict=False
    )
    for number, ((name, of_method), (color, dash, mark)) in enumerate(
        zip(scores.items(), looks, strict=False)
    ):
        budgets = np.array(sorted(of_method))
        places = budgets * 10 ** (APART * (number - middle))
        values = [np.asarray(of_method[budget], dtype=float) for budget in budgets]
        means = [each.mean() for each in values]
        cell.plot(places, means, dash, marker=mark, color=color, markersize=5, label=name)
        lowest, highest = [each.min() for each in values], [each.max() for each in values]
        cell.vlines(places, lowest, highest, color=color, linewidth=1.2, alpha=0.7)
    _mark_budgets(cell, itertools.chain.from_iterable(scores.values()))
    legend_beside(figure)
    return figure


def third_bars(
    scores: Mapping[str, Mapping[str, Sequence[float]]], ylabel: str = "mean IoU (%)"
) -> Figure:
    """A group of bars for each part of the classes (head, body, tail), a bar a method: the mean,
    with a stroke from the lowest to the highest. scores[method][part]: one number a distillation or
    training; all methods have the same parts.
    """
    figure, axes = new_figure(7.2, 3.2)
    cell = style(axes[0, 0], ylabel=ylabel)
    cell.grid(axis="x", visible=False)
    parts = list(next(iter(scores.values()), {}))
    width = 0.84 / max(len(scores), 1)
    for number, ((name, of_method), color) in enumerate(
        zip(scores.items(), distinct_colors(scores), strict=False)
    ):
        places = np.arange(len(parts)) + (number - (len(scores) - 1) / 2) * width
        values = [np.asarray(of_method[part], dtype=float) for part in parts]
        cell.bar(places, [each.mean() for each in values], width, color=color, label=name)
        lowest, highest = [each.min() for each in values], [each.max() for each in values]
        cell.vlines(places, lowest, highest, color=INK, linewidth=1)
    cell.set_xticks(range(len(parts)), parts, fontsize=9)
    legend_beside(figure)
    return figure


def _mark_budgets(cell: Axes, budgets: Iterable[int]) -> None:
    """A tick at each budget that was measured, and no other."""
    measured = sorted(set(budgets))
    cell.set_xticks(measured, [f"{budget:,}" for budget in measured])
    cell.minorticks_off()
