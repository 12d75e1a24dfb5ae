"""A real server on a free port, in a thread, and raw sockets to it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from openai import OpenAI

from shuzhai.server.app import create_app
from shuzhai.server.connection import WatchedProtocol
from shuzhai.server.pictures import PictureFetcher
from shuzhai.server.registry import Registry
from shuzhai.server.run import PoliteServer, bind, listen
from shuzhai.server.settings import ServerConfig
from tests.server.fakes import GivenSource


class HastyProtocol(WatchedProtocol):
    """The same watch, for tests that cannot wait."""

    tick_seconds = 0.05
    head_seconds = 0.5
    unread_seconds = 0.5
    refused_seconds = 0.3
    max_connections = 40


@dataclass(frozen=True)
class Live:
    port: int
    clients: list[OpenAI] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none") -> OpenAI:
        client = OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)
        self.clients.append(client)
        return client

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def raw(self, data: bytes) -> bytes:
        """Send bytes, and read until the server closes."""
        with self.connect() as sock:
            sock.sendall(data)
            return read_all(sock)

    def post(self, path: str, body: object, **headers: str) -> tuple[int, dict[str, Any]]:
        status, _, content = self.ask("POST", path, body, **headers)
        return status, json.loads(content)

    def ask(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Any request, without an HTTP library in between. Header names are given with _ for -."""
        content = body if isinstance(body, bytes) else b""
        if body is not None and not isinstance(body, bytes):
            content = json.dumps(body).encode()
        fields = {"host": f"127.0.0.1:{self.port}", "connection": "close"}
        if method == "POST":
            fields["content-type"] = "application/json"
        if content:
            fields["content-length"] = str(len(content))
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items() if v)]
        return parse(self.raw("\r\n".join([*lines, "", ""]).encode() + content))


def read_all(sock: socket.socket) -> bytes:
    parts = []
    try:
        while part := sock.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def parse(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
    if headers.get("transfer-encoding") == "chunked":
        body = unchunked(body)
    return int(lines[0].split()[1]), headers, body


def unchunked(body: bytes) -> bytes:
    """As much as has come."""
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size or b"0", 16)
        whole, body = whole + body[:length], body[length + 2 :]
    return whole


@contextmanager
def live_server(
    engines: Sequence[Any],
    config: ServerConfig | None = None,
    protocol: type[WatchedProtocol] = WatchedProtocol,
    names: Sequence[str] = ("tiny",),
    fetcher: PictureFetcher | None = None,
    **parts: Any,
) -> Iterator[Live]:
    """A server whose models are these engines, loaded; `parts` are those of create_app."""
    sources = [GivenSource(n, e) for n, e in zip(names, engines, strict=True)]
    registry = Registry(sources, 2**40)
    with live_registry(registry, config, protocol, fetcher, load=True, **parts) as live:
        yield live


@contextmanager
def live_registry(
    registry: Registry,
    config: ServerConfig | None = None,
    protocol: type[WatchedProtocol] = WatchedProtocol,
    fetcher: PictureFetcher | None = None,
    *,
    load: bool = False,
    **parts: Any,
) -> Iterator[Live]:
    app = create_app(registry, config, fetcher, **parts)
    server = PoliteServer(app, registry, drain_seconds=1, protocol=protocol)
    sock = bind("127.0.0.1", 0)
    listen(sock)

    async def serve() -> None:
        for model in registry.models if load else ():
            await registry.load(model.name)
        await server.serve([sock])

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    live = Live(sock.getsockname()[1])
    try:
        yield live
    finally:
        for client in live.clients:
            client.close()
        server.should_exit = True
        thread.join(20)
        sock.close()
        assert not thread.is_alive()


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
