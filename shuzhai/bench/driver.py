"""Runs requests on an engine as fast as it goes, and notes when each token came."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from shuzhai.engine.engine import Engine
from shuzhai.engine.request import ImageSpan, Request, SamplingParams

# Ids below are special in all families.
_FIRST_ID = 10


@dataclass(frozen=True, slots=True)
class Step:
    """When a call of Engine.step returned, in seconds after the requests came, and its tokens."""

    at: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """What came of some requests; token_times by request id, in seconds after they all came."""

    seconds: float
    token_times: dict[str, list[float]]
    steps: list[Step]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.token_times.values()))

    @property
    def first_token(self) -> float:
        """When the first token came of all."""
        return min(times[0] for times in self.token_times.values())


class Driver:
    """Of one engine, in its thread. Prompts are random and share no prefix with one before."""

    def __init__(self, engine: Engine, device: torch.device) -> None:
        self.engine = engine
        self._is_on_cpu = device.type == "cpu"
        self._ids = itertools.count()

    @property
    def vocab_size(self) -> int:
        return self.engine.model_config.decoder.vocab_size

    def request(
        self, prompt: Sequence[int], num_output: int, images: tuple[ImageSpan, ...] = ()
    ) -> Request:
        """Greedy, and of exactly so many tokens: no id ends it."""
        params = SamplingParams(temperature=0, max_tokens=num_output, ignore_eos=True)
        return Request(f"bench-{next(self._ids)}", tuple(prompt), params, images=images)

    def random_ids(self, count: int) -> list[int]:
        rng = np.random.default_rng([next(self._ids), count])
        return rng.integers(min(_FIRST_ID, self.vocab_size - 1), self.vocab_size, count).tolist()

    def random_requests(self, count: int, num_prompt: int, num_output: int) -> list[Request]:
        return [self.request(self.random_ids(num_prompt), num_output) for _ in range(count)]

    def run(self, requests: Sequence[Request]) -> Run:
        """Submit all at once, until the last token has come. Raises the error of a request."""
        token_times: dict[str, list[float]] = {request.id: [] for request in requests}
        steps = []
        start = time.perf_counter()
        for request in requests:
            self.engine.check(request)
            self.engine.add(request)
        while self.engine.has_work:
            outputs = self.engine.step()
            at = time.perf_counter() - start
            num_tokens = 0
            for output in outputs:
                if output.error is not None:
                    raise output.error
                num_tokens += len(output.token_ids)
                token_times[output.request_id] += [at] * len(output.token_ids)
            steps.append(Step(at, num_tokens))
        return Run(time.perf_counter() - start, token_times, steps)

    def warm_up(self) -> float:
        """Make what is made at the first use; seconds to the very first token."""
        room = self.engine.max_model_len
        num_output = max(1, min(4, room // 2))
        num_prompt = max(1, min(16, room - num_output))
        first = self.run(self.random_requests(1, num_prompt, num_output)).first_token
        shapes = [(2, 16)] if self._is_on_cpu else [(32, 64), (1, 2048)]
        for count, num_prompt in shapes:
            if num_prompt + 8 <= room:
                self.run(self.random_requests(count, num_prompt, 8))
        return first
