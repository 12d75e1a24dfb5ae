"""Request bodies: bounded while they arrive, then read as strict JSON."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from starlette.types import Message, Receive

from shuzhai.errors import InvalidRequestError
from shuzhai.server.errors import refusal
from shuzhai.server.held import HeldBytes
from shuzhai.server.settings import ServerConfig

# A body is mostly text or a picture. One of nothing but brackets would become twenty times its size
# in memory, and keep the other threads waiting meanwhile. Those in texts are counted, too: no
# context holds so many.
MAX_COMMAS = 2**20
MAX_BRACKETS = 2**18

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class BoundedBody:
    """An ASGI `receive` that never lets through more, or waits longer, than it may.

    Raises RefusedError (413, 408; 503 where the server holds too much already) while the body is
    read. After the body it is the plain receive.
    """

    def __init__(
        self,
        receive: Receive,
        config: ServerConfig,
        max_bytes: int,
        held: HeldBytes,
        expected: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._receive = receive
        self._config = config
        self._max_bytes = max_bytes
        self._held = held
        self._clock = clock
        self._start = clock()
        self._num_bytes = 0
        self.complete = not expected

    async def receive(self) -> Message:
        if self.complete:
            return await self._receive()
        config = self._config
        allowed = config.body_idle_seconds + self._num_bytes / config.body_bytes_per_second
        late = self._start + min(allowed, config.body_seconds) - self._clock()
        try:
            async with asyncio.timeout(min(config.body_idle_seconds, late)):
                message = await self._receive()
        except TimeoutError:
            raise refusal(408, "body_timeout", "The request's body arrived too slowly.") from None
        if message["type"] == "http.request":
            num_bytes = len(message.get("body", b""))
            self._num_bytes += num_bytes
            self.complete = not message.get("more_body", False)
            if self._num_bytes > self._max_bytes:
                raise too_large(self._max_bytes)
            self._held.add(num_bytes)
        return message

    async def drain(self, seconds: float, idle_seconds: float, max_bytes: int) -> None:
        """Throw away what is still coming, so that the client gets to read its answer."""
        try:
            async with asyncio.timeout(seconds):
                while not self.complete and max_bytes > 0:
                    async with asyncio.timeout(idle_seconds):
                        message = await self._receive()
                    max_bytes -= len(message.get("body", b""))
                    self.complete = not message.get("more_body", False)
        except TimeoutError:
            return


def too_large(max_bytes: int) -> Exception:
    return refusal(413, "body_too_large", f"The request's body is larger than {max_bytes} bytes.")


def parse_object(body: bytes) -> dict[str, Any]:
    """parse_json of an object."""
    data = parse_json(body)
    if not isinstance(data, dict):
        raise _invalid("it must be an object")
    return data


def parse_json(body: bytes, *, scale: int = 1) -> Any:
    """Strict means: UTF-8, finite numbers, no key twice, no half of a surrogate pair.

    Takes a few tenths of a second for the biggest bodies. scale: of how many parts it may be made,
    in multiples of what is usual.
    """
    commas, brackets = scale * MAX_COMMAS, scale * MAX_BRACKETS
    if body.count(b",") > commas or body.count(b"[") + body.count(b"{") > brackets:
        raise _invalid(f"it has more than {commas} commas or {brackets} brackets")
    try:
        data = json.loads(
            body.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
        if _ESCAPED_SURROGATE.search(body):
            for text in _strings(data):
                text.encode("utf-8")
    except RecursionError:
        raise _invalid("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise _invalid("it is not UTF-8") from None
    except UnicodeEncodeError:
        raise _invalid("a string holds half of a surrogate pair") from None
    except ValueError as error:  # JSONDecodeError, or a whole number of thousands of digits
        raise _invalid(str(error)) from None
    return data


def _strings(data: Any) -> Iterator[str]:
    """Every string in a JSON value that is not plain ASCII, keys too."""
    values = [data]
    while values:
        value = values.pop()
        if isinstance(value, str):
            if not value.isascii():
                yield value
        elif isinstance(value, dict):
            values += value
            values += value.values()
        elif isinstance(value, list):
            values += value


def _invalid(reason: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"The request's body is not valid JSON here: {reason}", code="invalid_json"
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key[:64]!r} is there twice")
        result[key] = value
    return result
