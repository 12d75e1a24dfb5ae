"""The engine behind asyncio: company, cancellation, overload, death."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from shuzhai import (
    LLM,
    ContextLengthError,
    EngineDeadError,
    InvalidRequestError,
    OverloadedError,
    SamplingParams,
)
from shuzhai.frontend.async_engine import AsyncEngine
from shuzhai.frontend.outputs import EncodedPrompt

GREEDY = SamplingParams(temperature=0, max_tokens=12)
ENDLESS = SamplingParams(seed=0, max_tokens=400, ignore_eos=True)


@pytest.fixture
def engine(tiny_folder: Path) -> Iterator[AsyncEngine]:
    engine = AsyncEngine.load(tiny_folder, dtype="float32", max_num_seqs=4, max_num_waiting=8)
    yield engine
    asyncio.run(engine.shutdown())


async def collect(engine: AsyncEngine, text: str, params: SamplingParams = GREEDY) -> str:
    prompt = await engine.encode_text(text)
    return "".join([delta.text async for delta in engine.generate(prompt, params)])


async def idle(engine: AsyncEngine) -> None:
    """Wait until nothing runs; all blocks must be free then."""
    for _ in range(500):
        stats = engine.stats()
        if not stats.num_running and not stats.num_waiting:
            assert stats.num_free_blocks == stats.num_blocks
            return
        await asyncio.sleep(0.01)
    raise AssertionError("requests are left")


def test_in_company_as_alone(engine: AsyncEngine, tiny_folder: Path) -> None:
    async def scenario() -> list[str]:
        return await asyncio.gather(*(collect(engine, f"prompt {i}") for i in range(10)))

    with LLM(tiny_folder, dtype="float32") as llm:
        alone = [o.text for o in llm.generate([f"prompt {i}" for i in range(10)], GREEDY)]
    assert asyncio.run(scenario()) == alone


def test_n_answers_interleave_and_each_ends_once(engine: AsyncEngine) -> None:
    async def scenario() -> None:
        prompt = await engine.encode_text("Hello")
        params = SamplingParams(n=3, seed=4, max_tokens=9)
        deltas = [d async for d in engine.generate(prompt, params)]
        for index in range(3):
            mine = [d for d in deltas if d.index == index]
            assert [d.finish_reason for d in mine[:-1]] == [None] * (len(mine) - 1)
            assert mine[-1].finish_reason in ("stop", "length")
            assert mine[-1].usage.completion_tokens == sum(len(d.token_ids) for d in mine)
        await idle(engine)

    asyncio.run(scenario())


def test_closing_and_cancelling_free_the_blocks(engine: AsyncEngine) -> None:
    async def scenario() -> None:
        prompt = await engine.encode_text("Hello")
        for pieces in (0, 1, 3):
            stream = engine.generate(prompt, ENDLESS)
            for _ in range(pieces):
                await anext(stream)
            await stream.aclose()
        tasks = [asyncio.create_task(collect(engine, f"{i}", ENDLESS)) for i in range(10)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await idle(engine)

    asyncio.run(scenario())


def test_bad_requests_are_refused_at_once_and_harm_nobody(engine: AsyncEngine) -> None:
    async def scenario() -> None:
        good = asyncio.create_task(collect(engine, "Hello"))
        with pytest.raises(InvalidRequestError):
            await anext(engine.generate(EncodedPrompt("", []), GREEDY))
        with pytest.raises(ContextLengthError):
            await anext(engine.generate(EncodedPrompt("", [5] * 5000), GREEDY))
        assert await good == await collect(engine, "Hello")

    asyncio.run(scenario())


def test_a_full_queue_refuses_and_the_rest_go_on(engine: AsyncEngine) -> None:
    async def scenario() -> None:
        long = SamplingParams(seed=3, max_tokens=60, ignore_eos=True)
        expected = await collect(engine, "Hello", long)
        prompt = await engine.encode_text("Hello")
        old = engine.generate(prompt, long)
        text = (await anext(old)).text
        flood = [engine.generate(prompt, ENDLESS) for _ in range(15)]
        results = await asyncio.gather(*(anext(s) for s in flood), return_exceptions=True)
        refused = [r for r in results if isinstance(r, OverloadedError)]
        assert len(refused) == 4, "12 places, one of them taken by the old stream"
        assert text + "".join([delta.text async for delta in old]) == expected
        for stream in flood:
            await stream.aclose()
        assert await collect(engine, "Hello", long) == expected
        await idle(engine)

    asyncio.run(scenario())


def test_a_dead_engine_tells_every_waiter(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        prompt = await engine.encode_text("Hello")
        streams = [engine.generate(prompt, ENDLESS) for _ in range(6)]
        for stream in streams[:3]:
            await anext(stream)
        waiting = [asyncio.create_task(anext(s)) for s in streams[3:]]
        await asyncio.sleep(0)

        def fault() -> None:
            raise RuntimeError("out of luck")

        monkeypatch.setattr(engine._engine, "step", fault)
        for stream in streams[:3]:
            with pytest.raises(EngineDeadError, match="out of luck"):
                async for _ in stream:
                    pass
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(not isinstance(r, BaseException) or "out of luck" in str(r) for r in results)
        assert not engine.is_alive
        assert engine.cause_of_death == "RuntimeError: out of luck"
        with pytest.raises(EngineDeadError, match="out of luck"):
            await anext(engine.generate(prompt, GREEDY))

    asyncio.run(scenario())


def test_shutdown_drains(tiny_folder: Path) -> None:
    async def scenario() -> None:
        engine = AsyncEngine.load(tiny_folder, dtype="float32")
        expected = await collect(engine, "Hello")
        running = asyncio.create_task(collect(engine, "Hello"))
        await asyncio.sleep(0.01)
        await engine.shutdown(drain_seconds=20)
        assert await running == expected
        assert not engine.is_alive
        with pytest.raises(EngineDeadError):
            await collect(engine, "more")

    asyncio.run(scenario())
