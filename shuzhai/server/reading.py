"""What a client sends, as far as a route wants it: bodies and query strings."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from shuzhai.errors import InvalidRequestError
from shuzhai.server.body import parse_object
from shuzhai.server.boundary import ClientGoneError

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]

_PARSE_IN_THREAD_BYTES = 64 * 2**10


class BodyReader:
    """Reads bodies for one server."""

    def __init__(self) -> None:
        # One big body at a time: meanwhile it takes several times its size, and the interpreter.
        self._parsing = asyncio.Lock()

    async def object(self, request: Request, parse: Callable[[dict[str, Any]], T]) -> T:
        """parse(the JSON object that was sent)."""
        return await self.parsed(request, lambda body: parse(parse_object(body)))

    async def parsed(self, request: Request, parse: Callable[[bytes], T]) -> T:
        """parse(body). A big one is read in a thread: others' streams must not wait for it."""
        body = await self.bytes(request)
        if len(body) <= _PARSE_IN_THREAD_BYTES:
            return parse(body)
        async with self._parsing:
            return await asyncio.to_thread(parse, body)

    async def bytes(self, request: Request) -> bytes:
        try:
            # request.body() would keep it for as long as the answer takes.
            return b"".join([piece async for piece in request.stream()])
        except ClientDisconnect:
            raise ClientGoneError from None


def read_query(request: Request, known: Collection[str]) -> dict[str, str]:
    """The parameters of the URL; InvalidRequestError for an unknown one, and for one that is there
    twice."""
    pairs = request.query_params.multi_items()
    found = dict(pairs)
    for name in found:
        if name not in known:
            raise InvalidRequestError(
                f"the URL's parameter {name[:64]!r} is not supported", name[:64],
                "unsupported_parameter",
            )  # fmt: skip
    if len(found) < len(pairs):
        raise InvalidRequestError("a parameter of the URL is there twice")
    return found
