"""The example pictures of the web page, from drawings that no model was trained on:
python -m training.examples DATA web/public/examples

Writes *.webp and examples.json. What is offered is in EXAMPLES alone: take out what the
models do not answer truly, and run it again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from training.data import HELD_OUT_SETS, load_artwork, load_concepts

MAX_BYTES = 150_000


@dataclass(frozen=True, slots=True)
class Picture:
    """Drawings, (name, centre x, centre y, side) in pixels, or a text, on white."""

    width: int = 224
    height: int = 224
    drawings: Sequence[tuple[str, int, int, int]] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """Pictures with what is asked of them; alt: what they show, without giving it away."""

    id: str
    pictures: Sequence[Picture]
    question: tuple[str, str]  # English, Chinese
    alt: tuple[str, str]


def _one(name: str) -> Picture:
    return Picture(drawings=((name, 112, 112, 192),))


EXAMPLES = (
    Example("animal", (_one("penguin"),), ("What is this?", "这是什么？"),
            ("One animal", "一只动物")),
    Example("row", (Picture(448, 224, (
                ("watermelon", 84, 112, 132), ("trumpet", 224, 112, 132),
                ("bicycle", 364, 112, 132))),),
            ("What is in the picture, from left to right?", "从左到右，图里有什么？"),
            ("Three things in a row", "排成一行的三样东西")),
    Example("count", (Picture(drawings=(
                ("strawberry", 62, 66, 84), ("strawberry", 160, 58, 84),
                ("strawberry", 68, 162, 84), ("strawberry", 164, 158, 84))),),
            ("How many things are in the picture?", "图里有几个东西？"),
            ("Things to count", "可以数一数的东西")),
    Example("corner", (Picture(drawings=(("umbrella", 178, 48, 84),)),),
            ("Where is the umbrella?", "伞在哪里？"),
            ("An umbrella on white", "白底上的一把伞")),
    Example("colour", (_one("frog"),), ("What colour is it?", "它是什么颜色的？"),
            ("An animal of one colour", "一种颜色的动物")),
    Example("number", (Picture(448, 224, text="4072"),),
            ("Which number is this?", "这是什么数字？"), ("A number", "一个数")),
    Example("word", (Picture(448, 224, text="OPEN"),),
            ("What does it say?", "上面写着什么？"), ("A word", "一个英文单词")),
    Example("compare", (_one("panda"), _one("octopus")),
            ("What do the two pictures show?", "两张图分别是什么？"),
            ("Two pictures to compare", "两张可以比较的图")),
)  # fmt: skip


def write(data: Path, folder: Path) -> None:
    """The pictures and their list; pictures of an earlier run are removed."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.webp"):
        old.unlink()
    drawings = _drawings(data)
    listed = []
    for example in EXAMPLES:
        many = len(example.pictures) > 1
        names = []
        for number, picture in enumerate(example.pictures, 1):
            names.append(f"{example.id}-{number}.webp" if many else f"{example.id}.webp")
            draw(picture, drawings).save(folder / names[-1], lossless=True, quality=100, method=6)
        pair = {"question": example.question, "alt": example.alt}
        said = {key: dict(zip(("en", "zh"), texts, strict=True)) for key, texts in pair.items()}
        listed.append({"id": example.id, "pictures": names, **said})
    lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in listed)
    (folder / "examples.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    total = sum(file.stat().st_size for file in folder.glob("*.webp"))
    print(f"{len(listed)} examples, {total:,} bytes")
    assert total < MAX_BYTES


def _drawings(data: Path) -> Mapping[str, Image.Image]:
    """Each held-out drawing by its English name."""
    concepts = load_concepts(data)
    artwork = load_artwork(data, HELD_OUT_SETS, len(concepts))
    return {
        concepts[concept].en: Image.fromarray(pixels.transpose(1, 2, 0).copy())
        for concept, pixels in zip(artwork.concept, artwork.pixels, strict=True)
    }


def draw(picture: Picture, drawings: Mapping[str, Image.Image]) -> Image.Image:
    canvas = Image.new("RGB", (picture.width, picture.height), "white")
    for name, x, y, side in picture.drawings:
        sprite = drawings[name].resize((side, side), Image.Resampling.LANCZOS)
        canvas.paste(sprite, (x - side // 2, y - side // 2), sprite)
    if picture.text:
        font = ImageFont.load_default(picture.height * 0.5)
        middle = (picture.width / 2, picture.height / 2)
        ImageDraw.Draw(canvas).text(middle, picture.text, "black", font, anchor="mm")
    return canvas


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
