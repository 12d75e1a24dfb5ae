"""Into how many tiles a picture is cut: the rule of InternVL's dynamic preprocessing.

Numbers in, numbers out: no pixels are seen here.
"""

from __future__ import annotations

from shuzhai.config import MAX_TILES


def choose_grid(
    width: int, height: int, *, tile_size: int, min_tiles: int, max_tiles: int
) -> tuple[int, int]:
    """(columns, rows) of the grid of min_tiles..max_tiles tiles that fits the picture best.

    The grid whose aspect ratio is nearest; among equally near ones, a larger one only if the
    picture has more than half of its pixels. Ratios are compared as floats, for that is how the
    models were trained: 5:6 is not equally far from 2:3 and 1:1. The order among grids of one size
    matters for min_tiles above 3 only, which no checkpoint uses: narrow ones come first.
    """
    assert width >= 1
    assert height >= 1
    assert 1 <= min_tiles <= max_tiles <= MAX_TILES
    grids = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // columns + 1)
        if columns * rows >= min_tiles
    ]
    best, best_distance = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[0])):
        distance = abs(width / height - columns / rows)
        has_pixels = 2 * width * height > tile_size * tile_size * columns * rows
        if distance < best_distance or (distance == best_distance and has_pixels):
            best, best_distance = (columns, rows), distance
    return best
