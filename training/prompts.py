"""Dialogues to token ids, exactly as shuzhai's templates lay them out (evaluate.py holds it to it).

It is written out here, so that the training machine needs no part of shuzhai.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from training.tasks import Dialogue, Turn

BOS = 1
MARKERS = ("[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]")  # end and start of a turn: the last pieces
IMAGE_TOKENS = (
    "<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>",
)  # fmt: skip
CONTROL = ("<|im_end|>", "<|im_start|>")

XCOMPOSER2_SYSTEM = (
    "You are an AI assistant whose name is InternLM-XComposer (浦语·灵笔).\n"
    "- InternLM-XComposer (浦语·灵笔) is a multi-modality conversational language model that is "
    "developed by Shanghai AI Laboratory (上海人工智能实验室). It is designed to be helpful, "
    "honest, and harmless.\n"
    "- InternLM-XComposer (浦语·灵笔) can understand and communicate fluently in the language "
    "chosen by the user such as English and 中文.\n"
    "- InternLM-XComposer (浦语·灵笔) is capable of comprehending and articulating responses "
    "effectively based on the provided image."
)
INTERNVL2_SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
    "是一个有用无害的人工智能助手。"
)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One dialogue as ids.

    ids         with image_id at the positions of pictures
    is_answer   the ids that are to be learnt: answers and the ends of their turns
    prompt_len  where the last answer begins
    """

    ids: list[int]
    is_answer: list[bool]
    prompt_len: int


class Encoder:
    """One of the two formats. image_id: a token, or the size of the vocabulary where none is."""

    def __init__(self, family: str, tokenizer: Path) -> None:
        self.family = family
        self.model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
        size = self.model.vocab_size()
        self.is_internvl = family == "internvl2"
        # InternVL2 overlays the markers with tokens of its own, at the same ids.
        self.end, self.start = size - 2, size - 1
        self.vocab_size = size + len(IMAGE_TOKENS) if self.is_internvl else size
        self.image_id = size + 2 if self.is_internvl else size
        self.tokens_per_tile = 64 if self.is_internvl else 256

    def num_tiles(self, columns: int, rows: int) -> int:
        """XComposer2 sees every picture as one square."""
        if not self.is_internvl or columns * rows == 1:
            return 1
        return columns * rows + 1

    def encode(self, dialogue: Dialogue) -> Encoded:
        after_end = "" if self.is_internvl else "\n"
        ids, is_answer = [BOS], [False]
        prompt_len = 0

        def add(new: Sequence[int], learn: bool = False) -> None:
            ids.extend(new)
            is_answer.extend([learn] * len(new))

        system = dialogue.system
        if system is None:
            system = INTERNVL2_SYSTEM if self.is_internvl else XCOMPOSER2_SYSTEM
        if system or self.is_internvl:
            add([self.start, *self._text(f"system\n{system}"), self.end, *self._text(after_end)])
        for turn in dialogue.turns:
            add([self.start, *self._user(turn), self.end, *self._text(after_end)])
            add([self.start, *self._text("assistant\n")])
            prompt_len = len(ids)
            answer = self._letters(turn.answer) if turn.is_spelled else self._text(turn.answer)
            add([*answer, self.end], learn=True)
            add(self._text(after_end))
        return Encoded(ids, is_answer, prompt_len)

    def decode(self, ids: Sequence[int]) -> str:
        return self.model.decode([i for i in ids if i < self.end])

    def _text(self, text: str) -> list[int]:
        return self.model.encode(text) if text else []

    def _letters(self, text: str) -> list[int]:
        return [i for letter in text for i in self.model.encode(letter)]

    def _user(self, turn: Turn) -> list[int]:
        pictures = [
            [self.image_id] * (self.num_tiles(s.columns, s.rows) * self.tokens_per_tile)
            for s in turn.scenes
        ]
        if not pictures:
            return self._text("user\n" + turn.question)
        if not self.is_internvl:
            flat = [i for picture in pictures for i in picture]
            if turn.pictures_last:
                return self._text("user\n" + turn.question) + flat
            return self._text("user\n") + flat + self._text(turn.question)
        lines: list[int] = []
        text = "user\n" + (turn.question + "\n" if turn.pictures_last else "")
        for number, picture in enumerate(pictures, 1):
            label = f"Image-{number}: " if len(pictures) > 1 else ""
            lines += [*self._text(text + label), self.image_id - 2, *picture, self.image_id - 1]
            text = "\n"
        return lines + ([] if turn.pictures_last else self._text("\n" + turn.question))
