"""What is asked of the engine, and what it answers. No torch, no text: token ids only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from shuzhai.errors import InvalidRequestError, ShuzhaiError

if TYPE_CHECKING:  # the engine's only tensor that leaves it; this file itself must not need torch
    import numpy as np
    from torch import Tensor

MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
MAX_STOPS = 64
MAX_STOP_CHARS = 16384
MAX_LOGIT_BIAS = 1024


def _check(ok: bool, param: str, rule: str, value: object) -> None:
    if not ok:
        raise InvalidRequestError(f"{param} must be {rule}, not {value!r}", param=param)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and type(value) is not bool and abs(value) < math.inf


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose the next tokens, and when to stop.

    temperature         0 is greedy; else logits are divided by it, 0 to 100
    top_p, min_p        nucleus mass in (0, 1]; least probability relative to the best, in [0, 1]
    top_k               how many of the best tokens are kept; 0 keeps all
    repetition_penalty  > 0; divides positive and multiplies negative logits of tokens seen in
                        prompt or answer (CTRL, arXiv:1909.05858)
    presence_penalty, frequency_penalty   -2 to 2; OpenAI's, on tokens of the answer
    logit_bias          token id -> -100 to 100, added to the logit
    seed                same seed, same text, whatever else is in the batch; None: a fresh one.
                        (In 16-bit types rounding differs between batch sizes, so texts may too.)
    n                   answers to one prompt
    logprobs            None: none; k: log-probability of each token of the answer and of the
                        k best, in the model's own distribution (no penalties, temperature 1)
    prompt_logprobs     the same for the tokens of the prompt (the first one has none)
    max_tokens          None: until the context is full
    min_tokens          no end-of-text and no stop id before; stop strings are not looked for either
    stop                strings that end the answer and are left out of it
    stop_token_ids      ids that end the answer besides the model's own end-of-text ids
    ignore_eos          the model's own end-of-text ids do not end the answer

    A bad value raises InvalidRequestError. The frontend looks after `n` and `stop`.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        self._check_distribution()
        self._check_length()

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def _check_distribution(self) -> None:
        for name, low, high in (
            ("temperature", 0, 100),
            ("min_p", 0, 1),
            ("presence_penalty", -2, 2),
            ("frequency_penalty", -2, 2),
        ):
            value = getattr(self, name)
            _check(_is_number(value) and low <= value <= high, name, f"from {low} to {high}", value)
        _check(
            _is_number(self.top_p) and 0 < self.top_p <= 1,
            "top_p",
            "above 0 and at most 1",
            self.top_p,
        )
        _check(_is_int(self.top_k) and self.top_k >= 0, "top_k", "0 or more", self.top_k)
        _check(
            _is_number(self.repetition_penalty) and 0 < self.repetition_penalty <= 100,
            "repetition_penalty",
            "above 0 and at most 100",
            self.repetition_penalty,
        )
        _check(
            isinstance(self.logit_bias, Mapping)
            and len(self.logit_bias) <= MAX_LOGIT_BIAS
            and all(_is_int(k) and k >= 0 for k in self.logit_bias)
            and all(_is_number(v) and abs(v) <= 100 for v in self.logit_bias.values()),
            "logit_bias",
            f"at most {MAX_LOGIT_BIAS} token ids with numbers from -100 to 100",
            str(self.logit_bias)[:80],
        )
        _check(
            self.seed is None or (_is_int(self.seed) and -(2**63) <= self.seed < 2**63),
            "seed",
            "a 64-bit integer",
            self.seed,
        )

    def _check_length(self) -> None:
        _check(
            _is_int(self.n) and 1 <= self.n <= MAX_CHOICES, "n", f"from 1 to {MAX_CHOICES}", self.n
        )
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            _check(
                value is None or (_is_int(value) and 0 <= value <= MAX_TOP_LOGPROBS),
                name,
                f"from 0 to {MAX_TOP_LOGPROBS}",
                value,
            )
        _check(
            self.max_tokens is None or (_is_int(self.max_tokens) and self.max_tokens >= 1),
            "max_tokens",
            "1 or more",
            self.max_tokens,
        )
        _check(
            _is_int(self.min_tokens) and 0 <= self.min_tokens <= (self.max_tokens or 2**31),
            "min_tokens",
            "from 0 to max_tokens",
            self.min_tokens,
        )
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            _check(isinstance(value, Sequence), name, "a list", value)
        stops = self.stop_strings
        _check(len(stops) <= MAX_STOPS, "stop", f"at most {MAX_STOPS} strings", len(stops))
        _check(all(isinstance(s, str) and s for s in stops), "stop", "non-empty strings", stops)
        size = sum(map(len, stops))
        _check(size <= MAX_STOP_CHARS, "stop", f"at most {MAX_STOP_CHARS} characters in all", size)
        _check(
            len(self.stop_token_ids) <= MAX_LOGIT_BIAS
            and all(_is_int(i) and i >= 0 for i in self.stop_token_ids),
            "stop_token_ids",
            f"at most {MAX_LOGIT_BIAS} token ids",
            self.stop_token_ids[:4],
        )


class FinishReason(Enum):
    """Why an answer ended. Values are the ones of the OpenAI API, where it has one."""

    STOP = "stop"
    LENGTH = "length"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Positions [start, end) of a prompt hold the rows of one image.

    digest   names the content; pixels   [tiles, size, size, 3] uint8
    """

    start: int
    end: int
    digest: bytes
    pixels: np.ndarray = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to be continued: what was asked. It never changes.

    token_ids   at the positions of images they may be -1
    stop_ids    ids that end the answer: the model's own (unless ignore_eos) and the caller's
    cache_salt  requests share cached prefixes only with requests of an equal salt
    images      in order, not overlapping
    want_prompt_logits   every step hands out the logits of the prompt positions it ran
    """

    id: str
    token_ids: tuple[int, ...]
    params: SamplingParams
    stop_ids: frozenset[int] = frozenset()
    cache_salt: bytes = b""
    images: tuple[ImageSpan, ...] = ()
    want_prompt_logits: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of one token, and of the best ones at its place, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


# Not frozen, which takes thrice as long: every step makes one of these for each sequence.
@dataclass(slots=True)
class StepOutput:
    """What one step brought one request.

    token_ids        new ids; empty for a middle chunk of a prompt; a stop id is among them
    logprobs         as many as token_ids where asked for, else empty
    prompt_logprobs  of the prompt tokens this step looked at, in order (position 0 has none)
    prompt_logits    [positions run, vocab] float32 on the host, where asked for
    stop_id          the id that ended the answer, where one did
    num_cached_tokens  prompt tokens that came from the prefix cache
    error            to be raised where finish_reason is ERROR: it concerns this request alone
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logits: Tensor | None = None
    finish_reason: FinishReason | None = None
    stop_id: int | None = None
    num_cached_tokens: int = 0
    error: ShuzhaiError | None = None
