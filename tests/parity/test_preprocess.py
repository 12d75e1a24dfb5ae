"""Preprocessing against the models' own code: grids and pixels equal, to the last bit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from shuzhai.config import ImageSpec
from shuzhai.frontend.images import open_image, prepare_image
from shuzhai.frontend.tiling import choose_grid
from tests.support.reference import BESIDE

FOLDER = BESIDE / "preprocess"
beside = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the full reference data")

INTERNVL = ImageSpec(448, 256, 12, use_thumbnail=True)
XCOMPOSER = ImageSpec(490, 1225, 1)

# width, height, max_tiles, columns, rows: what InternVL's dynamic_preprocess chooses at 448 pixels.
# The later rows are ties of grids of one ratio; the last four are of 1:1 and 2:1, and of 2:3 and
# 1:1, which are equally far as fractions but not as floats.
GRIDS = """
1143 2835 4 1 3
2052 1187 12 3 2
2038 1210 2 2 1
2041 804 2 2 1
613 2414 12 1 4
1681 915 6 2 1
1307 2611 2 1 2
2084 2528 6 2 3
1967 23 4 4 1
1283 1127 2 1 1
635 317 6 2 1
2059 295 2 2 1
2998 53 8 8 1
2085 1583 8 3 2
798 1300 2 1 2
586 1451 4 1 3
1344 317 6 4 1
2850 409 8 7 1
317 224 6 3 2
896 634 6 3 2
2951 1341 4 2 1
2963 281 2 2 1
1047 2579 2 1 2
2806 1854 12 3 2
1416 650 2 2 1
1063 2579 4 1 3
448 635 6 2 3
1025 156 8 7 1
2386 2732 2 1 1
1374 2315 12 2 3
136 1754 2 1 2
896 1344 6 2 3
205 1506 6 1 6
448 317 6 3 2
1974 1496 4 2 2
2865 1556 8 4 2
1344 448 12 3 1
1807 1477 6 2 2
2455 2676 4 2 2
475 1093 8 1 2
635 635 6 2 2
1650 1648 12 3 3
2004 2036 6 2 2
1654 1485 6 2 2
634 224 12 3 1
896 448 12 2 1
1737 1803 12 3 3
448 896 12 1 2
635 1344 12 2 4
635 317 12 2 1
317 635 12 1 2
224 634 12 1 3
1898 871 12 4 2
224 224 12 1 1
1500 1000 2 2 1
150 100 2 1 1
1000 1200 6 2 2
100 120 6 1 1
"""


def cases() -> list[dict]:
    if not FOLDER.is_dir():
        return []
    return json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("row", GRIDS.split("\n")[1:-1])
def test_grids(row: str) -> None:
    width, height, max_tiles, *grid = map(int, row.split())
    assert choose_grid(width, height, tile_size=448, min_tiles=1, max_tiles=max_tiles) == tuple(
        grid
    )


@beside
def test_all_reference_grids() -> None:
    rows = json.loads((FOLDER / "grids.json").read_text(encoding="utf-8"))["grids"]
    assert len(rows) == 498
    for width, height, max_tiles, grid in rows:
        chosen = choose_grid(width, height, tile_size=448, min_tiles=1, max_tiles=max_tiles)
        assert chosen == tuple(grid), (width, height, max_tiles)


@beside
@pytest.mark.parametrize("case", cases(), ids=lambda case: Path(case["file"]).name)
def test_pixels(case: dict) -> None:
    image = open_image(FOLDER / "pictures" / Path(case["file"]).name, "image")
    assert list(image.size) == case["size"]
    for wanted in case["internvl2"]:
        encoded = prepare_image(image, INTERNVL, wanted["max_num"])
        assert len(encoded.pixels) == wanted["num_tiles"]
        assert encoded.num_tokens == 256 * wanted["num_tiles"]
        assert sha256(encoded.pixels) == wanted["tiles_uint8_sha256"]
    encoded = prepare_image(image, XCOMPOSER, 12)
    assert sha256(encoded.pixels) == case["internlm-xcomposer2"]["resized_uint8_sha256"]


def sha256(pixels) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()
