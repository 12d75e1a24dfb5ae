"""What the shipped models are asked in tests, and the one right answer to each question.

All that depends on what the models have learnt is in this file. Pictures are those that the page
offers, which training never saw, and ones composed of them here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "web" / "public" / "examples"

# What a right answer holds, in this order; numbers must be all the digits that it holds.
Words = tuple[str, ...]


@dataclass(frozen=True)
class Turn:
    """A question in both languages, and what the answers to it hold."""

    question: Mapping[str, str]
    words: Mapping[str, Words]


@dataclass(frozen=True)
class Case:
    """Pictures, a first question about them, and one more in a second turn."""

    pictures: Sequence[str]
    first: Turn
    then: Turn | None = None


def turn(en: str, zh: str, words_en: Words, words_zh: Words) -> Turn:
    return Turn({"en": en, "zh": zh}, {"en": words_en, "zh": words_zh})


def what(words_en: Words, words_zh: Words) -> Turn:
    return turn("What is this?", "这是什么？", words_en, words_zh)


COLOUR = ("What colour is it?", "它是什么颜色的？")

# Names that are ids of examples.json stand for what the page sends with them.
CASES: dict[str, Case] = {
    "animal": Case(
        ("animal.webp",),
        what(("penguin",), ("企鹅",)),
        turn("Is this a penguin?", "这是企鹅吗？", ("Yes", "penguin"), ("是的", "企鹅")),
    ),
    "row": Case(
        ("row.webp",),
        turn(
            "What is in the picture, from left to right?", "从左到右，图里有什么？",
            ("watermelon", "trumpet", "bicycle"), ("西瓜", "小号", "自行车"),
        ),
    ),
    "count": Case(
        ("count.webp",),
        turn("How many things are in the picture?", "图里有几个东西？", ("4",), ("4",)),
    ),
    "corner": Case(
        ("corner.webp",),
        turn("Where is the umbrella?", "伞在哪里？", ("top right",), ("右上角",)),
    ),
    "colour": Case(("colour.webp",), turn(*COLOUR, ("green",), ("绿色",))),
    "number": Case(
        ("number.webp",), turn("Which number is this?", "这是什么数字？", ("4072",), ("4072",))
    ),
    "word": Case(("word.webp",), turn("What does it say?", "上面写着什么？", ("OPEN",), ("OPEN",))),
    "compare": Case(
        ("compare-1.webp", "compare-2.webp"),
        turn(
            "What do the two pictures show?", "两张图分别是什么？",
            ("panda", "octopus"), ("熊猫", "章鱼"),
        ),
    ),
    "name, then colour": Case(
        ("colour.webp",), what(("frog",), ("青蛙",)), turn(*COLOUR, ("green",), ("绿色",))
    ),
    "two in a row": Case(
        ("compare-2.webp + animal.webp",),
        turn(
            "List everything from left to right.", "请从左到右列出所有东西。",
            ("octopus", "penguin"), ("章鱼", "企鹅"),
        ),
    ),
    "large": Case(("animal.webp * 3",), what(("penguin",), ("企鹅",))),
}  # fmt: skip

TALK = {"en": ("Who are you?", ("Shuzhai",)), "zh": ("你是谁？", ("书斋",))}


def picture(made_of: str) -> bytes:
    """A file of a picture: an example as it is, two beside each other (+), or one larger (*)."""
    if " " not in made_of:
        return example(made_of)
    left, how, right = made_of.split(" ")
    first = Image.open(BytesIO(example(left))).convert("RGB")
    if how == "*":
        made = first.resize((first.width * int(right), first.height * int(right)))
    else:
        second = Image.open(BytesIO(example(right))).convert("RGB")
        made = Image.new("RGB", (first.width + second.width, first.height), "white")
        made.paste(first, (0, 0))
        made.paste(second, (first.width, 0))
    packed = BytesIO()
    made.save(packed, "PNG")
    return packed.getvalue()


def example(name: str) -> bytes:
    return (EXAMPLES / name).read_bytes()
