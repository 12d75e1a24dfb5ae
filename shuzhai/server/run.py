"""From an app to a listening server: the socket, and a polite end on Ctrl+C or SIGTERM."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from shuzhai.errors import ConfigError
from shuzhai.server.connection import MAX_HEAD_BYTES, WatchedProtocol
from shuzhai.server.registry import Registry

_STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM]
if sys.platform == "win32":
    _STOP_SIGNALS.append(signal.SIGBREAK)

# How long a thread keeps the interpreter while others want it. An engine's thread lets it go dozens
# of times a step: by Python's 5 ms it could wait for the event loop longer than the step takes.
_SWITCH_SECONDS = 5e-4


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


@contextmanager
def stop_signals_end(task: asyncio.Task[Any]) -> Iterator[None]:
    """What SIGTERM does before a server has handlers of its own, and after: it cancels the task.

    Ctrl+C does that by itself. For the thread of the event loop.
    """
    loop = asyncio.get_running_loop()

    def stop(sig: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(task.cancel)

    try:
        numbers = [number for number in _STOP_SIGNALS if number != signal.SIGINT]
        previous = {number: signal.signal(number, stop) for number in numbers}
    except ValueError:  # not the main thread: nobody sends it signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _cannot_bind(host: str, port: int, error: OSError | OverflowError) -> ConfigError:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} of {host} is in use: stop the program that has it, "
            f"or choose another with --port {port + 1}"
        )
    return ConfigError(f"cannot listen on {host} port {port}: {error}")


class PoliteServer(uvicorn.Server):
    """uvicorn that lets running answers finish. A second signal ends it at once.

    The models are shut down with the server. `say` gets a line for the terminal when that takes
    time.
    """

    def __init__(
        self,
        app: FastAPI,
        registry: Registry,
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
        self._registry = registry
        self._drain_seconds = drain_seconds
        self._say = say

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        sys.setswitchinterval(_SWITCH_SECONDS)
        await super().serve(sockets)

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
        if self._say is not None and any(model.num_holds for model in self._registry.models):
            self._say("Stopping: running answers may finish. Ctrl+C again stops at once.")
        # What is cut off below is meant to be: uvicorn would log it as a fault.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await self._registry.shutdown(self._drain_seconds)
        await super().shutdown(sockets)
