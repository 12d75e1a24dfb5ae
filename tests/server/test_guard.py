"""Who may ask at all: names of the server, origins of pages, keys, and what they keep apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shuzhai.server.app import create_app
from shuzhai.server.page_files import read_page
from shuzhai.server.registry import Registry
from shuzhai.server.settings import ServerConfig
from tests.server.fakes import FakeEngine, GivenSource
from tests.server.live import Live, live_server

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hi"}]}


def is_error(body: bytes, code: str) -> bool:
    return json.loads(body)["error"]["code"] == code


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.9.9.9:1", 200),
        ("localhost:6006", 200),
        ("LOCALHOST", 200),
        ("[::1]:6006", 200),
        ("studio.example", 200),
        ("studio.example:443", 200),
        ("evil.example", 403),
        ("evil.example:6006", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("127.0.0.1@evil.example", 403),
        ("2130706433", 403),
        ("0.0.0.0", 403),
        ("[::ffff:8.8.8.8]", 403),
        ("[::1", 403),
        ("169.254.169.254", 403),
    ],
)
def test_host_on_a_loopback_address(named: Live, host: str, status: int) -> None:
    for path in ("/health", "/", "/v1/models"):
        got, _, body = named.ask("GET", path, host=host)
        assert got == status
        assert status == 200 or is_error(body, "host_not_allowed")


@pytest.fixture(scope="module")
def named() -> Iterator[Live]:
    config = ServerConfig(
        allowed_hosts=("studio.example",), allowed_origins=("https://app.example",)
    )
    with live_server([FakeEngine()], config, page=read_page(Path("nowhere"))) as live:
        yield live


def test_any_host_on_an_open_address() -> None:
    with live_server([FakeEngine()], ServerConfig(host="0.0.0.0")) as live:
        assert live.ask("GET", "/health", host="server.lan:6006")[0] == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:6006", 200),
        ("https://127.0.0.1:6006", 200),
        ("https://app.example", 200),
        ("null", 403),
        ("http://127.0.0.1:6007", 403),
        ("http://localhost:6006", 403),
        ("https://app.example.evil.example", 403),
        ("https://app.example:8443", 403),
        ("http://evil.example", 403),
        ("file://", 403),
        ("http://[", 403),
        ("http://127.0.0.1:x", 403),
    ],
)
def test_origin(named: Live, origin: str, status: int) -> None:
    """Another page's request is refused, and never gets the headers that let it read an answer."""
    here = "127.0.0.1:6006"
    got, headers, body = named.ask("POST", CHAT, HELLO, host=here, origin=origin, cookie="a=b")
    assert got == status
    assert status == 200 or is_error(body, "origin_not_allowed")
    _, more, _ = named.ask("GET", "/v1/models", host=here, origin=origin)
    is_allowed = origin == "https://app.example"
    for each in (headers, more):
        assert ("access-control-allow-origin" in each) == is_allowed
        assert "access-control-allow-credentials" not in each
    preflight, told, _ = named.ask("OPTIONS", CHAT, host=here, origin=origin)
    assert told.get("access-control-allow-methods") == ("GET, POST, DELETE" if is_allowed else None)
    assert preflight == {True: 204, False: 405 if status == 200 else 403}[is_allowed]


def test_every_route_but_the_page_needs_the_key(parts: dict[str, Any]) -> None:
    config = ServerConfig(api_keys=("s3cret", "other"))
    with live_server([FakeEngine()], config, **parts) as live:
        app = create_app(Registry([GivenSource("tiny", FakeEngine())], 100), **parts)
        paths = {re.sub(r"\{.*?\}", "tiny", route.path) for route in app.routes}
        assert len(paths) >= 18
        open_paths = {"/health", *parts["page"]}
        assert {"/", "/index.html", "/assets/a.js", "/examples/examples.json"} < open_paths
        odd = ["/nothing", "/v1/nothing", "/api/nothing", "//", "/health/", "/assets/../v1/models"]
        for path in [*paths, *odd]:
            for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
                status, _, body = live.ask(method, path, HELLO if method == "POST" else None)
                if path in open_paths:
                    assert status in (200, 405)
                else:
                    assert status == 401, (method, path)
                    assert method == "HEAD" or is_error(body, "invalid_api_key")


@pytest.mark.parametrize("prefix", ["", "/studio/a"])
def test_a_root_path_opens_nothing(prefix: str, parts: dict[str, Any]) -> None:
    """A proxy may cut its path off or leave it: the same routes, the same locks."""
    config = ServerConfig(root_path="/studio/a", api_keys=("k",))
    with live_server([FakeEngine()], config, **parts) as live:
        for path, status in {
            "/": 200,
            "/assets/a.js": 200,
            "/health": 200,
            "/v1/models": 401,
            "/api/status": 401,
            "/assets/../v1/models": 401,
            "/studio/a/v1/models": 401,
            "/nothing": 401,
        }.items():
            assert live.ask("GET", prefix + path)[0] == status
        assert live.ask("GET", prefix + "/v1/models", authorization="Bearer k")[0] == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ("Bearer s3cret", 200),
        ("bearer s3cret", 200),
        ("Bearer other", 200),
        ("Bearer s3cre", 401),
        ("Bearer s3cret2", 401),
        ("Bearer ", 401),
        ("Basic s3cret", 401),
        ("s3cret", 401),
        ("Bearer \xe9", 401),
    ],
)
def test_keys(keyed: Live, sent: str, status: int) -> None:
    got, headers, _ = keyed.ask("GET", "/v1/models", authorization=sent)
    assert got == status
    assert status == 200 or headers["www-authenticate"] == "Bearer"


@pytest.fixture(scope="module")
def keyed() -> Iterator[Live]:
    with live_server([FakeEngine()], ServerConfig(api_keys=("s3cret", "other"))) as live:
        yield live


def test_prefixes_are_not_shared_between_keys_or_salts(engine: FakeEngine) -> None:
    with live_server([engine], ServerConfig(api_keys=("a", "b"))) as live:
        for key in "aab":
            for salt in ("", "x"):
                body = {**HELLO, "cache_salt": salt}
                assert live.post(CHAT, body, authorization=f"Bearer {key}")[0] == 200
    assert engine.salts[:2] == engine.salts[2:4]
    assert len(set(engine.salts)) == 4
    assert all(len(salt) == 32 for salt in engine.salts)


def test_without_keys_all_share_unless_salted(live: Live, engine: FakeEngine) -> None:
    live.post(CHAT, HELLO)
    live.post(CHAT, {**HELLO, "cache_salt": "x"})
    assert engine.salts[0] == b""
    assert len(engine.salts[1]) == 32
