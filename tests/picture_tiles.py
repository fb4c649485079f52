"""Pictures of notebooks taken apart: which images they show, and how large."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
from PIL import Image

WHITE = 0xFFFFFF
LEAST_SIDE = 48
"""Smaller pieces are letters and legends, no images."""


def committed_pictures(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the cell, uint8[H, W, 3]) of every picture in a notebook's outputs."""
    notebook = nbformat.read(path, as_version=4)
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                picture = Image.open(io.BytesIO(base64.b64decode(png)))
                yield number, np.asarray(picture.convert("RGB"))


def packed(pixels: np.ndarray) -> np.ndarray:
    """int32[H, W]: one number a colour."""
    wide = pixels.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def pieces(colors: np.ndarray) -> Iterator[np.ndarray]:
    """The parts of packed colours int32[H, W] that white lines separate; small ones are left
    out.
    """
    if min(colors.shape) < LEAST_SIDE:
        return
    for turned in (False, True):
        lines = colors.T if turned else colors
        parts = list(_runs((lines != WHITE).any(1)))
        if len(parts) != 1 or parts[0] != (0, len(lines)):
            for first, after in parts:
                part = lines[first:after]
                yield from pieces(part.T if turned else part)
            return
    yield colors


def _runs(filled: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, one after the last) of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], filled, [False]]).astype(int)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def find_zoomed(picture: np.ndarray, image: np.ndarray) -> tuple[int, int, int] | None:
    """(zoom, row, column) where an image stands in a picture, each of its pixels a square of so
    many; None where it does not. Both uint8[H, W, 3].
    """
    colors = packed(picture)
    for zoom in range(8, 0, -1):
        large = packed(image).repeat(zoom, 0).repeat(zoom, 1)
        height, width = large.shape
        for row in range(len(colors) - height + 1):
            for column in _places(colors[row], large[0]):
                found = colors[row : row + height, column : column + width]
                if np.array_equal(found, large):
                    return zoom, row, column
    return None


def _places(line: np.ndarray, part: np.ndarray) -> Iterator[int]:
    """Where int32[w] begins in int32[W]."""
    whole, sought = line.tobytes(), part.tobytes()
    place = whole.find(sought)
    while place >= 0:
        if place % 4 == 0:
            yield place // 4
        place = whole.find(sought, place + 1)
