"""The tokenizer of both models: python -m training.tokenizer DATA_FOLDER OUTPUT.model

A BPE of 4,000 pieces and a few over the words of the tasks. Digits stand alone, and a line break
is a byte, so that what follows one begins a piece of its own.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from training.data import COLOURS, load_concepts
from training.lettering import choose_texts
from training.phrases import ANSWERS, FOLLOW_NAME, PLACE_WORDS, PLACES, QUESTIONS, SYSTEMS, TALK
from training.prompts import INTERNVL2_SYSTEM, MARKERS, XCOMPOSER2_SYSTEM

VOCAB_SIZE = 4096
# Answers as they were when the shipped tokenizer was made: it stays as it is.
_ANSWERS = ANSWERS | {"where": {"en": "At the {place}.", "zh": "在{place}。"}}


def corpus(folder: Path) -> Iterator[str]:
    """Lines, names often, so that words of names become pieces."""
    concepts = load_concepts(folder)
    rng = random.Random(0)
    for concept in concepts:
        for _ in range(8):
            yield from (concept.en, concept.zh, f"a {concept.en},", f"{concept.zh}、")
        yield from (*concept.keywords_en, *concept.keywords_zh)
    for tables in (QUESTIONS, _ANSWERS):
        for table in tables.values():
            for language, lines in table.items():
                for line in [lines] if isinstance(lines, str) else lines:
                    for concept in rng.sample(concepts, 6):
                        name = concept.name(language)
                        yield line.format(name=name, other=name, place="")
    yield from choose_texts(concepts, 600).words
    fixed = [*COLOURS, *COLOURS.values(), *PLACES, *PLACES.values(), *SYSTEMS]
    fixed += [line for lines in FOLLOW_NAME.values() for line in lines]
    fixed += [w for table in PLACE_WORDS.values() for words in table.values() for w in words]
    fixed += [line for questions, answer in TALK for line in (*questions, answer)]
    fixed += (XCOMPOSER2_SYSTEM + "\n" + INTERNVL2_SYSTEM).splitlines()
    fixed += ["system", "user", "assistant", "Image-1: ", "Image-2: ", "Frame1: "]
    for line in fixed:
        yield from [line] * 12


def train(folder: Path, output: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus(folder)),
        model_prefix=str(output.with_suffix("")),
        model_type="bpe",
        vocab_size=VOCAB_SIZE - len(MARKERS),
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        max_sentencepiece_length=8,
        num_threads=1,
        minloglevel=2,
    )
    output.with_suffix(".vocab").unlink()
    _append_markers(output)


def _append_markers(output: Path) -> None:
    """The chat markers become the last two pieces, as they are in InternLM2's own vocabulary."""
    # A protobuf message takes more of a repeated field at its end: field 1, a piece, holds its
    # text (1), its score (2, float32) and its type (3, user defined = 4).
    data = output.read_bytes()
    for marker in MARKERS:
        text = marker.encode()
        piece = bytes([0x0A, len(text)]) + text + bytes([0x15, 0, 0, 0, 0, 0x18, 4])
        data += bytes([0x0A, len(piece)]) + piece
    output.write_bytes(data)


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]))
