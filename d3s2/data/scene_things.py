"""What scenes are made of: a canvas that is painted from far to near, backgrounds, and things.

Coordinates are fractions of the image: x grows to the right, y grows downwards, both in [0, 1].
"""

from __future__ import annotations

import numpy as np

SIZE = 64
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
X, Y = np.meshgrid(_GRID, _GRID)

Rng = np.random.Generator


class Canvas:
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


def jitter(rng: Rng, color: tuple[float, float, float], amount: float = 0.06) -> np.ndarray:
    """float64[3]: a colour, moved a little."""
    return np.clip(np.asarray(color) + rng.normal(scale=amount, size=3), 0.03, 1.0)


def any_color(rng: Rng, low: float = 0.15, high: float = 0.95) -> np.ndarray:
    """A saturated colour of any hue: the shared wardrobe of cars, people, kites, boats and
    signs.
    """
    color = rng.permutation([rng.uniform(0.6, 1.0), rng.uniform(0.0, 1.0), rng.uniform(0.0, 0.35)])
    return low + (high - low) * color


def ellipse(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
    """bool[64, 64]: inside of an ellipse."""
    return ((X - cx) / rx) ** 2 + ((Y - cy) / ry) ** 2 < 1


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """bool[64, 64]: inside of a rectangle."""
    return (X >= x0) & (X < x1) & (Y >= y0) & (Y < y1)


def ridge(rng: Rng, base: float, height: float) -> np.ndarray:
    """bool [64,64]: below a jagged line whose peaks rise `height` above `base`."""
    peaks = np.interp(_GRID, np.linspace(0, 1, 7), rng.uniform(0.1, 1.0, 7)) + rng.normal(
        scale=0.04, size=SIZE
    )
    return (Y > (base - height * peaks)[None]) & (Y < base)


# -------------------------------------------------------------------------------------- backgrounds
def sky(c: Canvas, horizon: float) -> None:
    """A sky of one of four moods, with clouds, down to the horizon."""
    mood = c.rng.choice(4, p=[0.6, 0.15, 0.15, 0.1])
    top = [(0.25, 0.50, 0.90), (0.60, 0.64, 0.70), (0.45, 0.35, 0.65), (0.16, 0.20, 0.42)][mood]
    low = [(0.68, 0.85, 0.98), (0.78, 0.80, 0.84), (0.98, 0.66, 0.45), (0.42, 0.44, 0.62)][mood]
    fade = np.clip(Y / max(horizon, 0.05), 0, 1)[..., None]
    gradient = jitter(c.rng, top) * (1 - fade) + jitter(c.rng, low) * fade
    c.paint("sky", Y < 2, np.ones(3))
    c.rgb[:] = gradient
    for _ in range(c.rng.poisson(0.9)):
        cx, cy, r = (
            c.rng.uniform(0, 1),
            c.rng.uniform(0.04, max(horizon - 0.16, 0.06)),
            c.rng.uniform(0.07, 0.15),
        )
        puff = ellipse(cx, cy, r, 0.36 * r) | ellipse(
            cx + 0.5 * r, cy - 0.16 * r, 0.6 * r, 0.36 * r
        )
        c.paint(
            "cloud",
            puff & (Y < horizon),
            jitter(c.rng, (0.93, 0.93, 0.95), 0.04),
            0.03 * c.coarse,
        )


def mountains(c: Canvas, horizon: float) -> None:
    """A ridge behind the horizon."""
    color = [(0.47, 0.40, 0.36), (0.38, 0.42, 0.50), (0.60, 0.45, 0.34)][c.rng.integers(3)]
    strata = 0.08 * np.sin(40 * (Y + 0.35 * X + 0.02 * c.coarse)) + 0.05 * c.noise
    c.paint(
        "mountain",
        ridge(c.rng, horizon + 0.01, c.rng.uniform(0.12, 0.28)),
        jitter(c.rng, color),
        strata,
    )


def ground(c: Canvas, name: str, top: float) -> None:
    """Grass, sand, snow or water, from a line downwards."""
    color, texture = {
        "grass": ((0.36, 0.60, 0.22), 0.09 * c.noise + 0.07 * np.sin(70 * (X + Y)) * Y),
        "sand": ((0.88, 0.76, 0.50), 0.04 * c.noise + 0.05 * np.sin(55 * (Y - 0.2 * X))),
        "snow": ((0.93, 0.95, 0.99), 0.02 * c.noise + 0.02 * c.coarse),
        "water": ((0.16, 0.40, 0.70), 0.12 * np.sin(90 * Y + 4 * np.sin(9 * X)) + 0.03 * c.noise),
    }[name]
    c.paint(name, top <= Y, jitter(c.rng, color, 0.07 if name != "snow" else 0.02), texture)


def road(c: Canvas, horizon: float) -> None:
    """A road that vanishes at the horizon, with a dashed line."""
    vanish, centre = c.rng.uniform(0.3, 0.7), c.rng.uniform(0.3, 0.7)
    width = c.rng.uniform(0.5, 0.95)
    depth = np.clip((Y - horizon) / (1 - horizon), 0, 1)
    middle = vanish + (centre - vanish) * depth
    where = (np.abs(X - middle) < 0.02 + 0.5 * width * depth) & (Y >= horizon)
    c.paint("road", where, jitter(c.rng, (0.42, 0.40, 0.43), 0.05), 0.06 * c.noise)
    dashes = (
        (np.abs(X - middle) < 0.008 + 0.022 * depth) & (np.sin(22 / (depth + 0.25)) > 0) & where
    )
    c.paint("road", dashes, jitter(c.rng, (0.90, 0.88, 0.78), 0.03))


# ------------------------------------------------------------------------------------------- things
# Each takes the canvas, the middle (x) and the foot (base) of the thing, and how large it is (s).
def building(c: Canvas, x: float, base: float, s: float) -> None:
    """A block with rows of windows, some of them lit."""
    w, h = s * c.rng.uniform(0.10, 0.19), s * c.rng.uniform(0.16, 0.46)
    wall = jitter(
        c.rng,
        [(0.72, 0.42, 0.34), (0.70, 0.66, 0.56), (0.55, 0.57, 0.63), (0.80, 0.62, 0.48)][
            c.rng.integers(4)
        ],
    )
    body = box(x - w / 2, base - h, x + w / 2, base)
    c.paint("building", body, wall if c.rng.random() < 0.7 else any_color(c.rng), 0.03 * c.noise)
    pitch = c.rng.uniform(0.045, 0.07)
    panes = (
        (((X - x + w / 2) % pitch) > 0.5 * pitch) & (((Y - base + h) % pitch) > 0.5 * pitch) & body
    )
    c.paint(
        "building",
        panes,
        jitter(c.rng, [(0.16, 0.20, 0.28), (0.95, 0.88, 0.55)][int(c.rng.random() < 0.25)], 0.03),
    )


def house(c: Canvas, x: float, base: float, s: float) -> None:
    """A low house with a gable roof."""
    w, h = s * 0.17, s * 0.10
    c.paint(
        "building",
        box(x - w / 2, base - h, x + w / 2, base),
        jitter(c.rng, (0.88, 0.82, 0.72)),
        0.03 * c.noise,
    )
    roof = (
        (Y < base - h)
        & (Y > base - 1.9 * h + 1.6 * h * np.abs(X - x) / w)
        & (np.abs(X - x) < 0.6 * w)
    )
    c.paint("building", roof, jitter(c.rng, (0.62, 0.26, 0.20)))


def tree(c: Canvas, x: float, base: float, s: float, conifer: bool = False) -> None:
    """A round tree, or a conifer."""
    r = s * c.rng.uniform(0.07, 0.12)
    c.paint(
        "tree",
        box(x - 0.16 * r, base - r, x + 0.16 * r, base),
        jitter(c.rng, (0.36, 0.24, 0.14), 0.03),
    )
    leaf, spots = jitter(c.rng, (0.13, 0.38, 0.15), 0.05), 0.22 * c.coarse + 0.10 * c.noise
    if conifer:
        crown = (np.abs(X - x) < 0.42 * (Y - base + 3.4 * r)) & (Y < base - 0.4 * r)
    else:
        crown = ellipse(x, base - 1.6 * r, r, 1.15 * r)
    c.paint("tree", crown, leaf, np.clip(spots, -0.4, 0.5))


def car(c: Canvas, x: float, base: float, s: float) -> None:
    """A car of any colour, seen from the side."""
    w, color = s * c.rng.uniform(0.13, 0.17), any_color(c.rng)
    c.paint("car", box(x - w / 2, base - 0.34 * w, x + w / 2, base - 0.08 * w), color)
    c.paint(
        "car",
        (np.abs(X - x) < 0.26 * w + 0.5 * (Y - base + 0.34 * w))
        & (Y > base - 0.58 * w)
        & (Y <= base - 0.34 * w),
        color * 0.55 + 0.18,
    )
    for side in (-0.28, 0.28):
        c.paint("car", ellipse(x + side * w, base - 0.08 * w, 0.12 * w, 0.12 * w), np.full(3, 0.08))


def bus(c: Canvas, x: float, base: float, s: float) -> None:
    """A bus: larger than a car, with a row of windows."""
    w, h = s * c.rng.uniform(0.24, 0.30), s * c.rng.uniform(0.12, 0.15)
    color = any_color(c.rng)
    c.paint("bus", box(x - w / 2, base - h, x + w / 2, base - 0.1 * h), color)
    windows = box(x - 0.46 * w, base - 0.86 * h, x + 0.46 * w, base - 0.5 * h) & (
        ((X - x) % (w / 5)) > 0.05 * w
    )
    c.paint("bus", windows, np.array([0.65, 0.80, 0.88]) * c.rng.uniform(0.6, 1.1))
    for side in (-0.3, 0.3):
        c.paint("bus", ellipse(x + side * w, base - 0.1 * h, 0.16 * h, 0.16 * h), np.full(3, 0.08))


def person(c: Canvas, x: float, base: float, s: float) -> None:
    """A standing person in clothes of any colour."""
    h = s * c.rng.uniform(0.13, 0.17)
    c.paint(
        "person",
        box(x - 0.14 * h, base - 0.45 * h, x + 0.14 * h, base),
        any_color(c.rng, 0.05, 0.5),
    )
    c.paint(
        "person",
        box(x - 0.20 * h, base - 0.8 * h, x + 0.20 * h, base - 0.42 * h),
        any_color(c.rng),
    )
    skin = np.array([0.95, 0.76, 0.60]) * c.rng.uniform(0.45, 1.0)
    c.paint("person", ellipse(x, base - 0.9 * h, 0.15 * h, 0.14 * h), skin)


def pole(c: Canvas, x: float, base: float, s: float) -> None:
    """A lamp post, often with a sign."""
    h = s * c.rng.uniform(0.26, 0.36)
    c.paint(
        "pole", box(x - 0.014, base - h, x + 0.014, base), jitter(c.rng, (0.30, 0.30, 0.32), 0.04)
    )
    if c.rng.random() < 0.6:
        w = s * 0.055
        board = (
            any_color(c.rng) if c.rng.random() < 0.5 else jitter(c.rng, (0.97, 0.80, 0.12), 0.04)
        )
        c.paint("sign", box(x - w, base - h - w, x + w, base - h + 0.6 * w), board)


def bike(c: Canvas, x: float, base: float, s: float) -> None:
    """A bicycle: two wheels and a frame of few pixels."""
    r, color = s * 0.045, any_color(c.rng, 0.05, 0.7)
    for side in (-1.3, 1.3):
        wheel = ellipse(x + side * r, base - r, r, r) & ~ellipse(
            x + side * r, base - r, 0.45 * r, 0.45 * r
        )
        c.paint("bike", wheel, np.full(3, 0.10))
    frame = box(x - 1.2 * r, base - 1.9 * r, x + 1.2 * r, base - 1.3 * r) | box(
        x + r, base - 2.8 * r, x + 1.5 * r, base - r
    )
    c.paint("bike", frame, color)


def animal(c: Canvas, x: float, base: float, s: float) -> None:
    """A four-legged animal that looks to either side."""
    w, side = s * c.rng.uniform(0.10, 0.14), c.rng.choice([-1.0, 1.0])
    coat = jitter(
        c.rng, [(0.45, 0.28, 0.16), (0.85, 0.80, 0.74), (0.16, 0.13, 0.12)][c.rng.integers(3)], 0.04
    )
    where = ellipse(x, base - 0.55 * w, 0.55 * w, 0.28 * w) | ellipse(
        x + side * 0.6 * w, base - 0.85 * w, 0.2 * w, 0.2 * w
    )
    for leg in (-0.4, -0.2, 0.2, 0.4):
        where |= box(x + leg * w - 0.014, base - 0.5 * w, x + leg * w + 0.014, base)
    c.paint("animal", where, coat, 0.25 * np.clip(c.coarse, -1, 1))


def boat(c: Canvas, x: float, base: float, s: float) -> None:
    """A hull with a sail."""
    w = s * c.rng.uniform(0.12, 0.20)
    hull = (
        (np.abs(X - x) < 0.5 * w - 0.6 * (Y - base + 0.2 * w)) & (Y > base - 0.2 * w) & (Y < base)
    )
    c.paint("boat", hull, any_color(c.rng, 0.1, 0.8))
    sail = (
        (X - x > -0.05 * w)
        & (X - x < 0.5 * (Y - base + 1.1 * w))
        & (Y < base - 0.24 * w)
        & (Y > base - 1.1 * w)
    )
    c.paint(
        "boat", sail, np.array([0.96, 0.95, 0.92]) if c.rng.random() < 0.7 else any_color(c.rng)
    )


def cactus(c: Canvas, x: float, base: float, s: float) -> None:
    """A cactus with two arms."""
    h = s * c.rng.uniform(0.16, 0.26)
    where = box(x - 0.09 * h, base - h, x + 0.09 * h, base) | box(
        x - 0.32 * h, base - 0.62 * h, x + 0.32 * h, base - 0.48 * h
    )
    where |= box(x - 0.32 * h, base - 0.85 * h, x - 0.19 * h, base - 0.5 * h)
    where |= box(x + 0.19 * h, base - 0.75 * h, x + 0.32 * h, base - 0.5 * h)
    c.paint("cactus", where, jitter(c.rng, (0.24, 0.50, 0.26), 0.05), 0.15 * np.sin(160 * X))


def kite(c: Canvas, x: float, y: float, s: float) -> None:
    """A two-coloured kite; y is its middle, not its base."""
    r, where = s * c.rng.uniform(0.05, 0.08), np.abs(X - x) / 0.7 + np.abs(Y - y)
    c.paint("kite", where < r, any_color(c.rng))
    c.paint("kite", (where < r) & (X > x), any_color(c.rng))
