"""From pieces of answers to HTTP: server-sent events, or the same events folded into one object.

Whatever ends the reading (a disconnect, an error, a shutdown) closes the generators below, which
aborts their requests in the engine. Nothing here keeps more than one piece.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from shuzhai.frontend.outputs import Delta, Usage
from shuzhai.server.boundary import ClientGoneError
from shuzhai.server.replies import Json, ReplyFormat, usage_json

T = TypeVar("T")
Pieces = AsyncGenerator[tuple[int, Delta], None]


async def merge(streams: Sequence[AsyncGenerator[Delta, None]], n: int) -> Pieces:
    """The pieces of several prompts' answers as they come, answers numbered through, `n` a prompt.

    The first error of one ends all. Closing it closes every stream.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for delta in only:
                yield delta.index, delta
        return
    pending = {asyncio.ensure_future(_next(s)): place for place, s in enumerate(streams)}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                place = pending.pop(task)
                delta = task.result()
                if delta is not None:
                    yield place * n + delta.index, delta
                    pending[asyncio.ensure_future(_next(streams[place]))] = place
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


async def _next(stream: AsyncIterator[Delta]) -> Delta | None:
    return await anext(stream, None)


class Answering:
    """One request's answers under way. Start it, then stream or fold it.

    `start` waits for the first piece: an error that comes before it is raised there, in time for
    a proper HTTP status.
    """

    def __init__(self, pieces: Pieces, wording: ReplyFormat, model: str, n: int) -> None:
        self._pieces = pieces
        self._wording = wording
        self._n = n
        self._model = model
        self._id = wording.id_prefix + uuid.uuid4().hex
        self._created = int(time.time())
        self._usages: dict[int, Usage] = {}
        self._first: tuple[int, Delta] | None = None

    async def start(self) -> None:
        self._first = await anext(self._pieces, None)

    async def close(self) -> None:
        await self._pieces.aclose()

    @property
    def usage(self) -> Json:
        return usage_json(self._usages, self._n)

    async def choices(self) -> AsyncGenerator[Json, None]:
        async with aclosing(self._pieces) as pieces:
            if self._first is not None:
                for choice in self._take(*self._first):
                    yield choice
            async for index, delta in pieces:
                for choice in self._take(index, delta):
                    yield choice

    def _take(self, index: int, delta: Delta) -> list[Json]:
        self._usages[index] = delta.usage
        return self._wording.choices(index, delta)

    async def fold(self) -> Response:
        """The whole answer as one object."""
        parts: dict[int, list[Json]] = {}
        async with aclosing(self.choices()) as choices:
            async for choice in choices:
                parts.setdefault(choice["index"], []).append(choice)
        folded = [self._wording.fold(parts[index]) for index in sorted(parts)]
        body = self._envelope(self._wording.whole_object, folded)
        return JSONResponse({**body, "usage": self.usage})

    async def events(self, include_usage: bool) -> AsyncGenerator[bytes, None]:
        """Server-sent events, one a choice, with [DONE] at the end."""
        envelope = _encode(self._envelope(self._wording.chunk_object, []))
        head, tail = f"data: {envelope[:-2]}".encode(), b"]}\n\n"
        if include_usage:
            tail = b'],"usage":null}\n\n'
        async with aclosing(self.choices()) as choices:
            async for choice in choices:
                yield head + _encode(choice).encode() + tail
        last = b"data: [DONE]\n\n"
        if include_usage:
            last = head + b'],"usage":' + _encode(self.usage).encode() + b"}\n\n" + last
        yield last

    def _envelope(self, kind: str, choices: Sequence[Json]) -> Json:
        """`choices` come last: events are put together around them."""
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }


# Made once: json.dumps makes one for each text.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class EventStream(Response):
    """Sends the events of an answer until they end or the client leaves; then it is closed."""

    media_type = "text/event-stream"

    def __init__(self, answering: Answering, include_usage: bool) -> None:
        super().__init__(headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._answering = answering
        self._include_usage = include_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await unless_gone(receive, self._send_all(send))
        finally:
            await self._answering.close()

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._answering.events(self._include_usage)) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class PieceStream(Response):
    """Sends pieces of bytes until they end or the client leaves; then they are closed."""

    def __init__(
        self, pieces: AsyncGenerator[bytes, None], headers: Mapping[str, str], status: int = 200
    ) -> None:
        super().__init__(status_code=status)
        del self.headers["content-length"]
        self.headers.update(headers)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        try:
            await send({**start, "headers": self.raw_headers})
            await unless_gone(receive, self._send_all(send, has_body=scope["method"] != "HEAD"))
        finally:
            await self._pieces.aclose()

    async def _send_all(self, send: Send, has_body: bool) -> None:
        if has_body:
            async for piece in self._pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """`work`'s result; ClientGoneError, with `work` cancelled, when the client leaves before."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    message: dict[str, Any] = {}
    while message.get("type") != "http.disconnect":
        message = dict(await receive())
