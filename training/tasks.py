"""Dialogues about pictures: a scene or two, questions and the one right answer to each.

What is random comes from the `random.Random` that is handed in, so a seed gives a dialogue again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from training.data import COLOUR_NAMES, COLOURS, Artwork, Concept
from training.lettering import HEIGHT, WIDTH, Lettering
from training.phrases import (
    ANSWERS,
    FOLLOW_NAME,
    PLACE_WORDS,
    PLACES,
    QUESTIONS,
    SYSTEMS,
    TALK,
)
from training.scenes import (
    POSITIONS,
    Scene,
    Sprite,
    Text,
    choose_tiles,
    place_cells,
    place_one,
    place_row,
    place_scattered,
)

# How often each task is drawn in training.
MIX = {
    "name": 30, "sentence": 5, "list": 12, "count": 12, "where": 9, "what_at": 5, "digits": 9,
    "words": 9, "colour": 5, "compare": 9, "is_it": 4, "is_there": 4, "follow_up": 9, "talk": 4,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Turn:
    """A question with the pictures that come with it, and its answer."""

    question: str
    answer: str
    scenes: Sequence[Scene] = ()
    pictures_last: bool = False


@dataclass(frozen=True, slots=True)
class Dialogue:
    """system: None for the template's own, "" for none. drawing: what a naming task is about."""

    task: str
    language: str
    turns: Sequence[Turn]
    system: str | None = None


@dataclass(slots=True)
class World:
    """All there is to ask about.

    held_out   strings of tests instead of those of training
    """

    concepts: Sequence[Concept]
    artwork: Artwork
    lettering: Lettering
    held_out: bool = False
    things: list[Concept] = field(init=False)
    drawn: list[Concept] = field(init=False)
    coloured: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.drawn = [c for c in self.concepts if self.artwork.of_concept[c.index]]
        self.things = [c for c in self.drawn if c.is_thing]
        thing = {c.index for c in self.things}
        self.coloured = [
            d
            for d, c in enumerate(self.artwork.colour)
            if c >= 0 and self.artwork.concept[d] in thing
        ]

    def drawing(self, rng: random.Random, concept: Concept) -> int:
        return rng.choice(self.artwork.of_concept[concept.index])

    def different_things(self, rng: random.Random, count: int) -> list[Concept]:
        """Things of which none could be taken for another: each of its own kind."""
        chosen: dict[str, Concept] = {}
        while len(chosen) < count:
            concept = rng.choice(self.things)
            chosen.setdefault(concept.subgroup, concept)
        return list(chosen.values())


