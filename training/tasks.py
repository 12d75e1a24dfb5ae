"""Dialogues about pictures: a scene or two, questions and the one right answer to each.

What is random comes from the `random.Random` that is handed in, so a seed gives a dialogue again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.data import Concept
from training.facts import Examiner, Facts, Query, World
from training.lettering import HEIGHT, WIDTH
from training.phrases import FOLLOW_NAME, SYSTEMS, TALK
from training.scenes import (
    Scene,
    Sprite,
    Text,
    choose_tiles,
    place_cells,
    place_one,
    place_row,
    place_scattered,
    row_cells,
)

# How often each task is drawn in training, in percent.
MIX = {
    "name": 26, "sentence": 2, "list": 5, "count": 10, "where": 22, "what_at": 4, "digits": 2,
    "words": 4, "colour": 4, "compare": 3, "is_it": 6, "is_there": 8, "follow_up": 2, "talk": 2,
}  # fmt: skip
# How often more is asked about a picture, and how often such a question is in the other language:
# a question is cheap, the tower's pass over its picture is not.
MORE = 0.7
SWITCH = 0.15
# How many pictures are on white and untouched, as a user would send them.
PLAIN = 0.3


@dataclass(frozen=True, slots=True)
class Turn:
    """A question with the pictures that come with it, and its answer.

    is_spelled  the answer is learnt letter by letter: what is read is not guessed by its pieces
    """

    question: str
    answer: str
    scenes: Sequence[Scene] = ()
    pictures_last: bool = False
    is_spelled: bool = False


@dataclass(frozen=True, slots=True)
class Dialogue:
    """system: None for the template's own, "" for none."""

    task: str
    language: str
    turns: Sequence[Turn]
    system: str | None = None


