"""Charts of chapters 04 and 05 and appendix A1: arrays in, a Figure out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator
from PIL import Image

from d3s2.plots.house_style import DPI, INK, SERIES, Picture, new_figure, series_color, style

INTERVAL = "#3a7ca5"
"""Colour of every difference and its interval."""


def matching_matrix(
    cost: np.ndarray,
    pairs: Sequence[tuple[int, int]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
) -> Figure:
    """A cost matrix float[Q, G] with its numbers; the matched (row, column) pairs are framed."""
    figure, axes = new_figure(1.6 + 0.75 * len(columns), 0.8 + 0.32 * len(rows))
    cell = axes[0, 0]
    cell.imshow(cost, cmap="YlGnBu_r", aspect="auto")
    middle = (cost.min() + cost.max()) / 2
    for (row, column), value in np.ndenumerate(cost):
        color = "white" if value < middle else INK
        cell.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=color)
    for row, column in pairs:
        frame = cell.add_patch(_frame(column - 0.5, row - 0.5))
        frame.set_clip_on(False)
    cell.set_xticks(range(len(columns)), columns, fontsize=8)
    cell.set_yticks(range(len(rows)), rows, fontsize=8)
    cell.set_title(title, fontsize=9, color=INK, loc="left")
    return figure


def query_masks(
    pictures: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray], columns: int = 6
) -> Figure:
    """What some queries claim of an image: where a mask is 0 the image is pale, where it is 1 it is
    itself.

    Drawn in whole screen pixels per image pixel.

    Args:
        pictures: uint8[H, W, 3] by title, shown as they are; the first is the image.
        masks: float[h, w] in [0, 1] by title, brought to the size of the image.
    """
    image = next(iter(pictures.values()))
    tiles = list(pictures.items())
    tiles += [(title, _where_claimed(image, mask)) for title, mask in masks.items()]
    height, width = image.shape[:2]
    zoom = max(1, 780 // (columns * width))
    right, down = width * zoom + 6, height * zoom + 20
    rows = -(-len(tiles) // columns)
    figure = Picture(figsize=(columns * right / DPI, rows * down / DPI), dpi=DPI)
    for place, (title, tile) in enumerate(tiles):
        left = place % columns * right
        bottom = (rows - 1 - place // columns) * down
        figure.figimage(tile.repeat(zoom, 0).repeat(zoom, 1), left, bottom, origin="upper")
        above = {"transform": None, "ha": "left", "va": "bottom", "fontsize": 8, "color": INK}
        figure.text(left, bottom + height * zoom + 3, title, **above)
    return figure


def _where_claimed(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8[H, W, 3]: the image where a mask is 1, nearly white where it is 0."""
    size = image.shape[1], image.shape[0]
    small = Image.fromarray(np.asarray(mask, dtype=np.float32))
    claimed = np.asarray(small.resize(size, Image.Resampling.BILINEAR)).clip(0, 1)[..., None]
    pale = 0.18 * image + 0.82 * 255
    return (claimed * image + (1 - claimed) * pale).round().astype(np.uint8)


def loss_curves(curves: Mapping[str, Sequence[Sequence[tuple[int, float]]]]) -> Figure:
    """Training loss against iterations. curves[set]: one list of (iteration, loss) per training."""
    figure, axes = new_figure(6.6, 3.0)
    cell = style(axes[0, 0], "iteration", "training loss", "Loss on each set's own images")
    for name, trainings in curves.items():
        for number, curve in enumerate(trainings):
            if not curve:  # a training so short that it noted no loss
                continue
            steps, losses = np.array(curve).T
            cell.plot(
                steps,
                losses,
                color=series_color(name),
                linewidth=1.1,
                label=None if number else name,
            )
    cell.set_ylim(bottom=0)
    cell.legend(frameon=False, fontsize=8)
    return figure


def iou_by_rarity(
    values: Mapping[str, Sequence[float | None]], shares: np.ndarray, names: Sequence[str]
) -> Figure:
    """IoU of each class for each training set; the classes in order of their pixel share, rarest
    last.
    """
    order = np.argsort(-np.asarray(shares), kind="stable")
    figure, axes = new_figure(8.8, 3.6)
    cell = style(axes[0, 0], ylabel="IoU (%)")
    cell.grid(axis="x", visible=False)
    width = 0.84 / len(values)
    for number, (name, heights) in enumerate(values.items()):
        bars = np.array([np.nan if height is None else height for height in heights], float)[order]
        place = np.arange(len(order)) + (number - (len(values) - 1) / 2) * width
        cell.bar(place, bars, width, color=series_color(name), label=name)
    labels = [f"{names[c]}\n{100 * shares[c]:.2g} %" for c in order]
    cell.set_xticks(range(len(order)), labels, rotation=90, fontsize=8)
    cell.set_ylim(0, 100)
    cell.legend(frameon=False, fontsize=8, ncols=len(values), loc="upper right")
    return figure


def sampled_points(logits: np.ndarray, points: Mapping[str, np.ndarray]) -> Figure:
    """Where a mask is compared with the truth. logits: float[h, w]; points: float[P, 2], (x, y) in
    0..1.
    """
    figure, axes = new_figure(3.0 * len(points), 3.2, 1, len(points))
    limit = float(np.abs(logits).max())
    for cell, (name, xy) in zip(axes[0], points.items(), strict=True):
        cell.imshow(
            logits,
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            extent=(0, 1, 1, 0),
            interpolation="nearest",
        )
        size = 2 if len(xy) > 50 else 8
        cell.plot(xy[:, 0], xy[:, 1], ".", color=INK, markersize=size)
        count = "one point" if len(xy) == 1 else f"{len(xy)} points"
        cell.set_title(f"{name} ({count})", fontsize=9, color=INK)
        cell.axis("off")
    return figure


