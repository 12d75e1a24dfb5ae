"""What goes wrong with the models of a server: nothing is lost by it, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shuzhai.config import EngineConfig, Environment
from shuzhai.engine.memory import MemoryNeed
from shuzhai.errors import CheckpointError
from shuzhai.hub.catalog import DEFAULT_MODELS
from shuzhai.hub.progress import Progress
from shuzhai.server.loading import LoadProgress, LoadStoppedError, in_daemon_thread
from shuzhai.server.registry import Registry
from shuzhai.server.source import CheckpointSource, ModelFacts
from tests.server.fakes import FakeSource
from tests.server.play import play, refused, states, until


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Weights:
    """What a load holds in its variables."""

    def __init__(self) -> None:
        self.numbers = np.ones(1000)


class LeakySource(FakeSource):
    """Fails when the weights are there: with an error of an error, or because it is stopped."""

    weights: weakref.ref[Weights] | None = None

    def load(self, memory_bytes: int, progress: LoadProgress) -> Any:
        try:
            self._read(progress)
        except ValueError as error:
            raise CheckpointError("the tokenizer is damaged") from error

    def _read(self, progress: LoadProgress) -> None:
        weights = Weights()
        self.weights = weakref.ref(weights)
        self.loading.set()
        while not self.may_load.wait(0.01):
            progress.loaded(0.5)
        assert weights.numbers.all()
        raise ValueError("late")


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_load_that_failed_holds_no_memory(no_collector: None, is_stopped: bool) -> None:
    source = LeakySource("a")
    registry = Registry([source, FakeSource("b")], 100)

    async def scenario() -> None:
        model = registry.models[0]
        source.may_load.clear()
        stack = ExitStack()
        task = asyncio.create_task(registry.use("a", stack))
        await until(source.loading.is_set)
        assert model.memory_bytes > 0
        if is_stopped:
            task.cancel()
            await asyncio.wait({task})
            stack.close()
            await registry.unload("a")
        else:
            source.may_load.set()
            assert (await refused(task))[1] == "model_damaged"
            stack.close()
        assert model.memory_bytes == 0
        assert source.weights is not None
        assert source.weights() is None

    play(scenario)


def test_whatever_a_thread_raises_reaches_who_waits() -> None:
    async def scenario() -> None:
        for error in (KeyError("x"), LoadStoppedError(), RuntimeError("y")):
            with pytest.raises(type(error)) as caught:
                await in_daemon_thread(lambda error=error: _raise(error))
            assert caught.value is error

    play(scenario)


def _raise(error: Exception) -> None:
    raise error


def test_a_client_that_leaves_as_the_load_ends() -> None:
    """Both are the beginning of its rest: there is one timer, and whoever comes ends it."""
    source = FakeSource("a")
    registry = Registry([source], 100, keep_alive=0.1)

    async def scenario() -> None:
        model = registry.models[0]
        source.may_load.clear()
        leaving = ExitStack()
        task = asyncio.create_task(registry.use("a", leaving))
        await until(source.loading.is_set)
        source.may_load.set()
        while model.engine is None:
            await asyncio.sleep(0)
        assert model.loading is not None, "the very tick"
        leaving.close()
        await task
        with ExitStack() as busy:
            _, engine = await registry.use("a", busy)
            await asyncio.sleep(0.3)
            assert (model.state, model.num_holds) == ("loaded", 1)
            assert not engine.stopping
        await until(lambda: model.state == "unloaded")

    play(scenario)


class HungSource(FakeSource):
    """A fetch that tells nothing, nor hears of anything, but of what ends it."""

    num_ended = 0
    hears = True

    def fetch(self, progress: Progress) -> ModelFacts:
        self.num_fetches += 1
        progress.begin(f"Downloading {self.name}", None)

        def end() -> None:
            self.num_ended += 1
            if self.hears:
                self.may_fetch.set()

        with progress.ended_by(end):
            self.may_fetch.wait(20)
        progress.advance(0)
        return self.look()


@pytest.mark.parametrize("hears", [True, False])
def test_a_fetch_that_hangs_is_stopped_at_once(hears: bool) -> None:
    source = HungSource("a")
    source.hears = hears
    registry = Registry([source, FakeSource("b")], 100)

    async def scenario() -> None:
        for count in (1, 2):
            source.may_fetch.clear()
            waiting = asyncio.create_task(registry.load("a"))
            await until(lambda count=count: source.num_fetches == count)
            waiting.cancel()
            await asyncio.wait({waiting})
            async with asyncio.timeout(1):
                if count == 1:
                    assert (await registry.unload("a")).state == "unloaded"
                else:
                    await registry.shutdown()
            assert source.num_ended == count
        source.may_fetch.set()

    play(scenario)


def test_a_stopped_load_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that reads from a disk that hangs: its memory is not free before it has ended."""
    monkeypatch.setattr("shuzhai.server.registry._UNLOAD_SECONDS", 0.1)
    source, go_on = FakeSource("a"), threading.Event()

    def load(memory_bytes: int, progress: LoadProgress) -> None:
        source.loading.set()
        go_on.wait(20)
        progress.loaded(0.5)

    source.load = load  # type: ignore[method-assign]
    registry = Registry([source, FakeSource("b")], 100)

    async def scenario() -> None:
        model = registry.models[0]
        waiting = asyncio.create_task(registry.load("a"))
        await until(source.loading.is_set)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert (await refused(registry.unload("a")))[1] == "model_leaving"
        assert (model.state, model.memory_bytes) == ("loading", 10)
        go_on.set()
        assert (await registry.unload("a")).state == "unloaded"
        assert model.memory_bytes == 0

    play(scenario)


