"""A request's progress inside the engine. It never leaves the engine; no torch here."""

from __future__ import annotations

import hashlib
import secrets
from array import array
from enum import Enum, auto

from shuzhai.engine.picture_pool import Picture
from shuzhai.engine.request import FinishReason, Request


class Status(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """The mutable side of a Request.

    token_ids            prompt and answer so far
    num_computed_tokens  tokens whose keys and values are in the cache
    num_cached_tokens    prompt tokens found in the cache when first admitted, None before
    num_reported_tokens  prompt positions whose logits have been handed out, where asked for
    block_table          KV blocks in order
    block_hashes         hashes of full blocks of token_ids, chained; extended on demand
    rope_salt            sets apart sequences whose keys depend on the length of the prompt
    pictures             those it holds now, by their place among the request's images
    images_end           no position from here on belongs to an image
    """

    __slots__ = (
        "block_hashes", "block_table", "images_end", "num_cached_tokens", "num_computed_tokens",
        "num_prompt_tokens", "num_reported_tokens", "output_counts", "pictures", "request",
        "rope_salt", "seed", "status", "token_ids",
    )  # fmt: skip

    def __init__(self, request: Request, rope_salt: int = 0) -> None:
        self.request = request
        self.token_ids = list(request.token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        self.num_cached_tokens: int | None = None
        self.num_reported_tokens = 0
        self.block_table: list[int] = []
        self.block_hashes: list[bytes] = []
        self.output_counts: dict[int, int] = {}
        self.pictures: dict[int, Picture] = {}
        self.images_end = request.images[-1].end if request.images else 0
        self.rope_salt = rope_salt
        self.status = Status.WAITING
        seed = request.params.seed
        self.seed = secrets.randbits(63) if seed is None else seed

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def wants_prompt_rows(self) -> bool:
        """Logits of prompt positions are asked for, so every position must be computed."""
        return self.request.want_prompt_logits or self.request.params.prompt_logprobs is not None

    def append(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        self.output_counts[token_id] = self.output_counts.get(token_id, 0) + 1

    def finish_reason(self, max_model_len: int) -> FinishReason | None:
        """Whether the token appended last ends the answer."""
        params, count = self.request.params, self.num_output_tokens
        if count >= params.min_tokens and self.token_ids[-1] in self.request.stop_ids:
            return FinishReason.STOP
        if count == params.max_tokens or len(self.token_ids) >= max_model_len:
            return FinishReason.LENGTH
        return None

    def hashes(self, block_size: int) -> list[bytes]:
        """Hashes of all full blocks so far. Equal hash: equal tokens, images and salt up to there.

        Each is sha256 over the one before, the block's ids, and the digests of the images that
        reach into the block with their place relative to it.
        """
        for i in range(len(self.block_hashes), len(self.token_ids) // block_size):
            low, high = i * block_size, (i + 1) * block_size
            h = hashlib.sha256(self.block_hashes[-1] if self.block_hashes else self._root())
            h.update(array("q", self.token_ids[low:high]).tobytes())
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
