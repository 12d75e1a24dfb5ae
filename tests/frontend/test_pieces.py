"""What generate() makes of an engine's steps when the event loop keeps up, and when it does not."""

from __future__ import annotations

import asyncio
import queue
import time
from collections import deque
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest

from shuzhai import EngineDeadError, OverloadedError, SamplingParams
from shuzhai.bench.standin import NumberTokenizer
from shuzhai.engine.request import FinishReason, Request, StepOutput
from shuzhai.frontend.async_engine import AsyncEngine, _Stream
from shuzhai.frontend.outputs import Delta, EncodedPrompt
from shuzhai.frontend.processor import Processor

PROMPT = EncodedPrompt("", [1, 2])


class PlayedEngine:
    """Its steps bring what the test says. An exception is raised; None ends all."""

    config = SimpleNamespace(max_num_waiting=8, max_num_seqs=8)

    def __init__(self) -> None:
        self.steps: queue.SimpleQueue[list[StepOutput] | Exception | None] = queue.SimpleQueue()
        self.running: list[str] = []
        self.aborted: list[str] = []
        self.num_steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self.running)

    def check(self, request: Request) -> None:
        pass

    def add(self, request: Request) -> None:
        self.running.append(request.id)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def step(self) -> list[StepOutput]:
        self.num_steps += 1
        outputs = self.steps.get()
        if isinstance(outputs, Exception):
            raise outputs
        if outputs is None:
            self.running.clear()
        return outputs or []


def play(scenario: Callable[[AsyncEngine, PlayedEngine], Awaitable[None]]) -> None:
    async def run() -> None:
        played = PlayedEngine()
        processor = Processor(
            NumberTokenizer(100),
            None,
            stop_ids=(),
            default_sampling=SamplingParams(),
            max_model_len=100,
        )
        engine = AsyncEngine(played, processor)  # type: ignore[arg-type]
        try:
            async with asyncio.timeout(30):
                await scenario(engine, played)
        finally:
            played.steps.put(None)
            await engine.shutdown()

    asyncio.run(run())


def token(i: int, request_id: str = "0-0", reason: FinishReason | None = None) -> StepOutput:
    return StepOutput(request_id, (i,), finish_reason=reason)


def last(i: int, request_id: str = "0-0") -> StepOutput:
    return token(i, request_id, FinishReason.LENGTH)


def while_the_loop_is_busy(played: PlayedEngine, *steps: list[StepOutput]) -> None:
    """The engine takes these steps, and begins one more."""
    expected = played.num_steps + len(steps)
    for step in steps:
        played.steps.put(step)
    end = time.monotonic() + 5
    while played.num_steps < expected and time.monotonic() < end:
        time.sleep(0.001)  # on purpose: nothing else runs in the loop
    assert played.num_steps == expected


async def begin(
    engine: AsyncEngine, played: PlayedEngine, **params: object
) -> tuple[asyncio.Task[Delta], object]:
    """A stream, and the task that waits for its first piece."""
    stream = engine.generate(PROMPT, SamplingParams(**params))  # type: ignore[arg-type]
    first = asyncio.ensure_future(anext(stream))
    while not played.num_steps:
        await asyncio.sleep(0.001)
    return first, stream


def test_a_loop_that_keeps_up_gets_a_piece_a_step() -> None:
    async def scenario(engine: AsyncEngine, played: PlayedEngine) -> None:
        first, stream = await begin(engine, played)
        played.steps.put([token(1)])
        assert (await first).text == " 1"
        for i in (2, 3):
            played.steps.put([token(i)])
            assert (await anext(stream)).token_ids == [i]
        played.steps.put([last(4)])
        assert [d.text async for d in stream] == [" 4"]

    play(scenario)


def test_a_loop_that_is_late_gets_one_piece() -> None:
    async def scenario(engine: AsyncEngine, played: PlayedEngine) -> None:
        first, stream = await begin(engine, played)
        while_the_loop_is_busy(played, [token(1)], [token(2)], [token(3)])
        delta = await first
        assert (delta.text, delta.token_ids) == (" 1 2 3", [1, 2, 3])
        assert delta.usage.completion_tokens == 3
        while_the_loop_is_busy(played, [token(4)], [last(5)])
        assert [(d.text, d.finish_reason) async for d in stream] == [(" 4 5", "length")]
        assert played.aborted == []

    play(scenario)


def test_each_of_several_answers_gets_its_own() -> None:
    async def scenario(engine: AsyncEngine, played: PlayedEngine) -> None:
        first, stream = await begin(engine, played, n=2)
        a, b = "0-0", "0-1"
        while_the_loop_is_busy(played, [token(1, b)], [token(2, a), token(3, b)], [last(4, a)])
        deltas = [await first, await anext(stream)]
        assert [(d.index, d.token_ids) for d in deltas] == [(1, [1, 3]), (0, [2, 4])]
        played.steps.put([last(5, b)])
        assert [(d.index, d.token_ids) async for d in stream] == [(1, [5])]

    play(scenario)


