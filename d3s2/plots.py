"""Pictures: every function takes arrays (and a palette) and returns a matplotlib Figure. None shows or saves.

Figures are built without pyplot: nothing piles up in memory, and headless runs need no backend. A notebook
cell that ends with a figure shows it, as a small PNG.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from d3s2.data.base import IGNORE, ClassInfo

DPI = 80
INK, SOFT, GRID = "#222222", "#777777", "#dddddd"
SERIES = {
    "random": "#8c8c8c", "uniform": "#3a7ca5", "greedy": "#d1495b",
    "balanced": "#edae49", "d3s2": "#d1495b", "full": "#2f6b4f",
}
"""Colours of methods, the same in every chapter; `series_color` gives one to every other name."""

_SPARE = ("#6a4c93", "#00798c", "#c17817", "#5f7a3a")
_IGNORE_COLOR = (255, 255, 255)


class Picture(Figure):
    """A Figure that shows itself in a notebook, without IPython or a matplotlib backend."""

    def _repr_png_(self) -> bytes:
        drawn, small = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png", metadata={"Software": None})
        picture = Image.open(drawn).convert("RGB")
        picture.save(small, format="PNG", optimize=True)
        if small.tell() > 40_000:  # photographs
            small = io.BytesIO()
            _reduce_colors(picture).save(small, format="PNG", optimize=True)
        return small.getvalue()


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: object) -> tuple:
    """(Figure, Axes array [rows, columns]) in the house style. width, height: inches."""
    figure = Picture(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def series_color(name: str) -> str:
    """The colour of a method's name."""
    return SERIES.get(name, _SPARE[sum(name.encode()) % len(_SPARE)])


def style(axes: Axes, xlabel: str = "", ylabel: str = "", title: str = "") -> Axes:
    """Labels and quiet frame lines."""
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.set_title(title, color=INK, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8)
    return axes


