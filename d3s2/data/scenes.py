"""Scenes: a procedural 64 x 64 data set with a true long tail.

Five kinds of place (city, country, coast, desert, snow) at 46/30/14/6/4 %, twenty classes. Colours
vary from image to image and overlap between classes (a car can have any colour that a building has,
water can be as blue as the sky, clouds are as white as snow), so that shape and context matter.
Everything follows from (seed, split, index): the same triple gives the same bytes on every machine.

Coordinates are fractions of the image: x grows to the right, y grows downwards, both in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from d3s2.data.dataset import ClassInfo
from d3s2.data.folder import complete_png
from d3s2.data.scene_things import (
    CLASSES,
    SIZE,
    Canvas,
    X,
    animal,
    bike,
    boat,
    building,
    bus,
    cactus,
    car,
    ground,
    house,
    kite,
    mountains,
    person,
    pole,
    road,
    sky,
    tree,
)

SPLITS = {"train": 0, "val": 1, "test": 2}
KINDS = {"city": 0.46, "country": 0.30, "coast": 0.14, "desert": 0.06, "snow": 0.04}


def scenes_classes() -> tuple[ClassInfo, ...]:
    """The classes of the embedded data, in train-id order."""
    return tuple(ClassInfo(name, color) for name, color in CLASSES.items())


Thing = Callable[[Canvas, float, float, float], None]


def _scatter(c: Canvas, plan: list[tuple[Thing, int, float, float]]) -> None:
    """Place `count` of each thing with its base between two depths; near things are bigger and
    painted last.
    """
    placed = [
        (c.rng.uniform(low, high), c.rng.uniform(0.06, 0.94), thing)
        for thing, n, low, high in plan
        for _ in range(n)
    ]
    for base, x, thing in sorted(placed, key=lambda item: item[0]):
        thing(c, x, base, 0.75 + 0.9 * (base - 0.45))


def _city(c: Canvas, h: float) -> None:
    r = c.rng
    ground(c, "grass", h)
    if r.random() < 0.12:
        mountains(c, h)
        ground(c, "grass", h)
    for _ in range(r.integers(2, 7)):
        building(c, r.uniform(0, 1), h + r.uniform(0.01, 0.06), r.uniform(0.8, 1.3))
    road(c, h + 0.04)
    _scatter(
        c,
        [
            (tree, r.poisson(0.7), h + 0.04, 0.8),
            (pole, int(r.random() < 0.32), h + 0.10, 0.85),
            (car, r.choice(3, p=[0.45, 0.4, 0.15]), h + 0.10, 0.95),
            (person, r.choice(3, p=[0.6, 0.3, 0.1]), h + 0.12, 0.97),
            (bus, int(r.random() < 0.08), h + 0.14, 0.92),
            (bike, int(r.random() < 0.07), h + 0.18, 0.95),
        ],
    )


def _country(c: Canvas, h: float) -> None:
    r = c.rng
    if r.random() < 0.4:
        mountains(c, h)
    ground(c, "grass", h)
    if r.random() < 0.35:
        road(c, h + 0.01)
    _scatter(
        c,
        [
            (house, int(r.random() < 0.3), h + 0.04, h + 0.2),
            (tree, 1 + r.poisson(1.6), h + 0.03, 0.85),
            (animal, r.choice(3, p=[0.68, 0.22, 0.1]), h + 0.12, 0.95),
            (person, int(r.random() < 0.06), h + 0.12, 0.95),
            (car, int(r.random() < 0.05), h + 0.12, 0.92),
        ],
    )
    if r.random() < 0.015:
        kite(c, r.uniform(0.1, 0.9), r.uniform(0.08, h - 0.06), 1.0)


def _coast(c: Canvas, h: float) -> None:
    r = c.rng
    if r.random() < 0.3:
        mountains(c, h)
    ground(c, "water", h)
    _scatter(c, [(boat, r.choice(3, p=[0.5, 0.35, 0.15]), h + 0.06, h + 0.25)])
    shore = r.uniform(h + 0.18, 0.9) + 0.03 * np.sin(r.uniform(4, 14) * X + r.uniform(0, 6))
    ground(c, "sand", shore)
    low = float(shore.mean()) + 0.05
    _scatter(
        c,
        [
            (person, int(r.random() < 0.28), low, max(low, 0.97)),
            (tree, int(r.random() < 0.2), low, max(low, 0.95)),
        ],
    )
    if r.random() < 0.13:
        kite(c, r.uniform(0.1, 0.9), r.uniform(0.08, h - 0.06), 1.0)


def _desert(c: Canvas, h: float) -> None:
    r = c.rng
    if r.random() < 0.5:
        mountains(c, h)
    ground(c, "sand", h)
    if r.random() < 0.25:
        road(c, h + 0.01)
    _scatter(
        c,
        [
            (cactus, r.choice(4, p=[0.2, 0.4, 0.25, 0.15]), h + 0.06, 0.95),
            (animal, int(r.random() < 0.08), h + 0.12, 0.9),
        ],
    )


def _snowy(c: Canvas, h: float) -> None:
    r = c.rng
    if r.random() < 0.6:
        mountains(c, h)
    ground(c, "snow", h)
    if r.random() < 0.2:
        road(c, h + 0.01)
    _scatter(
        c,
        [
            (house, int(r.random() < 0.25), h + 0.04, h + 0.2),
            (lambda *a: tree(*a, conifer=True), r.poisson(2.0), h + 0.04, 0.85),
            (person, int(r.random() < 0.2), h + 0.12, 0.95),
            (animal, int(r.random() < 0.1), h + 0.12, 0.9),
        ],
    )


_PLACES = {"city": _city, "country": _country, "coast": _coast, "desert": _desert, "snow": _snowy}


def _blur(rgb: np.ndarray) -> np.ndarray:
    """A 3-tap binomial blur in both directions: soft edges, as a lens would give."""
    for axis in (0, 1):
        padded = np.concatenate([np.take(rgb, [0], axis), rgb, np.take(rgb, [-1], axis)], axis)
        first, last = np.take(padded, range(SIZE), axis), np.take(padded, range(2, SIZE + 2), axis)
        rgb = 0.12 * first + 0.76 * rgb + 0.12 * last
    return rgb


def draw_scene(seed: int, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene.

    Returns the image uint8[64, 64, 3] and its labels uint8[64, 64] with values 0 .. 19 in the order
    of `CLASSES`.
    Raises KeyError for a split that is not train, val or test.
    """
    rng = np.random.default_rng([seed, SPLITS[split], index])
    canvas = Canvas(rng)
    horizon = rng.uniform(0.34, 0.56)
    sky(canvas, horizon)
    kind = rng.choice(list(KINDS), p=list(KINDS.values()))
    _PLACES[str(kind)](canvas, horizon)
    light, tint = rng.uniform(0.72, 1.08), rng.normal(1.0, 0.05, 3)
    rgb = _blur(canvas.rgb) * light * tint + 0.012 * rng.normal(size=(SIZE, SIZE, 3))
    return (np.clip(rgb, 0, 1) * 255).round().astype(np.uint8), canvas.labels


def names(count: int) -> list[str]:
    """The ids of the first `count` scenes of a split."""
    return [f"{index:05d}" for index in range(count)]


def write_split(
    folder: Path,
    split: str,
    count: int,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write `count` scenes of a split as `<folder>/<split>/{images,labels}/<index>.png`.

    Files that are there already and hold the same are kept, so a broken run goes on where it
    stopped; each file appears whole or not at all. `progress` is called with the number of scenes
    done.
    """
    for index, name in enumerate(names(count)):
        paths = [folder / split / part / f"{name}.png" for part in ("images", "labels")]
        for path, array in zip(paths, draw_scene(seed, split, index), strict=True):
            complete_png(path, array, compress_level=1)
        if progress is not None:
            progress(index + 1)
