"""A client of event streams that costs little: else it is what a benchmark of a server measures.

It notes what comes and when, and reads it when all is over.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import h11
import httpx

from shuzhai.errors import ShuzhaiError

_CONNECT_SECONDS = 30.0
# A prompt may wait for all that came before it.
_SILENCE_SECONDS = 600.0


class Site:
    """Where requests go. url: without /v1; key: of its API, if it has one"""

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url
        parts = urlsplit(url)
        self._host, self._path = parts.hostname or "", parts.path
        self._tls = httpx.create_ssl_context() if parts.scheme == "https" else None
        self._port = parts.port or (80 if self._tls is None else 443)
        self._headers = {"host": parts.netloc.rpartition("@")[2], "connection": "close"}
        self.key_header = {} if key is None else {"authorization": f"Bearer {key}"}

    def models(self) -> list[str]:
        """The models that the server names, as it orders them."""
        # A proxy of the environment would be asked for this machine's own server.
        timeout = httpx.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS)
        reply = httpx.get(
            f"{self.url}/v1/models", headers=self.key_header, timeout=timeout, trust_env=False
        )
        if reply.status_code != 200:
            raise ShuzhaiError(f"{self.url} answered {reply.status_code}: {reply.text[:200]}")
        return [str(model["id"]) for model in reply.json()["data"]]

    async def post(self, path: str, body: dict[str, Any]) -> Recording:
        """What comes until the server closes the connection, which is this request's own.

        ShuzhaiError if it is refused; OSError if nobody answers, or the connection is not closed
        though it was asked for; ValueError or h11.LocalProtocolError for what HTTP cannot say.
        """
        content = json.dumps(body).encode()
        kind = {"content-type": "application/json", "content-length": str(len(content))}
        headers = self._headers | self.key_header | kind
        recording = Recording(self.url)
        http = recording.http
        request = http.send(
            h11.Request(method="POST", target=f"{self._path}{path}", headers=[*headers.items()])
        )
        request += http.send(h11.Data(content)) + http.send(h11.EndOfMessage())
        async with asyncio.timeout(_CONNECT_SECONDS):
            transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: recording, self._host, self._port, ssl=self._tls
            )
        try:
            transport.write(request)
            await recording.end()
        finally:
            transport.abort()
        return recording


class Recording(asyncio.Protocol):
    """The pieces in which an answer came over the network, with the time of each.

    http  has sent the request
    """

    def __init__(self, url: str) -> None:
        self.http = h11.Connection(h11.CLIENT)
        self._url = url
        self._pieces: list[tuple[float, bytes]] = []
        self._events: list[tuple[float, dict[str, Any]]] | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self._pieces.append((time.perf_counter(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    async def end(self) -> None:
        """Wait for it. TimeoutError if nothing comes for long."""
        count = -1
        while not self._ended.done():
            if count == len(self._pieces):
                raise TimeoutError(f"silent for {_SILENCE_SECONDS:.0f} s")
            count = len(self._pieces)
            await asyncio.wait({self._ended}, timeout=_SILENCE_SECONDS)
        if not b"".join(data for _, data in self._pieces).startswith(b"HTTP/1.1 200 "):
            self.events()  # says now what is wrong, and not when all others are done

    def events(self) -> list[tuple[float, dict[str, Any]]]:
        """The events but for [DONE], each with the time when its last byte came. ShuzhaiError if
        they are not a whole answer."""
        if self._events is None:
            self._events = list(self._read())
        return self._events

    def _read(self) -> Iterator[tuple[float, dict[str, Any]]]:
        rest, is_done = b"", False
        for at, data in self._body():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                name, _, value = line.partition(b":")
                value = value.strip()
                if name == b"data" and value == b"[DONE]":
                    is_done = True
                elif name == b"data" and value.startswith(b"{"):
                    event = json.loads(value)
                    if "error" in event:
                        raise ShuzhaiError(f"{self._url}: {event['error']}")
                    yield at, event
        if not is_done:
            raise ShuzhaiError(f"{self._url} broke off: an answer ended without [DONE]")

    def _body(self) -> Iterator[tuple[float, bytes]]:
        status, refusal = 0, b""
        try:
            for at, piece in (*self._pieces, (0.0, b"")):
                self.http.receive_data(piece)
                while (event := self.http.next_event()) is not h11.NEED_DATA:
                    if isinstance(event, h11.Response):
                        status = event.status_code
                    elif isinstance(event, h11.Data) and status != 200:
                        refusal += event.data
                    elif isinstance(event, h11.Data):
                        yield at, event.data
                    elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
                        break
        except h11.RemoteProtocolError as error:
            # The empty piece stands for the end: h11 would speak of its states.
            why = error if piece else "the connection was closed in the middle of an answer"
            raise ShuzhaiError(f"{self._url} broke off: {why}") from None
        if status != 200:
            text = refusal.decode("utf-8", "replace")
            raise ShuzhaiError(f"{self._url} answered {status}: {text[:300]}")
