"""The HTTP boundary: an ASGI middleware that lets in what the guard passes and answers every error.

The one place of the server that catches every exception of a request. What goes wrong before the
first byte becomes a status with an error object; in the middle of an event stream, a last event.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from contextlib import ExitStack

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shuzhai.errors import ShuzhaiError
from shuzhai.server.body import BoundedBody
from shuzhai.server.errors import Problem, RefusedError, problem_of
from shuzhai.server.guard import Guard
from shuzhai.server.held import ByteBudget, HeldBytes
from shuzhai.server.settings import ServerConfig

_CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "font-src 'self'",
        "connect-src 'self'",
        "worker-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
SECURITY_HEADERS = {
    "content-security-policy": _CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
# A client that is still sending when it is refused gets this much patience to read why.
_DRAIN_SECONDS = 10.0
_DRAIN_IDLE_SECONDS = 1.0
_DRAIN_BYTES = 64 * 2**20
_EVENT_STREAM = "text/event-stream"


class ClientGoneError(Exception):
    """The client closed the connection: nobody waits for an answer."""


class Boundary:
    """See the module. `app` is the router; other than HTTP only the lifespan passes.

    open_paths  need no API key
    """

    def __init__(self, app: ASGIApp, config: ServerConfig, open_paths: Collection[str]) -> None:
        self._app = app
        self._config = config
        self._guard = Guard(config, open_paths)
        self._budget = ByteBudget(config.max_held_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        # The guard and the router see one and the same path.
        is_bare_root = scope["path"] == self._config.root_path != ""
        path = _without_root(scope["path"], self._config.root_path)
        scope = {**scope, "path": path, "root_path": ""}
        limit, held = self._config.body_limit(path), HeldBytes(self._budget)
        body = BoundedBody(receive, self._config, limit, held, expected=_may_have_body(scope))
        reply = _Reply(send, body)
        # What a request holds until it is over, however it ends: `state.leaving` gives it back.
        leaving = ExitStack()
        leaving.callback(held.release)
        try:
            reply.cors_origin = self._guard.allowed_origin(scope)
            tenant = self._guard.check(scope)
            if scope["method"] == "OPTIONS" and reply.cors_origin:
                await _preflight()(scope, body.receive, reply.send)
                return
            if is_bare_root and scope["method"] in ("GET", "HEAD"):
                # The page's addresses are relative to the slash at the end.
                to_page = RedirectResponse(f"{self._config.root_path}/", 308)
                await to_page(scope, body.receive, reply.send)
                return
            scope.setdefault("state", {}).update(tenant=tenant, held=held, leaving=leaving)
            await self._app(scope, body.receive, reply.send)
        except ClientGoneError:
            return
        except Exception as error:
            held.release()
            await self._answer_error(error, scope, reply)
        finally:
            leaving.close()

    async def _answer_error(self, error: Exception, scope: Scope, reply: _Reply) -> None:
        problem = problem_of(error)
        if problem.status >= 500 and not isinstance(error, RefusedError):
            expected = isinstance(error, ShuzhaiError)
            log = logging.getLogger(__name__)
            log.error("request failed: %s", error, exc_info=None if expected else error)
        if not reply.started:
            await error_response(problem)(scope, reply.receive, reply.send)
        elif reply.is_event_stream:
            event = json.dumps(problem.body(), ensure_ascii=False)
            last = f"data: {event}\n\ndata: [DONE]\n\n".encode()
            await reply.send({"type": "http.response.body", "body": last, "more_body": False})
        else:
            raise error


def error_response(problem: Problem) -> JSONResponse:
    return JSONResponse(problem.body(), problem.status, headers=dict(problem.headers))


def _without_root(path: str, root: str) -> str:
    """A proxy that shows this server under a path may cut it off, or leave it."""
    if root and (path == root or path.startswith(root + "/")):
        return path[len(root) :] or "/"
    return path


def _may_have_body(scope: Scope) -> bool:
    return any(
        (name == b"content-length" and value != b"0") or name == b"transfer-encoding"
        for name, value in scope["headers"]
    )


def _preflight() -> Response:
    return Response(
        status_code=204,
        headers={
            "access-control-allow-methods": "GET, POST, DELETE",
            "access-control-allow-headers": "authorization, content-type",
            "access-control-max-age": "600",
        },
    )


class _Reply:
    """An ASGI `send` that adds the headers every answer has, and closes what was not read."""

    def __init__(self, send: Send, body: BoundedBody) -> None:
        self._send = send
        self._body = body
        self.receive = body.receive
        self.cors_origin: str | None = None
        self.started = False
        self.is_event_stream = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start(message)
        ends = message["type"] == "http.response.body" and not message.get("more_body", False)
        if ends and not self._body.complete:
            await self._send({**message, "more_body": True})
            await self._body.drain(_DRAIN_SECONDS, _DRAIN_IDLE_SECONDS, _DRAIN_BYTES)
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    def _start(self, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        for name, value in SECURITY_HEADERS.items():
            headers[name] = value
        headers.setdefault("cache-control", "no-store")
        if self.cors_origin is not None:
            headers["access-control-allow-origin"] = self.cors_origin
            headers.add_vary_header("Origin")
        if not self._body.complete:
            headers["connection"] = "close"
        self.started = True
        self.is_event_stream = headers.get("content-type", "").startswith(_EVENT_STREAM)