def colorize(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """uint8[H, W, 3] picture of a mask of train ids; ignored pixels are white."""
    table = np.full((256, 3), _IGNORE_COLOR, dtype=np.uint8)
    table[: len(palette)] = palette
    return table[np.where(labels == IGNORE, IGNORE, labels)]


def show_pairs(
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    palette: np.ndarray,
    titles: Sequence[str] | None = None,
    columns: int = 8,
    classes: Sequence[ClassInfo] | None = None,
) -> Figure:
    """Images, each above its mask. classes: adds a legend of the classes that occur."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    tiles = [_stack(image, colorize(mask, palette)) for image, mask in zip(images, labels, strict=True)]
    tall = rows * (8.7 / columns * tiles[0].shape[0] / tiles[0].shape[1] + (0.3 if titles else 0.1))
    figure, axes = new_figure(8.8, tall + (0.5 if classes is not None else 0.0), rows, columns)
    for cell in axes.flat:
        cell.axis("off")
    for index, tile in enumerate(tiles):
        cell = axes[index // columns, index % columns]
        cell.imshow(tile, interpolation="nearest")
        if titles is not None:
            cell.set_title(titles[index], fontsize=8, color=INK, pad=3)
    if classes is not None:
        seen = np.unique(np.concatenate([np.unique(mask) for mask in labels]))
        figure.legend(
            handles=_handles([classes[c] for c in seen if c < len(classes)]), loc="outside lower center",
            ncols=10, fontsize=7, frameon=False, handlelength=1.0, handleheight=1.0, columnspacing=1.0,
        )
    return figure


def class_legend(classes: Sequence[ClassInfo], columns: int = 7) -> Figure:
    """The colour of every class, with its train id."""
    named = [ClassInfo(f"{index} {info.name}", info.color) for index, info in enumerate(classes)]
    figure = Picture(figsize=(8.8, 0.26 * -(-len(classes) // columns) + 0.1), dpi=DPI)
    figure.legend(handles=_handles(named), loc="center", ncols=columns, fontsize=8.5, frameon=False,
                  handlelength=1.3, handleheight=1.1)
    return figure


def class_distribution(
    pixel_share: np.ndarray, image_share: np.ndarray, classes: Sequence[ClassInfo]
) -> Figure:
    """The long tail: share of pixels (log scale) and of images for each class, most frequent first."""
    order = np.argsort(-np.asarray(pixel_share), kind="stable")
    colors = [_rgb(classes[c]) for c in order]
    figure, axes = new_figure(8.8, 3.6, 1, 2)
    place = np.arange(len(order))
    for cell, values, title in ((axes[0, 0], pixel_share, "share of pixels (log scale)"),
                                (axes[0, 1], image_share, "share of images with the class")):
        style(cell, title=title).grid(axis="x", visible=False)
        shown = np.asarray(values, dtype=float)[order]
        cell.bar(place, shown, color=colors, edgecolor=SOFT, linewidth=0.5)
        cell.set_xticks(place, [classes[c].name for c in order], rotation=90, fontsize=8)
        cell.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
    axes[0, 0].set_yscale("log")
    axes[0, 0].yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    return figure


def co_occurrence_map(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Share of the images with the row's class that also hold the column's. matrix: int[C, C] counts."""
    diagonal = np.diag(matrix).astype(float)
    share = np.where(diagonal[:, None] > 0, matrix / np.maximum(diagonal, 1)[:, None], np.nan)
    figure, axes = new_figure(6.6, 5.6)
    cell = axes[0, 0]
    picture = cell.imshow(share, cmap="YlGnBu", vmin=0, vmax=1)
    cell.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    cell.set_yticks(range(len(names)), names, fontsize=8)
    cell.set_xlabel("... also holds this class", color=INK)
    cell.set_ylabel("an image with this class ...", color=INK)
    bar = figure.colorbar(picture, ax=cell, shrink=0.8, format=ticker.PercentFormatter(1.0))
    bar.outline.set_visible(False)
    return figure


def lines(
    x: np.ndarray, curves: Mapping[str, np.ndarray], xlabel: str = "", ylabel: str = "", title: str = ""
) -> Figure:
    """A few curves over one axis."""
    figure, axes = new_figure(5.6, 2.8)
    cell = style(axes[0, 0], xlabel, ylabel, title)
    for (name, values), color in zip(curves.items(), ("#d1495b", "#3a7ca5", "#edae49", *_SPARE), strict=False):
        cell.plot(x, values, color=color, label=name)
    cell.legend(frameon=False, fontsize=8)
    return figure


def gains_curve(gains: np.ndarray, budget: int) -> Figure:
    """Left: the gain of each pick (it can only fall). Right: the objective reached. Budget marked."""
    picks = np.arange(1, len(gains) + 1)
    figure, axes = new_figure(8.8, 2.9, 1, 2)
    gain = style(axes[0, 0], "pick", "gain", "gain of each pick (log-log)")
    gain.loglog(picks, np.maximum(gains, 1e-12), color=SERIES["greedy"])
    total = style(axes[0, 1], "number of masks", "F(S)", "objective")
    total.plot(picks, np.cumsum(gains), color=SERIES["greedy"])
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
    for number, (name, heights) in enumerate(values.items()):
        place = np.arange(len(order)) + (number - (len(values) - 1) / 2) * width
        cell.bar(place, np.asarray(heights)[order], width, color=series_color(name), label=name)
    cell.set_xticks(range(len(order)), [names[c] for c in order], rotation=90, fontsize=8)
    cell.legend(frameon=False, fontsize=8)
    return figure


def coverage_curves(budgets: Sequence[int], curves: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Coverage against the budget. curves[measure][ranking]: float[budgets], or [seeds, budgets] (band)."""
    figure, axes = new_figure(8.8, 2.8, 1, len(curves))
    for cell, (measure, rankings) in zip(axes[0], curves.items(), strict=True):
        style(cell, "number of masks", "", measure).set_xscale("log")
        for name, values in rankings.items():
            rows, color = np.atleast_2d(values), series_color(name)
            cell.plot(budgets, rows.mean(0), color=color, label=name)
            if len(rows) > 1:
                cell.fill_between(budgets, rows.min(0), rows.max(0), color=color, alpha=0.2, linewidth=0)
    axes[0, 0].legend(frameon=False, fontsize=8)
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
    figure.colorbar(picture, ax=cell).outline.set_visible(False)
    return figure


def distance_map(distances: np.ndarray, names: Sequence[str], title: str = "") -> Figure:
    """Distances between classes, float[C, C]; dark = alike."""
    figure, axes = new_figure(6.6, 5.6)
    cell = axes[0, 0]
    picture = cell.imshow(distances, cmap="magma", vmin=0)
    cell.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    cell.set_yticks(range(len(names)), names, fontsize=8)
    cell.set_title(title, color=INK, fontsize=10, loc="left")
    figure.colorbar(picture, ax=cell, shrink=0.8).outline.set_visible(False)
    return figure


def heat_row(arrays: Sequence[np.ndarray], titles: Sequence[str], limit: float | None = None) -> Figure:
    """Maps side by side on one colour scale from 0 to `limit` (default: the largest value)."""
    height = 8.0 / len(arrays) * arrays[0].shape[0] / arrays[0].shape[1] + 0.3
    figure, axes = new_figure(8.8, height, 1, len(arrays))
    high = limit or max(float(np.max(array)) for array in arrays)
    for cell, array, title in zip(axes[0], arrays, titles, strict=True):
        picture = cell.imshow(array, cmap="magma", vmin=0, vmax=high, interpolation="nearest")
        cell.set_title(title, fontsize=8, color=INK)
        cell.axis("off")
    figure.colorbar(picture, ax=axes[0].tolist(), shrink=0.8, aspect=12).outline.set_visible(False)
    return figure


def image_rows(rows: Mapping[str, np.ndarray]) -> Figure:
    """Named rows of equally many images, uint8[N, H, W, 3] each; the name stands at the left.

    Drawn in whole screen pixels per image pixel, so that nothing is resampled: sharper, and half the bytes.
    """
    count, height, width = next(iter(rows.values())).shape[:3]
    zoom, margin, gap = max(1, 780 // (count * width)), 110, 4
    right, down = width * zoom + gap, height * zoom + gap
    figure = Picture(figsize=((margin + count * right) / DPI, len(rows) * down / DPI), dpi=DPI)
    for line, (name, stack) in enumerate(rows.items()):
        bottom = (len(rows) - 1 - line) * down
        figure.text(margin - 8, bottom + down / 2, name, transform=None, ha="right", va="center", fontsize=8, color=INK)
        for column, image in enumerate(stack):
            figure.figimage(image.repeat(zoom, 0).repeat(zoom, 1), margin + column * right, bottom, origin="upper")
    return figure


def _reduce_colors(image: Image.Image) -> Image.Image:
    """256 well-chosen colours: a third of the bytes, so that the committed notebooks stay small."""
    return image.quantize(256, dither=Image.Dither.NONE)


def _reduce_colors(picture: Image.Image) -> Image.Image:
    """256 colours: a quarter of the bytes. The 64 most frequent stay exact, so flat class colours never blend."""
    packed = np.asarray(picture).astype(np.int64) @ [65536, 256, 1]
    colors, place, counts = np.unique(packed, return_inverse=True, return_counts=True)
    flat = np.argsort(-counts, kind="stable")[:64]
    kept = np.stack([colors[flat] >> 16, colors[flat] >> 8 & 255, colors[flat] & 255], axis=1).astype(np.uint8)
    others = picture.quantize(192, method=Image.Quantize.MEDIANCUT, kmeans=3)
    index = np.full(len(colors), -1)
    index[flat] = np.arange(len(flat)) + 192
    index = index[place.reshape(packed.shape)]
    reduced = Image.fromarray(np.where(index >= 0, index, np.asarray(others)).astype(np.uint8))
    reduced.putpalette(bytes(others.getpalette() or []).ljust(3 * 192, b"\0") + kept.tobytes())
    return reduced


def _stack(image: np.ndarray, below: np.ndarray) -> np.ndarray:
    gap = np.full((max(1, len(image) // 48), image.shape[1], 3), 255, np.uint8)
    return np.concatenate([image, gap, below])


def _handles(classes: Sequence[ClassInfo]) -> list[Patch]:
    return [Patch(facecolor=_rgb(info), edgecolor=SOFT, linewidth=0.5, label=info.name) for info in classes]


def _rgb(info: ClassInfo) -> tuple[float, float, float]:
    return (info.color[0] / 255, info.color[1] / 255, info.color[2] / 255)
