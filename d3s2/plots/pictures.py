"""Images and masks as pictures: arrays and a palette in, a Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from d3s2.data.dataset import IGNORE, ClassInfo
from d3s2.plots.house_style import DPI, INK, SOFT, Picture, new_figure, rgb

_IGNORE_COLOR = (255, 255, 255)


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
    tiles = [
        _stack(image, colorize(mask, palette)) for image, mask in zip(images, labels, strict=True)
    ]
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
            handles=_handles([classes[c] for c in seen if c < len(classes)]),
            loc="outside lower center",
            ncols=10,
            fontsize=7,
            frameon=False,
            handlelength=1.0,
            handleheight=1.0,
            columnspacing=1.0,
        )
    return figure


def class_legend(classes: Sequence[ClassInfo], columns: int = 7) -> Figure:
    """The colour of every class, with its train id."""
    named = [ClassInfo(f"{index} {info.name}", info.color) for index, info in enumerate(classes)]
    figure = Picture(figsize=(8.8, 0.26 * -(-len(classes) // columns) + 0.1), dpi=DPI)
    figure.legend(
        handles=_handles(named),
        loc="center",
        ncols=columns,
        fontsize=8.5,
        frameon=False,
        handlelength=1.3,
        handleheight=1.1,
    )
    return figure


def heat_row(
    arrays: Sequence[np.ndarray], titles: Sequence[str], limit: float | None = None
) -> Figure:
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

    Drawn in whole screen pixels per image pixel, so that nothing is resampled: sharper, and half
    the bytes.
    """
    count, height, width = next(iter(rows.values())).shape[:3]
    zoom, margin, gap = max(1, 780 // (count * width)), 110, 4
    right, down = width * zoom + gap, height * zoom + gap
    figure = Picture(figsize=((margin + count * right) / DPI, len(rows) * down / DPI), dpi=DPI)
    for line, (name, stack) in enumerate(rows.items()):
        bottom = (len(rows) - 1 - line) * down
        figure.text(
            margin - 8,
            bottom + down / 2,
            name,
            transform=None,
            ha="right",
            va="center",
            fontsize=8,
            color=INK,
        )
        for column, image in enumerate(stack):
            figure.figimage(
                image.repeat(zoom, 0).repeat(zoom, 1),
                margin + column * right,
                bottom,
                origin="upper",
            )
    return figure


def _stack(image: np.ndarray, below: np.ndarray) -> np.ndarray:
    gap = np.full((max(1, len(image) // 48), image.shape[1], 3), 255, np.uint8)
    return np.concatenate([image, gap, below])


def _handles(classes: Sequence[ClassInfo]) -> list[Patch]:
    return [
        Patch(facecolor=rgb(info), edgecolor=SOFT, linewidth=0.5, label=info.name)
        for info in classes
    ]
