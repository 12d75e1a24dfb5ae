"""How the hub tells what it is doing, without knowing who looks at it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told of one stage after another; the last one ends when the call that was given it returns.

    All calls come from one thread.
    """

    def begin(self, stage: str, total_bytes: int | None) -> None:
        """A new stage, such as "Downloading smollm2-135m"; None: its size is not known."""
        ...

    def advance(self, num_bytes: int) -> None:
        """That much more is done. Below 0 when something has to be done again."""
        ...


class SilentProgress:
    """Says nothing."""

    def begin(self, stage: str, total_bytes: int | None) -> None:
        pass

    def advance(self, num_bytes: int) -> None:
        pass


def format_bytes(num_bytes: int) -> str:
    """In units of a thousand, as hubs and indexes show sizes: 93 MB, 3.8 GB."""
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:.1f} GB"
    if num_bytes >= 1e6:
        return f"{num_bytes / 1e6:.0f} MB"
    return f"{num_bytes / 1e3:.0f} kB"
