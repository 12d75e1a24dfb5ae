"""An engine that is steered by hand: what it says, how fast, and how it fails."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shuzhai.config import ImageSpec
from shuzhai.engine.memory import MemoryNeed
from shuzhai.engine.request import SamplingParams
from shuzhai.errors import ContextLengthError, EngineDeadError, InvalidRequestError, OverloadedError
from shuzhai.frontend.outputs import Delta, EncodedPrompt, Logprob, Usage
from shuzhai.hub.progress import Progress
from shuzhai.server.loading import LoadProgress
from shuzhai.server.source import ModelCard, ModelFacts


@dataclass(frozen=True)
class FakeStats:
    num_running: int
    num_waiting: int = 0
    num_blocks: int = 64
    num_free_blocks: int = 64


def logprob(text: str, value: float = -0.5, top: Sequence[Logprob] = ()) -> Logprob:
    raw = text.encode()
    return Logprob(raw[0] if raw else 0, text, raw, value, tuple(top))


EYES = ImageSpec(tile_size=28, tokens_per_tile=1, max_tiles=12, has_video=True)


class FakeProcessor:
    """A character is a token; a BOS comes first. A picture is `<image>`."""

    max_model_len = 256
    default_sampling = SamplingParams(temperature=0.7)

    def __init__(self) -> None:
        self.image_spec: ImageSpec | None = None

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], *, goes_on: bool = False
    ) -> EncodedPrompt:
        if not messages:
            raise InvalidRequestError("messages is empty", param="messages")
        for message in messages:
            if set(message) != {"role", "content"}:
                raise InvalidRequestError(f"bad message {sorted(message)}", param="messages")
        return self.encode_text("".join(f"[{m['role']}]{self._words(m)}" for m in messages))

    def _words(self, message: Mapping[str, Any]) -> str:
        if isinstance(message["content"], str):
            return message["content"]
        if not isinstance(message["content"], list):
            raise InvalidRequestError("bad content", param="messages")
        words = ""
        for part in message["content"]:
            if part["type"] != "text" and self.image_spec is None:
                raise InvalidRequestError("this model reads text only", param="messages")
            words += part["text"] if part["type"] == "text" else "<image>"
        return words

    def encode_text(self, text: str) -> EncodedPrompt:
        if len(text) >= self.max_model_len:
            raise ContextLengthError(f"{len(text)} tokens are too many")
        return EncodedPrompt(text, [1, *(ord(char) for char in text)])

    def encode_ids(self, ids: Sequence[int]) -> EncodedPrompt:
        return EncodedPrompt("".join(map(chr, ids)), list(ids))


class FakeEngine:
    """Says `words`, `pause` seconds a token, until max_tokens.

    fail_after   raises `failure` in the middle, after so many tokens
    refuse       raised before the first piece
    """

    def __init__(self, words: str = "Hello, world") -> None:
        self.processor = FakeProcessor()
        self.words = words
        self.pause = 0.0
        self.first_pause = 0.0
        self.fail_after: int | None = None
        self.failure: Exception = EngineDeadError("boom at 0x7f00 in /secret/path.py")
        self.refuse: Exception | None = None
        self.cause_of_death: str | None = None
        self.memory_bytes = 1
        self.plan_line = "all of it"
        self.step_seconds = 0.0
        self.running = 0
        self.num_started = 0
        self.salts: list[bytes] = []
        self.params: list[SamplingParams] = []
        self.prompts: list[EncodedPrompt] = []
        self.messages: list[Sequence[Mapping[str, Any]]] = []
        self.goes_on: list[bool] = []
        self.stopping = False

    @property
    def is_alive(self) -> bool:
        return self.cause_of_death is None

    def stats(self) -> FakeStats:
        return FakeStats(self.running, num_free_blocks=64 - self.running)

    async def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], *, goes_on: bool = False
    ) -> EncodedPrompt:
        self.messages.append(messages)
        self.goes_on.append(goes_on)
        return await asyncio.to_thread(self.processor.encode_chat, messages)

    async def encode_text(self, text: str) -> EncodedPrompt:
        return await asyncio.to_thread(self.processor.encode_text, text)

    async def generate(
        self, prompt: EncodedPrompt, params: SamplingParams, *, cache_salt: bytes = b""
    ) -> AsyncIterator[Delta]:
        param = "min_tokens" if params.max_tokens is None else "max_tokens"
        if max(params.max_tokens or 1, params.min_tokens) > self.processor.max_model_len:
            raise ContextLengthError("the answer would be too long", param)
        if self.refuse is not None:
            raise self.refuse
        if self.stopping:
            raise OverloadedError("the server is shutting down")
        self.salts.append(cache_salt)
        self.params.append(params)
        self.prompts.append(prompt)
        self.num_started += 1
        self.running += 1
        try:
            await asyncio.sleep(self.first_pause)
            length = min(len(self.words), params.max_tokens or len(self.words))
            for place in range(length):
                if place == self.fail_after:
                    raise self.failure
                for index in range(params.n):
                    yield self._delta(prompt, params, index, place, length)
                await asyncio.sleep(self.pause)
        finally:
            self.running -= 1

    def _delta(
        self, prompt: EncodedPrompt, params: SamplingParams, index: int, place: int, length: int
    ) -> Delta:
        word = self.words[place]
        delta = Delta(
            index, word, [ord(word)], Usage(len(prompt.token_ids), place + 1, cached_tokens=2)
        )
        if params.logprobs is not None:
            top = [logprob(c, -1.0) for c in "abcdefghij"[: params.logprobs]]
            delta = dataclasses.replace(delta, logprobs=[logprob(word, float("-inf"), top)])
        if params.prompt_logprobs is not None and place == index == 0:
            items = [logprob(chr(i), -2.0) for i in prompt.token_ids[1:]]
            delta = dataclasses.replace(delta, prompt_logprobs=items)
        if place == length - 1:
            reason = "length" if length < len(self.words) else "stop"
            delta = dataclasses.replace(delta, finish_reason=reason)
        return delta

    async def shutdown(self, drain_seconds: float = 0.0) -> None:
        self.stopping = True
        try:
            async with asyncio.timeout(drain_seconds):
                while self.running:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            return


class GivenSource:
    """One engine, that the test has made; it is loaded as often as it is asked for."""

    def __init__(self, name: str, engine: Any) -> None:
        self.name = name
        self.aliases = (f"{name}-folder",)
        self.secrets = ()
        self.engine = engine
        self.card = ModelCard(name.title())

    def is_here(self) -> bool:
        return True

    def look(self) -> ModelFacts:
        return ModelFacts(("text",), self.engine.processor.max_model_len, MemoryNeed(1, 1, 1))

    def fetch(self, progress: Progress) -> ModelFacts:
        return self.look()

    def load(self, memory_bytes: int, progress: LoadProgress) -> Any:
        return self.engine


class FakeSource:
    """A model of a size, whose fetches and loads are steered by hand.

    need         least, good and most bytes
    may_fetch, may_load   cleared: those threads wait for it
    fetch_error, load_error   raised there
    num_fetched_bytes   that come before a fetch waits, of size_bytes
    """

    def __init__(self, name: str, *need: int) -> None:
        self.name = name
        self.aliases: tuple[str, ...] = ()
        self.secrets: tuple[str, ...] = ()
        self.need = MemoryNeed(*need) if need else MemoryNeed(10, 10, 10)
        self.may_fetch, self.may_load = threading.Event(), threading.Event()
        self.may_fetch.set()
        self.may_load.set()
        self.fetch_error: Exception | None = None
        self.load_error: Exception | None = None
        self.loading = threading.Event()
        self.engines: list[FakeEngine] = []
        self.granted: list[int] = []
        self.num_fetches = 0
        self.has_come = False
        self.num_fetched_bytes = 25
        self.size_bytes: int | None = 100
        self.card = ModelCard(f"The {name}", download_bytes=100, languages=("en",))

    @property
    def engine(self) -> FakeEngine:
        return self.engines[-1]

    def is_here(self) -> bool:
        return self.has_come

    def look(self) -> ModelFacts:
        return ModelFacts(("text",), 256, self.need)

    def fetch(self, progress: Progress) -> ModelFacts:
        self.num_fetches += 1
        progress.begin(f"Downloading {self.name}", self.size_bytes)
        progress.advance(self.num_fetched_bytes)
        while not self.may_fetch.wait(0.01):
            progress.advance(0)
        if self.fetch_error is not None:
            raise self.fetch_error.with_traceback(None)  # as new: the test may raise it again
        self.has_come = True
        return self.look()

    def load(self, memory_bytes: int, progress: LoadProgress) -> Any:
        self.loading.set()
        while not self.may_load.wait(0.01):
            progress.loaded(0.5)
        self.loading.clear()
        if self.load_error is not None:
            raise self.load_error.with_traceback(None)
        engine = FakeEngine(f"I am {self.name}")
        engine.memory_bytes = memory_bytes
        self.granted.append(memory_bytes)
        self.engines.append(engine)
        return engine
