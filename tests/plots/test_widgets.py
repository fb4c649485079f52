"""The knobs: real widgets, turned by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
from ipywidgets import Checkbox, SelectionSlider
from PIL import Image

from d3s2 import plots
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


# ------------------------------------------------------------------------------------ several knobs
@pytest.fixture
def shown(monkeypatch):
    """A box of three knobs, and what its draw function was called with."""
    monkeypatch.delenv("D3S2_HEADLESS", raising=False)
    calls = []

    def draw(level, of, bright):
        calls.append((level, of, bright))
        if level == 3:
            raise ValueError("no level <3>")
        shades = [shade(10 * level + of + 100 * bright)]
        return shades, f"level {level} of <{of}>"

    knobs = {"level": [1, 2, 3], "of": {"one": 1, "five": 5}, "bright": (False, True)}
    return widgets.controls(draw, knobs, begin={"of": 5}), calls


def last(box) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(box.children[-2].value)))


def test_each_of_several_knobs_changes_the_picture_and_the_words(shown):
    box, calls = shown
    level, of, bright, _, note = box.children
    assert (type(level), type(of), type(bright)) == (SelectionSlider, SelectionSlider, Checkbox)
    assert last(box).max() == 15 and note.value == "<pre>level 1 of &lt;5&gt;</pre>"
    level.value = 2
    assert last(box).max() == 25
    of.value = 1
    assert last(box).max() == 21 and "level 2 of &lt;1&gt;" in note.value
    bright.value = True
    assert last(box).max() == 121
    level.value, bright.value, of.value = 1, False, 5
    assert last(box).max() == 15
    assert len(calls) == len(set(calls))  # nothing is computed twice


def test_the_arrow_keys_turn_the_knobs(shown):
    """What the browser sends for a key: the next index, and only that."""
    box, _ = shown
    level, of, bright = box.children[:3]
    level.set_state({"index": 1})
    of.set_state({"index": 0})
    assert last(box).max() == 21
    bright.set_state({"value": True})
    assert last(box).max() == 121
    assert not any(knob.disabled for knob in (level, of, bright))
    assert not level.continuous_update  # a held key computes once, when it is let go


def test_an_error_is_a_sentence_and_the_next_turn_mends_it(shown):
    box, _ = shown
    box.children[0].value = 3
    note = box.children[-1]
    assert note.value.startswith("<b>ValueError</b>: no level &lt;3&gt;")
    assert last(box).max() == 15  # the last one, as the sentence says
    box.children[0].value = 2
    assert "ValueError" not in note.value and last(box).max() == 25


def test_a_sign_says_that_it_computes(monkeypatch):
    monkeypatch.delenv("D3S2_HEADLESS", raising=False)
    seen_then, boxes = [], []

    def draw(level):
        if boxes:
            seen_then.append(boxes[0].children[-1].value)
        return shade(level)

    boxes.append(widgets.controls(draw, {"level": [1, 2]}))
    boxes[0].children[0].value = 2
    assert seen_then == [widgets.BUSY] and boxes[0].children[-1].value == ""


def test_an_error_at_the_beginning_is_the_cells_own(monkeypatch):
    monkeypatch.delenv("D3S2_HEADLESS", raising=False)
    with pytest.raises(ZeroDivisionError):
        widgets.controls(lambda level: 1 / level, {"level": [0, 1]})


def test_figures_and_arrays_stand_below_each_other(monkeypatch):
    monkeypatch.delenv("D3S2_HEADLESS", raising=False)
    figure = plots.image_rows({"row": np.stack([shade(7)])})
    tall = np.asarray(Image.open(io.BytesIO(figure._repr_png_())))
    box = widgets.controls(lambda level: [shade(level), figure], {"level": [200]}, zoom=3)
    both = last(box)
    assert both.shape == (len(tall) + 12, tall.shape[1], 3)
    assert (both[:12, :18] == 200).all() and (both[12:] == tall).all()


def test_several_knobs_show_their_still_when_headless(monkeypatch):
    monkeypatch.setenv("D3S2_HEADLESS", "1")
    still = object()
    assert widgets.controls(lambda level: 1 / 0, {"level": [0]}, still) is still
