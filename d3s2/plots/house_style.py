"""The house style of all figures: colours, frames, and figures that show themselves as small PNGs.

Figures are built without pyplot: nothing piles up in memory, and headless runs need no backend. A
notebook cell that ends with a figure shows it.
"""

from __future__ import annotations

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from d3s2.data.dataset import ClassInfo

DPI = 80
INK, SOFT, GRID = "#222222", "#777777", "#dddddd"
SERIES = {
    "random": "#8c8c8c",
    "uniform": "#3a7ca5",
    "greedy": "#d1495b",
    "balanced": "#edae49",
    "d3s2": "#d1495b",
    "full": "#2f6b4f",
}
"""Colours of methods, the same in every chapter; `series_color` gives one to every other name."""

SPARE = ("#6a4c93", "#00798c", "#c17817", "#5f7a3a")


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


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: object
) -> tuple:
    """(Figure, Axes array [rows, columns]) in the house style. width, height: inches."""
    figure = Picture(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def series_color(name: str) -> str:
    """The colour of a method's name."""
    return SERIES.get(name, SPARE[sum(name.encode()) % len(SPARE)])


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


def _reduce_colors(picture: Image.Image) -> Image.Image:
    """256 colours: a quarter of the bytes. The 64 most frequent stay exact, so flat class colours
    never blend.
    """
    packed = np.asarray(picture).astype(np.int64) @ [65536, 256, 1]
    colors, place, counts = np.unique(packed, return_inverse=True, return_counts=True)
    flat = np.argsort(-counts, kind="stable")[:64]
    kept = np.stack(
        [colors[flat] >> 16, colors[flat] >> 8 & 255, colors[flat] & 255], axis=1
    ).astype(np.uint8)
    others = picture.quantize(192, method=Image.Quantize.MEDIANCUT, kmeans=3)
    index = np.full(len(colors), -1)
    index[flat] = np.arange(len(flat)) + 192
    index = index[place.reshape(packed.shape)]
    reduced = Image.fromarray(np.where(index >= 0, index, np.asarray(others)).astype(np.uint8))
    reduced.putpalette(bytes(others.getpalette() or []).ljust(3 * 192, b"\0") + kept.tobytes())
    return reduced


def rgb(info: ClassInfo) -> tuple[float, float, float]:
    """A class's colour as matplotlib has it."""
    return (info.color[0] / 255, info.color[1] / 255, info.color[2] / 255)