class Teacher:
    """Makes dialogues of a world."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self._tasks: dict[str, Callable[[str], list[Turn]]] = {
            "name": self._name, "sentence": self._sentence, "list": self._list,
            "count": self._count, "where": self._where, "what_at": self._what_at,
            "digits": self._digits, "words": self._words, "colour": self._colour,
            "compare": self._compare, "is_it": self._is_it, "is_there": self._is_there,
            "follow_up": self._follow_up, "talk": self._talk,
        }  # fmt: skip

    def dialogue(self, task: str | None = None, language: str | None = None) -> Dialogue:
        """One of a kind, or of any kind as MIX has them."""
        task = task or self._rng.choices(list(MIX), list(MIX.values()))[0]
        language = language or self._rng.choice(("en", "zh"))
        system = self._rng.choices((None, "", self._rng.choice(SYSTEMS)), (0.5, 0.2, 0.3))[0]
        return Dialogue(task, language, self._tasks[task](language), system)

    def portrait(self, concept: Concept, drawing: int) -> Scene:
        """One drawing on one tile."""
        sprite = self._sprite(concept, place_one(self._rng, 1.0), drawing=drawing)
        return Scene(1, 1, [sprite], is_plain=self._rng.random() < 0.15)

    # Pieces

    def _ask(self, kind: str, language: str, **words: str) -> str:
        return self._rng.choice(QUESTIONS[kind][language]).format(**words)

    def _turn(self, question: str, answer: str, *scenes: Scene) -> Turn:
        return Turn(question, answer, scenes, bool(scenes) and self._rng.random() < 0.12)

    def _sprite(
        self,
        concept: Concept,
        place: tuple[float, float, float],
        *,
        keeps: bool = False,
        drawing: int | None = None,
    ) -> Sprite:
        rng = self._rng
        upright = rng.random() < 0.35
        return Sprite(
            self._world.drawing(rng, concept) if drawing is None else drawing,
            *place,
            angle=0.0 if upright else rng.gauss(0, 0.16),
            stretch=1.0 if upright else rng.uniform(0.82, 1.22),
            flip=concept.may_flip and rng.random() < 0.4,
            keeps=keeps or concept.keeps_colour,
        )

    def _single(self, concept: Concept, *, small: bool = False, keeps: bool = False) -> Scene:
        columns, rows = choose_tiles(self._rng, "square" if small else "any", small=small)
        place = place_one(self._rng, columns / rows)
        sprite = self._sprite(concept, place, keeps=keeps)
        return Scene(columns, rows, [sprite], is_plain=self._rng.random() < 0.15)

    def _joined(self, names: Sequence[str], language: str) -> str:
        return (", " if language == "en" else "、").join(names)

    def _other(self, concept: Concept) -> Concept:
        """Something else, often of the same kind."""
        rng, world = self._rng, self._world
        near = [c for c in world.things if c.subgroup == concept.subgroup and c != concept]
        far = [c for c in world.things if c.subgroup != concept.subgroup]
        return rng.choice(near if near and rng.random() < 0.4 else far)

    # Tasks about one thing

    def _name(self, language: str) -> list[Turn]:
        concept = self._rng.choice(self._world.drawn)
        return [
            self._turn(self._ask("name", language), concept.name(language), self._single(concept))
        ]

    def _sentence(self, language: str) -> list[Turn]:
        concept = self._rng.choice(self._world.drawn)
        answer = ANSWERS["sentence"][language].format(name=with_article(concept, language))
        return [self._turn(self._ask("sentence", language), answer, self._single(concept))]

    def _colour(self, language: str) -> list[Turn]:
        return [
            self._colour_turn(language, self._rng.choice(self._world.coloured), with_scene=True)
        ]

    def _colour_turn(self, language: str, drawing: int, *, with_scene: bool) -> Turn:
        world, rng = self._world, self._rng
        concept = world.concepts[world.artwork.concept[drawing]]
        colour = COLOUR_NAMES[world.artwork.colour[drawing]]
        question = self._ask("colour", language, name=concept.name(language))
        answer = colour if language == "en" else COLOURS[colour]
        if not with_scene:
            return Turn(question, answer)
        columns, rows = choose_tiles(rng, "any")
        place = place_one(rng, columns / rows)
        return self._turn(
            question, answer, Scene(columns, rows, [Sprite(drawing, *place, keeps=True)])
        )

    def _is_it(self, language: str) -> list[Turn]:
        concept = self._rng.choice(self._world.things)
        return [self._is_it_turn(language, concept, self._single(concept))]

    def _is_it_turn(self, language: str, concept: Concept, *scenes: Scene) -> Turn:
        is_true = self._rng.random() < 0.5
        asked = concept if is_true else self._other(concept)
        answer = ANSWERS["yes_is" if is_true else "no_is"][language]
        return self._turn(
            self._ask("is_it", language, name=asked.name(language)),
            answer.format(name=with_article(concept, language)),
            *scenes,
        )

    # Tasks about several things

    def _row(self) -> tuple[list[Concept], Scene]:
        rng = self._rng
        count = rng.choices((2, 3, 4), (0.45, 0.4, 0.15))[0]
        shape = rng.choices(("square", "wide"), (0.55, 0.45))[0]
        columns, rows = choose_tiles(rng, shape)
        concepts = self._world.different_things(rng, count)
        places = place_row(rng, count, columns / rows)
        sprites = [self._sprite(c, p) for c, p in zip(concepts, places, strict=True)]
        return concepts, Scene(columns, rows, sprites, is_plain=rng.random() < 0.1)

    def _list(self, language: str) -> list[Turn]:
        concepts, scene = self._row()
        names = self._joined([c.name(language) for c in concepts], language)
        if self._rng.random() < 0.2:
            answer = ANSWERS["sentence_many"][language].format(name=names)
            return [self._turn(self._ask("sentence", language), answer, scene)]
        return [self._turn(self._ask("list", language), names, scene)]

    def _scattered(self) -> tuple[list[Concept], Scene]:
        """Up to six things; they are all alike, or of two kinds, or of several."""
        rng = self._rng
        count = rng.randint(1, 6)
        kinds = self._world.different_things(rng, rng.choice((1, 1, 2, min(3, count))))
        concepts = [rng.choice(kinds) for _ in range(count)]
        columns, rows = choose_tiles(rng, "any")
        places = place_scattered(rng, count, columns / rows)
        sprites = [self._sprite(c, p) for c, p in zip(concepts, places, strict=True)]
        return concepts, Scene(columns, rows, sprites, is_plain=rng.random() < 0.1)

    def _count(self, language: str) -> list[Turn]:
        concepts, scene = self._scattered()
        if self._rng.random() < 0.6:
            return [self._turn(self._ask("count", language), str(len(concepts)), scene)]
        asked = self._rng.choice(concepts)
        question = self._ask("count_of", language, name=asked.name(language))
        return [self._turn(question, str(concepts.count(asked)), scene)]

    def _is_there(self, language: str) -> list[Turn]:
        concepts, scene = self._row() if self._rng.random() < 0.6 else self._scattered()
        is_true = self._rng.random() < 0.5
        asked = self._rng.choice(concepts)
        while not is_true and asked in concepts:
            asked = self._other(asked)
        question = self._ask("is_there", language, name=asked.name(language))
        return [
            self._turn(question, ANSWERS["yes_there" if is_true else "no_there"][language], scene)
        ]

    def _in_cells(self) -> tuple[list[Concept], list[int], Scene]:
        rng = self._rng
        count = rng.choices((1, 2, 3, 4), (0.45, 0.25, 0.2, 0.1))[0]
        cells = rng.sample(range(9), count)
        columns, rows = choose_tiles(rng, "any")
        concepts = self._world.different_things(rng, count)
        places = place_cells(rng, cells, columns / rows)
        sprites = [self._sprite(c, p) for c, p in zip(concepts, places, strict=True)]
        return concepts, cells, Scene(columns, rows, sprites, is_plain=rng.random() < 0.1)

    def _where(self, language: str) -> list[Turn]:
        concepts, cells, scene = self._in_cells()
        which = self._rng.randrange(len(concepts))
        question = self._ask("where", language, name=concepts[which].name(language))
        return [self._turn(question, _place_answer(cells[which], language), scene)]

    def _what_at(self, language: str) -> list[Turn]:
        concepts, cells, scene = self._in_cells()
        which = self._rng.randrange(len(concepts))
        place = POSITIONS[cells[which]]
        usual = (place if language == "en" else PLACES[place],)
        word = self._rng.choice(PLACE_WORDS[language].get(place, usual))
        question = self._ask("what_at", language, place=word)
        return [self._turn(question, concepts[which].name(language), scene)]

    # Reading

    def _read(self, language: str, kind: str, indices: Sequence[int]) -> list[Turn]:
        rng, lettering = self._rng, self._world.lettering
        index = rng.choice(indices)
        columns, rows = choose_tiles(rng, rng.choices(("square", "wide"), (0.6, 0.4))[0])
        aspect = columns / rows
        widest = 0.95 * max(1.0, aspect) / lettering.width[index]
        size = min(widest * rng.uniform(0.55, 1.0), 4.0)
        wide = size * lettering.width[index] * min(1, 1 / aspect)
        high = size * HEIGHT / WIDTH * min(1, aspect)
        angle = 0.0 if rng.random() < 0.5 else rng.gauss(0, 0.06)
        text = Text(index, _inside(rng, wide), _inside(rng, high), size, angle)
        scene = Scene(columns, rows, texts=[text], is_plain=rng.random() < 0.2)
        return [self._turn(self._ask(kind, language), lettering.texts[index], scene)]

    def _digits(self, language: str) -> list[Turn]:
        letters = self._world.lettering
        indices = letters.held_out_digits if self._world.held_out else letters.digits
        return self._read(language, self._rng.choice(("digits", "digits", "read")), indices)

    def _words(self, language: str) -> list[Turn]:
        letters = self._world.lettering
        indices = letters.held_out_words if self._world.held_out else letters.words
        return self._read(language, "read", indices)

    # Several pictures, several turns

    def _compare(self, language: str) -> list[Turn]:
        rng = self._rng
        first = rng.choice(self._world.things)
        kind = rng.choice(("same", "which", "both"))
        second = first if kind == "same" and rng.random() < 0.5 else self._other(first)
        scenes = [self._single(c, small=True) for c in (first, second)]
        asked = rng.choice((first, second))
        question = self._ask(kind, language, name=asked.name(language))
        form = {
            "same": "same" if first == second else "different",
            "which": "first" if asked == first else "second",
            "both": "both",
        }[kind]
        named = {"name": with_article(first, language), "other": with_article(second, language)}
        return [self._turn(question, ANSWERS[form][language].format(**named), *scenes)]

    def _follow_up(self, language: str) -> list[Turn]:
        """A second question about the same picture, or a second picture."""
        rng, world = self._rng, self._world
        concept = rng.choice(world.things)
        scene = self._single(concept, keeps=True)
        first = self._turn(self._ask("name", language), concept.name(language), scene)
        drawing = scene.sprites[0].drawing
        kind = rng.random()
        if kind < 0.35 and world.artwork.colour[drawing] >= 0:
            return [first, self._colour_turn(language, drawing, with_scene=False)]
        if kind < 0.55:
            return [first, self._is_it_turn(language, concept)]
        if kind < 0.7:
            other = "zh" if language == "en" else "en"
            return [first, self._turn(self._ask("name", other), concept.name(other))]
        if kind < 0.85:
            concepts, cells, scene = self._in_cells()
            question = self._ask("where", language, name=concepts[0].name(language))
            return [
                self._turn(self._ask("count", language), str(len(concepts)), scene),
                Turn(question, _place_answer(cells[0], language)),
            ]
        another = rng.choice(world.things)
        question = rng.choice(FOLLOW_NAME[language])
        return [
            first,
            self._turn(question, another.name(language), self._single(another, small=True)),
        ]

    def _talk(self, language: str) -> list[Turn]:
        is_zh = language == "zh"
        fitting = [t for t in TALK if any("一" <= c <= "鿿" for c in t[1]) == is_zh]
        questions, answer = self._rng.choice(fitting)
        return [Turn(self._rng.choice(questions), answer)]


def with_article(concept: Concept, language: str) -> str:
    """The name as it stands in a sentence: English puts an article before most."""
    name = concept.name(language)
    if language == "zh":
        return name
    last = name.split()[-1]
    is_plural = last.endswith("s") and not last.endswith(("ss", "us", "is", "as"))
    if is_plural or name.startswith(("people", "mount ")) or not name[0].isalpha():
        return name
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _place_answer(cell: int, language: str) -> str:
    place = POSITIONS[cell]
    return ANSWERS["where"][language].format(place=place if language == "en" else PLACES[place])


def _inside(rng: random.Random, extent: float) -> float:
    room = max(0.0, 1 - extent) / 2
    return 0.5 + rng.uniform(-room, room)
