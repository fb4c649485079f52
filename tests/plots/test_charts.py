"""Pictures: each function returns a figure that draws itself as a PNG, leaves its input alone and
shows nothing.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from d3s2 import plots
from d3s2.data.dataset import IGNORE, ClassInfo
from d3s2.data.scenes import scenes_classes
from d3s2.plots.house_style import exact_colors, reduce_colors

CLASSES = [
    ClassInfo("sky", (10, 20, 200)),
    ClassInfo("road", (90, 90, 90)),
    ClassInfo("kite", (200, 0, 200)),
]
NAMES = [info.name for info in CLASSES]
PALETTE = np.array([info.color for info in CLASSES], np.uint8)
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8) for _ in range(5)]
MASKS = [RNG.choice([0, 1, 2, IGNORE], (12, 16)).astype(np.uint8) for _ in range(5)]

FIGURES = {
    "pairs": lambda: plots.show_pairs(
        IMAGES, MASKS, PALETTE, ["a", "b", "c", "d", "e"], 3, CLASSES
    ),
    "one pair": lambda: plots.show_pairs(IMAGES[:1], MASKS[:1], PALETTE),
    "legend": lambda: plots.class_legend(CLASSES),
    "distribution": lambda: plots.class_distribution(
        np.array([0.9, 0.1, 0]), np.array([1, 0.5, 0]), CLASSES
    ),
    "co-occurrence": lambda: plots.co_occurrence_map(
        np.array([[4, 2, 0], [2, 2, 0], [0, 0, 0]]), NAMES
    ),
    "lines": lambda: plots.lines(np.arange(3), {"a": np.arange(3), "b": np.ones(3)}, "x", "y"),
    "gains": lambda: plots.gains_curve(np.array([3.0, 1.0, 0.0]), 2),
    "bars": lambda: plots.class_bars({"random": np.ones(3), "greedy": np.arange(3)}, NAMES),
    "curves": lambda: plots.coverage_curves(
        [1, 10], {"Gini": {"random": np.ones((3, 2)), "greedy": np.ones(2)}}
    ),
    "features": lambda: plots.class_feature_map(
        np.array([[1.0, -1.0], [0.5, 0.0], [np.nan, np.nan]]), NAMES
    ),
    "all equal": lambda: plots.class_feature_map(np.zeros((3, 2)), NAMES),
    "distances": lambda: plots.distance_map(np.array([[0, 2, 1], [2, 0, 3], [1, 3, 0.0]]), NAMES),
    "heat": lambda: plots.heat_row([np.eye(4), np.eye(2)], ["fine", "coarse"]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_draws_itself(name: str) -> None:
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    content = figure._repr_png_()
    assert Image.open(io.BytesIO(content)).format == "PNG" and 1_000 < len(content) < 200_000
    assert content == FIGURES[name]()._repr_png_()


def test_colorize() -> None:
    picture = plots.colorize(np.array([[0, 2], [IGNORE, 1]], np.uint8), PALETTE)
    assert picture.dtype == np.uint8 and picture.tolist() == [
        [[10, 20, 200], [200, 0, 200]],
        [[255, 255, 255], [90, 90, 90]],
    ]


def test_pyplot_keeps_no_figure() -> None:
    import matplotlib.pyplot as plt

    FIGURES["pairs"]()
    assert plt.get_fignums() == []


def test_a_method_keeps_its_colour() -> None:
    assert plots.series_color("random") == plots.SERIES["random"]
    assert plots.series_color("unknown") == plots.series_color("unknown")


def shown(figure: Figure) -> Image.Image:
    return Image.open(io.BytesIO(figure._repr_png_()))


@pytest.mark.parametrize("known", [True, False])
def test_colours_of_classes_are_exact_beside_a_photograph(known: bool) -> None:
    """All twenty classes of the scenes, one of them a single pixel; and a palette of one's own."""
    colors = [info.color for info in scenes_classes()]
    if not known:
        colors = [(255 - r, 3 + g // 2, b ^ 85) for r, g, b in colors]
    palette = np.array(colors, np.uint8)
    mask = np.arange(20, dtype=np.uint8)[:, None].repeat(3, 0).repeat(64, 1)
    if known:
        mask[mask == 11] = 7
        mask[5, 5] = 11
    rows = {
        "photographs": RNG.integers(0, 256, (4, *mask.shape, 3), dtype=np.uint8),
        "masks": np.stack([plots.colorize(mask, palette)] * 4),
    }
    for figure in (
        plots.image_rows(rows),
        plots.show_pairs(rows["photographs"], [mask] * 4, palette),
    ):
        picture = shown(figure)
        found = {color for _, color in picture.convert("RGB").getcolors(1 << 24)}
        assert found >= {tuple(color) for color in palette[np.unique(mask)].tolist()}
        assert len(found) < 400  # those of photographs are fewer, so that this shows something
    assert len(np.unique(mask)) == 20


def test_a_palette_of_hundreds_is_exact_too() -> None:
    palette = np.array([[r, g, 77] for r in range(0, 256, 16) for g in range(0, 256, 16)], np.uint8)
    mask = np.arange(250, dtype=np.uint8).reshape(10, 25).repeat(5, 0).repeat(5, 1)
    photograph = np.random.default_rng(0).integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
    picture = shown(plots.show_pairs([photograph] * 2, [mask] * 2, palette, columns=2))
    found = {color for _, color in picture.convert("RGB").getcolors(1 << 24)}
    assert found >= {tuple(color) for color in palette[:250].tolist()}


def test_what_was_exact_is_known_again() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    noise[:3] = 1, 2, 3
    small = reduce_colors(Image.fromarray(noise), exact=[0x040506])
    stream = io.BytesIO()
    small.save(stream, "PNG", optimize=True)
    assert 0x010203 in exact_colors(Image.open(stream))
    assert exact_colors(Image.fromarray(noise)) == []


@pytest.mark.parametrize("name", ["lines", "bars", "curves"])
def test_a_legend_covers_nothing(name: str) -> None:
    """It stands beside the frames, whose sizes are known when the figure is drawn."""
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    assert all(axes.get_legend() is None for axes in figure.axes)
    legend = figure.legends[0].get_window_extent()
    assert not any(legend.overlaps(axes.get_window_extent()) for axes in figure.axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_budget_is_seen_on_logarithmic_axes() -> None:
    """Forty of four thousand would be lost at the left edge of a linear one."""
    figure = plots.gains_curve(np.linspace(3, 1, 4000), 40)
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "log"]


def test_series_without_a_name_of_their_own_differ_in_lightness() -> None:
    figure = plots.class_bars(
        {"beta 0.5": np.ones(3), "beta 0": np.ones(3), "beta 1": np.ones(3)}, NAMES
    )
    colors = {patch.get_facecolor()[:3] for patch in figure.axes[0].patches}
    light = sorted(
        np.array([color @ np.array([0.2126, 0.7152, 0.0722]) for color in map(np.array, colors)])
    )
    assert len(colors) == 3 and min(np.diff(light)) > 0.03


def test_bars_of_one_class_differ_in_colour_whatever_their_names() -> None:
    for names in (["real", "d3s2"], ["d3s2", "real"], ["a", "balanced", "b"], list("abcdefg")):
        figure = plots.class_bars({name: np.ones(2) for name in names}, ["x", "y"])
        bars = [container.patches[0].get_facecolor() for container in figure.axes[0].containers]
        assert len(set(bars)) == len(bars) == len(names)
    assert (
        len(plots.class_bars({str(n): np.ones(1) for n in range(9)}, ["x"]).axes[0].containers) == 9
    )
