"""Fixtures of the server tests: a hand-steered engine behind a live server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from shuzhai.server.chats.database import Database
from shuzhai.server.offers import Offers
from shuzhai.server.page_files import read_page
from tests.server.fakes import FakeEngine, FakeSource
from tests.server.live import HastyProtocol, Live, live_server

PAGE = {
    "index.html": "<!doctype html><title>书斋</title><script src='assets/a.js'></script>",
    "assets/a.js": "console.log('a page');\n" * 100,
    "assets/a.woff2": "not a font",
    "sw.js": "// a worker",
    "manifest.webmanifest": '{"name": "Shuzhai"}',
    "examples/examples.json": "[]",
    "notes.exe": "of a kind that no page has",
    "v1/models": "not the API's",
    "api/status.json": "not the API's either",
    "with space.js": "odd",
}


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
def steady(parts: dict[str, Any]) -> Iterator[Live]:
    """One server for all tests of a module that steer nothing."""
    with live_server([FakeEngine()], **parts) as server:
        yield server


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What a server has besides models: an empty database, a small page, one more model."""
    folder = tmp_path_factory.mktemp("page")
    for name, text in PAGE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    with closing(Database.open(tmp_path_factory.mktemp("home"))) as database:
        offers = Offers(FakeSource)
        yield {"database": database, "offers": offers, "page": read_page(folder)}
