"""Scenarios of a registry, played in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from shuzhai.server.errors import RefusedError
from shuzhai.server.registry import Registry


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it does not come to that")


def states(registry: Registry) -> str:
    """A letter a model: U, L (loading), l (loaded), f."""
    letters = {"unloaded": "U", "loading": "L", "loaded": "l", "failed": "f"}
    return "".join(letters[model.state] for model in registry.models)


async def refused(work: Awaitable[object]) -> tuple[int, str, str]:
    with pytest.raises(RefusedError) as caught:
        await work
    problem = caught.value.problem
    return problem.status, problem.code, problem.message or ""
