"""What stands where on a picture: geometry only, no pixels and no words.

A picture is the unit square whatever its shape; `aspect` says how wide it is for its height. Sizes
are shares of its shorter side.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

# Columns and rows of the tiles that a picture is cut into, and how often. More than one tile are
# followed by a thumbnail of the whole.
_SQUARE = (((1, 1), 0.62), ((2, 2), 0.38))
_WIDE = (((2, 1), 0.6), ((3, 2), 0.25), ((3, 1), 0.15))
_TALL = (((1, 2), 0.6), ((2, 3), 0.3), ((1, 3), 0.1))

POSITIONS = (
    "top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom",
    "bottom right",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sprite:
    """A drawing on a picture. stretch: its width for its height; keeps: no change of colour."""

    drawing: int
    x: float
    y: float
    size: float
    angle: float = 0.0
    stretch: float = 1.0
    flip: bool = False
    keeps: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """A string on a picture; size: the width of its whole strip."""

    index: int
    x: float
    y: float
    size: float
    angle: float


@dataclass(frozen=True, slots=True)
class Scene:
    """columns, rows: of its tiles. is_plain: on white and untouched, as a user would send it."""

    columns: int
    rows: int
    sprites: Sequence[Sprite] = ()
    texts: Sequence[Text] = field(default=())
    is_plain: bool = False

    @property
    def aspect(self) -> float:
        return self.columns / self.rows


def choose_tiles(rng: random.Random, shape: str, *, small: bool = False) -> tuple[int, int]:
    """shape: square, wide, tall or any. small: at most two tiles, for several pictures a turn."""
    if shape == "any":
        shape = rng.choices(("square", "wide", "tall"), (0.8, 0.14, 0.06))[0]
    table = {"square": _SQUARE, "wide": _WIDE, "tall": _TALL}[shape]
    grids, weights = zip(*table, strict=True)
    if small:
        return grids[0]
    return rng.choices(grids, weights)[0]


def place_one(rng: random.Random, aspect: float) -> tuple[float, float, float]:
    """(x, y, size) of one large thing, which may stand a little over the edge."""
    size = rng.uniform(0.5, 1.05) if rng.random() < 0.85 else rng.uniform(0.3, 0.5)
    wide, high = size * min(1, 1 / aspect), size * min(1, aspect)
    return _within(rng, wide), _within(rng, high), size


def _within(rng: random.Random, extent: float) -> float:
    room = abs(1 - extent) / 2
    return 0.5 + rng.uniform(-room, room)


def place_row(rng: random.Random, count: int, aspect: float) -> list[tuple[float, float, float]]:
    """Clearly one right of the other."""
    step = 1 / count
    width_unit = max(1.0, aspect)  # the picture's width in shorter sides
    size = min(0.85, step * width_unit * rng.uniform(0.72, 0.98))
    return [
        (
            (i + 0.5) * step + rng.uniform(-0.06, 0.06) * step,
            _within(rng, min(1, size * min(1, aspect)) * 0.98) if rng.random() < 0.6 else 0.5,
            size * rng.uniform(0.85, 1.0),
        )
        for i in range(count)
    ]


def place_cells(
    rng: random.Random, cells: Sequence[int], aspect: float
) -> list[tuple[float, float, float]]:
    """In these of the nine cells of POSITIONS."""
    most = 0.62 if len(cells) == 1 else 0.38
    placed = []
    for cell in cells:
        size = rng.uniform(0.24, 0.34 if cell != 4 else most)
        x, y = ((k + 0.5) / 3 + rng.uniform(-0.05, 0.05) for k in (cell % 3, cell // 3))
        placed.append((x, y, size))
    return placed


def place_scattered(
    rng: random.Random, count: int, aspect: float
) -> list[tuple[float, float, float]]:
    """Apart from each other, in the jittered cells of a grid."""
    columns = max(1, math.ceil(math.sqrt(count * aspect)))
    rows = math.ceil(count / columns)
    if rng.random() < 0.35:
        columns, rows = (columns + 1, rows) if rng.random() < 0.5 else (columns, rows + 1)
    cells = rng.sample(range(columns * rows), count)
    wide, high = max(1.0, aspect) / columns, max(1.0, 1 / aspect) / rows
    most = 0.92 * min(wide, high)
    placed = []
    for cell in cells:
        size = most * rng.uniform(0.6, 1.0)
        slack_x, slack_y = (wide - size) / wide / 2, (high - size) / high / 2
        x = (cell % columns + 0.5 + rng.uniform(-slack_x, slack_x)) / columns
        y = (cell // columns + 0.5 + rng.uniform(-slack_y, slack_y)) / rows
        placed.append((x, y, size))
    return placed
