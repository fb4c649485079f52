"""Charts of chapters 01 to 03: arrays in, a Figure out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from d3s2.data.dataset import ClassInfo
from d3s2.plots.house_style import INK, SERIES, SOFT, SPARE, new_figure, rgb, series_color, style

ORDERED = ("#d1495b", "#3a7ca5", "#edae49", *SPARE)
"""Colours of what has no name of its own, in the order of drawing; the first three differ in
lightness too, for readers who tell few hues apart.
"""


def class_distribution(
    pixel_share: np.ndarray, image_share: np.ndarray, classes: Sequence[ClassInfo]
) -> Figure:
    """The long tail: share of pixels (log scale) and of images for each class, most frequent
    first.
    """
    order = np.argsort(-np.asarray(pixel_share), kind="stable")
    colors = [rgb(classes[c]) for c in order]
    figure, axes = new_figure(8.8, 3.6, 1, 2)
    place = np.arange(len(order))
    for cell, values, title in (
        (axes[0, 0], pixel_share, "share of pixels (log scale)"),
        (axes[0, 1], image_share, "share of images with the class"),
    ):
        style(cell, title=title).grid(axis="x", visible=False)
        shown = np.asarray(values, dtype=float)[order]
        cell.bar(place, shown, color=colors, edgecolor=SOFT, linewidth=0.5)
        cell.set_xticks(place, [classes[c].name for c in order], rotation=90, fontsize=8)
        cell.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
    axes[0, 0].set_yscale("log")
    axes[0, 0].yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    return figure


def co_occurrence_map(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Share of the images with the row's class that also hold the column's. matrix: int[C, C]
    counts.
    """
    diagonal = np.diag(matrix).astype(float)
    share = np.where(diagonal[:, None] > 0, matrix / np.maximum(diagonal, 1)[:, None], np.nan)
    figure, axes = new_figure(6.6, 5.6)
    cell = axes[0, 0]
    picture = cell.imshow(share, cmap="YlGnBu", vmin=0, vmax=1)
    cell.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    cell.set_yticks(range(len(names)), names, fontsize=8)
    cell.set_xlabel("... also holds this class", color=INK)
    cell.set_ylabel("an image with this class ...", color=INK)
    _color_bar(figure, picture, "share of the row's images", ticker.PercentFormatter(1.0))
    return figure


def lines(
    x: np.ndarray,
    curves: Mapping[str, np.ndarray],
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
) -> Figure:
    """A few curves over one axis."""
    figure, axes = new_figure(5.6, 2.8)
    cell = style(axes[0, 0], xlabel, ylabel, title)
    dashes = itertools.cycle(("-", "--", ":", "-."))
    for (name, values), color, dash in zip(curves.items(), ORDERED, dashes, strict=False):
        cell.plot(x, values, color=color, linestyle=dash, label=name)
    if curves:
        legend_beside(figure)
    return figure


def gains_curve(gains: np.ndarray, budget: int) -> Figure:
    """Left: the gain of each pick (it can only fall). Right: the objective reached. Budget
    marked.
    """
    picks = np.arange(1, len(gains) + 1)
    figure, axes = new_figure(8.8, 2.9, 1, 2)
    gain = style(axes[0, 0], "pick", "gain", "gain of each pick (log-log)")
    gain.loglog(picks, np.maximum(gains, 1e-12), color=SERIES["greedy"])
    total = style(axes[0, 1], "number of masks (log scale)", "F(S)", "objective reached")
    total.semilogx(picks, np.cumsum(gains), color=SERIES["greedy"])
    for cell in (gain, total):
        cell.axvline(budget, color=SOFT, linewidth=0.9, linestyle="--")
        place = {"xycoords": ("data", "axes fraction"), "fontsize": 8, "color": SOFT}
        cell.annotate(f" budget {budget}", (budget, 0.06), **place)
    return figure


