"""Controls for a live notebook. Each takes a still picture of the same, which stands in its place
where nobody can turn a knob: in runs by papermill, in tests, and so in what is published.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image


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

    def picture(name: str) -> bytes:
        if name not in kept:
            kept[name] = _png(draw(values[name]), zoom)
        return kept[name]

    return _knob(list(values), picture)


def _knob(names: list[str], picture: Callable[[str], bytes]) -> Any:
    from ipywidgets import HTML, SelectionSlider, VBox
    from ipywidgets import Image as ImageWidget

    view, note = ImageWidget(format="png", value=picture(names[0])), HTML()
    slider = SelectionSlider(options=names, continuous_update=False, layout={"width": "560px"})

    def turn(change: dict[str, Any]) -> None:
        try:
            view.value, note.value = picture(change["new"]), ""
        except Exception as error:  # noqa: BLE001 - a callback's traceback would vanish in the server's log
            note.value = f"<b>{type(error).__name__}</b>: {error}"

    slider.observe(turn, names="value")
    return VBox([slider, view, note])


def _png(array: np.ndarray, zoom: int) -> bytes:
    image, stream = Image.fromarray(array), io.BytesIO()
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(
        stream, format="PNG"
    )
    return stream.getvalue()
