"""What must be guarded below ASGI: slow heads, readers that never read, too many connections.

uvicorn has a timeout between requests only: a head may take for ever, and a client that reads
nothing holds its answer for ever. This is its h11 protocol with a watch over each connection.
"""

from __future__ import annotations

import json
from asyncio import BaseTransport, TimerHandle, Transport
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from shuzhai.server.errors import Problem

MAX_HEAD_BYTES = 64 * 2**10


class WatchedProtocol(H11Protocol):
    """H11Protocol whose connections are closed when they wait on the client for too long."""

    tick_seconds: ClassVar[float] = 1.0
    head_seconds: ClassVar[float] = 15.0
    unread_seconds: ClassVar[float] = 30.0
    refused_seconds: ClassVar[float] = 2.0
    max_connections: ClassVar[int] = 1024

    _watch: TimerHandle | None = None
    _head_since: float | None = None  # a request's head has begun to come, or should
    _stuck_since: float | None = None  # what we wrote is not read
    _refused_since: float | None = None  # answered; what still comes is thrown away

    def connection_made(self, transport: BaseTransport) -> None:
        assert isinstance(transport, Transport)
        super().connection_made(transport)
        self._head_since = self.loop.time()
        if len(self.connections) > self.max_connections:
            self._refuse(503, "too_many_connections", "Too many connections; try again later.")
        self._tick()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused_since is not None:
            return
        if self._head_since is None and self._between_requests():
            self._head_since = self.loop.time()
        super().data_received(data)
        if not self._between_requests():
            self._head_since = None

    def on_response_complete(self) -> None:
        self._head_since = None  # from here on, uvicorn's keep-alive timeout counts
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is not HTTP, as an error object; 431 for too long a head."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()  # an answer is on its way: nothing can be put into it
        elif len(self.conn.trailing_data[0]) > MAX_HEAD_BYTES:
            self._refuse(431, "headers_too_large", "The request's head is too large.")
        else:
            self._refuse(400, "invalid_http", "This is not an HTTP request.")

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer and end our side. The client's is read a little longer: a reset would eat it."""
        self._refused_since = self.loop.time()
        self._unset_keepalive_if_required()
        self.transport.write(_plain_answer(status, code, message))
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _tick(self) -> None:
        now = self.loop.time()
        is_stuck = self.flow.write_paused or self.transport.is_closing()
        self._stuck_since = (self._stuck_since or now) if is_stuck else None
        if _is_over(self._stuck_since, now, self.unread_seconds):
            self.transport.abort()  # close() would wait for the client to read
        elif _is_over(self._refused_since, now, self.refused_seconds):
            self.transport.abort()
        elif self._refused_since is None and _is_over(self._head_since, now, self.head_seconds):
            self._refuse(408, "head_timeout", "The request came too slowly.")
        self._watch = self.loop.call_later(self.tick_seconds, self._tick)


def _is_over(since: float | None, now: float, limit: float) -> bool:
    return since is not None and now - since > limit


def _plain_answer(status: int, code: str, message: str) -> bytes:
    """A whole HTTP/1.1 response, for where no request was understood."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = json.dumps(Problem(status, kind, code, message).body()).encode()
    head: dict[str, Any] = {
        "content-type": "application/json",
        "content-length": len(body),
        "connection": "close",
    }
    lines = [f"HTTP/1.1 {status} {code}", *(f"{name}: {value}" for name, value in head.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
