"""The engine behind asyncio: one thread runs its steps, coroutines get their pieces of text.

The thread wakes each event loop at most once a step. Nothing flows back to it but new requests and
aborts. Detokenising happens in the consumer's coroutine, tokenising in a small pool of threads.

A loop that keeps up gets a piece a step. To one that does not, the steps it has missed come as one
piece: what a piece costs, on its way through HTTP too, is paid less often the later it is.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from shuzhai.config import EngineConfig
from shuzhai.engine.engine import Engine, EngineStats
from shuzhai.engine.request import Request, SamplingParams, StepOutput
from shuzhai.errors import EngineDeadError, OverloadedError
from shuzhai.frontend.answer import Answer
from shuzhai.frontend.content import hold_pictures
from shuzhai.frontend.effort import Effort
from shuzhai.frontend.loader import load_model
from shuzhai.frontend.outputs import Delta, EncodedPrompt
from shuzhai.frontend.processor import Processor
from shuzhai.hub.progress import Progress

_ENCODE_THREADS = 2
# Tiles of the requests that wait or run; a tile of 448 pixels has 0.6 MB.
_MAX_PIXEL_BYTES = 256 * 2**20
# For opening the pictures of one request.
_PICTURE_SECONDS = 60.0
# Outputs that one piece, or one of each answer of a request, is made of while others wait.
_MOST_TAKEN = 64


class _Stream:
    """Where the outputs of one generate() call go. None comes last when the engine has died.

    Two threads: the engine's puts, that of the loop takes. Neither ever waits for the other.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, pixel_bytes: int) -> None:
        self.loop = loop
        self.pixel_bytes = pixel_bytes
        self._outputs: deque[StepOutput | None] = deque()
        self._arrived = asyncio.Event()
        self._is_called = False

    def put(self, output: StepOutput | None) -> bool:
        """Whether `wake` must be called in the loop: else it will be, for an earlier output."""
        self._outputs.append(output)
        if self._is_called:
            return False
        self._is_called = True
        return True

    def wake(self) -> None:
        self._arrived.set()

    async def take(self) -> list[StepOutput]:
        """What has come since, at least one, but that an error comes alone. Empty: the end."""
        if self._outputs:
            await asyncio.sleep(0)  # others have their turn, however fast this one's come
        while not self._outputs:
            await self._arrived.wait()
            self._arrived.clear()
            self._is_called = False  # before it is looked again: what comes from now on calls
        taken: list[StepOutput] = []
        while self._outputs and len(taken) < _MOST_TAKEN:
            output = self._outputs[0]
            if taken and (output is None or output.error is not None):
                break
            self._outputs.popleft()
            if output is None:
                break
            taken.append(output)
            if output.error is not None:
                break
        return taken


