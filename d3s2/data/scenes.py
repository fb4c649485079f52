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

from d3s2.core.files import write_png
from d3s2.data.dataset import ClassInfo

SIZE = 64
SPLITS = {"train": 0, "val": 1, "test": 2}
KINDS = {"city": 0.46, "country": 0.30, "coast": 0.14, "desert": 0.06, "snow": 0.04}
CLASSES: dict[str, tuple[int, int, int]] = {
    "sky": (135, 190, 235),
    "grass": (90, 160, 60),
    "road": (95, 90, 105),
    "water": (30, 95, 175),
    "sand": (225, 195, 125),
    "mountain": (140, 110, 90),
    "building": (190, 90, 70),
    "tree": (20, 95, 45),
    "car": (220, 30, 45),
    "person": (255, 150, 170),
    "boat": (125, 60, 160),
    "cloud": (215, 225, 235),
    "pole": (55, 55, 60),
    "sign": (250, 200, 20),
    "animal": (120, 70, 30),
    "snow": (245, 245, 255),
    "cactus": (70, 200, 140),
    "bus": (245, 120, 20),
    "bike": (0, 160, 165),
    "kite": (205, 40, 205),
}
_ID = {name: i for i, name in enumerate(CLASSES)}
_GRID = (np.arange(SIZE) + 0.5) / SIZE
_X, _Y = np.meshgrid(_GRID, _GRID)

Rng = np.random.Generator


def scenes_classes() -> tuple[ClassInfo, ...]:
    """The classes of the embedded data, in train-id order."""
    return tuple(ClassInfo(name, color) for name, color in CLASSES.items())