class Teacher:
    """Makes dialogues of a world. more: how often further questions follow a task's own."""

    def __init__(self, world: World, rng: random.Random, *, more: float = MORE) -> None:
        self._world = world
        self._rng = rng
        self._more = more
        self._tasks: dict[str, Callable[[], tuple[Facts, Query]]] = {
            "name": self._name, "sentence": self._sentence, "list": self._list,
            "count": self._count, "where": self._where, "what_at": self._what_at,
            "digits": self._digits, "words": self._words, "colour": self._colour,
            "compare": self._compare, "is_it": self._is_it, "is_there": self._is_there,
        }  # fmt: skip
        self._examiner = Examiner(world, rng)

    def dialogue(self, task: str | None = None, language: str | None = None) -> Dialogue:
        """One of a kind, or of any kind as MIX has them."""
        rng = self._rng
        task = task or rng.choices(list(MIX), list(MIX.values()))[0]
        language = language or rng.choice(("en", "zh"))
        system = rng.choices((None, "", rng.choice(SYSTEMS)), (0.5, 0.2, 0.3))[0]
        if task == "talk":
            return Dialogue(task, language, [self._talk(language)], system)
        if task == "follow_up":
            return Dialogue(task, language, self._follow_up(language), system)
        facts, query = self._tasks[task]()
        turns = [self._turn(facts, query, language)]
        if rng.random() < self._more:
            turns += self._further(facts, query, language)
        return Dialogue(task, language, turns, system)

    # Turns

    def _turn(self, facts: Facts, query: Query, language: str) -> Turn:
        """The first about a picture: it comes with it."""
        question, answer = self._examiner.ask(facts, query, language)
        pictures_last = self._rng.random() < 0.12
        return Turn(question, answer, facts.scenes, pictures_last, is_spelled=bool(facts.text))

    def _further(self, facts: Facts, first: Query, language: str) -> list[Turn]:
        """One to three more. A name may be asked again, in the other language."""
        rng = self._rng
        again = ("name", "is_it", "is_there")
        rest = [q for q in facts.queries if q != first or q.kind in again]
        turns = []
        for query in rng.sample(rest, len(rest))[: rng.randint(1, 3)]:
            is_switched = rng.random() < SWITCH or (query == first and query.kind == "name")
            spoken = _other_language(language) if is_switched else language
            turns.append(Turn(*self._examiner.ask(facts, query, spoken)))
        return turns

    def _follow_up(self, language: str) -> list[Turn]:
        """A second question about the same picture, or a second picture."""
        rng, kind = self._rng, self._rng.random()
        if 0.7 <= kind < 0.85:
            facts = self._in_cells()
            where = self._examiner.ask(facts, Query("where"), language)
            return [self._turn(facts, Query("count"), language), Turn(*where)]
        facts = self._one(rng.choice(self._world.things), keeps=True)
        first = self._turn(facts, Query("name"), language)
        if kind >= 0.85:
            another = self._one(rng.choice(self._world.things), small=True)
            answer = another.concepts[0].name(language)
            return [first, Turn(rng.choice(FOLLOW_NAME[language]), answer, another.scenes)]
        if kind < 0.35 and facts.colour >= 0:
            return [first, Turn(*self._examiner.ask(facts, Query("colour"), language))]
        if kind < 0.55:
            return [first, Turn(*self._examiner.ask(facts, Query("is_it"), language))]
        other = _other_language(language)
        return [first, Turn(*self._examiner.ask(facts, Query("name"), other))]

    def _talk(self, language: str) -> Turn:
        is_zh = language == "zh"
        fitting = [t for t in TALK if any("一" <= c <= "鿿" for c in t[1]) == is_zh]
        questions, answer = self._rng.choice(fitting)
        return Turn(self._rng.choice(questions), answer)

    # Pictures

    def _sprite(
        self,
        concept: Concept,
        place: tuple[float, float, float],
        *,
        is_upright: bool,
        keeps: bool = False,
        drawing: int | None = None,
    ) -> Sprite:
        rng = self._rng
        if drawing is None:
            drawing = rng.choice(self._world.artwork.of_concept[concept.index])
        return Sprite(
            drawing,
            *place,
            angle=0.0 if is_upright else rng.gauss(0, 0.16),
            stretch=1.0 if is_upright else rng.uniform(0.82, 1.22),
            flip=concept.may_flip and not is_upright and rng.random() < 0.5,
            keeps=keeps or concept.keeps_colour,
        )

    def _picture(
        self,
        concept: Concept,
        columns: int,
        rows: int,
        *,
        keeps: bool = False,
        drawing: int | None = None,
    ) -> Scene:
        """One thing, often as it is sent: the whole drawing in the middle, most often on white."""
        rng = self._rng
        is_plain = rng.random() < PLAIN
        if rng.random() < (0.7 if is_plain else 0.25):
            place, is_upright = (0.5, 0.5, rng.uniform(0.8, 1.0)), True
        else:
            place, is_upright = place_one(rng, columns / rows), rng.random() < 0.35
        sprite = self._sprite(concept, place, is_upright=is_upright, keeps=keeps, drawing=drawing)
        return Scene(columns, rows, [sprite], is_plain=is_plain)

    def _one(
        self,
        concept: Concept,
        *,
        small: bool = False,
        keeps: bool = False,
        drawing: int | None = None,
    ) -> Facts:
        columns, rows = choose_tiles(self._rng, "square" if small else "any", small=small)
        scene = self._picture(concept, columns, rows, keeps=keeps, drawing=drawing)
        sprite = scene.sprites[0]
        queries = [Query("name"), Query("sentence")]
        colour = -1
        if concept.is_thing:
            queries += [Query("is_it")] * 2
            colour = self._world.artwork.colour[sprite.drawing]
        if not (sprite.keeps or scene.is_plain):
            colour = -1
        if colour >= 0:
            queries += [Query("colour")] * 2
        return Facts([scene], queries, [concept], colour=colour)

    def _several(
        self,
        grid: tuple[int, int],
        concepts: Sequence[Concept],
        places: Sequence[tuple[float, float, float]],
    ) -> list[Scene]:
        rng = self._rng
        is_plain = rng.random() < PLAIN
        is_upright = rng.random() < (0.7 if is_plain else 0.2)
        sprites = [
            self._sprite(c, p, is_upright=is_upright or rng.random() < 0.35)
            for c, p in zip(concepts, places, strict=True)
        ]
        return [Scene(*grid, sprites, is_plain=is_plain)]

    def _row(self) -> Facts:
        rng = self._rng
        count = rng.choices((2, 3, 4), (0.45, 0.4, 0.15))[0]
        grid = choose_tiles(rng, rng.choices(("square", "wide"), (0.55, 0.45))[0])
        concepts = self._world.new_things(rng, count)
        places = place_row(rng, count, grid[0] / grid[1])
        cells = row_cells(places)
        kinds = ("list", "describe", "count", "is_there", "is_there")
        queries = [*map(Query, kinds), Query("count_of", rng.randrange(count))]
        queries += [Query(k, rng.randrange(count)) for k in ("where", "what_at") if cells]
        return Facts(self._several(grid, concepts, places), queries, concepts, cells)

    def _scattered(self) -> Facts:
        """Up to six things; they are all alike, or of two kinds, or of several."""
        rng = self._rng
        count = rng.randint(1, 6)
        while True:
            kinds = self._world.different_things(rng, rng.choice((1, 1, 2, min(3, count))))
            concepts = [rng.choice(kinds) for _ in range(count)]
            if self._world.allows(c.index for c in concepts):
                break
        grid = choose_tiles(rng, "any")
        places = place_scattered(rng, count, grid[0] / grid[1])
        queries = [Query("count"), Query("is_there"), Query("is_there")]
        queries += [Query("count_of", concepts.index(c)) for c in dict.fromkeys(concepts)]
        return Facts(self._several(grid, concepts, places), queries, concepts)

    def _in_cells(self) -> Facts:
        rng = self._rng
        count = rng.choices((1, 2, 3, 4), (0.15, 0.35, 0.3, 0.2))[0]
        while True:
            cells = rng.sample(range(9), count)
            concepts = self._world.different_things(rng, count)
            if self._world.allows((c.index, i) for c, i in zip(concepts, cells, strict=True)):
                break
        grid = choose_tiles(rng, "any", small=rng.random() < 0.5)
        places = place_cells(rng, cells, grid[0] / grid[1])
        queries = [Query(k, i) for k in ("where", "what_at") for i in range(count)]
        queries += [Query("count"), Query("is_there")]
        return Facts(self._several(grid, concepts, places), queries, concepts, cells)

    def _written(self, strip: int, kinds: Sequence[str]) -> Facts:
        rng, lettering = self._rng, self._world.lettering
        columns, rows = choose_tiles(rng, rng.choices(("square", "wide"), (0.6, 0.4))[0])
        aspect = columns / rows
        share = lettering.width[strip]
        size = min(0.95 * max(1.0, aspect) / share * rng.uniform(0.55, 1.0), 4.0)
        wide = size * share * min(1, 1 / aspect)
        high = size * HEIGHT / WIDTH * min(1, aspect)
        angle = 0.0 if rng.random() < 0.5 else rng.gauss(0, 0.06)
        text = Text(strip, _inside(rng, wide), _inside(rng, high), size, angle)
        scene = Scene(columns, rows, texts=[text], is_plain=rng.random() < PLAIN)
        return Facts([scene], [Query(k) for k in kinds], text=lettering.texts[strip])

    # Tasks: a picture, and what is asked of it first

    def _name(self) -> tuple[Facts, Query]:
        return self._one(self._rng.choice(self._world.drawn)), Query("name")

    def _sentence(self) -> tuple[Facts, Query]:
        return self._one(self._rng.choice(self._world.drawn)), Query("sentence")

    def _colour(self) -> tuple[Facts, Query]:
        drawing = self._rng.choice(self._world.coloured)
        facts = self._one(self._world.concept_of(drawing), keeps=True, drawing=drawing)
        return facts, Query("colour")

    def _is_it(self) -> tuple[Facts, Query]:
        return self._one(self._rng.choice(self._world.things)), Query("is_it")

    def _list(self) -> tuple[Facts, Query]:
        return self._row(), Query("describe" if self._rng.random() < 0.2 else "list")

    def _count(self) -> tuple[Facts, Query]:
        facts = self._scattered()
        if self._rng.random() < 0.6:
            return facts, Query("count")
        asked = self._rng.choice(facts.concepts)
        return facts, Query("count_of", facts.concepts.index(asked))

    def _is_there(self) -> tuple[Facts, Query]:
        facts = self._row() if self._rng.random() < 0.6 else self._scattered()
        return facts, Query("is_there")

    def _where(self) -> tuple[Facts, Query]:
        facts = self._in_cells()
        return facts, Query("where", self._rng.randrange(len(facts.concepts)))

    def _what_at(self) -> tuple[Facts, Query]:
        facts = self._in_cells()
        return facts, Query("what_at", self._rng.randrange(len(facts.concepts)))

    def _digits(self) -> tuple[Facts, Query]:
        facts = self._written(self._world.number(self._rng), ("digits", "read"))
        return facts, self._rng.choice((*facts.queries, facts.queries[0]))

    def _words(self) -> tuple[Facts, Query]:
        return self._written(self._world.word(self._rng), ("read",)), Query("read")

    def _compare(self) -> tuple[Facts, Query]:
        rng, world = self._rng, self._world
        first = rng.choice(world.things)
        kind = rng.choice(("same", "which", "both"))
        is_same = kind == "same" and rng.random() < 0.5
        concepts = [first, first if is_same else world.other_than(rng, first)]
        while not world.allows(c.index for c in concepts):
            first = rng.choice(world.things)
            concepts = [first, first if is_same else world.other_than(rng, first)]
        scenes = [self._picture(c, 1, 1) for c in concepts]
        queries = [Query("same"), Query("both"), Query("of_two", 0), Query("of_two", 1)]
        queries += [Query("which", rng.randrange(2))] * (not is_same)
        asked = queries[-1] if kind == "which" else Query(kind)
        return Facts(scenes, queries, concepts), asked


def _other_language(language: str) -> str:
    return "zh" if language == "en" else "en"


def _inside(rng: random.Random, extent: float) -> float:
    room = max(0.0, 1 - extent) / 2
    return 0.5 + rng.uniform(-room, room)
