"""For pictures and limits of any kind: tiles cover the picture once, and the counts agree."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shuzhai.config import MAX_TILES, ImageSpec
from shuzhai.frontend.images import prepare_image
from shuzhai.frontend.tiling import choose_grid

sides = st.integers(1, 30_000)
limits = st.tuples(st.integers(1, MAX_TILES), st.integers(1, MAX_TILES)).map(sorted)


@settings(max_examples=300, deadline=None)
@given(width=sides, height=sides, limit=limits, tile_size=st.sampled_from([28, 112, 448]))
def test_a_grid_is_within_its_limits_and_the_nearest(width, height, limit, tile_size) -> None:
    low, high = limit
    options = {"tile_size": tile_size, "min_tiles": low, "max_tiles": high}
    columns, rows = choose_grid(width, height, **options)
    assert low <= columns * rows <= high
    assert (columns, rows) == choose_grid(width, height, **options)
    distance = abs(width / height - columns / rows)
    for i in range(1, high + 1):
        for j in range(-(-low // i), high // i + 1):
            assert distance <= abs(width / height - i / j)


@settings(max_examples=300, deadline=None)
@given(side=sides, max_tiles=st.integers(1, MAX_TILES))
def test_squares_get_square_grids_that_their_pixels_deserve(side, max_tiles) -> None:
    columns, rows = choose_grid(side, side, tile_size=448, min_tiles=1, max_tiles=max_tiles)
    assert columns == rows
    assert columns == 1 or 2 * side * side > 448 * 448 * columns * rows


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(2, 60),
    height=st.integers(2, 60),
    max_tiles=st.integers(1, MAX_TILES),
    asked=st.none() | st.integers(1, MAX_TILES),
    use_thumbnail=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_tiles_are_the_resized_picture_cut(
    width, height, max_tiles, asked, use_thumbnail, seed
) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image, size = Image.fromarray(noise), 8
    spec = ImageSpec(size, 4, max_tiles, use_thumbnail=use_thumbnail)
    encoded = prepare_image(image, spec, asked)

    limit = 1 if max_tiles == 1 else asked or max_tiles
    grid = choose_grid(width, height, tile_size=size, min_tiles=1, max_tiles=limit)
    has_thumbnail = use_thumbnail and prod(grid) > 1
    assert encoded.pixels.shape == (prod(grid) + has_thumbnail, size, size, 3)
    assert encoded.num_tokens == 4 * len(encoded.pixels)

    whole = image.resize((grid[0] * size, grid[1] * size), Image.Resampling.BICUBIC)
    pasted = Image.new("RGB", whole.size)
    for index in range(prod(grid)):
        row, column = divmod(index, grid[0])
        pasted.paste(Image.fromarray(encoded.pixels[index]), (column * size, row * size))
    assert pasted.tobytes() == whole.tobytes()
    if has_thumbnail:
        small = image.resize((size, size), Image.Resampling.BICUBIC)
        assert encoded.pixels[-1].tobytes() == small.tobytes()

    again = prepare_image(image, spec, asked)
    assert again.digest == encoded.digest
    assert not encoded.pixels.flags.writeable