def test_that_nobody_can_be_told_is_no_fault_of_a_load() -> None:
    def say(line: str) -> None:
        lines.append(line)
        raise OSError(28, "No space left on device")

    lines: list[str] = []
    faults: list[dict[str, Any]] = []
    a, b = FakeSource("a"), FakeSource("b")
    registry = Registry([a, b], 100, say=say, keep_alive=60)

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
        with ExitStack() as busy:
            await registry.use("a", busy)
        b.load_error = CheckpointError("damaged")
        with ExitStack() as busy:
            assert (await refused(registry.use("b", busy)))[1] == "model_damaged"
        assert states(registry) == "lf"
        assert registry.models[0].timer is not None
        await registry.unload("a")
        await until(lambda: len(lines) == 3)
        assert faults == []

    play(scenario)


def test_nothing_waits_for_ever_for_an_engine_that_does_not_end() -> None:
    a, b = FakeSource("a", 60, 60, 60), FakeSource("b", 60, 60, 60)
    registry = Registry([a, b], 100, room_seconds=0.2)

    async def scenario() -> None:
        ended = asyncio.Event()

        async def shutdown(drain_seconds: float = 0.0) -> None:
            await ended.wait()

        await registry.load("a")
        a.engine.shutdown = shutdown  # type: ignore[method-assign]
        model = registry.models[0]
        status, code, message = await refused(registry.load("b"))
        assert (status, code) == (503, "model_leaving")
        assert "a is being unloaded and has not ended" in message
        assert (model.fault(), model.memory_bytes) == (None, 60)
        a.engine.step_seconds = 500.0
        assert (model.fault() or {})["status"] == "stuck"
        assert (model.state, model.json(0)["status"]) == ("failed", "a step has taken 500 s")
        # Not by hand, and not for itself.
        for work in (registry.unload("a"), registry.load("a")):
            assert (await refused(work))[1] == "model_leaving"
        # A load that nobody wants any more does not go on waiting for it.
        registry._room_seconds = 15.0
        waiting = asyncio.create_task(registry.load("b"))
        await until(lambda: registry.models[1].json(0)["status"] == "Waiting for memory")
        waiting.cancel()
        await asyncio.wait({waiting})
        assert (await registry.unload("b")).state == "unloaded"
        # It ends at last: unloading waits until its memory is free.
        unloading = asyncio.create_task(registry.unload("a"))
        await asyncio.sleep(0.05)
        assert not unloading.done()
        ended.set()
        assert (await unloading).memory_bytes == 0
        assert model.fault() is None
        await registry.load("b")
        await registry.load("a")

    play(scenario)


