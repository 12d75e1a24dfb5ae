"""Concepts and their drawings: what there is to see. Nothing here knows of models or questions."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

TRAIN_SETS = ("noto", "noto-v1", "twemoji", "fluent-emoji", "fluent-emoji-flat", "emojione")
HELD_OUT_SETS = ("fxemoji",)
SIDE = 96

COLOURS = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色",
    "purple": "紫色", "pink": "粉色", "brown": "棕色", "black": "黑色", "white": "白色",
    "grey": "灰色",
}  # fmt: skip
COLOUR_NAMES = tuple(COLOURS)

_THINGS = {"animals-nature", "food-drink", "travel-places", "objects", "activities"}
# Subgroups of those groups whose names say more, or something else, than what one sees.
_NOT_THINGS = {"time", "sky-weather", "place-map", "award-medal", "mail", "light-video"}
_COLOUR_WORDS = re.compile(
    r"\b(red|orange|yellow|green|blue|purple|pink|brown|black|white|grey|light|rainbow|heart|"
    r"blood|apple|medal)\b"
)
_SIDED = re.compile(r"left|right|clock|tilted|arrow|rotat|curving|o’clock")


@dataclass(frozen=True, slots=True)
class Concept:
    """One thing that has a name. Its index is its class."""

    index: int
    group: str
    subgroup: str
    en: str
    zh: str
    keywords_en: tuple[str, ...]
    keywords_zh: tuple[str, ...]

    @property
    def is_thing(self) -> bool:
        """An animal, a fruit, a tool: good to be counted, listed and found."""
        return self.group in _THINGS and self.subgroup not in _NOT_THINGS and len(self.en) <= 24

    @property
    def keeps_colour(self) -> bool:
        """Another colour would make it another thing."""
        by_group = self.group in {"symbols", "flags"} or self.subgroup == "heart"
        return by_group or bool(_COLOUR_WORDS.search(self.en))

    @property
    def may_flip(self) -> bool:
        """Its mirror image is the same thing."""
        return self.group in _THINGS and self.is_thing and not _SIDED.search(self.en)

    def name(self, language: str) -> str:
        return self.en if language == "en" else self.zh

    def accepts(self, answer: str, language: str) -> bool:
        """The answer is the name or one of the keywords."""
        keywords = self.keywords_en if language == "en" else self.keywords_zh
        said = answer.strip().strip(".。").lower()
        return said in {name.lower() for name in (self.name(language), *keywords)}


@dataclass(frozen=True, slots=True)
class Artwork:
    """Drawings of several sets.

    pixels      [N, 4, 96, 96] uint8 RGBA
    concept     [N] index of what each shows
    colour      [N] index of its main colour among COLOUR_NAMES, -1 where it has none
    of_concept  the drawings of each concept
    """

    pixels: np.ndarray
    concept: np.ndarray
    colour: np.ndarray
    of_concept: tuple[tuple[int, ...], ...]


def load_concepts(folder: Path) -> list[Concept]:
    listed = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return [
        Concept(
            i, c["group"], c["subgroup"], c["en"], c["zh"], tuple(c["kw_en"]), tuple(c["kw_zh"])
        )
        for i, c in enumerate(listed)
    ]


def load_artwork(folder: Path, sets: Sequence[str], num_concepts: int) -> Artwork:
    """Decode whole sets, a thread for each core."""
    files: list[bytes] = []
    concept: list[int] = []
    for name in sets:
        packed = (folder / f"{name}.bin").read_bytes()
        rows = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for row, offset, length in rows:
            files.append(packed[offset : offset + length])
            concept.append(row)
    with ThreadPoolExecutor() as pool:
        pixels = np.stack(list(pool.map(_decode, files)))
        colour = np.array(list(pool.map(main_colour, pixels)))
    drawings: list[list[int]] = [[] for _ in range(num_concepts)]
    for drawing, row in enumerate(concept):
        drawings[row].append(drawing)
    return Artwork(pixels, np.array(concept), colour, tuple(map(tuple, drawings)))


def _decode(file: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(file)).convert("RGBA").resize((SIDE, SIDE))
    return np.asarray(image).transpose(2, 0, 1)


def main_colour(rgba: np.ndarray, share: float = 0.6) -> int:
    """The colour that most of a drawing [4, S, S] has, as an index of COLOUR_NAMES; -1: none."""
    small = rgba[:, ::4, ::4].reshape(4, -1).astype(np.float32) / 255
    seen = name_colours(small[:3, small[3] > 0.5])
    if len(seen) < 16:
        return -1
    counts = np.bincount(seen, minlength=len(COLOUR_NAMES))
    return int(counts.argmax()) if counts.max() >= share * len(seen) else -1


def name_colours(rgb: np.ndarray) -> np.ndarray:
    """What people call colours [3, M] of channels from 0 to 1: [M] indices of COLOUR_NAMES."""
    red, green, blue = rgb
    value, low = rgb.max(0), rgb.min(0)
    span = np.maximum(value - low, 1e-6)
    saturation = (value - low) / np.maximum(value, 1e-6)
    turn = np.select(
        [value == red, value == green],
        [(green - blue) / span % 6, (blue - red) / span + 2],
        (red - green) / span + 4,
    )
    hue = 60 * turn
    is_red = (hue < 14) | (hue >= 345)
    is_grey = saturation < 0.13
    cases = (
        ("black", (value < 0.22) | (is_grey & (value < 0.3))),
        ("white", is_grey & (value > 0.85)),
        ("grey", is_grey),
        ("pink", is_red & (saturation < 0.5) & (value > 0.75)),
        ("red", is_red & (value > 0.45)),
        ("brown", is_red | ((hue < 44) & (value < 0.7))),
        ("orange", hue < 44),
        ("yellow", hue < 68),
        ("green", hue < 165),
        ("blue", hue < 258),
        ("purple", hue < 295),
    )
    names, conditions = zip(*cases, strict=True)
    pink = COLOUR_NAMES.index("pink")
    return np.select(conditions, [COLOUR_NAMES.index(name) for name in names], pink)