class _Canvas:
    """Labels and colours that later strokes paint over, as a painter would: far things first."""

    def __init__(self, rng: Rng):
        self.rng = rng
        self.rgb = np.zeros((SIZE, SIZE, 3))
        self.labels = np.zeros((SIZE, SIZE), np.uint8)
        self.noise = rng.normal(size=(SIZE, SIZE))
        self.coarse = np.kron(rng.normal(size=(SIZE // 4, SIZE // 4)), np.ones((4, 4)))

    def paint(
        self, name: str, where: np.ndarray, color: np.ndarray, texture: np.ndarray | float = 0.0
    ) -> None:
        """Colour the pixels of `where` (bool [64,64]); `texture` is added as brightness."""
        self.labels[where] = _ID[name]
        shade = np.broadcast_to(np.asarray(texture, float), (SIZE, SIZE))[where]
        self.rgb[where] = np.asarray(color)[None] * (1 + shade[:, None])


def _jitter(rng: Rng, color: tuple[float, float, float], amount: float = 0.06) -> np.ndarray:
    return np.clip(np.asarray(color) + rng.normal(scale=amount, size=3), 0.03, 1.0)


def _any_color(rng: Rng, low: float = 0.15, high: float = 0.95) -> np.ndarray:
    """A saturated colour of any hue: the shared wardrobe of cars, people, kites, boats and
    signs.
    """
    color = rng.permutation([rng.uniform(0.6, 1.0), rng.uniform(0.0, 1.0), rng.uniform(0.0, 0.35)])
    return low + (high - low) * color


def _ellipse(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
    return ((_X - cx) / rx) ** 2 + ((_Y - cy) / ry) ** 2 < 1


def _box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return (_X >= x0) & (_X < x1) & (_Y >= y0) & (_Y < y1)


def _ridge(rng: Rng, base: float, height: float) -> np.ndarray:
    """bool [64,64]: below a jagged line whose peaks rise `height` above `base`."""
    peaks = np.interp(_GRID, np.linspace(0, 1, 7), rng.uniform(0.1, 1.0, 7)) + rng.normal(
        scale=0.04, size=SIZE
    )
    return (_Y > (base - height * peaks)[None]) & (_Y < base)


# --- backgrounds
# --------------------------------------------------------------------------------------------------
def _sky(c: _Canvas, horizon: float) -> None:
    mood = c.rng.choice(4, p=[0.6, 0.15, 0.15, 0.1])
    top = [(0.25, 0.50, 0.90), (0.60, 0.64, 0.70), (0.45, 0.35, 0.65), (0.16, 0.20, 0.42)][mood]
    low = [(0.68, 0.85, 0.98), (0.78, 0.80, 0.84), (0.98, 0.66, 0.45), (0.42, 0.44, 0.62)][mood]
    fade = np.clip(_Y / max(horizon, 0.05), 0, 1)[..., None]
    gradient = _jitter(c.rng, top) * (1 - fade) + _jitter(c.rng, low) * fade
    c.paint("sky", _Y < 2, np.ones(3))
    c.rgb[:] = gradient
    for _ in range(c.rng.poisson(0.9)):
        cx, cy, r = (
            c.rng.uniform(0, 1),
            c.rng.uniform(0.04, max(horizon - 0.16, 0.06)),
            c.rng.uniform(0.07, 0.15),
        )
        puff = _ellipse(cx, cy, r, 0.36 * r) | _ellipse(
            cx + 0.5 * r, cy - 0.16 * r, 0.6 * r, 0.36 * r
        )
        c.paint(
            "cloud",
            puff & (_Y < horizon),
            _jitter(c.rng, (0.93, 0.93, 0.95), 0.04),
            0.03 * c.coarse,
        )


def _mountains(c: _Canvas, horizon: float) -> None:
    color = [(0.47, 0.40, 0.36), (0.38, 0.42, 0.50), (0.60, 0.45, 0.34)][c.rng.integers(3)]
    strata = 0.08 * np.sin(40 * (_Y + 0.35 * _X + 0.02 * c.coarse)) + 0.05 * c.noise
    c.paint(
        "mountain",
        _ridge(c.rng, horizon + 0.01, c.rng.uniform(0.12, 0.28)),
        _jitter(c.rng, color),
        strata,
    )


def _ground(c: _Canvas, name: str, top: float) -> None:
    color, texture = {
        "grass": ((0.36, 0.60, 0.22), 0.09 * c.noise + 0.07 * np.sin(70 * (_X + _Y)) * _Y),
        "sand": ((0.88, 0.76, 0.50), 0.04 * c.noise + 0.05 * np.sin(55 * (_Y - 0.2 * _X))),
        "snow": ((0.93, 0.95, 0.99), 0.02 * c.noise + 0.02 * c.coarse),
        "water": ((0.16, 0.40, 0.70), 0.12 * np.sin(90 * _Y + 4 * np.sin(9 * _X)) + 0.03 * c.noise),
    }[name]
    c.paint(name, top <= _Y, _jitter(c.rng, color, 0.07 if name != "snow" else 0.02), texture)


def _road(c: _Canvas, horizon: float) -> None:
    vanish, centre = c.rng.uniform(0.3, 0.7), c.rng.uniform(0.3, 0.7)
    width = c.rng.uniform(0.5, 0.95)
    depth = np.clip((_Y - horizon) / (1 - horizon), 0, 1)
    middle = vanish + (centre - vanish) * depth
    where = (np.abs(_X - middle) < 0.02 + 0.5 * width * depth) & (_Y >= horizon)
    c.paint("road", where, _jitter(c.rng, (0.42, 0.40, 0.43), 0.05), 0.06 * c.noise)
    dashes = (
        (np.abs(_X - middle) < 0.008 + 0.022 * depth) & (np.sin(22 / (depth + 0.25)) > 0) & where
    )
    c.paint("road", dashes, _jitter(c.rng, (0.90, 0.88, 0.78), 0.03))


# --- things
# --------------------------------------------------------------------------------------------------
def _building(c: _Canvas, x: float, base: float, s: float) -> None:
    w, h = s * c.rng.uniform(0.10, 0.19), s * c.rng.uniform(0.16, 0.46)
    wall = _jitter(
        c.rng,
        [(0.72, 0.42, 0.34), (0.70, 0.66, 0.56), (0.55, 0.57, 0.63), (0.80, 0.62, 0.48)][
            c.rng.integers(4)
        ],
    )
    body = _box(x - w / 2, base - h, x + w / 2, base)
    c.paint("building", body, wall if c.rng.random() < 0.7 else _any_color(c.rng), 0.03 * c.noise)
    pitch = c.rng.uniform(0.045, 0.07)
    panes = (
        (((_X - x + w / 2) % pitch) > 0.5 * pitch)
        & (((_Y - base + h) % pitch) > 0.5 * pitch)
        & body
    )
    c.paint(
        "building",
        panes,
        _jitter(c.rng, [(0.16, 0.20, 0.28), (0.95, 0.88, 0.55)][int(c.rng.random() < 0.25)], 0.03),
    )


def _house(c: _Canvas, x: float, base: float, s: float) -> None:
    w, h = s * 0.17, s * 0.10
    c.paint(
        "building",
        _box(x - w / 2, base - h, x + w / 2, base),
        _jitter(c.rng, (0.88, 0.82, 0.72)),
        0.03 * c.noise,
    )
    roof = (
        (_Y < base - h)
        & (_Y > base - 1.9 * h + 1.6 * h * np.abs(_X - x) / w)
        & (np.abs(_X - x) < 0.6 * w)
    )
    c.paint("building", roof, _jitter(c.rng, (0.62, 0.26, 0.20)))


def _tree(c: _Canvas, x: float, base: float, s: float, conifer: bool = False) -> None:
    r = s * c.rng.uniform(0.07, 0.12)
    c.paint(
        "tree",
        _box(x - 0.16 * r, base - r, x + 0.16 * r, base),
        _jitter(c.rng, (0.36, 0.24, 0.14), 0.03),
    )
    leaf, spots = _jitter(c.rng, (0.13, 0.38, 0.15), 0.05), 0.22 * c.coarse + 0.10 * c.noise
    if conifer:
        crown = (np.abs(_X - x) < 0.42 * (_Y - base + 3.4 * r)) & (_Y < base - 0.4 * r)
    else:
        crown = _ellipse(x, base - 1.6 * r, r, 1.15 * r)
    c.paint("tree", crown, leaf, np.clip(spots, -0.4, 0.5))


def _car(c: _Canvas, x: float, base: float, s: float) -> None:
    w, color = s * c.rng.uniform(0.13, 0.17), _any_color(c.rng)
    c.paint("car", _box(x - w / 2, base - 0.34 * w, x + w / 2, base - 0.08 * w), color)
    c.paint(
        "car",
        (np.abs(_X - x) < 0.26 * w + 0.5 * (_Y - base + 0.34 * w))
        & (_Y > base - 0.58 * w)
        & (_Y <= base - 0.34 * w),
        color * 0.55 + 0.18,
    )
    for side in (-0.28, 0.28):
        c.paint(
            "car", _ellipse(x + side * w, base - 0.08 * w, 0.12 * w, 0.12 * w), np.full(3, 0.08)
        )


def _bus(c: _Canvas, x: float, base: float, s: float) -> None:
    w, h = s * c.rng.uniform(0.24, 0.30), s * c.rng.uniform(0.12, 0.15)
    color = _any_color(c.rng)
    c.paint("bus", _box(x - w / 2, base - h, x + w / 2, base - 0.1 * h), color)
    windows = _box(x - 0.46 * w, base - 0.86 * h, x + 0.46 * w, base - 0.5 * h) & (
        ((_X - x) % (w / 5)) > 0.05 * w
    )
    c.paint("bus", windows, np.array([0.65, 0.80, 0.88]) * c.rng.uniform(0.6, 1.1))
    for side in (-0.3, 0.3):
        c.paint("bus", _ellipse(x + side * w, base - 0.1 * h, 0.16 * h, 0.16 * h), np.full(3, 0.08))


def _person(c: _Canvas, x: float, base: float, s: float) -> None:
    h = s * c.rng.uniform(0.13, 0.17)
    c.paint(
        "person",
        _box(x - 0.14 * h, base - 0.45 * h, x + 0.14 * h, base),
        _any_color(c.rng, 0.05, 0.5),
    )
    c.paint(
        "person",
        _box(x - 0.20 * h, base - 0.8 * h, x + 0.20 * h, base - 0.42 * h),
        _any_color(c.rng),
    )
    skin = np.array([0.95, 0.76, 0.60]) * c.rng.uniform(0.45, 1.0)
    c.paint("person", _ellipse(x, base - 0.9 * h, 0.15 * h, 0.14 * h), skin)


def _pole(c: _Canvas, x: float, base: float, s: float) -> None:
    h = s * c.rng.uniform(0.26, 0.36)
    c.paint(
        "pole", _box(x - 0.014, base - h, x + 0.014, base), _jitter(c.rng, (0.30, 0.30, 0.32), 0.04)
    )
    if c.rng.random() < 0.6:
        w = s * 0.055
        board = (
            _any_color(c.rng) if c.rng.random() < 0.5 else _jitter(c.rng, (0.97, 0.80, 0.12), 0.04)
        )
        c.paint("sign", _box(x - w, base - h - w, x + w, base - h + 0.6 * w), board)


def _bike(c: _Canvas, x: float, base: float, s: float) -> None:
    r, color = s * 0.045, _any_color(c.rng, 0.05, 0.7)
    for side in (-1.3, 1.3):
        wheel = _ellipse(x + side * r, base - r, r, r) & ~_ellipse(
            x + side * r, base - r, 0.45 * r, 0.45 * r
        )
        c.paint("bike", wheel, np.full(3, 0.10))
    frame = _box(x - 1.2 * r, base - 1.9 * r, x + 1.2 * r, base - 1.3 * r) | _box(
        x + r, base - 2.8 * r, x + 1.5 * r, base - r
    )
    c.paint("bike", frame, color)


def _animal(c: _Canvas, x: float, base: float, s: float) -> None:
    w, side = s * c.rng.uniform(0.10, 0.14), c.rng.choice([-1.0, 1.0])
    coat = _jitter(
        c.rng, [(0.45, 0.28, 0.16), (0.85, 0.80, 0.74), (0.16, 0.13, 0.12)][c.rng.integers(3)], 0.04
    )
    where = _ellipse(x, base - 0.55 * w, 0.55 * w, 0.28 * w) | _ellipse(
        x + side * 0.6 * w, base - 0.85 * w, 0.2 * w, 0.2 * w
    )
    for leg in (-0.4, -0.2, 0.2, 0.4):
        where |= _box(x + leg * w - 0.014, base - 0.5 * w, x + leg * w + 0.014, base)
    c.paint("animal", where, coat, 0.25 * np.clip(c.coarse, -1, 1))


def _boat(c: _Canvas, x: float, base: float, s: float) -> None:
    w = s * c.rng.uniform(0.12, 0.20)
    hull = (
        (np.abs(_X - x) < 0.5 * w - 0.6 * (_Y - base + 0.2 * w))
        & (_Y > base - 0.2 * w)
        & (_Y < base)
    )
    c.paint("boat", hull, _any_color(c.rng, 0.1, 0.8))
    sail = (
        (_X - x > -0.05 * w)
        & (_X - x < 0.5 * (_Y - base + 1.1 * w))
        & (_Y < base - 0.24 * w)
        & (_Y > base - 1.1 * w)
    )
    c.paint(
        "boat", sail, np.array([0.96, 0.95, 0.92]) if c.rng.random() < 0.7 else _any_color(c.rng)
    )


def _cactus(c: _Canvas, x: float, base: float, s: float) -> None:
    h = s * c.rng.uniform(0.16, 0.26)
    where = _box(x - 0.09 * h, base - h, x + 0.09 * h, base) | _box(
        x - 0.32 * h, base - 0.62 * h, x + 0.32 * h, base - 0.48 * h
    )
    where |= _box(x - 0.32 * h, base - 0.85 * h, x - 0.19 * h, base - 0.5 * h)
    where |= _box(x + 0.19 * h, base - 0.75 * h, x + 0.32 * h, base - 0.5 * h)
    c.paint("cactus", where, _jitter(c.rng, (0.24, 0.50, 0.26), 0.05), 0.15 * np.sin(160 * _X))


def _kite(c: _Canvas, x: float, y: float, s: float) -> None:
    r, where = s * c.rng.uniform(0.05, 0.08), np.abs(_X - x) / 0.7 + np.abs(_Y - y)
    c.paint("kite", where < r, _any_color(c.rng))
    c.paint("kite", (where < r) & (_X > x), _any_color(c.rng))


# --- the five kinds of place
# ------------------------------------------------------------------------------------------
Thing = Callable[[_Canvas, float, float, float], None]


def _scatter(c: _Canvas, plan: list[tuple[Thing, int, float, float]]) -> None:
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


def _city(c: _Canvas, h: float) -> None:
    r = c.rng
    _ground(c, "grass", h)
    if r.random() < 0.12:
        _mountains(c, h)
        _ground(c, "grass", h)
    for _ in range(r.integers(2, 7)):
        _building(c, r.uniform(0, 1), h + r.uniform(0.01, 0.06), r.uniform(0.8, 1.3))
    _road(c, h + 0.04)
    _scatter(
        c,
        [
            (_tree, r.poisson(0.7), h + 0.04, 0.8),
            (_pole, int(r.random() < 0.32), h + 0.10, 0.85),
            (_car, r.choice(3, p=[0.45, 0.4, 0.15]), h + 0.10, 0.95),
            (_person, r.choice(3, p=[0.6, 0.3, 0.1]), h + 0.12, 0.97),
            (_bus, int(r.random() < 0.08), h + 0.14, 0.92),
            (_bike, int(r.random() < 0.07), h + 0.18, 0.95),
        ],
    )


def _country(c: _Canvas, h: float) -> None:
    r = c.rng
    if r.random() < 0.4:
        _mountains(c, h)
    _ground(c, "grass", h)
    if r.random() < 0.35:
        _road(c, h + 0.01)
    _scatter(
        c,
        [
            (_house, int(r.random() < 0.3), h + 0.04, h + 0.2),
            (_tree, 1 + r.poisson(1.6), h + 0.03, 0.85),
            (_animal, r.choice(3, p=[0.68, 0.22, 0.1]), h + 0.12, 0.95),
            (_person, int(r.random() < 0.06), h + 0.12, 0.95),
            (_car, int(r.random() < 0.05), h + 0.12, 0.92),
        ],
    )
    if r.random() < 0.015:
        _kite(c, r.uniform(0.1, 0.9), r.uniform(0.08, h - 0.06), 1.0)


def _coast(c: _Canvas, h: float) -> None:
    r = c.rng
    if r.random() < 0.3:
        _mountains(c, h)
    _ground(c, "water", h)
    _scatter(c, [(_boat, r.choice(3, p=[0.5, 0.35, 0.15]), h + 0.06, h + 0.25)])
    shore = r.uniform(h + 0.18, 0.9) + 0.03 * np.sin(r.uniform(4, 14) * _X + r.uniform(0, 6))
    _ground(c, "sand", shore)
    low = float(shore.mean()) + 0.05
    _scatter(
        c,
        [
            (_person, int(r.random() < 0.28), low, max(low, 0.97)),
            (_tree, int(r.random() < 0.2), low, max(low, 0.95)),
        ],
    )
    if r.random() < 0.13:
        _kite(c, r.uniform(0.1, 0.9), r.uniform(0.08, h - 0.06), 1.0)


def _desert(c: _Canvas, h: float) -> None:
    r = c.rng
    if r.random() < 0.5:
        _mountains(c, h)
    _ground(c, "sand", h)
    if r.random() < 0.25:
        _road(c, h + 0.01)
    _scatter(
        c,
        [
            (_cactus, r.choice(4, p=[0.2, 0.4, 0.25, 0.15]), h + 0.06, 0.95),
            (_animal, int(r.random() < 0.08), h + 0.12, 0.9),
        ],
    )


def _snowy(c: _Canvas, h: float) -> None:
    r = c.rng
    if r.random() < 0.6:
        _mountains(c, h)
    _ground(c, "snow", h)
    if r.random() < 0.2:
        _road(c, h + 0.01)
    _scatter(
        c,
        [
            (_house, int(r.random() < 0.25), h + 0.04, h + 0.2),
            (lambda *a: _tree(*a, conifer=True), r.poisson(2.0), h + 0.04, 0.85),
            (_person, int(r.random() < 0.2), h + 0.12, 0.95),
            (_animal, int(r.random() < 0.1), h + 0.12, 0.9),
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
    canvas = _Canvas(rng)
    horizon = rng.uniform(0.34, 0.56)
    _sky(canvas, horizon)
    kind = rng.choice(list(KINDS), p=list(KINDS.values()))
    _PLACES[str(kind)](canvas, horizon)
    light, tint = rng.uniform(0.72, 1.08), rng.normal(1.0, 0.05, 3)
    rgb = _blur(canvas.rgb) * light * tint + 0.012 * rng.normal(size=(SIZE, SIZE, 3))
    return (np.clip(rgb, 0, 1) * 255).round().astype(np.uint8), canvas.labels


def write_split(
    folder: Path,
    split: str,
    count: int,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write `count` scenes of a split as `<folder>/<split>/{images,labels}/<index>.png`.

    Files that are there already are kept, so a broken run goes on where it stopped; each file
    appears whole or not at all. `progress` is called with the number of scenes done.
    """
    for index in range(count):
        paths = [folder / split / part / f"{index:05d}.png" for part in ("images", "labels")]
        if not all(path.exists() for path in paths):
            for path, array in zip(paths, draw_scene(seed, split, index), strict=True):
                write_png(path, array, sync=False, compress_level=1)
        if progress is not None:
            progress(index + 1)
