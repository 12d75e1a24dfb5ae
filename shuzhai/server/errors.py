"""Errors as HTTP answers: one table, and the error object of the OpenAI API.

A reply never tells what the client need not know: messages of errors that are not about the request
(paths, addresses, tracebacks) stay in the server's log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException

from shuzhai.errors import (
    CheckpointError,
    ConfigError,
    ContextLengthError,
    DownloadError,
    EngineDeadError,
    InvalidRequestError,
    MemoryBudgetError,
    ModelNotFoundError,
    OverloadedError,
    ShuzhaiError,
)

MAX_MESSAGE_CHARS = 600
RETRY_AFTER_SECONDS = 2
# The same where a download is under way.
FETCH_RETRY_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Problem:
    """What goes wrong, as a client sees it. `message` None: the error's own message is shown."""

    status: int
    type: str
    code: str
    message: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The OpenAI error object."""
        message = self.message or ""
        if len(message) > MAX_MESSAGE_CHARS:
            message = message[:MAX_MESSAGE_CHARS] + "..."
        # A lone surrogate, quoted from a request, could not be sent.
        message = message.encode("utf-8", "replace").decode("utf-8")
        return {
            "error": {
                "message": message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class RefusedError(Exception):
    """A request that is refused before any engine hears of it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


_INTERNAL = Problem(
    500, "server_error", "internal_error", "The server met an internal fault; see its log."
)

# Every class of `shuzhai.errors`, by name: a test walks the tree.
TABLE: Mapping[type[ShuzhaiError], Problem] = {
    ShuzhaiError: _INTERNAL,
    InvalidRequestError: Problem(400, "invalid_request_error", "invalid_value"),
    ContextLengthError: Problem(400, "invalid_request_error", "context_length_exceeded"),
    ModelNotFoundError: Problem(404, "invalid_request_error", "model_not_found", param="model"),
    CheckpointError: _INTERNAL,
    DownloadError: _INTERNAL,
    ConfigError: _INTERNAL,
    MemoryBudgetError: _INTERNAL,
    OverloadedError: Problem(
        429,
        "rate_limit_error",
        "overloaded",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    ),
    EngineDeadError: Problem(
        503,
        "server_error",
        "engine_dead",
        "The engine has stopped; see the server's log, and start it again.",
    ),
}

_HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}


def problem_of(error: Exception) -> Problem:
    """How to answer a request that ended in `error`. Unknown errors are a plain 500."""
    if isinstance(error, RefusedError):
        return error.problem
    if isinstance(error, HTTPException):
        return Problem(
            error.status_code,
            "invalid_request_error",
            _HTTP_CODES.get(error.status_code, "http_error"),
            error.detail,
            headers=error.headers or {},
        )
    if not isinstance(error, ShuzhaiError):
        return _INTERNAL
    row = next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)
    code, param = row.code, row.param
    if isinstance(error, InvalidRequestError):
        code, param = error.code or code, error.param
    return Problem(row.status, row.type, code, row.message or str(error), param, row.headers)


SHUTTING_DOWN = Problem(
    503, "server_error", "shutting_down", "The server is shutting down; ask when it is back."
)

# What a client may do about a model that cannot be loaded; all else is for the operator.
_LOAD_CODES: Mapping[type[ShuzhaiError], tuple[int, str]] = {
    DownloadError: (503, "model_not_available"),
    MemoryBudgetError: (503, "model_does_not_fit"),
    CheckpointError: (500, "model_damaged"),
    ConfigError: (500, "model_options_invalid"),
    ModelNotFoundError: (500, "model_damaged"),
}


def load_problem(name: str, error: ShuzhaiError, secrets: Iterable[str] = ()) -> Problem:
    """How to answer the requests for a model whose load failed. The operator chose the model, and
    the page shows why it does not come: the error's own words, but for without_secrets."""
    if type(error) not in _LOAD_CODES:
        return problem_of(error)
    status, code = _LOAD_CODES[type(error)]
    message = f"{name} could not be loaded: {without_secrets(str(error), secrets)}"
    return Problem(status, "server_error", code, message, param="model")


def models_busy(name: str, seconds: float) -> Problem:
    """The memory is held by other models, which had no pause for so long."""
    return Problem(
        503,
        "server_error",
        "models_busy",
        f"There is no memory for {name} while other models are in use, and they have been for "
        f"{seconds:.0f} seconds. Try again later, or start the server with more --memory.",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def still_fetched(name: str, status: str, share: float | None) -> Problem:
    """A model that is not on this machine yet, and what comes of it."""
    far = "" if share is None else f", {share:.0%}"
    return Problem(
        503,
        "server_error",
        "model_loading",
        f"{name} is still being fetched ({status}{far}), which goes on. Try again later.",
        param="model",
        headers={"Retry-After": str(FETCH_RETRY_SECONDS)},
    )


def still_leaving(name: str, seconds: float) -> Problem:
    """A model is unloaded, or its load stopped, and that is not through after so long."""
    return Problem(
        503,
        "server_error",
        "model_leaving",
        f"{name} is being unloaded and has not ended for {seconds:.0f} seconds; its memory cannot "
        "be had before. Try again later; if it never ends, start the server again.",
        param="model",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def without_secrets(cause: str, secrets: Iterable[str] = ()) -> str:
    """A fault's text for everybody's eyes: one line, no paths, no addresses in memory.

    `secrets` are paths that are known, whatever they look like; for others there is a pattern.
    """
    line = cause.partition("\n")[0]
    spellings = {each for path in secrets for each in (path, path.replace("\\", "\\\\"))}
    for path in sorted(spellings, key=len, reverse=True):
        line = line.replace(path, "(path)")
    line = line[:MAX_MESSAGE_CHARS]
    line = re.sub(r"0x[0-9a-fA-F]+", "0x...", line)
    return re.sub(r"(?:[A-Za-z]:)?(?:[/\\][^\s/\\:'\"]+){2,}", "(path)", line)


def refusal(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> RefusedError:
    """A request refused before it reaches a route."""
    return RefusedError(
        Problem(status, "invalid_request_error", code, message, headers=headers or {})
    )