def test_an_end_that_fails_loses_no_memory(caplog: pytest.LogCaptureFixture) -> None:
    a, b = FakeSource("a", 60, 60, 60), FakeSource("b", 60, 60, 60)
    registry = Registry([a, b], 100, room_seconds=0.2)

    async def scenario() -> None:
        faults = [RuntimeError("can't start new thread")] * 3

        async def shutdown(drain_seconds: float = 0.0) -> None:
            if faults:
                raise faults.pop()

        await registry.load("a")
        a.engine.shutdown = shutdown  # type: ignore[method-assign]
        with pytest.raises(RuntimeError):
            await registry.unload("a")
        await asyncio.sleep(0)
        assert states(registry) == "fU"
        assert "could not be unloaded" in registry.models[0].json(0)["status"]
        assert "could not be ended" in caplog.text
        assert (await refused(registry.load("b")))[1] == "models_busy"
        with pytest.raises(RuntimeError):
            await registry.unload("a")
        registry._room_seconds = 15.0
        await registry.load("b")  # tried once more, and there is room
        assert registry.models[0].memory_bytes == 0
        await registry.unload("a")
        assert states(registry) == "Ul"

    play(scenario)


# What the text demo needs once it is here; its config is not in the package.
TEXT_NEED = MemoryNeed(677 * 2**20, 1036 * 2**20, 4772 * 2**20)


class FactsSource(FakeSource):
    """A model of the default ones, of which nothing but its numbers is loaded."""

    def __init__(self, name: str, home: Path) -> None:
        super().__init__(name)
        environment = Environment.read({"SHUZHAI_HOME": str(home)})
        self.source = CheckpointSource(name, EngineConfig(device="cpu"), environment)

    def look(self) -> ModelFacts:
        return self.source.look()

    def fetch(self, progress: Progress) -> ModelFacts:
        return self.look() if self.source.is_here() else ModelFacts(("text",), 8192, TEXT_NEED)


def test_the_demo_models_stay_together_though_one_is_not_here_yet(tmp_path: Path) -> None:
    sources = [FactsSource(name, tmp_path) for name in DEFAULT_MODELS]
    registry = Registry(sources, 4 * 2**30 * 8 // 10)
    guess = registry.models[0].facts.need
    assert guess is not None
    assert abs(guess.good_bytes - TEXT_NEED.good_bytes) < 2**20

    async def scenario() -> None:
        for name in (*DEFAULT_MODELS[1:], DEFAULT_MODELS[0]):
            await registry.load(name)
        assert states(registry) == "lll"
        assert [len(source.engines) for source in sources] == [1, 1, 1]

    play(scenario)


class Told(list[str]):
    """Who shows the progress of a load."""

    def begin(self, stage: str, total_bytes: int | None) -> None:
        self.append(stage)

    def advance(self, num_bytes: int) -> None:
        pass

    def ended_by(self, end: Callable[[], None]) -> AbstractContextManager[None]:
        return nullcontext()


def test_who_stops_waiting_is_told_no_more() -> None:
    source = FakeSource("a")
    registry = Registry([source], 100)
    first, second = Told(), Told()

    async def scenario() -> None:
        source.may_fetch.clear()
        waiting = asyncio.create_task(registry.load("a", first))
        await until(lambda: bool(first))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await registry.load("a", second)
        progress = registry.models[0].progress
        assert progress is not None
        progress.begin("Reading", None)  # the other one still looks
        assert first == ["Downloading a", "Reading"]
        waiting.cancel()
        await asyncio.wait({waiting})
        progress.begin("Converting", None)
        assert first == ["Downloading a", "Reading"]
        assert second == []
        source.may_fetch.set()
        await registry.load("a")

    play(scenario)


def test_whether_anything_has_come() -> None:
    progress = LoadProgress()
    progress.begin("Downloading", 100)
    progress.advance(0)
    progress.advance(-5)
    assert not progress.has_come
    progress.advance(1)
    progress.advance(-1)
    assert (progress.has_come, progress.is_measured, progress.share) == (True, True, 0.0)
    silent = LoadProgress()
    silent.begin("Downloading", None)
    assert (silent.has_come, silent.is_measured) == (False, False)
    silent.begin("Reading", None)
    assert silent.has_come
    here = LoadProgress()
    here.loaded(0.0)
    assert here.has_come


def test_a_panic_in_a_load_reaches_the_one_who_waits() -> None:
    """Libraries in Rust raise what is no Exception; unseen, it would keep every later load out."""

    class PanicError(BaseException):
        pass

    def panic() -> None:
        raise PanicError("index out of bounds")

    with pytest.raises(RuntimeError, match=r"PanicError.*out of bounds"):
        asyncio.run(asyncio.wait_for(in_daemon_thread(panic), 5))
