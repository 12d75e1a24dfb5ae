"""A load in a thread of its own: what it tells meanwhile, and how it is stopped."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from shuzhai.hub.progress import Progress, SilentProgress

T = TypeVar("T")


class LoadStoppedError(Exception):
    """Nobody wants the load any more. Raised in its thread when that next tells its progress."""


class LoadProgress:
    """hub.progress.Progress, and the share of the weights; `also` is told of the stages, too.

    status    of the stage, in words
    has_come  something of the model is here, so that the rest can be hoped for
    is_here   all of it is, so that only the disk is waited for, and the memory
    Written by one thread at a time, that of the work which goes on; read by any other.
    """

    def __init__(self, also: Progress | None = None) -> None:
        self.status = "Starting"
        self.has_come = False
        self.is_here = False
        self.is_stopped = False
        self._also = SilentProgress() if also is None else also
        self._done = 0.0
        self._total: float | None = None
        self._has_begun = False
        self._ends: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    @property
    def is_measured(self) -> bool:
        """Whether it is told what comes of the stage."""
        return self._total is not None

    @property
    def share(self) -> float | None:
        """Of the stage, 0 to 1; None where its size is not known."""
        total = self._total
        return min(1.0, max(0.0, self._done / total)) if total else None

    def begin(self, stage: str, total_bytes: int | None) -> None:
        self._go_on()
        self.has_come |= self._has_begun
        self._has_begun = True
        self.status, self._done, self._total = stage, 0.0, total_bytes
        self._also.begin(stage, total_bytes)

    def advance(self, num_bytes: int) -> None:
        self._go_on()
        self.has_come |= num_bytes > 0
        self._done += num_bytes
        self._also.advance(num_bytes)

    def loaded(self, share: float) -> None:
        """So much of the weights is in memory."""
        self._go_on()
        self.has_come = True
        self.status, self._done, self._total = "Loading", share, 1.0

    def detach(self, also: Progress) -> None:
        """Whoever looked by that one looks no more; the work goes on."""
        if self._also is also:
            self._also = SilentProgress()

    @contextmanager
    def ended_by(self, end: Callable[[], None]) -> Iterator[None]:
        with self._lock:
            self._go_on()
            self._ends.append(end)
        try:
            yield
        finally:
            with self._lock:
                self._ends.remove(end)

    def stop(self) -> None:
        """Nobody wants it any more: what it waits for is broken off at once."""
        with self._lock:
            self.is_stopped = True
            for end in self._ends:
                end()

    def _go_on(self) -> None:
        if self.is_stopped:
            raise LoadStoppedError


async def in_daemon_thread(call: Callable[[], T]) -> T:
    """The result of call(). A pool's threads would keep the process from ending while they work.

    What a call that fails had in its variables is freed before its error is raised here.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = call()
        # Whatever goes wrong in the thread must reach the one who waits for it: also a panic of a
        # library in Rust, which is no Exception and must not end the event loop.
        except BaseException as error:
            _clear_frames(error)
            is_usual = isinstance(error, Exception)
            future.set_exception(error if is_usual else RuntimeError(repr(error)))
        else:
            future.set_result(result)

    threading.Thread(target=run, name="shuzhai-load", daemon=True).start()
    return await asyncio.wrap_future(future)


def _clear_frames(error: BaseException) -> None:
    """Drop the variables of the calls that an error, or one that led to it, ended.

    They hold the weights, and the error is part of a cycle: it would keep them for long.
    """
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        each = todo.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            todo += [each.__cause__, each.__context__]
