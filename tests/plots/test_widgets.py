"""The knobs: real widgets, turned by hand."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from d3s2.plots import widgets


def shade(level: int) -> np.ndarray:
    return np.full((4, 6, 3), level, np.uint8)


def seen(box) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(box.children[1].value)))


def test_turning_the_slider_changes_the_picture(monkeypatch):
    monkeypatch.delenv("D3S2_HEADLESS", raising=False)
    box = widgets.flip_through({"weak": shade(10), "strong": shade(200)}, zoom=2)
    assert seen(box).shape == (8, 12, 3) and seen(box).max() == 10
    box.children[0].value = "strong"
    assert seen(box).min() == 200


def test_a_live_slider_computes_and_shows_its_error(monkeypatch):
    monkeypatch.delenv("D3S2_HEADLESS", raising=False)
    box = widgets.live({"1": 1, "0": 0}, lambda value: shade(100 // value))
    box.children[0].value = "0"
    assert "ZeroDivisionError" in box.children[2].value
    box.children[0].value = "1"
    assert box.children[2].value == "" and seen(box).max() == 100


def test_a_live_slider_computes_each_picture_once_and_none_that_is_known(monkeypatch):
    monkeypatch.delenv("D3S2_HEADLESS", raising=False)
    drawn = []

    def draw(level: int) -> np.ndarray:
        drawn.append(level)
        return shade(level)

    values = {"none": 0, "some": 50, "all": 100}
    box = widgets.live(values, draw, known={"none": shade(7)})
    assert seen(box).max() == 7 and drawn == []
    for name in ("some", "all", "some", "none", "all"):
        box.children[0].value = name
        assert seen(box).max() == {"none": 7}.get(name, values[name])
    assert drawn == [50, 100]


def test_headless_runs_get_the_still_picture_and_compute_nothing(monkeypatch):
    monkeypatch.setenv("D3S2_HEADLESS", "1")
    still = object()
    assert widgets.flip_through({"a": shade(0)}, still) is still
    assert widgets.live({"a": 1, "b": 2}, lambda value: 1 / 0, still) is still
