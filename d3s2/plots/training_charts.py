"""Charts of chapter 04 and appendix A1: arrays in, a Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from d3s2.plots.house_style import INK, SOFT, new_figure, series_color, style


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
    image: np.ndarray, masks: np.ndarray, titles: Sequence[str], columns: int = 6
) -> Figure:
    """An image uint8[H, W, 3] and what some queries claim of it. masks: float[Q, H, W] in [0,
    1].
    """
    count = len(masks) + 1
    rows = -(-count // columns)
    figure, axes = new_figure(
        8.8, rows * (8.6 / columns * image.shape[0] / image.shape[1] + 0.25), rows, columns
    )
    for cell in axes.flat:
        cell.axis("off")
    axes.flat[0].imshow(image, interpolation="nearest")
    axes.flat[0].set_title("image", fontsize=8, color=INK, pad=3)
    for cell, mask, title in zip(axes.flat[1:], masks, titles, strict=False):
        cell.imshow(mask, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
        cell.set_title(title, fontsize=8, color=INK, pad=3)
    return figure


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
        cell.plot(xy[:, 0], xy[:, 1], ".", color=INK, markersize=2)
        cell.set_title(f"{name} ({len(xy)} points)", fontsize=9, color=INK)
        cell.axis("off")
    return figure


def score_dots(scores: Mapping[str, Sequence[float]]) -> Figure:
    """mIoU of every training as a dot, the mean of each set as a line."""
    figure, axes = new_figure(6.6, 0.6 + 0.42 * len(scores))
    cell = style(axes[0, 0], "validation mIoU (%)")
    cell.grid(axis="y", visible=False)
    for place, (name, values) in enumerate(scores.items()):
        cell.plot(values, [place] * len(values), "o", color=series_color(name), alpha=0.85)
        mean = float(np.mean(values))
        cell.plot([mean, mean], [place - 0.3, place + 0.3], color=series_color(name), linewidth=2)
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
    curve: Sequence[tuple[int, float]], points: Mapping[str, tuple[int, float]]
) -> Figure:
    """mIoU of the full data against training length (one training per length), and points to
    compare with.
    """
    figure, axes = new_figure(6.6, 3.2)
    cell = style(axes[0, 0], "training iterations (log scale)", "validation mIoU (%)")
    cell.set_xscale("log")
    steps, scores = np.array(curve, float).T
    cell.plot(steps, scores, "o-", color=series_color("full"), label="all real images")
    cell.set_xticks(steps, [f"{int(step):,}" for step in steps])
    cell.minorticks_off()
    for name, (step, score) in points.items():
        cell.plot(
            [step], [score], "D", color=series_color(name), label=f"{name}, {step:,} iterations"
        )
        cell.axhline(score, color=series_color(name), linewidth=0.8, linestyle=":")
    cell.legend(frameon=False, fontsize=8)
    return figure


def differences(found: Mapping[str, tuple[float, float]], xlabel: str) -> Figure:
    """Means with their intervals, one line each; those that leave out zero are filled. found[name]:
    (mean, half width).
    """
    figure, axes = new_figure(6.6, 0.8 + 0.3 * len(found))
    cell = style(axes[0, 0], xlabel)
    cell.grid(axis="y", visible=False)
    cell.axvline(0, color=INK, linewidth=1)
    for place, (name, (mean, half)) in enumerate(found.items()):
        color = series_color(name)
        cell.plot([mean - half, mean + half], [place, place], color=color, linewidth=2)
        cell.plot(
            [mean],
            [place],
            "o",
            color=color,
            markerfacecolor=color if abs(mean) > half else "white",
        )
    cell.set_yticks(range(len(found)), list(found), fontsize=9)
    cell.set_ylim(max(len(found), 1) - 0.5, -0.5)
    return figure


def cost_and_score(points: Mapping[str, tuple[float, float, float]]) -> Figure:
    """What an image costs against what the set is worth. points[name]: (seconds an image, mean
    mIoU, its standard error).

    The names stand in a column at the right, in the order of the points, so that none hides
    another.
    """
    figure, axes = new_figure(6.6, max(3.4, 0.26 * len(points)))
    cell = style(axes[0, 0], "seconds an image (log scale)", "validation mIoU (%)")
    cell.set_xscale("log")
    for name, (seconds, mean, error) in points.items():
        cell.errorbar(
            [seconds], [mean], [error], fmt="o", color=series_color(name), capsize=2, elinewidth=1
        )
    cell.margins(x=0.12, y=0.1)
    low, high = cell.get_ylim()
    order = sorted(points, key=lambda name: points[name][1])
    heights = spread_out(
        [(points[name][1] - low) / (high - low) for name in order], min(0.07, 1 / len(order))
    )
    for name, height in zip(order, heights, strict=True):
        arrow = {
            "arrowstyle": "-",
            "color": SOFT,
            "linewidth": 0.5,
            "shrinkB": 4,
            "relpos": (0, 0.5),
        }
        cell.annotate(
            name,
            points[name][:2],
            (1.04, height),
            "data",
            "axes fraction",
            arrow,
            fontsize=8,
            color=INK,
            va="center",
        )
    cell.xaxis.set_major_formatter("{x:g}")
    cell.xaxis.set_minor_formatter("{x:g}")
    return figure


def spread_out(places: Sequence[float], gap: float) -> np.ndarray:
    """The places, which must ascend, moved as little as it takes to keep a gap: float64[n], within
    0 to 1 if they fit there.
    """
    # A place minus its number of gaps must not fall; where it does, neighbours share their mean
    # (isotonic regression).
    wished = np.asarray(places, dtype=np.float64) - gap * np.arange(len(places))
    groups: list[list[float]] = []
    for value in wished:
        groups.append([value])
        while len(groups) > 1 and np.mean(groups[-2]) > np.mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    level = np.repeat([np.mean(group) for group in groups], [len(group) for group in groups])
    return np.clip(level, 0, max(0, 1 - gap * (len(places) - 1))) + gap * np.arange(len(places))


def _frame(x: float, y: float) -> Rectangle:
    return Rectangle((x, y), 1, 1, fill=False, edgecolor="#d1495b", linewidth=2)
