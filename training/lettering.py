"""Strings to be read, drawn once with Pillow's own font."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.data import Concept

WIDTH, HEIGHT = 256, 48

_WORDS = """
hello open stop exit sale menu cafe bus taxi hotel north south east west push pull free sold new old
yes no left right up down start end wait go home shop bank food tea water milk rice fish meat cake
book read write play game music radio phone photo art film news today now love peace happy smile sun
moon star rain snow wind fire ice sea lake river hill tree leaf rose cat dog cow pig hen duck bird
lion bear wolf red blue green black white pink gold one two three four five six seven eight nine ten
name city town road park gate door room desk chair table lamp clock time week month year spring
summer autumn winter apple pear lemon melon grape plum bread butter sugar salt soup noodle pizza
coffee juice wine beer class school teach learn model data code test speed power light sound image
train plane ship boat car bike truck metro station airport ticket price cash card gift toy ball kite
"""


@dataclass(frozen=True, slots=True)
class Lettering:
    """Strings with their pictures.

    alpha    [M, 48, 256] uint8, the string in the middle of each
    width    [M] the share of the picture's width that it takes
    digits, words, held_out_digits, held_out_words   indices; the held-out ones are for tests only
    """

    texts: tuple[str, ...]
    alpha: np.ndarray
    width: np.ndarray
    digits: tuple[int, ...]
    words: tuple[int, ...]
    held_out_digits: tuple[int, ...]
    held_out_words: tuple[int, ...]


def draw_lettering(concepts: Iterable[Concept], num_numbers: int = 9000) -> Lettering:
    """Numbers of one to six digits, words in three cases, and codes that mean nothing."""
    rng = random.Random(7)
    numbers = _distinct(rng, num_numbers, lambda: _number(rng))
    held_out_numbers = [n for n in numbers if len(n) > 2][: num_numbers // 20]
    plain = sorted(set(_WORDS.split()) | set(_short_words(concepts)))
    rng.shuffle(plain)
    codes = _distinct(rng, num_numbers // 3, lambda: _code(rng))
    split = len(plain) // 10
    words = [form for w in plain[split:] for form in (w, w.upper(), w.capitalize())] + codes
    held_out_words = [rng.choice((w, w.upper(), w.capitalize())) for w in plain[:split]]
    taken = set(held_out_numbers)
    numbers = [n for n in numbers if n not in taken]
    groups = (numbers, words, held_out_numbers, held_out_words)
    texts = tuple(text for group in groups for text in group)
    drawn = [_draw(text) for text in texts]
    bounds = np.cumsum([0, *map(len, groups)])
    indices = [tuple(range(a, b)) for a, b in pairwise(bounds)]
    return Lettering(
        texts, np.stack([a for a, _ in drawn]), np.array([w for _, w in drawn]), *indices
    )


def _distinct(rng: random.Random, count: int, make: Callable[[], str]) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[make()] = None
    listed = list(found)
    rng.shuffle(listed)
    return listed


def _number(rng: random.Random) -> str:
    length = rng.choice((1, 2, 2, 3, 3, 4, 4, 5, 6, 6))
    return "".join(rng.choice(string.digits) for _ in range(length))


def _code(rng: random.Random) -> str:
    letters = rng.choice((string.ascii_uppercase, string.ascii_lowercase))
    return "".join(rng.choice(letters) for _ in range(rng.randint(3, 6)))


def _short_words(concepts: Iterable[Concept]) -> Iterable[str]:
    for concept in concepts:
        for word in concept.en.split():
            if word.isascii() and word.isalpha() and 3 <= len(word) <= 8:
                yield word.lower()


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _draw(text: str) -> tuple[np.ndarray, float]:
    size = 40
    while (width := _font(size).getlength(text)) > WIDTH - 8:
        size -= 2
    image = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(image).text((WIDTH / 2, HEIGHT / 2), text, 255, _font(size), anchor="mm")
    return np.asarray(image), min(1.0, (width + 8) / WIDTH)