class AsyncEngine:
    """Owns the engine thread of one model. Any number of event loops may use it."""

    def __init__(self, engine: Engine, processor: Processor, name: str = "model") -> None:
        self.name = name
        self.processor = processor
        self._engine = engine
        self._streams: dict[str, _Stream] = {}
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._accepting = True
        self._stopping = False
        self._cause_of_death: str | None = None
        self._step_began: float | None = None
        self._pool = ThreadPoolExecutor(_ENCODE_THREADS, thread_name_prefix="shuzhai-encode")
        # A pool of their own: texts must not wait for somebody's large pictures.
        self._picture_pool = ThreadPoolExecutor(_ENCODE_THREADS, thread_name_prefix="shuzhai-see")
        self._efforts: set[Effort] = set()
        self._thread = threading.Thread(target=self._run, name="shuzhai-engine", daemon=True)
        self._thread.start()

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        chat_template: str | None = None,
        max_tiles: int | None = None,
        pull_progress: Progress | None = None,
        load_progress: Callable[[float], None] | None = None,
        **options: Any,
    ) -> AsyncEngine:
        """Load a model as LLM does; `options` are the fields of EngineConfig."""
        loaded = load_model(
            model,
            EngineConfig.from_options(options),
            chat_template=chat_template,
            max_tiles=max_tiles,
            pull_progress=pull_progress,
            load_progress=load_progress,
        )
        # A full collection walks through all modules, and all requests wait for it: 0.1 s.
        gc.collect()
        gc.freeze()
        return cls(loaded.engine, loaded.processor, loaded.name)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and self._cause_of_death is None

    @property
    def cause_of_death(self) -> str | None:
        """Why the engine thread ended, if it did so by itself."""
        return self._cause_of_death

    @property
    def step_seconds(self) -> float:
        """How long the step that runs now has taken; 0 between steps."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    @property
    def plan_line(self) -> str:
        """Where the memory goes, in one line."""
        return self._engine.plan.line()

    @property
    def memory_bytes(self) -> int:
        """All that is planned: weights, KV cache, pictures and workspace."""
        return self._engine.plan.total_bytes

    def stats(self) -> EngineStats:
        return self._engine.stats()

    async def encode_chat(self, messages: Any, *, goes_on: bool = False) -> EncodedPrompt:
        """Processor.encode_chat, off the event loop. Pictures come as data, never as paths."""
        pool = self._picture_pool if hold_pictures(messages) else self._pool
        effort = Effort(_PICTURE_SECONDS)
        self._efforts.add(effort)
        try:
            encode = partial(self.processor.encode_chat, effort=effort, goes_on=goes_on)
            return await self._in_pool(pool, encode, messages)
        finally:  # it may be that the client has left
            effort.end()
            self._efforts.discard(effort)

    async def encode_text(self, text: str) -> EncodedPrompt:
        """Processor.encode_text, off the event loop."""
        return await self._in_pool(self._pool, self.processor.encode_text, text)

    async def generate(
        self, prompt: EncodedPrompt, params: SamplingParams, *, cache_salt: bytes = b""
    ) -> AsyncGenerator[Delta, None]:
        """Yield the pieces of the n answers as they come; Delta.index tells them apart.

        Closing the generator aborts what is left and frees its blocks. Raises InvalidRequestError,
        OverloadedError and EngineDeadError: the first only before the first piece, the second after
        it only where a picture could not be encoded.
        """
        request_id = str(next(self._ids))
        requests = self.processor.requests(prompt, params, request_id, cache_salt)
        self._engine.check(requests[0])
        answers = {
            r.id: Answer(r, index, self.processor.tokenizer, goes_on=prompt.is_open)
            for index, r in enumerate(requests)
        }
        pixel_bytes = sum(image.pixels.nbytes for image in prompt.images)
        stream = _Stream(asyncio.get_running_loop(), pixel_bytes)
        self._submit(requests, stream)
        try:
            while answers:
                outputs = await stream.take()
                if not outputs:
                    raise EngineDeadError(f"the engine has stopped: {self._cause_of_death}")
                parts: dict[str, list[StepOutput]] = {}
                for output in outputs:
                    parts.setdefault(output.request_id, []).append(output)
                for request_id, part in parts.items():
                    if (answer := answers.get(request_id)) is None:
                        continue
                    delta = answer.push(part)
                    if delta.finish_reason is not None:
                        del answers[request_id]
                        self._forget([request_id], abort=answer.stopped_early)
                    yield delta
        finally:
            self._forget(list(answers), abort=True)

    async def shutdown(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests, let the running ones finish for so long, then stop the thread."""
        self._accepting = False
        deadline = asyncio.get_running_loop().time() + drain_seconds
        while self._streams and self.is_alive and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        self._commands.put(self._stop)
        await asyncio.to_thread(self._thread.join)
        for effort in self._efforts:  # or the process could not end before they are over
            effort.end()
        for pool in (self._pool, self._picture_pool):
            pool.shutdown(wait=False, cancel_futures=True)

    async def _in_pool(
        self, pool: ThreadPoolExecutor, call: Callable[[Any], EncodedPrompt], argument: Any
    ) -> EncodedPrompt:
        """The result of call(argument). The argument, which may be large, is not kept by the pool's
        queue if the caller gives up."""
        self._check_accepting()
        box = [argument]
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, lambda: call(box.pop()))
        finally:
            box.clear()

    def _check_accepting(self) -> None:
        if not self.is_alive or not self._accepting:
            cause = self._cause_of_death or "it is shutting down"
            raise EngineDeadError(f"the engine takes no requests: {cause}")

    def _submit(self, requests: list[Request], stream: _Stream) -> None:
        with self._lock:
            self._check_accepting()
            limit = self._engine.config.max_num_waiting + self._engine.config.max_num_seqs
            if len(self._streams) + len(requests) > limit:
                raise OverloadedError(
                    f"{len(self._streams)} requests are in the queue and {limit} is the most; "
                    "try again in a moment"
                )
            if stream.pixel_bytes:  # else it is none of its business, and hundreds are asked
                others = sum(each.pixel_bytes for each in set(self._streams.values()))
                if others and others + stream.pixel_bytes > _MAX_PIXEL_BYTES:
                    raise OverloadedError(
                        "too many pictures are in the queue; try again in a moment"
                    )
            self._streams.update((r.id, stream) for r in requests)
        for request in requests:
            self._commands.put(partial(self._engine.add, request))

    def _forget(self, request_ids: list[str], abort: bool) -> None:
        """The consumer wants no more of these."""
        for request_id in request_ids:
            with self._lock:
                self._streams.pop(request_id, None)
            if abort:
                self._commands.put(partial(self._engine.abort, request_id))

    def _run(self) -> None:
        """The engine thread: commands, a step, outputs, until told to stop."""
        try:
            while not self._stopping:
                self._obey()
                if self._engine.has_work:
                    self._step_began = time.monotonic()
                    outputs = self._engine.step()
                    self._step_began = None
                    self._deliver(outputs)
        # Whatever goes wrong in the engine must reach everybody who waits for it.
        except Exception as error:
            logging.getLogger(__name__).exception("the engine has stopped")
            self._cause_of_death = f"{type(error).__name__}: {error}"
        finally:
            self._bury()

    def _obey(self) -> None:
        """Carry out what was asked since the last step; wait if there is nothing else to do."""
        if not self._engine.has_work:
            self._commands.get()()
        while not self._commands.empty():
            self._commands.get()()

    def _stop(self) -> None:
        self._stopping = True

    def _deliver(self, outputs: list[StepOutput]) -> None:
        by_loop: defaultdict[asyncio.AbstractEventLoop, list[_Stream]] = defaultdict(list)
        for output in outputs:
            stream = self._streams.get(output.request_id)  # one look-up needs no lock
            if stream is not None and stream.put(output):
                by_loop[stream.loop].append(stream)
        for loop, streams in by_loop.items():
            _call_in(loop, partial(_wake_all, streams))

    def _bury(self) -> None:
        """Tell all that still wait that no more will come."""
        with self._lock:
            self._accepting = False
            if self._cause_of_death is None:
                self._cause_of_death = "it was shut down"
            left = list(self._streams.values())
            self._streams.clear()
        for stream in set(left):
            stream.put(None)
            _call_in(stream.loop, stream.wake)


def _wake_all(streams: list[_Stream]) -> None:
    for stream in streams:
        stream.wake()


def _call_in(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Run in another thread's event loop, unless that has ended: then nobody waits there."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(call)
