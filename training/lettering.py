"""Texts to be read, drawn once in several fonts."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.data import Concept

WIDTH, HEIGHT = 256, 48
LENGTHS = (1, 2, 2, 3, 3, 4, 4, 5, 6, 6)  # of numbers, as often as they are here
CHARACTERS = string.digits + string.ascii_letters
# With nine fonts these make just under 16,000 strips: 200 MB of memory on the device.
NUM_NUMBERS = 6400
TWO_FONTS = 0.25  # how often a text has a second font

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
class Texts:
    """What is written; the held-out texts are for tests only."""

    numbers: Sequence[str]
    words: Sequence[str]
    held_out_numbers: Sequence[str]
    held_out_words: Sequence[str]


@dataclass(frozen=True, slots=True)
class Lettering:
    """Texts with their pictures, called strips; a text has one for each font it is drawn in.

    texts    [M] what each strip says
    alpha    [M, 48, 256] uint8, the text in the middle of each
    width    [M] the share of the strip's width that it takes
    chars    [M, 256] uint8, the character at each column: 0 none, or 1 + its index in CHARACTERS
    digits, words, held_out_digits, held_out_words   indices of strips
    """

    texts: tuple[str, ...]
    alpha: np.ndarray
    width: np.ndarray
    chars: np.ndarray
    digits: tuple[int, ...]
    words: tuple[int, ...]
    held_out_digits: tuple[int, ...]
    held_out_words: tuple[int, ...]


def choose_texts(concepts: Iterable[Concept], num_numbers: int = NUM_NUMBERS) -> Texts:
    """Numbers of one to six digits, words in three cases, and codes that mean nothing."""
    rng = random.Random(7)
    numbers = _distinct(rng, num_numbers, lambda: _number(rng))
    held_out_numbers = [n for n in numbers if len(n) > 2][: num_numbers // 20]
    plain = sorted(set(_WORDS.split()) | set(_short_words(concepts)))
    rng.shuffle(plain)
    codes = _distinct(rng, num_numbers // 3, lambda: _code(rng))
    split = len(plain) // 10
    words = [form for w in plain[split:] for form in (w, w.upper(), w.capitalize())]
    held_out_words = [rng.choice((w, w.upper(), w.capitalize())) for w in plain[:split]]
    taken = {*held_out_numbers, *plain[:split]}
    numbers = [n for n in numbers if n not in taken]
    words += [code for code in codes if code.lower() not in taken]
    return Texts(numbers, words, held_out_numbers, held_out_words)


def draw_lettering(
    concepts: Iterable[Concept], fonts: Path | None = None, num_numbers: int = NUM_NUMBERS
) -> Lettering:
    """Every text in one font or two, short numbers in all: Pillow's own and a folder's *.ttf."""
    chosen = choose_texts(concepts, num_numbers)
    files = [None, *(sorted(fonts.glob("*.ttf")) if fonts else ())]
    rng = random.Random(8)
    strips: list[tuple[str, Path | None]] = []
    bounds = [0]
    for group in (chosen.numbers, chosen.words, chosen.held_out_numbers, chosen.held_out_words):
        for text in group:
            is_short = text.isdigit() and len(text) <= 2
            count = len(files) if is_short else 1 + (rng.random() < TWO_FONTS)
            strips += [(text, file) for file in rng.sample(files, min(count, len(files)))]
        bounds.append(len(strips))
    drawn = [_draw(text, file) for text, file in strips]
    return Lettering(
        tuple(text for text, _ in strips),
        np.stack([alpha for alpha, _, _ in drawn]),
        np.array([width for _, width, _ in drawn]),
        np.stack([chars for _, _, chars in drawn]),
        *(tuple(range(a, b)) for a, b in pairwise(bounds)),
    )


def _distinct(rng: random.Random, count: int, make: Callable[[], str]) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[make()] = None
    listed = list(found)
    rng.shuffle(listed)
    return listed


def _number(rng: random.Random) -> str:
    length = rng.choice(LENGTHS)
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
def _font(file: Path | None, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


def _draw(text: str, file: Path | None) -> tuple[np.ndarray, float, np.ndarray]:
    """A row each of alpha, width and chars of Lettering."""
    size = 40
    while True:
        font = _font(file, size)
        width = font.getlength(text)
        if width <= WIDTH - 8 and sum(font.getmetrics()) <= HEIGHT:
            break
        size -= 2
    image = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(image).text((WIDTH / 2, HEIGHT / 2), text, 255, font, anchor="mm")
    edges = [(WIDTH - width) / 2 + font.getlength(text[:i]) for i in range(len(text) + 1)]
    chars = np.zeros(WIDTH, np.uint8)
    for char, (start, end) in zip(text, pairwise(edges), strict=True):
        chars[round(start) : round(end)] = 1 + CHARACTERS.index(char)
    return np.asarray(image), min(1.0, (width + 8) / WIDTH), chars
