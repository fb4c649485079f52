"""Controls for a live notebook. Each has a static picture beside it; headless runs get None and
show nothing.
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


def flip_through(frames: Mapping[str, np.ndarray], zoom: int = 3) -> Any:
    """A slider over named pictures uint8[H, W, 3] that were computed before; None when headless."""
    if is_headless():
        return None
    names = list(frames)
    pictures = {name: _png(frames[name], zoom) for name in names}
    return _knob(names, lambda name: pictures[name])


def live(values: Mapping[str, Any], draw: Callable[[Any], np.ndarray], zoom: int = 3) -> Any:
    """A slider that computes its picture uint8[H, W, 3] when it is moved; None when headless."""
    if is_headless():
        return None
    return _knob(list(values), lambda name: _png(draw(values[name]), zoom))


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
