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
# followed by a thumbnail of the whole, so they are dear.
_SQUARE = (((1, 1), 0.75), ((2, 2), 0.25))
_WIDE = (((2, 1), 0.85), ((3, 2), 0.08), ((3, 1), 0.07))
_TALL = (((1, 2), 0.85), ((2, 3), 0.08), ((1, 3), 0.07))

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
    """Clearly one right of the other: half of the rows in a line and of one size."""
    step = 1 / count
    width_unit = max(1.0, aspect)  # the picture's width in shorter sides
    size = min(1.0, step * width_unit * rng.uniform(0.6, 1.0))
    if rng.random() < 0.5:
        return [((i + 0.5) * step, 0.5, size) for i in range(count)]
    return [
        (
            (i + 0.5) * step + rng.uniform(-0.06, 0.06) * step,
            _within(rng, min(1, size * min(1, aspect)) * 0.98),
            size * rng.uniform(0.8, 0.97),
        )
        for i in range(count)
    ]


def row_cells(places: Sequence[tuple[float, float, float]]) -> tuple[int, ...]:
    """Which of POSITIONS two or three things in a row are at: () where that is not clear."""
    if len(places) not in (2, 3) or any(abs(y - 0.5) > 0.08 for _, y, _ in places):
        return ()
    return (3, 5) if len(places) == 2 else (3, 4, 5)


def place_cells(
    rng: random.Random, cells: Sequence[int], aspect: float
) -> list[tuple[float, float, float]]:
    """In these of the nine cells of POSITIONS, as large as the others allow, or smaller."""
    across, down = {c % 3 for c in cells}, {c // 3 for c in cells}
    wide, high = _room(across), _room(down)
    units = max(1.0, aspect), max(1.0, 1 / aspect)
    most = min(wide * units[0], high * units[1]) * rng.choice((1.0, rng.uniform(0.6, 1.0)))
    placed = []
    for cell in cells:
        size = max(min(most, 0.2), most * rng.uniform(0.8, 1.0))
        x = _in_third(rng, cell % 3, size / units[0], wide)
        y = _in_third(rng, cell // 3, size / units[1], high)
        placed.append((x, y, size))
    return placed


def _room(thirds: set[int]) -> float:
    """What a thing may take of an axis of which these thirds are taken."""
    if thirds == {1}:
        return 0.8
    return 0.34 if 1 in thirds else 0.5


def _in_third(rng: random.Random, third: int, extent: float, room: float) -> float:
    """Where a thing's middle is: in that third, and all of the thing in its room."""
    if third == 1:
        slack = max(0.0, min(0.07, (room - extent) / 2))
        return 0.5 + rng.uniform(-slack, slack)
    nearest = extent / 2
    farthest = max(nearest, min(room - extent / 2, 0.28))
    at = rng.uniform(nearest, farthest)
    return at if third == 0 else 1 - at


def place_scattered(
    rng: random.Random, count: int, aspect: float
) -> list[tuple[float, float, float]]:
    """Apart from each other, in the cells of a grid: a third of them in its lines, all alike."""
    columns = max(1, math.ceil(math.sqrt(count * aspect)))
    rows = math.ceil(count / columns)
    if rng.random() < 0.35:
        columns, rows = (columns + 1, rows) if rng.random() < 0.5 else (columns, rows + 1)
    cells = rng.sample(range(columns * rows), count)
    wide, high = max(1.0, aspect) / columns, max(1.0, 1 / aspect) / rows
    most = 0.98 * min(wide, high)
    in_line = rng.random() < 0.33
    size = most * rng.uniform(0.5, 1.0)
    placed = []
    for cell in cells:
        if not in_line:
            size = most * rng.uniform(0.5, 0.95)
        slack_x, slack_y = (
            (0.0, 0.0) if in_line else ((wide - size) / wide / 2, (high - size) / high / 2)
        )
        x = (cell % columns + 0.5 + rng.uniform(-slack_x, slack_x)) / columns
        y = (cell // columns + 0.5 + rng.uniform(-slack_y, slack_y)) / rows
        placed.append((x, y, size))
    return placed