def test_nothing_comes_after_a_stop_string() -> None:
    async def scenario(engine: AsyncEngine, played: PlayedEngine) -> None:
        first, stream = await begin(engine, played, stop=" 2 3")
        while_the_loop_is_busy(played, [token(1)], [token(2)], [token(3)], [last(4)])
        delta = await first
        assert (delta.text, delta.finish_reason) == (" 1", "stop")
        assert delta.usage.completion_tokens == 3
        assert [d async for d in stream] == []
        played.steps.put([])
        while played.aborted != ["0-0"]:
            await asyncio.sleep(0.001)

    play(scenario)


def test_what_came_before_an_error_is_given_first() -> None:
    async def scenario(engine: AsyncEngine, played: PlayedEngine) -> None:
        first, stream = await begin(engine, played, n=2)
        error = StepOutput("0-0", finish_reason=FinishReason.ERROR, error=OverloadedError("full"))
        while_the_loop_is_busy(played, [token(1), token(2, "0-1")], [error], [token(3, "0-1")])
        assert [(await first).token_ids, (await anext(stream)).token_ids] == [[1], [2]]
        with pytest.raises(OverloadedError, match="full"):
            await anext(stream)
        played.steps.put([])
        while not {"0-0", "0-1"} <= set(played.aborted):
            await asyncio.sleep(0.001)

    play(scenario)


def test_what_came_before_the_engine_died_is_given_first() -> None:
    async def scenario(engine: AsyncEngine, played: PlayedEngine) -> None:
        first, stream = await begin(engine, played)
        while_the_loop_is_busy(played, [token(1)], [token(2)])
        played.steps.put(RuntimeError("out of luck"))
        while engine.is_alive:
            time.sleep(0.001)
        assert (await first).token_ids == [1, 2]
        with pytest.raises(EngineDeadError, match="out of luck"):
            await anext(stream)

    play(scenario)


class Meeting(deque):
    """Outputs; the consumer takes what it can before and after each of the engine's actions."""

    meet: Callable[[], None] = staticmethod(lambda: None)

    def append(self, output: StepOutput) -> None:
        self.meet()
        super().append(output)
        self.meet()


def test_no_call_is_missed_however_two_threads_meet() -> None:
    """Nobody is called for what somebody was called for already: an output must never be left with
    a consumer that sleeps."""

    async def meet() -> None:
        stream = _Stream(asyncio.get_running_loop(), 0)
        stream._outputs = Meeting()
        taken: list[StepOutput] = []
        taker, waits_for = stream.take(), None

        def consume() -> None:
            nonlocal taker, waits_for
            try:
                while waits_for is None or waits_for.done():
                    waits_for = taker.send(None)
            except StopIteration as end:
                taken.extend(end.value)
                taker, waits_for = stream.take(), None

        stream.put(token(1))
        consume()
        assert taken == [token(1)]
        consume()  # sleeps
        stream.wake()  # for what was taken already
        stream._outputs.meet = consume
        is_called = stream.put(token(2))
        stream._outputs.meet = Meeting.meet
        taker.close()
        assert is_called or taken == [token(1), token(2)]

    asyncio.run(meet())


def test_a_call_that_comes_late_is_not_the_last() -> None:
    """What it was for has been taken; the next output must call again."""

    async def scenario() -> None:
        stream = _Stream(asyncio.get_running_loop(), 0)
        stream._outputs = deque(maxlen=0)  # as if it were taken before the call is noted
        assert stream.put(token(1))
        stream._outputs = deque()
        waits = asyncio.ensure_future(stream.take())
        await asyncio.sleep(0)
        stream.wake()
        for _ in range(3):
            await asyncio.sleep(0)
        assert stream.put(token(2))
        stream.wake()
        assert await waits == [token(2)]

    asyncio.run(scenario())


def test_others_have_their_turn_however_fast_outputs_come() -> None:
    async def scenario() -> None:
        stream = _Stream(asyncio.get_running_loop(), 0)
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(others())
        for i in range(100):
            stream.put(token(i))
            assert await stream.take() == [token(i)]
        task.cancel()
        assert turns >= 99
        for i in range(1000):
            stream.put(token(i))
        pieces = []
        while stream._outputs:
            pieces.append(await stream.take())
        assert [o.token_ids for piece in pieces for o in piece] == [(i,) for i in range(1000)]
        assert max(map(len, pieces)) <= 64

    asyncio.run(scenario())
