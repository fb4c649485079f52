"""Pictures, pixel by pixel: nothing is resampled, and what is pointed at is where it should be."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from picture_tiles import find_zoomed
from PIL import Image

from d3s2 import plots
from d3s2.data.dataset import IGNORE
from d3s2.data.scenes import scenes_classes
from d3s2.plots.pictures import MARK

CLASSES = scenes_classes()
PALETTE = np.array([info.color for info in CLASSES], np.uint8)
RNG = np.random.default_rng(7)
MASKS = RNG.integers(0, 20, (9, 64, 64)).astype(np.uint8)
FLAT = [np.full((64, 64, 3), shade, np.uint8) for shade in range(9)]


def drawn(figure: Figure) -> np.ndarray:
    """uint8[H, W, 3] as a notebook shows it."""
    return np.asarray(Image.open(io.BytesIO(figure._repr_png_())).convert("RGB"))


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_every_pixel_of_a_small_image_is_a_square_of_two_or_more(count: int) -> None:
    masks = list(MASKS[:count])
    rows = {"masks": plots.colorize(np.stack(masks), PALETTE)}
    photographs = list(RNG.integers(0, 8, (count, 64, 64, 3)).astype(np.uint8) * 32)
    titles = [*"abcdef"][:count]
    pairs = drawn(plots.show_pairs(photographs, masks, PALETTE, titles, 8, CLASSES))
    for picture in (pairs, drawn(plots.image_rows(rows, titles))):
        places = [find_zoomed(picture, plots.colorize(mask, PALETTE)) for mask in masks]
        assert all(place is not None and place[0] >= 2 for place in places)
        assert len(set(places)) == count
    zoom, row, column = find_zoomed(pairs, plots.colorize(masks[-1], PALETTE))
    above = pairs[row - 2 - 64 * zoom : row - 2 : zoom, column : column + 64 * zoom : zoom]
    assert np.abs(above.astype(int) - photographs[-1]).mean() < 32  # its own, in fewer colours


def test_pairs_wrap_where_the_web_view_has_no_room() -> None:
    """Nine small images stand in two lines; a title and the legend cover none of them."""
    picture = drawn(plots.show_pairs(FLAT, list(MASKS), PALETTE, [*"abcdefghi"], 9, CLASSES))
    places = [find_zoomed(picture, plots.colorize(mask, PALETTE)) for mask in MASKS]
    assert all(place is not None for place in places)
    assert len({row for _, row, _ in places}) == 2
    assert picture.shape[1] < 900


def test_a_large_image_is_drawn_pixel_for_pixel() -> None:
    mask = RNG.integers(0, 20, (512, 512)).astype(np.uint8)
    picture = drawn(plots.show_pairs([np.zeros((512, 512, 3), np.uint8)], [mask], PALETTE))
    assert find_zoomed(picture, plots.colorize(mask, PALETTE))[0] == 1


@pytest.mark.parametrize("count", [1, 3])
def test_heat_keeps_whole_pixels_too(count: int) -> None:
    """A chess board of black and the brightest colour: all fields are equally wide and high."""
    board = np.indices((16, 16)).sum(0) % 2.0
    picture = drawn(plots.heat_row([board] * count, [""] * count)).sum(2)
    zoom = (780 // count - 6) // 16
    top = 18
    for line in (picture[top + 2, : 16 * zoom], picture[top : top + 16 * zoom, 2]):
        fields = line.reshape(16, zoom)
        assert (fields == fields[:, :1]).all()
        assert (fields[::2] < 100).all() and (fields[1::2] > 500).all()


def test_marks_are_the_brightest_of_the_picture_and_nothing_else_has_colour() -> None:
    images = RNG.integers(0, 256, (2, 8, 9, 3), dtype=np.uint8)
    where = RNG.random((2, 8, 9)) < 0.3
    found = plots.marked(images, where)
    assert (found[where] == MARK).all()
    rest = found[~where].astype(int)
    assert (rest == rest[:, :1]).all()
    assert rest.max() < np.dot(MARK, (0.299, 0.587, 0.114))  # so also to those who see no hues


def test_a_change_is_brighter_where_it_is_larger() -> None:
    before = np.full((1, 1, 6, 3), 100, np.uint8)
    after = before.copy()
    after[0, 0, :, 0] = [100, 130, 70, 220, 255, 110]
    after[0, 0, 5] = 110  # a third of 30, in all three channels
    shades = plots.change_map(after, before, most=40).astype(int).sum(3)[0, 0]
    assert shades[0] < shades[1] == shades[2] == shades[5] < shades[3] == shades[4]
    assert plots.change_map(before, before).max() < 5


def test_the_busiest_window_is_that_of_a_search() -> None:
    where = RNG.random((4, 11, 14)) < 0.2
    where[3] = False
    found = plots.busiest(where, 5)
    for image, (row, column) in zip(where, found, strict=True):
        sums = {(r, c): image[r : r + 5, c : c + 5].sum() for r in range(7) for c in range(10)}
        best = max(sums.values())
        assert (row, column) == min(place for place, value in sums.items() if value == best)
    assert found[3].tolist() == [0, 0]


def test_details_are_the_windows() -> None:
    images = RNG.integers(0, 256, (2, 11, 14, 3), dtype=np.uint8)
    found = plots.details(images, np.array([[1, 2], [6, 9]]), 5)
    np.testing.assert_array_equal(found, [images[0, 1:6, 2:7], images[1, 6:, 9:]])


def test_many_masks_are_coloured_at_once() -> None:
    masks = np.array([[[0, 1]], [[IGNORE, 2]]], np.uint8)
    white = [255, 255, 255]
    expected = [[[PALETTE[0].tolist(), PALETTE[1].tolist()]], [[white, PALETTE[2].tolist()]]]
    assert plots.colorize(masks, PALETTE).tolist() == expected
