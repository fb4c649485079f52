"""The house style of all figures: colours, frames, and figures that show themselves as small PNGs.

Figures are built without pyplot: nothing piles up in memory, and headless runs need no backend. A
notebook cell that ends with a figure shows it. Photographs are shown in fewer colours, which saves
most of their bytes; colours of classes are always exact.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Collection
from contextlib import suppress

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import _ImageBase
from PIL import Image

from d3s2.core.errors import D3S2Error
from d3s2.data.camvid import CAMVID_CLASSES
from d3s2.data.class_lists import classes_of
from d3s2.data.dataset import ClassInfo
from d3s2.data.scenes import scenes_classes

DPI = 80
PHOTOGRAPH = 192
"""Colours that the photographs of a large figure have together."""
INK, SOFT, GRID = "#222222", "#777777", "#dddddd"
SERIES = {
    "random": "#8c8c8c",
    "uniform": "#3a7ca5",
    "greedy": "#d1495b",
    "balanced": "#edae49",
    "d3s2": "#d1495b",
    "full": "#222222",
}
"""Colours of methods, the same in every chapter; no red beside a green of the same lightness, which
some readers cannot tell apart. `series_color` gives one to every other name.
"""

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
            exact = _flat_colors(self)
            reduce_colors(picture, exact=exact).save(small, format="PNG", optimize=True)
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


def reduce_colors(
    picture: Image.Image, photograph: int = PHOTOGRAPH, exact: Collection[int] = ()
) -> Image.Image:
    """A picture whose photographs have `photograph` colours: a quarter of the bytes.

    Exact stay the colours of all classes that are known, the 64 most frequent ones, and `exact`
    (each 65536 R + 256 G + B). With over 256 colours in all it is written without a palette.
    """
    packed = _packed(np.asarray(picture.convert("RGB")))
    colors, place, counts = np.unique(packed, return_inverse=True, return_counts=True)
    flat = np.isin(colors, [*exact, *_class_colors()])
    flat[np.argsort(-counts, kind="stable")[:64]] = True
    others = picture.convert("RGB").quantize(
        photograph, method=Image.Quantize.MEDIANCUT, kmeans=3, dither=Image.Dither.NONE
    )
    if flat.sum() + photograph > 256:
        kept = flat[place.reshape(packed.shape)][..., None]
        return Image.fromarray(
            np.where(kept, np.asarray(picture.convert("RGB")), others.convert("RGB"))
        )
    index = np.full(len(colors), -1)
    index[flat] = np.arange(flat.sum()) + photograph
    index = index[place.reshape(packed.shape)]
    reduced = Image.fromarray(np.where(index >= 0, index, np.asarray(others)).astype(np.uint8))
    begin = bytes(others.getpalette() or [])[: 3 * photograph].ljust(3 * photograph, b"\0")
    reduced.putpalette(begin + _unpacked(colors[flat]).tobytes())
    return reduced


def exact_colors(picture: Image.Image) -> list[int]:
    """The colours that `reduce_colors` kept exact in a picture that it gave a palette: those behind
    the photographs'. Of any other picture none.
    """
    if picture.mode != "P":
        return []
    palette = np.array(picture.getpalette(), dtype=np.uint8).reshape(-1, 3)
    return _packed(palette[PHOTOGRAPH:]).tolist()


def _flat_colors(figure: Figure) -> set[int]:
    """Colours of flat areas in the figure's images: three equal pixels in a row or a column. So
    masks keep the colours of a palette that nobody else knows.
    """
    found: set[int] = set()
    for image in figure.findobj(_ImageBase):
        array = np.asarray(image.get_array())
        if array.ndim != 3 or array.dtype != np.uint8:
            continue
        packed = _packed(array[..., :3])
        zoom = _zoom(packed)
        packed = packed[::zoom, ::zoom]
        for lines in (packed, packed.T):
            middle = lines[:, 1:-1]
            same = (middle == lines[:, :-2]) & (middle == lines[:, 2:])
            found.update(np.unique(middle[same]).tolist())
    return found


def _zoom(packed: np.ndarray) -> int:
    """How often each pixel of an image was repeated in both directions, at most eight times."""
    for zoom in range(8, 1, -1):
        small = packed[::zoom, ::zoom]
        large = small.repeat(zoom, 0).repeat(zoom, 1)
        if np.array_equal(large, packed):
            return zoom
    return 1


@functools.cache
def _class_colors() -> frozenset[int]:
    """The colours of the classes of all data sets that come with names and colours."""
    classes = [*scenes_classes(), *CAMVID_CLASSES]
    for name in ("ade20k", "cocostuff", "voc2012"):
        with suppress(D3S2Error):  # where mmsegmentation is not installed
            classes += classes_of(name)
    return frozenset(_packed(np.array([info.color for info in classes])).tolist())


def _packed(pixels: np.ndarray) -> np.ndarray:
    """int64[...] of [..., 3] pixels: one number a colour."""
    return pixels.astype(np.int64) @ [65536, 256, 1]


def _unpacked(colors: np.ndarray) -> np.ndarray:
    """uint8[..., 3]: the reverse of `_packed`."""
    return np.stack([colors >> 16, colors >> 8 & 255, colors & 255], axis=-1).astype(np.uint8)


def rgb(info: ClassInfo) -> tuple[float, float, float]:
    """A class's colour as matplotlib has it."""
    return (info.color[0] / 255, info.color[1] / 255, info.color[2] / 255)
