"""The masks in the committed notebooks, to the pixel: they have the colours of the class table and
no others, and those of chapter 03 are the masks that it names.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from picture_tiles import WHITE, committed_pictures, find_zoomed, packed, pieces
from PIL import Image

from d3s2 import plots
from d3s2.data.scenes import draw_scene, scenes_classes

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
COLORS = packed(np.array([[info.color for info in scenes_classes()]], np.uint8))[0]
MOSTLY = 0.9
"""From this share of class colours on, and with no more white than this leaves, a piece of a
picture is a mask; a chart has more paper.
"""
FRAME = 2
"""Screen pixels that a frame may take at each side."""


def wrong_shares(picture: np.ndarray) -> list[float]:
    """Of each mask in a picture, the share of pixels in no class's colour; white is ignored."""
    shares = []
    for piece in pieces(packed(picture)):
        inside = piece[FRAME:-FRAME, FRAME:-FRAME]
        known = np.isin(inside, COLORS)
        white = inside == WHITE
        several = len(np.unique(inside[known])) > 2  # a bar of a chart has one colour
        if several and white.mean() < 0.5 and (known | white).mean() >= MOSTLY:
            shares.append(float((~known & ~white).mean()))
    return shares


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_masks_have_the_colours_of_the_class_table_and_no_others(path: Path) -> None:
    masks = 0
    for number, picture in committed_pictures(path):
        shares = wrong_shares(picture)
        assert not any(shares), (number, shares)
        masks += len(shares)
    assert masks or path.stem not in SHOW_MASKS


SHOW_MASKS = {"01_data_statistics", "02_mask_selection", "03_guided_sampling"}


def test_chapter_03_shows_the_masks_that_it_names() -> None:
    """Each pixel is a whole square, in the colour of its own class: no bus became a building."""
    (path,) = [path for path in NOTEBOOKS if path.stem.startswith("03")]
    cells = nbformat.read(path, as_version=4).cells
    printed = "".join(
        output.get("text", "") for cell in cells for output in cell.get("outputs", [])
    )
    names = re.search(r"^masks ((?:\d{5}(?:, )?)+)$", printed, re.MULTILINE)[1].split(", ")
    palette = np.array([info.color for info in scenes_classes()], np.uint8)
    masks = [plots.colorize(draw_scene(0, "train", int(name))[1], palette) for name in names]
    found = [
        tuple(find_zoomed(picture, mask) is not None for mask in masks)
        for _, picture in committed_pictures(path)
    ]
    assert found.count((True,) * len(masks)) >= 2  # where they are introduced, and at the end


def six_masks() -> np.ndarray:
    """uint8[H, W, 3], a picture with six masks."""
    palette = np.array([info.color for info in scenes_classes()], np.uint8)
    masks = [draw_scene(0, "train", index)[1] for index in range(6)]
    figure = plots.show_pairs([np.zeros((64, 64, 3), np.uint8)] * 6, masks, palette)
    picture = np.asarray(Image.open(io.BytesIO(figure._repr_png_())).convert("RGB")).copy()
    assert all(find_zoomed(picture, plots.colorize(mask, palette)) for mask in masks)
    return picture


def test_another_shade_of_a_class_would_be_found() -> None:
    picture = six_masks()
    assert wrong_shares(picture) == [0.0] * 6
    road = next(info.color for info in scenes_classes() if info.name == "road")
    spot = np.argwhere((picture == road).all(2))[0]
    picture[tuple(spot)] = np.array(road) + 1
    assert sum(share > 0 for share in wrong_shares(picture)) == 1
