"""Images and masks as pictures: arrays and a palette in, a Figure out.

Pixels are drawn in whole screen pixels, small images at twice their size or more: nothing is
resampled, so the colours of classes are exact, and what is thin stays to be seen. What can stand in
a row of `image_rows` is an image uint8[H, W, 3]: a photograph, a mask in its classes' colours
(`colorize`), an image with marks (`marked`), a map of changes (`change_map`), a detail of any of
them (`details`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from d3s2.data.dataset import IGNORE, ClassInfo
from d3s2.plots.house_style import DPI, INK, SOFT, Picture, rgb

MARK = (255, 176, 0)
"""What is pointed at, on a grey image: an orange that every kind of colour vision tells from it."""
SCALE = "magma"
"""The colours of amounts: darker is less, also in grey and to the colour-blind."""
MOST = 780
"""Screen pixels that a row of small images takes; a web view shows about so many."""
_IGNORE_COLOR = (255, 255, 255)
_SMALL = 128
"""Images up to this width are drawn at twice their size or more."""
_LINE = 15
"""Height of a line of text, in screen pixels."""


class _Frame(NamedTuple):
    """A figure of so many screen pixels, which things are put in by their pixel from the top."""

    figure: Figure
    width: int
    height: int

    @classmethod
    def of(cls, width: int, height: int) -> _Frame:
        return cls(Picture(figsize=(width / DPI, height / DPI), dpi=DPI), width, height)

    def image(self, pixels: np.ndarray, x: int, y: int, zoom: int) -> None:
        """uint8[H, W, 3] with its upper left corner at (x, y), each pixel `zoom` wide and high."""
        large = pixels.repeat(zoom, 0).repeat(zoom, 1)
        self.figure.figimage(large, x, self.height - y - len(large), origin="upper")

    def axes(self, x: int, y: int, width: int, height: int) -> object:
        """Axes of exactly this size."""
        bottom = self.height - y - height
        place = [x / self.width, bottom / self.height, width / self.width, height / self.height]
        return self.figure.add_axes(place)

    def text(self, words: str, x: float, y: float, align: str = "center") -> None:
        """Small text that is centred at height y."""
        down = self.height - y
        style = {"fontsize": 8, "color": INK, "ha": align, "va": "center"}
        self.figure.text(x, down, words, transform=None, **style)


# --------------------------------------------------------------------------------- what is in a row
def colorize(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """uint8[..., H, W, 3] picture of masks of train ids; ignored pixels are white."""
    table = np.full((256, 3), _IGNORE_COLOR, dtype=np.uint8)
    table[: len(palette)] = palette
    return table[np.where(labels == IGNORE, IGNORE, labels)]


def marked(images: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Images in grey, pixels of them in one bright colour.

    Args:
        images: uint8[N, H, W, 3]; where: bool[N, H, W].
    Returns:
        uint8[N, H, W, 3].
    """
    grey = images.mean(3, keepdims=True).repeat(3, 3)
    quiet = (0.6 * grey).astype(np.uint8)
    return np.where(where[..., None], np.array(MARK, dtype=np.uint8), quiet)


def change_map(after: np.ndarray, before: np.ndarray, most: float = 64.0) -> np.ndarray:
    """How much each pixel differs: black = not at all, light yellow = by `most` of 255 or more.

    Args:
        after, before: uint8[N, H, W, 3]; their difference is averaged over the channels.
    Returns:
        uint8[N, H, W, 3].
    """
    change = np.abs(after.astype(float) - before.astype(float)).mean(3)
    shades = colormaps[SCALE]((change / most).clip(0, 1))
    return np.round(255 * shades[..., :3]).astype(np.uint8)


def busiest(where: np.ndarray, size: int) -> np.ndarray:
    """The window that holds most of what is marked, image by image; the first of equals.

    Args:
        where: bool or float[N, H, W], at least 0; size: side of the window in pixels.
    Returns:
        int64[N, 2]: row and column of its upper left corner; (0, 0) where nothing is marked.
    """
    sums = np.zeros((len(where), where.shape[1] + 1, where.shape[2] + 1))
    sums[:, 1:, 1:] = where.cumsum(1, dtype=float).cumsum(2)
    rows, columns = max(1, where.shape[1] - size + 1), max(1, where.shape[2] - size + 1)
    far_down, far_right = sums.shape[1] - rows, sums.shape[2] - columns
    inside = (
        sums[:, far_down:, far_right:]
        - sums[:, :rows, far_right:]
        - sums[:, far_down:, :columns]
        + sums[:, :rows, :columns]
    )
    best = inside.reshape(len(where), -1).argmax(1)
    return np.stack(np.unravel_index(best, (rows, columns)), axis=1)


def details(images: np.ndarray, corners: np.ndarray, size: int) -> np.ndarray:
    """uint8[N, size, size, 3]: of each image the window with this upper left corner (`busiest`)."""
    windows = [
        image[row : row + size, column : column + size]
        for image, (row, column) in zip(images, corners, strict=True)
    ]
    return np.stack(windows)


# ------------------------------------------------------------------------------------------ figures
def image_rows(rows: Mapping[str, np.ndarray], titles: Sequence[str] = ()) -> Figure:
    """Named rows of equally many images, uint8[N, H, W, 3] each; the name stands at the left.

    titles: of the columns, above the first row.
    """
    count, height, width = next(iter(rows.values())).shape[:3]
    zoom, margin, gap = whole_zoom(width, count), 120, 4
    right, down = width * zoom + gap, height * zoom + gap
    top = _LINE if titles else 0
    frame = _Frame.of(margin + count * right, top + len(rows) * down)
    for column, title in enumerate(titles):
        frame.text(title, margin + column * right + width * zoom / 2, top / 2)
    for line, (name, stack) in enumerate(rows.items()):
        y = top + line * down
        frame.text(name, margin - 8, y + down / 2, "right")
        for column, image in enumerate(stack):
            frame.image(image, margin + column * right, y + gap, zoom)
    return frame.figure


