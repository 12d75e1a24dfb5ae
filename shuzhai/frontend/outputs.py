"""What the frontend hands to users: prompts as the model sees them, and answers as text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A picture as the model sees it.

    pixels      [tiles, size, size, 3] uint8, read-only
    num_tokens  how many positions of the prompt it takes
    digest      of the shape and the pixels. Equal digests share what is cached, so it is always
                computed here, and by two functions: a collision of one is not believed.
    """

    pixels: np.ndarray = field(compare=False, repr=False)
    num_tokens: int
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        digest = b""
        for function in (hashlib.sha256, hashlib.blake2b):
            found = function(np.array(self.pixels.shape, "<i8").tobytes())
            found.update(self.pixels)
            digest += found.digest()
        object.__setattr__(self, "digest", digest)


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt exactly as the model sees it.

    text       the whole prompt with its special tokens spelled out, without the BOS
    token_ids  the ids, BOS included where the model has one; at the positions of pictures the
               model's id for them, -1 where it has none
    images     the pictures in the order of their positions
    is_open    the answer goes on in the middle of a text: it may begin with a space
    """

    text: str
    token_ids: list[int]
    images: tuple[EncodedImage, ...] = ()
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request; `cached_tokens` of the prompt came from the prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token with its log-probability, and the best tokens at its place, best first.

    `text` has U+FFFD where a token holds part of a character; `bytes` are the token's own.
    """

    token_id: int
    text: str
    bytes: bytes
    logprob: float
    top: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of answer number `index`. The pieces' texts, joined, are the answer.

    text may be empty (a character or a possible stop string is not complete yet); token_ids and
    logprobs belong to the tokens that arrived, not to the characters. prompt_logprobs come with
    answer 0, over several pieces if the prompt was run in chunks. usage counts up to and including
    this piece.
    """

    index: int
    text: str
    token_ids: list[int]
    usage: Usage
    logprobs: list[Logprob] = field(default_factory=list)
    prompt_logprobs: list[Logprob] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished answer; finish_reason is "stop" or "length", logprobs None if not asked for."""

    text: str
    token_ids: list[int]
    finish_reason: str
    usage: Usage
    logprobs: list[Logprob] | None = None
    prompt_logprobs: list[Logprob] | None = None


class GenerationOutput(Sequence[Completion]):
    """The `n` answers to one prompt. Its own .text, .token_ids, ... are those of the first."""

    def __init__(self, completions: Sequence[Completion]) -> None:
        self._completions = tuple(completions)

    def __getitem__(self, index: int) -> Completion:  # type: ignore[override]
        return self._completions[index]

    def __len__(self) -> int:
        return len(self._completions)

    def __iter__(self) -> Iterator[Completion]:
        return iter(self._completions)

    def __repr__(self) -> str:
        return f"GenerationOutput({list(self._completions)!r})"

    @property
    def text(self) -> str:
        return self[0].text

    @property
    def token_ids(self) -> list[int]:
        return self[0].token_ids

    @property
    def finish_reason(self) -> str:
        return self[0].finish_reason

    @property
    def logprobs(self) -> list[Logprob] | None:
        return self[0].logprobs

    @property
    def prompt_logprobs(self) -> list[Logprob] | None:
        return self[0].prompt_logprobs

    @property
    def usage(self) -> Usage:
        """Counts over all answers; the prompt counts once."""
        first = self[0].usage
        return Usage(
            first.prompt_tokens,
            sum(c.usage.completion_tokens for c in self._completions),
            first.cached_tokens,
        )
