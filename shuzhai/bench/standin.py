"""A server whose model has random weights, in a process of its own: to measure the way over HTTP.

Such a model has no vocabulary: prompts come as token ids, and each id of an answer is a word.
"""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from shuzhai.bench.driver import Driver
from shuzhai.bench.machine import Limits, Peak, device_name, measure_limits, peak_memory
from shuzhai.bench.report import Card
from shuzhai.bench.work import Work
from shuzhai.config import EngineConfig, ModelConfig
from shuzhai.engine.engine import Engine, budget_bytes
from shuzhai.engine.memory import MemoryNeed
from shuzhai.engine.request import SamplingParams
from shuzhai.engine.runner import choose_dtype
from shuzhai.errors import InvalidRequestError, ShuzhaiError
from shuzhai.frontend.async_engine import AsyncEngine
from shuzhai.frontend.processor import Processor
from shuzhai.frontend.tokenizer import Tokenizer, TokenizerSettings
from shuzhai.hub.progress import Progress
from shuzhai.kernels.choose import choose_device
from shuzhai.server.app import create_app
from shuzhai.server.loading import LoadProgress
from shuzhai.server.registry import Registry
from shuzhai.server.run import PoliteServer, bind, listen
from shuzhai.server.source import ModelCard, ModelFacts

_STOP_SECONDS = 30.0


class NumberTokenizer(Tokenizer):
    """Writes ids as numbers, and reads no text."""

    def __init__(self, vocab_size: int) -> None:
        pieces = [b" %d" % i for i in range(vocab_size)]
        settings = TokenizerSettings(added=(), bos_token=None, add_bos=False)
        super().__init__(pieces, {}, settings, add_bos=False, strip_first_space=False)

    def _encode(self, text: str) -> list[int]:
        raise InvalidRequestError("random weights know no words; send token ids", "prompt")

    def _vocabulary_id(self, piece: str) -> int | None:
        return None


class RandomSource:
    """A model of random weights that takes all the memory of its server.

    limits    of the device; None: to be measured when it is loaded
    measured  once it is loaded
    """

    aliases: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()

    def __init__(
        self, name: str, model: ModelConfig, config: EngineConfig, limits: Limits | None
    ) -> None:
        self.name = name
        self.card = ModelCard(name)
        self._limits = limits
        self.measured: tuple[Card, Work] | None = None
        self._model = model
        self._config = config

    def is_here(self) -> bool:
        return True

    def look(self) -> ModelFacts:
        return ModelFacts(("text",), need=MemoryNeed(0, 0, 2**62))

    def fetch(self, progress: Progress) -> ModelFacts:
        return self.look()

    def load(self, memory_bytes: int, progress: LoadProgress) -> AsyncEngine:
        config = dataclasses.replace(self._config, memory=memory_bytes)
        device = choose_device(config.device)
        limits = self._limits or measure_limits(device, choose_dtype(self._model, config, device))
        start = time.perf_counter()
        engine = Engine.random(self._model, config)
        startup = time.perf_counter() - start
        times = (startup, Driver(engine, device).warm_up())
        card = Card.of(engine, f"random {self.name}", device_name(device), limits, times)
        self.measured = card, Work.of(engine, limits)
        processor = Processor(
            NumberTokenizer(self._model.decoder.vocab_size),
            None,
            stop_ids=(),
            default_sampling=SamplingParams(),
            max_model_len=engine.max_model_len,
        )
        return AsyncEngine(engine, processor, self.name)


@dataclass(frozen=True, slots=True)
class StandIn:
    """A server that listens. work: of its model"""

    url: str
    card: Card
    work: Work
    _connection: Connection

    def peak(self) -> Peak:
        """The most memory that it has taken so far."""
        self._connection.send("peak")
        return self._connection.recv()


@contextmanager
def standin_server(
    name: str, model: ModelConfig, config: EngineConfig, limits: Limits | None
) -> Iterator[StandIn]:
    """A server that has loaded its model; it ends with the block.

    limits  of the device; None: the server measures them, so that this process takes no memory of a
            GPU
    ShuzhaiError says why it could not be started.
    """
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")  # a fork could not use the GPU
    process = context.Process(target=_serve, args=(name, model, config, limits, there), daemon=True)
    process.start()
    there.close()
    try:
        try:
            port, about = here.recv()
        except EOFError:
            raise ShuzhaiError("the server ended while it was starting; see above") from None
        if port is None:
            raise ShuzhaiError(about)
        yield StandIn(f"http://127.0.0.1:{port}", *about, here)
    finally:
        process.terminate()
        process.join(_STOP_SECONDS)
        if process.is_alive():
            process.kill()
        here.close()


def _serve(
    name: str, model: ModelConfig, config: EngineConfig, limits: Limits | None, parent: Connection
) -> None:
    """In the other process: sends its port and what was measured, or None and why there is none."""
    try:
        source = RandomSource(name, model, config, limits)
        asyncio.run(_serve_until_stopped(source, config, parent))
    except ShuzhaiError as error:
        parent.send((None, str(error)))


async def _serve_until_stopped(
    source: RandomSource, config: EngineConfig, parent: Connection
) -> None:
    device = choose_device(config.device)
    registry = Registry([source], budget_bytes(config))
    await registry.load(source.name)

    def answer() -> None:
        with suppress(EOFError, OSError):
            while parent.recv():
                parent.send(peak_memory(device))

    server = PoliteServer(create_app(registry), registry, drain_seconds=0)
    with bind("127.0.0.1", 0) as sock:
        listen(sock)
        parent.send((sock.getsockname()[1], source.measured))
        threading.Thread(target=answer, daemon=True).start()
        await server.serve([sock])
