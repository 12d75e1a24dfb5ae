"""Fixtures of the server tests: a hand-steered engine behind a live server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.fakes import FakeEngine
from tests.server.live import HastyProtocol, Live, live_server


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def live(engine: FakeEngine) -> Iterator[Live]:
    with live_server([engine]) as server:
        yield server


@pytest.fixture
def hasty(engine: FakeEngine) -> Iterator[Live]:
    """A server whose patience is short."""
    with live_server([engine], protocol=HastyProtocol) as server:
        yield server


@pytest.fixture(scope="module")
def steady() -> Iterator[Live]:
    """One server for all tests of a module that steer nothing."""
    with live_server([FakeEngine()]) as server:
        yield server
