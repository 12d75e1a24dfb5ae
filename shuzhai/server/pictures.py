"""Pictures of a chat request that are not part of it: kept by this server, or to be fetched from a
host that the operator listed.

A URL in a request is an order to our machine to go somewhere. So: listed names only, each of their
addresses must be public, the connection goes to the very address that was checked, and bytes, time
and redirects are bounded. What comes is not looked at here: it goes to the frontend as bytes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import httpx

from shuzhai.errors import InvalidRequestError
from shuzhai.frontend.content import MAX_PICTURES
from shuzhai.server.addresses import RemoteUrl, is_public, listed_places, parse_url
from shuzhai.server.held import HeldBytes

Json = dict[str, Any]
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

_URL_PARTS = {"image_url": "image", "video_url": "video"}
_KEPT = "attachment:"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TO_PLAIN = ("http", "https")
_ACCEPT = "image/png, image/jpeg, image/webp, image/gif, image/bmp, */*;q=0.5"
_MAX_ADDRESSES = 4  # of one host, tried in turn


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """request_*: for all pictures of a request together, waiting for a turn included."""

    picture_bytes: int = 32 * 2**20
    request_bytes: int = 64 * 2**20
    connect_seconds: float = 5.0
    picture_seconds: float = 15.0
    request_seconds: float = 60.0
    max_redirects: int = 3
    max_concurrent: int = 4


@dataclass(frozen=True, slots=True)
class LinkedPicture:
    """A part of a request that only says where its picture is: messages[message].content[part]."""

    message: int
    part: int
    url: str

    @property
    def where(self) -> str:
        return f"messages[{self.message}].content[{self.part}]"

    @property
    def kept_id(self) -> str | None:
        """Of a picture that this server keeps: what follows `attachment:`."""
        return self.url.removeprefix(_KEPT) if self.url.startswith(_KEPT) else None


def linked_pictures(messages: Sequence[Json]) -> list[LinkedPicture]:
    """Which parts need bytes from elsewhere. Checks all that must be known before any work is done.

    InvalidRequestError for too many pictures, and for parts that are not a URL of a kind a client
    may give. What else is wrong with a part, the frontend finds.
    """
    parts = [LinkedPicture(i, j, _url(i, j, part)) for i, j, part in _picture_parts(messages)]
    if len(parts) > MAX_PICTURES:
        raise _bad(f"the request has {len(parts)} pictures, and {MAX_PICTURES} is the most")
    return [part for part in parts if part.url[:5].lower() != "data:"]


def _picture_parts(messages: Sequence[Json]) -> Iterator[tuple[int, int, Json]]:
    for i, message in enumerate(messages):
        content = message.get("content")
        for j, part in enumerate(content if isinstance(content, list) else ()):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind in ("image", "video"):
                raise _bad(f"messages[{i}].content[{j}]: send pictures as parts of type {kind}_url")
            if isinstance(kind, str) and kind in _URL_PARTS:
                yield i, j, part


def _url(message: int, part: int, content: Json) -> str:
    kind = content["type"]
    value = content.get(kind)
    url = value.get("url") if isinstance(value, dict) else None
    if not isinstance(url, str):
        raise _bad(f'messages[{message}].content[{part}].{kind} must be {{"url": "data:..."}}')
    if kind != "image_url" and url.startswith(_KEPT):
        raise _bad(f"messages[{message}].content[{part}]: an attachment is always an image_url")
    return url


class PictureFetcher:
    """Fetches pictures for one server.

    allowed    entries NAME or NAME:PORT, checked by ServerConfig
    resolve    name and port to addresses; transport: a new one for each request
    """

    def __init__(
        self,
        allowed: Iterable[str] = (),
        limits: FetchLimits | None = None,
        *,
        resolve: Resolver | None = None,
        transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
    ) -> None:
        self._places = frozenset[tuple[str, int]]().union(
            *(listed_places(entry) or () for entry in allowed)
        )
        self._limits = limits or FetchLimits()
        self._resolve = resolve or _resolve
        self._transport = transport or _transports()
        self._turns = asyncio.Semaphore(self._limits.max_concurrent)

    async def fetch(
        self, messages: Sequence[Json], pictures: Sequence[LinkedPicture], held: HeldBytes
    ) -> list[Json]:
        """The messages with the bytes of `pictures` in the place of their URLs.

        One after the other, each URL once. InvalidRequestError names the part at fault.
        """
        for picture in pictures:
            self._check(picture.url, picture.where)
        found: dict[str, bytes] = {}
        left = self._limits.request_bytes
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                for picture in pictures:
                    if picture.url not in found:
                        found[picture.url] = await self._fetch(picture, left, held)
                        left -= len(found[picture.url])
        except TimeoutError:
            seconds = self._limits.request_seconds
            raise _bad(
                f"the pictures of the request took longer than {seconds:g} s to fetch; "
                "send data: URLs instead"
            ) from None
        return fill_in(messages, pictures, found)

    async def _fetch(self, picture: LinkedPicture, left: int, held: HeldBytes) -> bytes:
        """Follow one URL to its end. Each step is checked as the first one was."""
        limits, where = self._limits, picture.where
        url = self._check(picture.url, where)
        async with self._turns:
            try:
                async with asyncio.timeout(limits.picture_seconds):
                    for _ in range(limits.max_redirects + 1):
                        answer = await self._get(url, where, left, held)
                        if isinstance(answer, bytes):
                            return answer
                        target = self._check(answer, where)
                        if target.host != url.host or (target.scheme, url.scheme) == _TO_PLAIN:
                            raise _lost(where, "its server sends us to another host, or out of TLS")
                        url = target
            except TimeoutError:
                reason = f"it took longer than {limits.picture_seconds:g} s"
                raise _lost(where, reason) from None
            except (httpx.TransportError, httpx.InvalidURL):
                reason = "its server cannot be reached, or speaks no proper HTTP"
                raise _lost(where, reason) from None
        raise _lost(where, f"its server sends us elsewhere more than {limits.max_redirects} times")

    def _check(self, text: str, where: str) -> RemoteUrl:
        url = parse_url(text)
        if url is None:
            raise _bad(f"{where}: only data: URLs, and plain http(s) URLs of hosts, are understood")
        if (url.host, url.port) not in self._places:
            raise _bad(
                f"{where}: this server does not fetch from there; send the picture itself as a "
                "data: URL (whoever runs the server can allow a host with --allowed-image-host)"
            )
        return url

    async def _get(self, url: RemoteUrl, where: str, left: int, held: HeldBytes) -> bytes | str:
        """One request to the first address that answers: the picture, or where it has moved to."""
        try:
            addresses = await self._resolve(url.host, url.port)
        except OSError:
            addresses = ()
        if not addresses or not all(map(is_public, addresses)):
            raise _lost(where, "its host has no public address")
        *others, last = addresses[:_MAX_ADDRESSES]
        for address in others:
            try:
                return await self._ask(address, url, where, left, held)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        return await self._ask(last, url, where, left, held)

    async def _ask(
        self, address: str, url: RemoteUrl, where: str, left: int, held: HeldBytes
    ) -> bytes | str:
        """To this address only. TLS asks for the host's name, and checks the certificate by it."""
        seconds = self._limits.picture_seconds
        timeout = httpx.Timeout(seconds, connect=self._limits.connect_seconds)
        request = httpx.Request(
            "GET",
            httpx.URL(scheme=url.scheme, host=address, port=url.port, raw_path=url.target.encode()),
            headers={
                "Host": url.host_header,
                "User-Agent": "shuzhai",
                "Accept": _ACCEPT,
                "Accept-Encoding": "identity",
                "Connection": "close",
            },
            extensions={"sni_hostname": url.host, "timeout": timeout.as_dict()},
        )
        # The transport alone: a client would bring proxies, cookies and redirects of its own.
        async with self._transport() as transport:
            response = await transport.handle_async_request(request)
            try:
                if response.status_code in _REDIRECTS:
                    here = f"{url.scheme}://{url.host_header}{url.target}"
                    return _joined(here, response.headers.get("location", ""))
                return await self._read(response, where, left, held)
            finally:
                await response.aclose()

    async def _read(
        self, response: httpx.Response, where: str, left: int, held: HeldBytes
    ) -> bytes:
        if response.status_code != 200:
            raise _lost(where, f"its server answers with status {response.status_code}")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise _lost(where, "its server compresses it, which is not understood here")
        limit = min(self._limits.picture_bytes, left)
        promised = response.headers.get("content-length", "0")
        content = bytearray()
        if promised.isdecimal() and int(promised) <= limit:
            async for piece in response.aiter_raw():
                held.add(len(piece))
                content += piece
                if len(content) > limit:
                    break
            else:
                return bytes(content)
        if left < self._limits.picture_bytes:
            total = self._limits.request_bytes
            raise _lost(where, f"the pictures of a request may have {total} bytes together")
        raise _lost(where, f"it is larger than {limit} bytes")


