"""The door keeper: what every request must pass before a route sees it.

Pure checks on the request line and headers: sizes, Host (DNS rebinding), Origin (foreign web
pages), API key, kind and size of the body. It reads no body and knows no route, but for those that
are open without a key, and those that take pictures: everything else is locked, known or not.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from shuzhai.server.body import too_large
from shuzhai.server.errors import Problem, RefusedError, refusal
from shuzhai.server.settings import ATTACHMENTS_PATH, ServerConfig, is_loopback

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 2**10
_JSON = frozenset({"application/json"})
_PICTURES = frozenset(f"image/{kind}" for kind in ("png", "jpeg", "webp", "gif", "bmp"))
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Guard:
    """Checks request heads; RefusedError says why one may not pass.

    open_paths  need no key: they show nothing of models or users, and change nothing
    """

    def __init__(self, config: ServerConfig, open_paths: Collection[str]) -> None:
        self._config = config
        self._open_paths = open_paths
        self._host_is_checked = is_loopback(config.host) or bool(config.allowed_hosts)
        self._hosts = {host.lower() for host in config.allowed_hosts}
        self._keys = [_digest(key.encode()) for key in config.api_keys]

    def allowed_origin(self, scope: Scope) -> str | None:
        """The foreign origin that asks and may read the answer, if there is one."""
        origins = Headers(scope=scope).getlist("origin")
        return origins[0] if origins and origins[0] in self._config.allowed_origins else None

    def check(self, scope: Scope) -> bytes:
        """Let a request pass; its tenant stands for the API key it sent (empty without keys)."""
        check_size(scope["headers"], len(scope.get("raw_path") or b""))
        headers = Headers(scope=scope)
        method = scope["method"]
        if self._host_is_checked:
            self._check_host(headers.getlist("host"))
        self._check_origin(method, headers)
        if method == "OPTIONS" and self.allowed_origin(scope):
            return b""  # a browser asks first, without the key
        tenant = self._check_key(scope["path"], headers)
        self._check_body(method, scope["path"], headers)
        return tenant

    def _check_host(self, hosts: Sequence[str]) -> None:
        name = _host_name(hosts[0]) if len(hosts) == 1 else ""
        if is_loopback(name) or name in self._hosts or (hosts and hosts[0].lower() in self._hosts):
            return
        raise refusal(
            403,
            "host_not_allowed",
            "This server does not answer to the name in the Host header. "
            "If it is a proxy's, start the server with --allowed-host NAME.",
        )

    def _check_origin(self, method: str, headers: Headers) -> None:
        here = headers.get("host", "")
        for origin in headers.getlist("origin"):
            if origin in self._config.allowed_origins or _is_same(origin, here):
                continue
            if method in _SAFE_METHODS:
                continue  # without CORS headers the page cannot read the answer
            raise refusal(
                403,
                "origin_not_allowed",
                "A web page of another origin may not use this server. "
                "If it is yours, start the server with --allowed-origin ORIGIN.",
            )

    def _check_key(self, path: str, headers: Headers) -> bytes:
        if not self._keys or path in self._open_paths:
            return b""
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        digest = _digest(sent.strip().encode("utf-8", "replace"))
        # All are compared, whichever fits, so that time tells nothing.
        fits = [hmac.compare_digest(digest, key) for key in self._keys]
        if scheme.lower() != "bearer" or not any(fits):
            raise RefusedError(
                Problem(
                    401,
                    "authentication_error",
                    "invalid_api_key",
                    "This server needs an API key: send the header Authorization: Bearer KEY.",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            )
        return digest

    def _check_body(self, method: str, path: str, headers: Headers) -> None:
        length = int(headers.get("content-length", "0"))
        has_body = length > 0 or "transfer-encoding" in headers
        if method == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            kinds = _PICTURES if path == ATTACHMENTS_PATH else _JSON
            if kind not in kinds:
                allowed = " or ".join(sorted(kinds))
                raise refusal(415, "unsupported_media_type", f"The Content-Type must be {allowed}.")
            if headers.get("content-encoding", "identity").lower() != "identity":
                raise refusal(415, "unsupported_media_type", "Send the body uncompressed.")
        elif has_body:
            raise refusal(400, "unexpected_body", f"A {method} request has no body here.")
        limit = self._config.body_limit(path)
        if length > limit:
            raise too_large(limit)


def check_size(headers: Sequence[tuple[bytes, bytes]], path_bytes: int) -> None:
    num_bytes = path_bytes + sum(len(name) + len(value) for name, value in headers)
    if len(headers) > MAX_HEADERS or num_bytes > MAX_HEADER_BYTES:
        raise refusal(
            431,
            "headers_too_large",
            f"A request has at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes in all.",
        )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _host_name(host: str) -> str:
    """`Example.org:80`, `[::1]:80` or `::1` without port and brackets; "" if it is not one."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_same(origin: str, host: str) -> bool:
    """Whether a page of `origin` was served by us. A TLS proxy changes the scheme, not the host."""
    try:
        page = urlsplit(origin)
        here = urlsplit(f"{page.scheme}://{host}")
        if page.scheme not in _DEFAULT_PORTS or not page.hostname:
            return False
        default = _DEFAULT_PORTS[page.scheme]
        return (page.hostname, page.port or default) == (here.hostname, here.port or default)
    except ValueError:
        return False
