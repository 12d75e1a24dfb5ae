"""One answer of the engine, shown as it comes, and stopped by Ctrl+C."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from shuzhai.cli.chat_commands import Message
from shuzhai.engine.request import SamplingParams
from shuzhai.frontend.async_engine import AsyncEngine
from shuzhai.frontend.outputs import Usage

# Control characters that a model may write, made visible: a terminal would obey them.
_VISIBLE = {
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"},
    127: "\u2421",
    **dict.fromkeys(range(128, 160), "\ufffd"),
}


@dataclass(slots=True)
class Reply:
    """An answer so far. Times are seconds of time.perf_counter().

    usage           None until the first token
    finish_reason   "stop", "length", or None when it was stopped
    """

    started: float
    text: str = ""
    usage: Usage | None = None
    finish_reason: str | None = None
    arrivals: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first: before that one the prompt is read."""
        if len(self.arrivals) < 2 or self.arrivals[-1] <= self.arrivals[0]:
            return None
        return (len(self.arrivals) - 1) / (self.arrivals[-1] - self.arrivals[0])

    @property
    def seconds_to_first(self) -> float:
        return self.arrivals[0] - self.started if self.arrivals else 0.0


def answer(
    engine: AsyncEngine,
    messages: Sequence[Message],
    params: SamplingParams,
    show: Callable[[str], None],
) -> Reply:
    """Answer, calling `show` with each piece of the text; on Ctrl+C what has come until then.

    asyncio.run makes Ctrl+C cancel the task, which closes the stream and so aborts the request.
    The steps run in the engine's own thread, where no KeyboardInterrupt can come. To be called in
    the main thread. Raises what AsyncEngine.generate raises.
    """
    reply = Reply(time.perf_counter())
    try:
        asyncio.run(_stream(engine, messages, params, show, reply))
    except KeyboardInterrupt:
        reply.finish_reason = None
    return reply


async def _stream(
    engine: AsyncEngine,
    messages: Sequence[Message],
    params: SamplingParams,
    show: Callable[[str], None],
    reply: Reply,
) -> None:
    prompt = await engine.encode_chat(messages)
    if params.max_tokens is not None:
        # A full context cuts an answer; that it might do so later is no reason to refuse it now.
        room = max(1, engine.processor.max_model_len - len(prompt.token_ids))
        params = dataclasses.replace(params, max_tokens=min(params.max_tokens, room))
    async with aclosing(engine.generate(prompt, params)) as deltas:
        async for delta in deltas:
            now = time.perf_counter()
            reply.arrivals += [now] * len(delta.token_ids)
            if delta.token_ids:
                reply.usage = delta.usage
            reply.finish_reason = delta.finish_reason
            if delta.text:
                show(delta.text)
                reply.text += delta.text


def for_terminal(text: str) -> str:
    """Text without characters that a terminal would obey, but for tabs and line ends."""
    return text.translate(_VISIBLE)