def fill_in(
    messages: Sequence[Json], pictures: Sequence[LinkedPicture], found: Mapping[str, bytes]
) -> list[Json]:
    """The messages with the bytes of `pictures`, by URL, in the place of their URLs."""
    result = list(messages)
    for picture in pictures:
        message = result[picture.message]
        content = list(message["content"])
        content[picture.part] = _with_bytes(content[picture.part], found[picture.url])
        result[picture.message] = {**message, "content": content}
    return result


def _with_bytes(part: Json, content: bytes) -> Json:
    """The part as if its bytes had been given. Other keys stay: the frontend judges them."""
    kind = part["type"]
    short = _URL_PARTS[kind]
    rest = {key: value for key, value in part.items() if key != kind}
    options = {key: value for key, value in part[kind].items() if key != "url"}
    return {**rest, **options, "type": short, short: content}


def _joined(here: str, location: str) -> str:
    try:
        return urljoin(here, location)
    except ValueError:
        return ""


async def _resolve(host: str, port: int) -> list[str]:
    """A name's addresses, in the order in which the system would try them."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _transports() -> Callable[[], httpx.AsyncBaseTransport]:
    """New transports over one TLS context: none outlives a request, or has a proxy."""
    context = httpx.create_ssl_context()
    return lambda: httpx.AsyncHTTPTransport(verify=context, trust_env=False)


def _lost(where: str, reason: str) -> InvalidRequestError:
    return _bad(f"{where}: the picture cannot be fetched: {reason}; send a data: URL instead")


def _bad(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param="messages")
