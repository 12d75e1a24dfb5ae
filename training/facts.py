"""What is known of a picture, and every question that it answers.

What is random comes from the `random.Random` that is handed in, so a seed gives it again.
"""

from __future__ import annotations

import random
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from training.data import COLOUR_NAMES, COLOURS, Artwork, Concept
from training.lettering import LENGTHS, Lettering
from training.phrases import ANSWERS, OF_TWO, PLACE_WORDS, PLACES, QUESTIONS
from training.scenes import POSITIONS, Scene


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of a picture, and of which of its things."""

    kind: str
    which: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """A picture, or two, with all that is known of it: each of `queries` has one true answer.

    concepts  what is there: from left to right in a row, one to a picture where there are two
    cells     the place of each concept, as an index of POSITIONS; empty where it has none
    colour    of the one thing, as an index of COLOUR_NAMES; -1: none, or not to be relied on
    text      what is written
    """

    scenes: Sequence[Scene]
    queries: Sequence[Query]
    concepts: Sequence[Concept] = ()
    cells: Sequence[int] = ()
    colour: int = -1
    text: str = ""


@dataclass(slots=True)
class World:
    """All there is to ask about.

    held_out   strings and combinations of things of tests instead of those of training
    """

    concepts: Sequence[Concept]
    artwork: Artwork
    lettering: Lettering
    held_out: bool = False
    things: list[Concept] = field(init=False)
    drawn: list[Concept] = field(init=False)
    coloured: list[int] = field(init=False)
    kinds: dict[str, list[Concept]] = field(init=False)
    numbers: dict[int, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.drawn = [c for c in self.concepts if self.artwork.of_concept[c.index]]
        self.things = [c for c in self.drawn if c.is_thing]
        self.kinds = defaultdict(list)
        for concept in self.things:
            self.kinds[concept.subgroup].append(concept)
        thing = {c.index for c in self.things}
        self.coloured = [
            d
            for d, c in enumerate(self.artwork.colour)
            if c >= 0 and self.artwork.concept[d] in thing
        ]
        self.numbers = defaultdict(list)
        for strip in self.lettering.digits:
            self.numbers[len(self.lettering.texts[strip])].append(strip)

    def allows(self, combination: Iterable[int] | Iterable[tuple[int, int]]) -> bool:
        """One combination in sixteen, such as three of a thing, is kept from training for tests."""
        code = zlib.crc32(repr(sorted(combination)).encode())
        return (code % 16 == 0) == self.held_out

    def concept_of(self, drawing: int) -> Concept:
        return self.concepts[self.artwork.concept[drawing]]

    def number(self, rng: random.Random) -> int:
        """A strip: in training by length, as there are few short numbers."""
        if self.held_out:
            return rng.choice(self.lettering.held_out_digits)
        return rng.choice(self.numbers[rng.choice([n for n in LENGTHS if n in self.numbers])])

    def word(self, rng: random.Random) -> int:
        letters = self.lettering
        return rng.choice(letters.held_out_words if self.held_out else letters.words)

    def different_things(self, rng: random.Random, count: int) -> list[Concept]:
        """Things of which none could be taken for another: each of its own kind."""
        chosen: dict[str, Concept] = {}
        while len(chosen) < count:
            concept = rng.choice(self.things)
            chosen.setdefault(concept.subgroup, concept)
        return list(chosen.values())

    def new_things(self, rng: random.Random, count: int) -> list[Concept]:
        """Different things, as a combination that this world may show."""
        while True:
            chosen = self.different_things(rng, count)
            if self.allows(c.index for c in chosen):
                return chosen

    def other_than(self, rng: random.Random, concept: Concept) -> Concept:
        """Another thing, often of the same kind, under another name in both languages."""
        near = self.kinds.get(concept.subgroup, [])
        others = near if len(near) > 1 and rng.random() < 0.4 else self.things
        while (other := rng.choice(others)).en == concept.en or other.zh == concept.zh:
            others = self.things
        return other


class Examiner:
    """Asks about pictures of a world: a question in one of its forms, and its one true answer."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self._kinds: dict[str, Callable[[Facts, int, str], tuple[str, str]]] = {
            "name": self._name, "sentence": self._sentence, "colour": self._colour,
            "is_it": self._is_it, "list": self._list, "describe": self._describe,
            "count": self._count, "count_of": self._count_of, "is_there": self._is_there,
            "where": self._where, "what_at": self._what_at, "digits": self._digits,
            "read": self._read, "same": self._same, "which": self._which, "both": self._both,
            "of_two": self._of_two,
        }  # fmt: skip

    def ask(self, facts: Facts, query: Query, language: str) -> tuple[str, str]:
        """(question, answer)"""
        return self._kinds[query.kind](facts, query.which, language)

    def _question(self, kind: str, language: str, **words: str) -> str:
        return self._rng.choice(QUESTIONS[kind][language]).format(**words)

    # About one thing

    def _name(self, facts: Facts, which: int, language: str) -> tuple[str, str]:
        return self._question("name", language), facts.concepts[which].name(language)

    def _sentence(self, facts: Facts, which: int, language: str) -> tuple[str, str]:
        name = with_article(facts.concepts[which], language)
        answer = ANSWERS["sentence"][language].format(name=name)
        return self._question("sentence", language), answer

    def _colour(self, facts: Facts, which: int, language: str) -> tuple[str, str]:
        colour = COLOUR_NAMES[facts.colour]
        question = self._question("colour", language, name=facts.concepts[which].name(language))
        return question, colour if language == "en" else COLOURS[colour]

    def _is_it(self, facts: Facts, which: int, language: str) -> tuple[str, str]:
        concept = facts.concepts[which]
        is_true = self._rng.random() < 0.5
        asked = concept if is_true else self._world.other_than(self._rng, concept)
        answer = ANSWERS["yes_is" if is_true else "no_is"][language]
        return (
            self._question("is_it", language, name=asked.name(language)),
            answer.format(name=with_article(concept, language)),
        )

    # About several things

    def _list(self, facts: Facts, _: int, language: str) -> tuple[str, str]:
        return self._question("list", language), _joined(facts.concepts, language)

    def _describe(self, facts: Facts, _: int, language: str) -> tuple[str, str]:
        names = _joined(facts.concepts, language)
        answer = ANSWERS["sentence_many"][language].format(name=names)
        return self._question("sentence", language), answer

    def _count(self, facts: Facts, _: int, language: str) -> tuple[str, str]:
        return self._question("count", language), str(len(facts.concepts))

    def _count_of(self, facts: Facts, which: int, language: str) -> tuple[str, str]:
        asked = facts.concepts[which]
        question = self._question("count_of", language, name=asked.name(language))
        return question, str(facts.concepts.count(asked))

    def _is_there(self, facts: Facts, _: int, language: str) -> tuple[str, str]:
        rng = self._rng
        is_true = rng.random() < 0.5
        asked = rng.choice(facts.concepts)
        names = {c.name(language) for c in facts.concepts}
        while not is_true and asked.name(language) in names:
            asked = self._world.other_than(rng, asked)
        question = self._question("is_there", language, name=asked.name(language))
        return question, ANSWERS["yes_there" if is_true else "no_there"][language]

    def _where(self, facts: Facts, which: int, language: str) -> tuple[str, str]:
        place = POSITIONS[facts.cells[which]]
        answer = ANSWERS["where"][language]
        return (
            self._question("where", language, name=facts.concepts[which].name(language)),
            answer.format(place=place.capitalize() if language == "en" else PLACES[place]),
        )

    def _what_at(self, facts: Facts, which: int, language: str) -> tuple[str, str]:
        place = POSITIONS[facts.cells[which]]
        usual = (place if language == "en" else PLACES[place],)
        word = self._rng.choice(PLACE_WORDS[language].get(place, usual))
        question = self._question("what_at", language, place=word)
        return question, facts.concepts[which].name(language)

    # Reading

    def _digits(self, facts: Facts, _: int, language: str) -> tuple[str, str]:
        return self._question("digits", language), facts.text

    def _read(self, facts: Facts, _: int, language: str) -> tuple[str, str]:
        return self._question("read", language), facts.text

    # About two pictures

    def _same(self, facts: Facts, _: int, language: str) -> tuple[str, str]:
        first, second = facts.concepts
        form = "same" if first == second else "different"
        return self._question("same", language), _of_both(form, facts, language)

    def _both(self, facts: Facts, _: int, language: str) -> tuple[str, str]:
        return self._question("both", language), _of_both("both", facts, language)

    def _which(self, facts: Facts, which: int, language: str) -> tuple[str, str]:
        name = facts.concepts[which].name(language)
        answer = ANSWERS[("first", "second")[which]][language]
        return self._question("which", language, name=name), answer

    def _of_two(self, facts: Facts, which: int, language: str) -> tuple[str, str]:
        question = self._rng.choice(OF_TWO[language][which])
        return question, facts.concepts[which].name(language)


def _joined(concepts: Sequence[Concept], language: str) -> str:
    return (", " if language == "en" else "、").join(c.name(language) for c in concepts)


def _of_both(form: str, facts: Facts, language: str) -> str:
    first, second = (with_article(c, language) for c in facts.concepts)
    return ANSWERS[form][language].format(name=first, other=second)


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
