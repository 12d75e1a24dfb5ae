"""How the hub tells what it is doing, without knowing who looks at it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """Told of one stage after another; the last one ends when the call that was given it returns.

    One call comes after the other, but not always from one thread, and none need come from the
    thread that shows them or stops showing them.
    """

    def begin(self, stage: str, total_bytes: int | None) -> None:
        """A new stage, such as "Downloading smollm2-135m"; None: its size is not known."""
        ...

    def advance(self, num_bytes: int) -> None:
        """That much more is done. Below 0 when something has to be done again."""
        ...

    def ended_by(self, end: Callable[[], None]) -> AbstractContextManager[None]:
        """While this lasts, `end` breaks off what the work waits for. It is called from any thread,
        when nobody wants the work any more; what the work is told next raises then."""
        ...


class SilentProgress:
    """Says nothing."""

    def begin(self, stage: str, total_bytes: int | None) -> None:
        pass

    def advance(self, num_bytes: int) -> None:
        pass

    def ended_by(self, end: Callable[[], None]) -> AbstractContextManager[None]:
        return nullcontext()


def format_bytes(num_bytes: int) -> str:
    """In units of a thousand, as hubs and indexes show sizes: 93 MB, 3.8 GB."""
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:.1f} GB"
    if num_bytes >= 1e6:
        return f"{num_bytes / 1e6:.0f} MB"
    return f"{num_bytes / 1e3:.0f} kB"
