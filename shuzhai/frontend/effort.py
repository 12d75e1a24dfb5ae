"""How long the work for one request may take before the engine sees it."""

from __future__ import annotations

import time

from shuzhai.errors import InvalidRequestError


class Effort:
    """A limit of time that any thread may end at once, when nobody waits for the result any more.

    Who works asks it between pieces of work: a thread cannot be stopped from outside. The time
    begins with the first question: what a request waits for its turn is not its fault.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline: float | None = None

    def end(self) -> None:
        self._deadline = 0.0

    def check(self, where: str) -> None:
        """InvalidRequestError once the time is over."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._seconds
        if time.monotonic() > self._deadline:
            raise InvalidRequestError(
                f"{where}: opening the pictures took more than {self._seconds:.0f} s; "
                "send fewer or smaller ones",
                param="messages",
            )
