"""How much of its clients' requests a server holds in memory at a time."""

from __future__ import annotations

from shuzhai.server.errors import RETRY_AFTER_SECONDS, Problem, RefusedError

# Of each request, so that those who send pictures never keep out those who send words.
FREE_BYTES = 256 * 2**10


class ByteBudget:
    """What may be held over all requests together."""

    def __init__(self, max_bytes: int) -> None:
        self.num_free = max_bytes


class HeldBytes:
    """What one request holds: bytes that arrived for it and are not yet part of a prompt."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._num_bytes = -FREE_BYTES
        self._num_taken = 0

    def add(self, num_bytes: int) -> None:
        """RefusedError (503) if the server holds too much already."""
        self._num_bytes += num_bytes
        wanted = max(0, self._num_bytes - self._num_taken)
        if wanted > self._budget.num_free:
            raise RefusedError(
                Problem(
                    503,
                    "server_error",
                    "too_many_bytes",
                    "The server holds as many bytes of requests as it may; try again in a moment.",
                    headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
                )
            )
        self._budget.num_free -= wanted
        self._num_taken += wanted

    def release(self) -> None:
        """Nothing is held any more; may be called again."""
        self._budget.num_free += self._num_taken
        self._num_taken = 0
        self._num_bytes = -FREE_BYTES