def show_pairs(
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    palette: np.ndarray,
    titles: Sequence[str] | None = None,
    columns: int = 8,
    classes: Sequence[ClassInfo] | None = None,
) -> Figure:
    """Images, each above its mask, at most `columns` in a row and fewer where the web view has no
    room for them. classes: adds a legend of the classes that occur.
    """
    height, width = images[0].shape[:2]
    columns = min(columns, len(images), _fitting(width))
    zoom, gap = whole_zoom(width, columns), 6
    top = _LINE + 3 if titles is not None else 0
    right, down = width * zoom + gap, top + 2 * (height * zoom + 2) + gap
    shown = _occurring(labels, classes) if classes is not None else []
    across = columns * right
    per_line, lines = _legend_grid(shown, across)
    frame = _Frame.of(across, -(-len(images) // columns) * down + lines * (_LINE + 2))
    for index, (image, mask) in enumerate(zip(images, labels, strict=True)):
        x, y = index % columns * right, index // columns * down
        if titles is not None:
            frame.text(titles[index], x + width * zoom / 2, y + top / 2)
        frame.image(image, x, y + top, zoom)
        frame.image(colorize(mask, palette), x, y + top + height * zoom + 2, zoom)
    if shown:
        _legend(frame.figure, shown, per_line, "lower center", 7.5)
    return frame.figure


def class_legend(classes: Sequence[ClassInfo], columns: int = 7) -> Figure:
    """The colour of every class, with its train id."""
    named = [ClassInfo(f"{index} {info.name}", info.color) for index, info in enumerate(classes)]
    frame = _Frame.of(704, 21 * -(-len(classes) // columns) + 8)
    _legend(frame.figure, named, columns, "center", 8.5)
    return frame.figure


def heat_row(
    arrays: Sequence[np.ndarray], titles: Sequence[str], limit: float | None = None
) -> Figure:
    """Maps side by side on one colour scale from 0 to `limit` (default: the largest value)."""
    high = limit or max(float(np.max(array)) for array in arrays)
    gap, bar = 6, 60
    room = max(MOST // len(arrays), gap + max(array.shape[1] for array in arrays))
    zooms = [(room - gap) // array.shape[1] for array in arrays]
    tall = max(zoom * array.shape[0] for zoom, array in zip(zooms, arrays, strict=True))
    frame = _Frame.of(room * len(arrays) + bar, _LINE + 3 + tall + gap)
    for number, (array, zoom, title) in enumerate(zip(arrays, zooms, titles, strict=True)):
        height, width = zoom * array.shape[0], zoom * array.shape[1]
        cell = frame.axes(number * room, _LINE + 3, width, height)
        picture = cell.imshow(
            array, cmap=SCALE, vmin=0, vmax=high, interpolation="nearest", aspect="auto"
        )
        cell.axis("off")
        frame.text(title, number * room + width / 2, _LINE / 2)
    scale = frame.axes(room * len(arrays), _LINE + 3 + tall // 10, 12, tall * 8 // 10)
    frame.figure.colorbar(picture, cax=scale).outline.set_visible(False)
    scale.tick_params(labelsize=7, colors=INK)
    return frame.figure


def whole_zoom(width: int, count: int) -> int:
    """Screen pixels for a pixel of images that stand `count` in a row: as many as a web view has
    room for, 8 at most; 2 at least for small images.
    """
    return max(2 if width <= _SMALL else 1, min(8, MOST // (count * width)))


# ------------------------------------------------------------------------------------------ legends
def _fitting(width: int) -> int:
    """How many images of this width stand in a row at the least zoom."""
    return max(1, (MOST + 40) // (width * whole_zoom(width, MOST)))


def _occurring(labels: Sequence[np.ndarray], classes: Sequence[ClassInfo]) -> list[ClassInfo]:
    """The classes that some masks hold, in their order."""
    seen = np.unique(np.concatenate([np.unique(mask) for mask in labels]))
    return [classes[c] for c in seen if c < len(classes)]


def _legend_grid(shown: Sequence[ClassInfo], width: int) -> tuple[int, int]:
    """(entries in a line, lines) of a legend that has this many screen pixels."""
    if not shown:
        return 0, 0
    widest = 32 + 6 * max(len(info.name) for info in shown)
    per_line = min(len(shown), max(1, width // widest))
    return per_line, -(-len(shown) // per_line)


def _legend(
    figure: Figure, shown: Sequence[ClassInfo], columns: int, place: str, size: float
) -> None:
    """The classes' colours and names, without a frame."""
    figure.legend(
        handles=_handles(shown),
        loc=place,
        ncols=columns,
        fontsize=size,
        frameon=False,
        handlelength=1.0,
        handleheight=1.0,
        columnspacing=1.0,
        borderpad=0,
        borderaxespad=0,
        labelspacing=0.35,
    )


def _handles(classes: Sequence[ClassInfo]) -> list[Patch]:
    return [
        Patch(facecolor=rgb(info), edgecolor=SOFT, linewidth=0.5, label=info.name)
        for info in classes
    ]
