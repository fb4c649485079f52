"""Small pictures side by side, enlarged by a whole number: every pixel of theirs is a square."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from d3s2.plots.house_style import DPI, INK, SOFT, Picture

WIDTH = 780
"""Screen pixels that a row may fill: what a repository's web view shows without scaling."""
LINE = 18
"""Screen pixels of a line of text."""
_EDGE = 0x99
"""Grey of the line around each picture: a white one has an edge too."""


def panels(
    images: Mapping[str, np.ndarray], notes: Sequence[str] = (), arrows: bool = False
) -> Figure:
    """Named pictures uint8[H, W, 3] in a row, all of one size, as large as fits.

    notes: a line below each. arrows: from each picture to the next. Raises ValueError for pictures
    of different sizes.
    """
    stack = np.stack(list(images.values()))
    count, height, width = stack.shape[:3]
    gap = 30 if arrows else 10
    zoom = max(1, (WIDTH - 2 - (count - 1) * gap) // (count * width))
    below = LINE if notes else 1
    right = width * zoom + gap
    size = (2 + count * right - gap, below + height * zoom + LINE)
    figure = Picture(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
    edge = np.full((height * zoom + 2, width * zoom + 2, 3), _EDGE, dtype=np.uint8)
    for column, (name, image) in enumerate(images.items()):
        left = 1 + column * right
        figure.figimage(edge, left - 1, below - 1, origin="upper")
        figure.figimage(image.repeat(zoom, 0).repeat(zoom, 1), left, below, origin="upper")
        middle = left + width * zoom / 2
        _text(figure, middle, size[1] - LINE / 2, name, 9)
        if notes:
            _text(figure, middle, LINE / 2, notes[column], 8)
        if arrows and column:
            _arrow(figure, left - gap + 4, left - 4, below + height * zoom / 2)
    return figure


def _text(figure: Figure, x: float, y: float, words: str, size: int) -> None:
    """A line of text around a place in screen pixels, from the lower left."""
    place = {"transform": None, "ha": "center", "va": "center"}
    figure.text(x, y, words, fontsize=size, color=INK, **place)


def _arrow(figure: Figure, begin: float, end: float, height: float) -> None:
    places = ((begin, height), (end, height))
    arrow = FancyArrowPatch(
        *places, arrowstyle="-|>", mutation_scale=12, color=SOFT, transform=None
    )
    figure.add_artist(arrow)
