"""Request bodies: bounded while they arrive, then read as strict JSON."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Callable
from typing import Any, NoReturn

from starlette.types import Message, Receive

from shuzhai.errors import InvalidRequestError
from shuzhai.server.errors import refusal
from shuzhai.server.settings import ServerConfig

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class BoundedBody:
    """An ASGI `receive` that never lets through more, or waits longer, than the config allows.

    Raises RefusedError (413, 408) while the body is read. After the body it is the plain receive.
    """

    def __init__(
        self,
        receive: Receive,
        config: ServerConfig,
        expected: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._receive = receive
        self._config = config
        self._clock = clock
        self._start = clock()
        self._num_bytes = 0
        self.complete = not expected

    async def receive(self) -> Message:
        if self.complete:
            return await self._receive()
        config = self._config
        late = self._start + config.body_idle_seconds
        late += self._num_bytes / config.body_bytes_per_second - self._clock()
        try:
            async with asyncio.timeout(min(config.body_idle_seconds, late)):
                message = await self._receive()
        except TimeoutError:
            raise refusal(408, "body_timeout", "The request's body arrived too slowly.") from None
        if message["type"] == "http.request":
            self._num_bytes += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
            if self._num_bytes > config.max_body_bytes:
                raise too_large(config)
        return message

    async def drain(self, seconds: float, max_bytes: int) -> None:
        """Throw away what is still coming, so that the client gets to read its answer."""
        try:
            async with asyncio.timeout(seconds):
                while not self.complete and max_bytes > 0:
                    message = await self._receive()
                    max_bytes -= len(message.get("body", b""))
                    self.complete = not message.get("more_body", False)
        except TimeoutError:
            return


def too_large(config: ServerConfig) -> Exception:
    limit = config.max_body_bytes
    return refusal(413, "body_too_large", f"The request's body is larger than {limit} bytes.")


def parse_object(body: bytes) -> dict[str, Any]:
    """Strict means: UTF-8, an object, finite numbers, no key twice, no half of a surrogate pair."""
    try:
        data = json.loads(
            body.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
        if _ESCAPED_SURROGATE.search(body):
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise _invalid("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise _invalid("it is not UTF-8") from None
    except UnicodeEncodeError:
        raise _invalid("a string holds half of a surrogate pair") from None
    except ValueError as error:  # JSONDecodeError, or a whole number of thousands of digits
        raise _invalid(str(error)) from None
    if not isinstance(data, dict):
        raise _invalid("it must be an object")
    return data


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