def score_dots(scores: Mapping[str, Sequence[float]], xlabel: str = "") -> Figure:
    """Every value of a set as a dot, their mean as a line. Sets without a colour of their own in
    all chapters are black.
    """
    figure, axes = new_figure(6.6, 0.6 + (0.42 if len(scores) < 8 else 0.26) * len(scores))
    cell = style(axes[0, 0], xlabel or "validation mIoU (%)")
    cell.grid(axis="y", visible=False)
    for place, (name, values) in enumerate(scores.items()):
        color = _known_color(name)
        cell.plot(values, [place] * len(values), "o", color=color, alpha=0.6)
        mean = float(np.mean(values))
        cell.plot([mean, mean], [place - 0.3, place + 0.3], color=color, linewidth=2)
        cell.annotate(
            f"{mean:.1f}",
            (max(values), place),
            xytext=(8, -3),
            textcoords="offset points",
            fontsize=8,
            color=INK,
        )
    cell.set_yticks(range(len(scores)), list(scores), fontsize=9)
    cell.set_ylim(len(scores) - 0.5, -0.5)
    cell.margins(x=0.12)
    return figure


def convergence(
    curves: Mapping[str, Mapping[int, Sequence[float]]],
    points: Mapping[str, tuple[int, float]],
) -> Figure:
    """mIoU against training length, for each set a line of means with every training as a dot;
    points: (iterations, mIoU) to compare with, as diamonds.

    No line goes beyond what was trained.
    """
    figure, axes = new_figure(6.6, 3.2)
    cell = style(axes[0, 0], "training iterations (log scale)", "validation mIoU (%)")
    cell.set_xscale("log")
    lengths: set[int] = set()
    for name, of_set in curves.items():
        color = series_color(name)
        steps = sorted(of_set)
        lengths.update(steps)
        for step in steps:
            many = len(of_set[step]) > 1
            cell.plot([step] * len(of_set[step]), of_set[step], "o", color=color, alpha=0.5)
            if not many:
                cell.plot([step], of_set[step], "o", color=color)
        means = [float(np.mean(of_set[step])) for step in steps]
        cell.plot(steps, means, "-", color=color, label=name)
    for name, (step, score) in points.items():
        lengths.add(step)
        cell.plot([step], [score], "D", color=series_color(name), label=f"{name}, this run")
    cell.set_xticks(sorted(lengths), [f"{int(step):,}" for step in sorted(lengths)])
    cell.minorticks_off()
    if curves or points:
        cell.legend(frameon=False, fontsize=8)
    return figure


def differences(
    found: Mapping[str, tuple[float, float]], xlabel: str, clear: Collection[str] | None = None
) -> Figure:
    """Means with their intervals, one line each. found[name]: (mean, half width); clear: the names
    whose dot is filled, None = those whose interval leaves out zero. An infinite interval, of a
    single unit, is left out.
    """
    figure, axes = new_figure(6.6, 0.9 + 0.3 * len(found))
    cell = style(axes[0, 0], xlabel)
    cell.grid(axis="y", visible=False)
    cell.axvline(0, color=INK, linewidth=1)
    for place, (name, (mean, half)) in enumerate(found.items()):
        filled = abs(mean) > half if clear is None else name in clear
        if np.isfinite(half):
            cell.plot([mean - half, mean + half], [place, place], color=INTERVAL, linewidth=2)
        cell.plot(
            [mean], [place], "o", color=INTERVAL, markerfacecolor=INTERVAL if filled else "white"
        )
    cell.set_yticks(range(len(found)), list(found), fontsize=9)
    cell.set_ylim(max(len(found), 1) - 0.5, -0.5)
    return figure


def cost_and_score(points: Mapping[str, tuple[float, float, float]], of: str = "") -> Figure:
    """What an image costs, left, and what the set is worth, right, one line each in the order
    given. points[name]: (seconds an image, mean mIoU, half the width of its interval); of: what the
    interval is.
    """
    figure, axes = new_figure(8.8, 0.9 + 0.26 * len(points), 1, 2)
    cost = style(axes[0, 0], "seconds an image (log scale)")
    worth = style(axes[0, 1], f"validation mIoU (%){', ' if of else ''}{of}")
    cost.set_xscale("log")
    for place, (name, (seconds, mean, half)) in enumerate(points.items()):
        color = _known_color(name)
        cost.plot([seconds], [place], "o", color=color)
        worth.plot([mean], [place], "o", color=color)
        if np.isfinite(half):
            worth.plot([mean - half, mean + half], [place, place], color=color, linewidth=1.5)
    for cell, names in ((cost, list(points)), (worth, [""] * len(points))):
        cell.set_yticks(range(len(points)), names, fontsize=8.5)
        cell.set_ylim(len(points) - 0.5, -0.5)
    cost.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    cost.xaxis.set_major_formatter("{x:g}")
    cost.xaxis.set_minor_formatter("{x:g}")
    cost.tick_params(axis="x", which="both", labelsize=7)
    return figure


def _known_color(name: str) -> str:
    """The colour that a set has in every chapter; black for all others, so that a colour never
    means nothing.
    """
    return SERIES.get(name, INK)


def _frame(x: float, y: float) -> Rectangle:
    return Rectangle((x, y), 1, 1, fill=False, edgecolor="#d1495b", linewidth=2)
