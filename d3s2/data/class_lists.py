"""Names and colours of the public data sets' classes, as the installed mmsegmentation and
mmdetection list them.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path
from typing import Any

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import ClassInfo

_SOURCES = {
    "ade20k": ("mmseg", "datasets/ade.py", 150),
    "cocostuff": ("mmseg", "datasets/coco_stuff.py", 171),
    "voc2012": ("mmseg", "datasets/voc.py", 21),
    "coco_panoptic": ("mmdet", "datasets/coco_panoptic.py", 133),
}


@functools.cache
def classes_of(name: str) -> tuple[ClassInfo, ...]:
    """The classes in train-id order, from the data set class's METAINFO.

    The source is read, not imported: importing mmsegmentation takes seconds. Raises D3S2Error when
    it is not installed, or lists another number of classes.
    """
    package, file, count = _SOURCES[name]
    spec = importlib.util.find_spec(package)
    path = (
        Path(spec.submodule_search_locations[0]) / file
        if spec and spec.submodule_search_locations
        else None
    )
    if path is None or not path.is_file():
        raise D3S2Error(
            f"The classes of {name} are read from {package}, which is not installed: run make run "
            "again."
        )
    found = _metainfo(path.read_text(encoding="utf-8"))
    pairs = zip(found["classes"], map(tuple, found["palette"]), strict=True)
    classes = tuple(
        ClassInfo(label.strip(), color) for label, color in pairs
    )  # one of the names ends in a blank
    if len(classes) != count:
        raise D3S2Error(
            f"{path} lists {len(classes)} classes of {name} instead of {count}: install the pinned "
            "versions."
        )
    return classes


def _metainfo(source: str) -> dict[str, Any]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "METAINFO":
            if isinstance(node.value, ast.Call):
                return {entry.arg: ast.literal_eval(entry.value) for entry in node.value.keywords}
            return ast.literal_eval(node.value)
    return {"classes": (), "palette": ()}
