"""An internet for tests: its names, addresses and answers are scripted, and no packet leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from socketserver import BaseRequestHandler, ThreadingTCPServer
from ssl import SSLContext

import httpx

from shuzhai.server.pictures import FetchLimits, PictureFetcher

PUBLIC = "93.184.215.14"
PICTURE = b"\x89PNG and so on"


class Body(httpx.AsyncByteStream):
    """Pieces, with a pause before each."""

    def __init__(self, pieces: Sequence[bytes], pause: float = 0.0) -> None:
        self._pieces = pieces
        self._pause = pause

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            await asyncio.sleep(self._pause)
            yield piece


@dataclass
class Web(httpx.AsyncBaseTransport):
    """Every server there is; `answers` by path.

    asked    (address, port, Host header, name for TLS) of each request
    """

    answers: dict[str, Callable[[], httpx.Response]] = field(default_factory=dict)
    addresses: list[list[str]] = field(default_factory=lambda: [[PUBLIC]])
    pause: float = 0.0
    asked: list[tuple[str, int | None, str, str]] = field(default_factory=list)
    requests: list[httpx.Request] = field(default_factory=list)
    resolved: list[tuple[str, int]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    cancelled: int = 0

    async def resolve(self, host: str, port: int) -> list[str]:
        """The next list of addresses; the last one stays."""
        self.resolved.append((host, port))
        return self.addresses.pop(0) if len(self.addresses) > 1 else self.addresses[0]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        name = request.extensions["sni_hostname"]
        self.asked.append((url.host, url.port, request.headers["host"], name))
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.pause)
            path = url.raw_path.decode()
            return self.answers.get(path, lambda: httpx.Response(200, stream=Body([PICTURE])))()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    def fetcher(self, *allowed: str, limits: FetchLimits | None = None) -> PictureFetcher:
        return PictureFetcher(
            allowed or ("a.example",), limits, resolve=self.resolve, transport=lambda: self
        )


@dataclass
class ToLocal(httpx.AsyncBaseTransport):
    """Real HTTP; every address of the internet is a port of this machine."""

    port: int
    verify: SSLContext | bool = True
    addresses: list[str] = field(default_factory=list)

    async def __aenter__(self) -> ToLocal:
        self._inner = httpx.AsyncHTTPTransport(verify=self.verify, trust_env=False)
        return self

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.addresses.append(request.url.host)
        request.url = request.url.copy_with(host="127.0.0.1", port=self.port)
        return await self._inner.handle_async_request(request)


@contextmanager
def tcp_server(talk: Callable[[object], None], context: SSLContext | None = None) -> Iterator[int]:
    """A server on a port of this machine; `talk` gets each connection after the request's head."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            try:
                sock = self.request
                sock.settimeout(10)
                if context is not None:
                    sock = context.wrap_socket(sock, server_side=True)
                head = b""
                while b"\r\n\r\n" not in head:
                    piece = sock.recv(4096)
                    if not piece:
                        return
                    head += piece
                talk(sock)
                sock.close()
            except OSError:
                return

    class Server(ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
