"""Several models in one budget: who is loaded, who waits, who leaves, and that nothing leaks."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress

import pytest

from shuzhai.errors import (
    CheckpointError,
    ConfigError,
    DownloadError,
    MemoryBudgetError,
    ModelNotFoundError,
)
from shuzhai.server.registry import Registry
from tests.server.fakes import FakeSource
from tests.server.play import play, refused, states, until


def test_the_least_recently_used_idle_model_leaves() -> None:
    a, b, c = (FakeSource(name, 10, 40, 40) for name in "abc")
    registry = Registry([a, b, c], 100)

    async def scenario() -> None:
        await registry.load("a")
        await registry.load("b")
        assert states(registry) == "llU"
        await registry.load("a")  # used again: b is older now
        await registry.load("c")
        await until(lambda: states(registry) == "lUl")
        assert b.engine.stopping
        assert not a.engine.stopping
        assert len(a.engines) == 1
        with ExitStack() as busy:
            await registry.use("a", busy)
            await registry.load("b")
            assert states(registry) == "llU"
        await registry.shutdown()

    play(scenario)


def test_a_model_in_use_is_waited_for() -> None:
    a, b = FakeSource("a", 60, 60, 60), FakeSource("b", 60, 60, 60)
    registry = Registry([a, b], 100)

    async def scenario() -> None:
        first, second = ExitStack(), ExitStack()
        await registry.use("a", first)
        await registry.use("a", second)
        waiting = asyncio.create_task(registry.load("b"))
        await until(lambda: "finish" in (registry.models[1].json(0)["status"] or ""))
        first.close()
        await asyncio.sleep(0.05)
        assert not waiting.done()
        second.close()
        await waiting
        assert states(registry) == "Ul"
        assert a.engine.stopping

    play(scenario)


def test_waiting_for_room_is_bounded_and_nobody_leaves_in_vain() -> None:
    sizes = {"a": 50, "b": 40, "big": 70}
    a, b, big = (FakeSource(name, size, size, size) for name, size in sizes.items())
    registry = Registry([a, b, big], 100, room_seconds=0.2)

    async def scenario() -> None:
        await registry.load("b")
        with ExitStack() as busy:
            await registry.use("a", busy)
            with ExitStack() as asking:
                status, code, message = await refused(registry.use("big", asking))
            assert (status, code) == (503, "models_busy")
            assert "big" in message
            assert "--memory" in message
            assert states(registry) == "llU"
        registry._room_seconds = 15.0
        await registry.load("big")
        assert states(registry) == "UUl"

    play(scenario)


def test_who_left_in_vain_stays() -> None:
    """The least recently used one goes only if the others that must go are not enough."""
    sizes = {"small": 10, "mid": 40, "mid2": 40, "large": 45}
    sources = {name: FakeSource(name, size, size, size) for name, size in sizes.items()}
    registry = Registry(list(sources.values()), 100)

    async def scenario() -> None:
        for name in ("small", "mid", "mid2"):
            await registry.load(name)
        await registry.load("large")  # 10 free + 10 of small are too few; mid is enough alone
        assert states(registry) == "lUll"
        await registry.load("mid")
        assert states(registry) == "llUl"

    play(scenario)


def test_what_cannot_fit_alone_throws_nobody_out() -> None:
    a, big = FakeSource("a", 50, 50, 50), FakeSource("big", 2**31, 2**31, 2**31)
    registry = Registry([a, big], 2**30)

    async def scenario() -> None:
        await registry.load("a")
        with pytest.raises(MemoryBudgetError, match=r"2\.01GiB.*1\.00GiB.*--memory 2\.01GiB"):
            await registry.load("big")
        assert states(registry) == "lf"
        with ExitStack() as asking:
            status, code, message = await refused(registry.use("big", asking))
        assert (status, code) == (503, "model_does_not_fit")
        assert message == registry.models[1].json(0)["status"]
        assert len(a.engines) == 1

    play(scenario)


def test_small_models_are_resident_together_and_one_alone_gets_all() -> None:
    sources = [FakeSource("text", 30, 60, 400), *(FakeSource(n, 5, 10, 200) for n in "xy")]
    registry = Registry(sources, 110)

    async def scenario() -> None:
        for name in ("text", "x", "y", "text", "y", "x"):
            await registry.load(name)
        assert states(registry) == "lll"
        assert [len(source.engines) for source in sources] == [1, 1, 1]
        assert sum(model.memory_bytes for model in registry.models) <= 110
        alone = Registry([FakeSource("text", 30, 60, 400)], 110)
        await alone.load("text")
        assert alone.models[0].memory_bytes == 110

    play(scenario)


def test_many_requests_load_a_model_once_and_leaving_does_not_end_it() -> None:
    source, other = FakeSource("a"), FakeSource("other")
    registry = Registry([source, other], 100)

    async def scenario() -> None:
        source.may_load.clear()
        stacks = [ExitStack() for _ in range(20)]
        tasks = [asyncio.create_task(registry.use("a", stack)) for stack in stacks]
        await until(source.loading.is_set)
        model = registry.models[0]
        await until(lambda: model.json(0)["progress"] == 0.5)
        assert (model.state, model.num_holds) == ("loading", 20)
        for task, stack in zip(tasks[:19], stacks, strict=False):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            stack.close()
        source.may_load.set()
        assert (await tasks[19])[1] is source.engine
        assert (len(source.engines), model.num_holds) == (1, 1)
        stacks[19].close()
        assert model.is_idle

    play(scenario)


def test_loads_run_one_at_a_time_and_fetches_do_not_hold_them_up() -> None:
    slow, a, b = FakeSource("slow"), FakeSource("a"), FakeSource("b")
    registry = Registry([slow, a, b], 100)

    async def scenario() -> None:
        slow.may_fetch.clear()
        a.may_load.clear()
        tasks = [asyncio.create_task(registry.load(name)) for name in ("slow", "a")]
        await until(a.loading.is_set)
        tasks.append(asyncio.create_task(registry.load("b")))
        await until(lambda: b.num_fetches == 1)
        await asyncio.sleep(0.1)
        assert not b.loading.is_set()
        assert not b.engines
        shown = registry.models[0].json(0)
        assert (shown["status"], shown["progress"]) == ("Downloading slow", 0.25)
        a.may_load.set()
        await asyncio.gather(*tasks[1:])
        assert states(registry) == "Lll"
        slow.may_fetch.set()
        await tasks[0]

    play(scenario)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (DownloadError("the index cannot be reached."), 503, "model_not_available"),
        (CheckpointError("/home/me/m/config.json cannot be read"), 500, "model_damaged"),
        (ConfigError("the template is not known"), 500, "model_options_invalid"),
    ],
)
def test_a_failed_load_reaches_every_waiter_and_is_tried_again(
    error: Exception, status: int, code: str
) -> None:
    source, other = FakeSource("a"), FakeSource("other")
    said: list[str] = []
    registry = Registry([source, other], 100, say=said.append)

    async def scenario() -> None:
        with ExitStack() as busy, ExitStack() as asking:
            _, engine = await registry.use("other", busy)
            source.fetch_error = error
            tasks = [asyncio.create_task(refused(registry.use("a", asking))) for _ in range(5)]
            results = [await task for task in tasks]
            assert {r[:2] for r in results} == {(status, code)}
            assert "/home" not in results[0][2]
            assert source.num_fetches == 1
            assert engine.is_alive
        assert states(registry) == "fl"
        assert registry.models[0].json(0)["status"] == results[0][2]
        assert registry.models[0].num_holds == 0
        assert registry.models[0].memory_bytes == 0
        assert any(str(error) in line for line in said)
        source.fetch_error, source.load_error = None, error
        with ExitStack() as asking:
            assert (await refused(registry.use("a", asking)))[1] == code
        assert registry.models[0].memory_bytes == 0
        source.load_error = None
        await registry.load("a")
        assert states(registry) == "ll"

    play(scenario)


def test_an_unforeseen_fault_of_a_load_is_no_secret_and_no_end() -> None:
    source = FakeSource("a")
    registry = Registry([source], 100)

    async def scenario() -> None:
        source.load_error = RuntimeError("at 0x7f00 in /secret")
        with pytest.raises(RuntimeError):
            await registry.load("a")
        assert states(registry) == "f"
        assert "secret" not in str(registry.models[0].json(0))
        source.load_error = None
        await registry.load("a")

    play(scenario)


def test_keep_alive() -> None:
    a, b = FakeSource("a"), FakeSource("b")
    registry = Registry([a, b], 100, keep_alive=0.15)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        await registry.load("a")
        shown = registry.models[0].json(loop.time())
        assert shown["idle_seconds"] is not None
        assert 0 < shown["unload_in_seconds"] <= 0.2
        with ExitStack() as busy:
            await registry.use("a", busy)
            await asyncio.sleep(0.3)
            assert registry.models[0].json(0)["unload_in_seconds"] is None
            assert states(registry) == "lU"
        await until(lambda: states(registry) == "UU" and not registry.models[0].memory_bytes)
        await registry.load("a")
        assert len(a.engines) == 2

    play(scenario)


def test_no_keep_alive_at_all() -> None:
    a = FakeSource("a")
    registry = Registry([a], 100, keep_alive=0.0)

    async def scenario() -> None:
        for count in range(1, 4):
            with ExitStack() as busy:
                await registry.use("a", busy)
                assert states(registry) == "l"
            await until(lambda: states(registry) == "U")
            assert len(a.engines) == count

    play(scenario)


def test_unload() -> None:
    a, b = FakeSource("a"), FakeSource("b")
    registry = Registry([a, b], 100)

    async def scenario() -> None:
        assert (await registry.unload("a")).state == "unloaded"
        with ExitStack() as busy:
            await registry.use("a", busy)
            status, code, message = await refused(registry.unload("a"))
            assert (status, code) == (409, "model_in_use")
            assert "1 request" in message
        model = await registry.unload("a")
        assert (model.state, model.memory_bytes) == ("unloaded", 0)
        with pytest.raises(ModelNotFoundError, match="a, b"):
            await registry.unload("nix")

    play(scenario)


def test_unload_stops_a_load_that_nobody_waits_for() -> None:
    a, big = FakeSource("a"), FakeSource("big", 95, 95, 95)
    registry = Registry([a, big], 100)

    async def scenario() -> None:
        a.may_load.clear()
        stack = ExitStack()
        task = asyncio.create_task(registry.use("a", stack))
        await until(a.loading.is_set)
        assert (await refused(registry.unload("a")))[1] == "model_in_use"
        task.cancel()
        await asyncio.wait({task})
        stack.close()
        assert (await registry.unload("a")).state == "unloaded"
        assert not a.engines
        # Nor does it wait for room any longer.
        with ExitStack() as busy:
            await registry.use("big", busy)
            task = asyncio.create_task(registry.use("a", stack))
            await until(lambda: "finish" in (registry.models[0].json(0)["status"] or ""))
            task.cancel()
            await asyncio.wait({task})
            stack.close()
            assert (await registry.unload("a")).state == "unloaded"
        await registry.unload("big")
        # Who comes while it is being stopped gets it all the same.
        num_fetches = a.num_fetches
        a.loading.clear()
        task = asyncio.create_task(registry.load("a"))
        await until(a.loading.is_set)
        registry.models[0].progress.stop()
        await until(lambda: a.num_fetches == num_fetches + 2)
        a.may_load.set()
        assert await task is a.engine
        assert len(a.engines) == 1

    play(scenario)


def test_a_dead_engine_leaves_and_is_loaded_again() -> None:
    a, b = FakeSource("a"), FakeSource("b")
    registry = Registry([a, b], 100)

    async def scenario() -> None:
        stack = ExitStack()
        await registry.use("a", stack)
        a.engine.cause_of_death = "RuntimeError: boom at /secret/path"
        assert registry.models[0].fault() == {
            "status": "dead",
            "cause": "RuntimeError: boom at (path)",
        }
        with ExitStack() as next_one:  # while the streams of the dead one are still ending
            _, engine = await registry.use("a", next_one)
            assert engine is a.engines[1]
            assert registry.models[0].fault() is None
        stack.close()
        with ExitStack() as busy:
            await registry.use("a", busy)
            a.engine.cause_of_death = "again"
        await until(lambda: registry.models[0].memory_bytes == 0)
        assert states(registry) == "fU"
        assert registry.models[0].fault() == {"status": "failed", "cause": "again"}
        await registry.load("a")
        assert states(registry) == "lU"

    play(scenario)


def test_shutdown_while_loading_and_waiting() -> None:
    a, b, c = FakeSource("a"), FakeSource("b", 60, 60, 60), FakeSource("c", 60, 60, 60)
    registry = Registry([a, b, c], 100)

    async def scenario() -> None:
        a.may_fetch.clear()
        stack = ExitStack()
        await registry.use("b", stack)
        waiting = [asyncio.create_task(registry.load(name)) for name in ("a", "c")]
        await until(lambda: a.num_fetches == c.num_fetches == 1)
        await until(lambda: "finish" in (registry.models[2].json(0)["status"] or ""))
        began = asyncio.get_running_loop().time()
        await registry.shutdown()
        for work in (*waiting, registry.load("b"), registry.use("b", ExitStack())):
            assert (await refused(work))[:2] == (503, "shutting_down")
        assert asyncio.get_running_loop().time() - began < 1
        assert b.engine.stopping
        stack.close()

    play(scenario)


def test_names_must_differ() -> None:
    with pytest.raises(ConfigError, match="two of the models are called a"):
        Registry([FakeSource("a"), FakeSource("a")], 100)
