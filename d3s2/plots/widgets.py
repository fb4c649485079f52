"""Controls for a live notebook. Each takes a still picture of the same, which stands in its place
where nobody can turn a knob: in runs by papermill, in tests, and so in what is published.

Every knob is a slider or a box to tick: Tab reaches it, the arrow keys turn the one and the space
bar ticks the other, no mouse is needed. A list to choose from would not do: JupyterLab takes its
arrow keys for moving between cells.
"""

from __future__ import annotations

import html
import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

BUSY = "<i>computing …</i>"
"""Stands below the picture while the next one is computed."""
_PAPER = (255, 255, 255)


def is_headless() -> bool:
    """True in runs by papermill and in tests, where nobody can turn a knob (`D3S2_HEADLESS` is set
    there).
    """
    return bool(os.environ.get("D3S2_HEADLESS"))


def flip_through(frames: Mapping[str, np.ndarray], still: Any = None, zoom: int = 3) -> Any:
    """A slider over named pictures uint8[H, W, 3] that were computed before; `still` when
    headless.
    """
    return live(frames, None, still, frames, zoom)


def live(
    values: Mapping[str, Any],
    draw: Callable[[Any], np.ndarray] | None,
    still: Any = None,
    known: Mapping[str, np.ndarray] | None = None,
    zoom: int = 3,
) -> Any:
    """A slider that computes its picture when it is moved to a value for the first time, and keeps
    it; `still` when headless.

    Args:
        values: what `draw` is given, by the name that the slider shows; it begins at the first.
        draw: to a picture uint8[H, W, 3].
        still: what the cell shows without a slider, such as a figure of some of the pictures.
        known: pictures by name that need not be computed.
    """
    if is_headless():
        return still
    kept = {name: _png(frame, zoom) for name, frame in (known or {}).items()}

    def picture(name: str) -> tuple[bytes, str]:
        if name not in kept:
            kept[name] = _png(draw(values[name]), zoom)
        return kept[name], ""

    return _box([_slider("", list(values))], picture)


def controls(
    draw: Callable[..., Any],
    knobs: Mapping[str, Mapping[str, Any] | Sequence[Any]],
    still: Any = None,
    begin: Mapping[str, Any] | None = None,
    zoom: int = 1,
) -> Any:
    """Several knobs on one picture, which is computed when they stand so for the first time, and
    kept; `still` when headless.

    Args:
        draw: called with the knobs' values by name; gives a picture, or (pictures, words): one or
        a list of them, each uint8[H, W, 3] or a Figure, and what stands below them.
        knobs: by the name of draw's argument: a sequence of values is a slider over them; a mapping
        from what is shown to the value, one over names; (False, True), a box to tick.
        still: what the cell shows without knobs.
        begin: values to begin with; else the first of each.
        zoom: of pictures that are no Figure.

    An error of `draw` at the beginning is the cell's own; a later one is shown as a sentence.
    """
    if is_headless():
        return still
    kept: dict[tuple[Any, ...], tuple[bytes, str]] = {}
    widgets = [_control(name, values, (begin or {}).get(name)) for name, values in knobs.items()]

    def picture(*values: Any) -> tuple[bytes, str]:
        if values not in kept:
            kept[values] = _drawn(draw(**dict(zip(knobs, values, strict=True))), zoom)
        return kept[values]

    return _box(widgets, picture)


def _control(name: str, values: Mapping[str, Any] | Sequence[Any], begin: Any) -> Any:
    from ipywidgets import Checkbox

    label = name.replace("_", " ")
    if tuple(values) == (False, True):
        return Checkbox(value=bool(begin), description=label, indent=False)
    return _slider(label, list(values.items() if isinstance(values, Mapping) else values), begin)


def _slider(label: str, options: list[Any], begin: Any = None) -> Any:
    from ipywidgets import SelectionSlider

    first = options[0][1] if isinstance(options[0], tuple) else options[0]
    return SelectionSlider(
        options=options,
        value=first if begin is None else begin,
        description=label,
        continuous_update=False,
        layout={"width": "560px"},
        style=_STYLE,
    )


_STYLE = {"description_width": "140px"}


def _box(knobs: list[Any], picture: Callable[..., tuple[bytes, str]]) -> Any:
    """The knobs, the picture, and a line that says what `picture` says, that it computes, or how it
    failed.
    """
    from ipywidgets import HTML, VBox
    from ipywidgets import Image as ImageWidget

    first, words = picture(*(knob.value for knob in knobs))
    view = ImageWidget(format="png", value=first, layout={"max_width": "100%"})
    note = HTML(words)

    def turn(_: dict[str, Any]) -> None:
        note.value = BUSY
        try:
            view.value, note.value = picture(*(knob.value for knob in knobs))
        except Exception as error:  # noqa: BLE001 - a callback's traceback would vanish in the server's log
            said = html.escape(str(error))
            note.value = f"<b>{type(error).__name__}</b>: {said}. The picture is the last one."

    for knob in knobs:
        knob.observe(turn, names="value")
    return VBox([*knobs, view, note])


def _drawn(given: Any, zoom: int) -> tuple[bytes, str]:
    """PNG and HTML of what a draw function gave."""
    pictures, words = given if isinstance(given, tuple) else (given, "")
    said = f"<pre>{html.escape(words)}</pre>" if words else ""
    return _png(pictures, zoom), said


def _png(pictures: Any, zoom: int) -> bytes:
    """One picture, or several below each other."""
    listed = pictures if isinstance(pictures, list) else [pictures]
    images, stream = [_image(picture, zoom) for picture in listed], io.BytesIO()
    size = max(image.width for image in images), sum(image.height for image in images)
    paper, down = Image.new("RGB", size, _PAPER), 0
    for image in images:
        paper.paste(image, (0, down))
        down += image.height
    paper.save(stream, format="PNG")
    return stream.getvalue()


def _image(picture: Any, zoom: int) -> Image.Image:
    """A Figure as it draws itself; of a picture uint8[H, W, 3] each pixel `zoom` wide and high."""
    if not hasattr(picture, "savefig"):
        return Image.fromarray(picture.repeat(zoom, 0).repeat(zoom, 1)).convert("RGB")
    stream = io.BytesIO()
    picture.savefig(stream, format="png")
    return Image.open(stream).convert("RGB")