def class_bars(values: Mapping[str, np.ndarray], names: Sequence[str], ylabel: str = "") -> Figure:
    """One group of bars per class, e.g. n_c of several selections; ordered by the first series."""
    order = np.argsort(-np.asarray(next(iter(values.values()))), kind="stable")
    figure, axes = new_figure(8.8, 3.4)
    cell = style(axes[0, 0], ylabel=ylabel)
    cell.grid(axis="x", visible=False)
    width = 0.84 / len(values)
    for number, ((name, heights), color) in enumerate(
        zip(values.items(), distinct_colors(values), strict=False)
    ):
        place = np.arange(len(order)) + (number - (len(values) - 1) / 2) * width
        cell.bar(place, np.asarray(heights)[order], width, color=color, label=name)
    cell.set_xticks(range(len(order)), [names[c] for c in order], rotation=90, fontsize=8)
    legend_beside(figure)
    return figure


def coverage_curves(
    budgets: Sequence[int], curves: Mapping[str, Mapping[str, np.ndarray]]
) -> Figure:
    """Coverage against the budget. curves[measure][ranking]: float[budgets], or [seeds, budgets]
    (band).
    """
    figure, axes = new_figure(8.8, 2.8, 1, len(curves))
    for cell, (measure, rankings) in zip(axes[0], curves.items(), strict=True):
        style(cell, "number of masks (log scale)", "", measure).set_xscale("log")
        for name, values in rankings.items():
            rows, color = np.atleast_2d(values), series_color(name)
            cell.plot(budgets, rows.mean(0), color=color, label=name)
            if len(rows) > 1:
                cell.fill_between(
                    budgets, rows.min(0), rows.max(0), color=color, alpha=0.2, linewidth=0
                )
    legend_beside(figure, axes[0, 0])
    return figure


def class_feature_map(values: np.ndarray, names: Sequence[str], title: str = "") -> Figure:
    """One number per class and channel. values: float[C, D], NaN = a class that is never seen."""
    limit = float(np.nanpercentile(np.abs(values), 99)) or 1.0
    figure, axes = new_figure(8.8, 0.2 * len(names) + 1.0)
    cell = axes[0, 0]
    scale = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    picture = cell.imshow(values, aspect="auto", interpolation="nearest", **scale)
    cell.set_yticks(range(len(names)), names, fontsize=8)
    cell.set_xlabel("feature channel d", color=INK)
    cell.set_title(title, color=INK, fontsize=10, loc="left")
    _color_bar(figure, picture, "distance from the channel's mean")
    return figure


def distance_map(distances: np.ndarray, names: Sequence[str], title: str = "") -> Figure:
    """Distances between classes, float[C, C]; dark = alike."""
    figure, axes = new_figure(6.6, 5.6)
    cell = axes[0, 0]
    picture = cell.imshow(distances, cmap="magma", vmin=0)
    cell.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    cell.set_yticks(range(len(names)), names, fontsize=8)
    cell.set_title(title, color=INK, fontsize=10, loc="left")
    _color_bar(figure, picture, "distance (dark = alike)")
    return figure


def distinct_colors(names: Iterable[str]) -> Iterator[str]:
    """A colour for each name: its own in every chapter, else one that no other here has, as long as
    there are such.
    """
    names = list(names)
    taken = {SERIES[name] for name in names if name in SERIES}
    spare = itertools.cycle(color for color in ORDERED if color not in taken)
    for name in names:
        yield SERIES.get(name) or next(spare)


def legend_beside(figure: Figure, of: Axes | None = None) -> None:
    """The legend of an axes (the first) at the right of everything, where it covers nothing."""
    handles, names = (of or figure.axes[0]).get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=8)


def _color_bar(
    figure: Figure, picture: AxesImage, label: str, form: ticker.Formatter | None = None
) -> None:
    """The scale of a map, and what it measures."""
    bar = figure.colorbar(picture, ax=picture.axes, shrink=0.8, format=form)
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize=8, color=INK)
