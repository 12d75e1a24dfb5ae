"""From an app to a listening server: the socket, and a polite end on Ctrl+C or SIGTERM."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from shuzhai.errors import ConfigError
from shuzhai.frontend.async_engine import AsyncEngine
from shuzhai.server.connection import MAX_HEAD_BYTES, WatchedProtocol

_STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM]
if sys.platform == "win32":
    _STOP_SIGNALS.append(signal.SIGBREAK)


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to host and port that does not listen yet; ConfigError says why it cannot."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"--host {host}: no such address ({error})") from None
    family, kind, protocol, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    sock = socket.socket(family, kind, protocol)
    if sys.platform != "win32":  # there, it would let two servers share the port
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except (OSError, OverflowError) as error:
        sock.close()
        raise _cannot_bind(host, port, error) from None
    return sock


def listen(sock: socket.socket) -> None:
    try:
        sock.listen(512)
    except OSError as error:
        host, port = sock.getsockname()[:2]
        raise _cannot_bind(host, port, error) from None


def _cannot_bind(host: str, port: int, error: OSError | OverflowError) -> ConfigError:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} of {host} is in use: stop the program that has it, "
            f"or choose another with --port {port + 1}"
        )
    return ConfigError(f"cannot listen on {host} port {port}: {error}")


class PoliteServer(uvicorn.Server):
    """uvicorn that lets running answers finish. A second signal ends it at once.

    The engines are shut down with the server. `say` gets a line for the terminal when that takes
    time.
    """

    def __init__(
        self,
        app: FastAPI,
        engines: Sequence[AsyncEngine],
        *,
        drain_seconds: float = 10.0,
        say: Callable[[str], None] | None = None,
        access_log: bool = False,
        protocol: type[WatchedProtocol] = WatchedProtocol,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="info" if access_log else "error",
                access_log=access_log,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=2,
            )
        )
        self._engines = engines
        self._drain_seconds = drain_seconds
        self._say = say

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, does not raise the signal again: to be stopped is no fault."""
        try:
            previous = {number: signal.signal(number, self.handle_exit) for number in _STOP_SIGNALS}
        except ValueError:  # not the main thread: whoever runs us sets should_exit
            yield
            return
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(1)  # asked twice: not even the engine's step under way is waited for
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        if self._say is not None and any(e.stats().num_running for e in self._engines):
            self._say("Stopping: running answers may finish. Ctrl+C again stops at once.")
        # What is cut off below is meant to be: uvicorn would log it as a fault.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await asyncio.gather(*(e.shutdown(self._drain_seconds) for e in self._engines))
        await super().shutdown(sockets)
