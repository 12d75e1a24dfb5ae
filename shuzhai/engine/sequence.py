"""A request's progress inside the engine. It never leaves the engine; no torch here."""

from __future__ import annotations

import hashlib
import secrets
import sys
from array import array
from enum import Enum, auto

from shuzhai.engine.picture_pool import Picture
from shuzhai.engine.request import FinishReason, Request

# Stands in token_ids where a token has been sampled on the device and is not known here yet:
# PENDING - i for the i-th that its step sampled.
PENDING = -2
# Below this the softmax has one entry; dividing by it would overflow.
GREEDY_TEMPERATURE = 1e-4


class Status(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """The mutable side of a Request.

    token_ids            prompt and answer so far; the last num_pending of them are pending
    num_pending          tokens of steps that were started and have not been read
    num_computed_tokens  tokens whose keys and values are in the cache, or will be after the steps
                         that were started
    num_cached_tokens    prompt tokens found in the cache when first admitted, None before
    max_length           tokens of prompt and answer that there may be at most
    min_length           before it, no stop id ends the answer
    num_reported_tokens  prompt positions whose logits have been handed out, where asked for
    block_table          KV blocks in order
    block_hashes         hashes of full blocks of token_ids, chained; extended on demand
    is_plain             the best token is all that is wanted of its logits
    adjusts_logits       penalties, biases or a least length change them
    needs_history        the next token cannot be chosen before the one before it is known here
    wants_prompt_rows    logits of prompt positions are asked for: every position must be computed
    rope_salt            sets apart sequences whose keys depend on the length of the prompt
    pictures             those it holds now, by their place among the request's images
    images_end           no position from here on belongs to an image
    """

    __slots__ = (
        "adjusts_logits", "block_hashes", "block_table", "images_end", "is_plain", "max_length",
        "min_length", "needs_history", "num_cached_tokens", "num_computed_tokens", "num_pending",
        "num_prompt_tokens", "num_reported_tokens", "output_counts", "pictures", "request",
        "rope_salt", "seed", "status", "token_ids", "wants_prompt_rows",
    )  # fmt: skip

    def __init__(
        self, request: Request, *, max_model_len: int = sys.maxsize, rope_salt: int = 0
    ) -> None:
        self.request = request
        self.token_ids = list(request.token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.num_pending = 0
        self.num_computed_tokens = 0
        self.num_cached_tokens: int | None = None
        self.num_reported_tokens = 0
        self.block_table = array("i")
        self.block_hashes: list[bytes] = []
        self.output_counts: dict[int, int] = {}
        self.pictures: dict[int, Picture] = {}
        self.images_end = request.images[-1].end if request.images else 0
        self.rope_salt = rope_salt
        self.status = Status.WAITING
        params = request.params
        asked_for = self.num_prompt_tokens + (params.max_tokens or sys.maxsize)
        self.max_length = min(asked_for, max_model_len)
        self.min_length = self.num_prompt_tokens + params.min_tokens
        penalties = params.presence_penalty or params.frequency_penalty
        has_penalty = bool(penalties) or params.repetition_penalty != 1.0
        self.adjusts_logits = has_penalty or bool(params.logit_bias) or params.min_tokens > 0
        is_greedy = params.temperature < GREEDY_TEMPERATURE
        self.is_plain = is_greedy and params.logprobs is None and not self.adjusts_logits
        self.wants_prompt_rows = request.want_prompt_logits or params.prompt_logprobs is not None
        self.needs_history = has_penalty or self.wants_prompt_rows
        seed = params.seed
        self.seed = secrets.randbits(63) if seed is None else seed

    @property
    def num_output_tokens(self) -> int:
        """Tokens of the answer, those that are not known yet included."""
        return len(self.token_ids) - self.num_prompt_tokens

    def append_pending(self, place: int) -> None:
        """A token is being sampled. place: among those of its step"""
        self.token_ids.append(PENDING - place)
        self.num_pending += 1

    def resolve(self, token_id: int) -> FinishReason | None:
        """The first pending token is this one; whether it ends the answer."""
        index = len(self.token_ids) - self.num_pending
        self.token_ids[index] = token_id
        self.num_pending -= 1
        if self.adjusts_logits:
            self.output_counts[token_id] = self.output_counts.get(token_id, 0) + 1
        if token_id in self.request.stop_ids and index + 1 >= self.min_length:
            return FinishReason.STOP
        return FinishReason.LENGTH if index + 1 >= self.max_length else None

    def hashes(self, block_size: int, count: int) -> list[bytes]:
        """Hashes of the first `count` blocks at least, which must be full of known tokens. Equal
        hash: equal tokens, images and salt up to there.

        Each is sha256 over the one before, the block's ids, and the digests of the images that
        reach into the block with their place relative to it.
        """
        first, last = len(self.block_hashes), count
        if first >= last:
            return self.block_hashes
        known = self.token_ids[first * block_size : last * block_size]
        assert min(known) > PENDING, "whoever finds a block by its hash trusts in its tokens"
        ids = array("q", known).tobytes()
        block_bytes = len(ids) // (last - first)
        for i in range(first, last):
            low, high = i * block_size, (i + 1) * block_size
            h = hashlib.sha256(self.block_hashes[-1] if self.block_hashes else self._root())
            h.update(ids[(i - first) * block_bytes : (i - first + 1) * block_bytes])
            for image in self.request.images:
                if image.start < high and image.end > low:
                    place = array("q", [image.start - low, image.end - low, len(image.digest)])
                    h.update(place.tobytes() + image.digest)
            self.block_hashes.append(h.digest())
        return self.block_hashes

    def _root(self) -> bytes:
        """Where chains of equal salts begin; 32 bytes, as every later link."""
        salt = self.request.cache_salt
        return hashlib.sha256(self.rope_salt.to_bytes(8, "little") + salt).digest()
