"""What is refused before a model is loaded for it, and how long a request waits for a download."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from shuzhai.engine.memory import MemoryNeed
from shuzhai.server.registry import Registry
from shuzhai.server.source import ModelFacts
from tests.server.fakes import FakeSource
from tests.server.live import Live, live_registry, wait_until

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.fixture
def sources() -> list[FakeSource]:
    return [FakeSource("there", 60, 60, 60), FakeSource("asked", 60, 60, 60)]


@pytest.fixture
def registry(sources: list[FakeSource]) -> Registry:
    return Registry(sources, 100, fetch_seconds=0.3)


@pytest.fixture
def live(registry: Registry) -> Iterator[Live]:
    with live_registry(registry) as live:
        yield live


def ask(live: Live, path: str = CHAT, **options: Any) -> tuple[int, dict[str, Any]]:
    what = {"messages": HELLO} if path == CHAT else {"prompt": "hi"}
    status, answer = live.post(path, {"model": "asked", **what, **options})
    return status, answer.get("error", {})


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 99}, "n"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"max_tokens": 257}, "max_tokens"),
        ({"min_tokens": 257}, "min_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "alien", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [PICTURE]}]}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
    ],
)
def test_a_chat_that_must_fail_loads_nothing(
    live: Live, sources: list[FakeSource], options: dict[str, Any], param: str
) -> None:
    assert live.post("/v1/models/load", {"model": "there"})[0] == 200
    status, error = ask(live, **options)
    assert (status, error["param"]) == (400, param)
    assert sources[1].num_fetches == 0
    assert not sources[0].engine.stopping


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["x"] * 100, "n": 2}, "prompt"),
        ({"best_of": 3}, "best_of"),
    ],
)
def test_a_completion_that_must_fail_loads_nothing(
    live: Live, sources: list[FakeSource], options: dict[str, Any], param: str
) -> None:
    status, error = ask(live, "/v1/completions", **options)
    assert (status, error["param"]) == (400, param)
    assert sources[1].num_fetches == 0


def test_what_the_models_defaults_may_mend_is_not_refused(live: Live) -> None:
    assert ask(live, min_tokens=3)[0] == 200
    assert ask(live, max_tokens=256 - len("[user]hi") - 1)[0] == 200
    assert ask(live, "/v1/completions", echo=True, max_tokens=0)[0] == 200


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_download_is_waited_for_shortly_and_goes_on(
    live: Live, registry: Registry, sources: list[FakeSource], path: str
) -> None:
    sources[1].may_fetch.clear()
    body = {"model": "asked", "messages": HELLO} if path == CHAT else {"prompt": "hi"}
    status, headers, content = live.ask("POST", path, {"model": "asked", **body})
    error = json.loads(content)["error"]
    assert (status, error["code"], error["param"]) == (503, "model_loading", "model")
    assert int(headers["retry-after"]) > 0
    assert "asked is still being fetched (Downloading asked, 25%)" in error["message"]
    model = registry.models[1]
    assert (model.state, model.num_holds) == ("loading", 0)
    sources[1].may_fetch.set()
    assert wait_until(lambda: model.state == "loaded")
    assert sources[1].num_fetches == 1
    assert ask(live, path)[0] == 200


def test_a_load_from_the_disk_is_waited_for(live: Live, sources: list[FakeSource]) -> None:
    """Also by who asked while it was fetched; and who asks for the load alone is patient."""
    source = sources[1]
    for path in (CHAT, "/v1/models/load"):
        gate = source.may_load if path == CHAT else source.may_fetch
        gate.clear()
        body = {"model": "asked", "messages": HELLO} if path == CHAT else {"model": "asked"}
        content = json.dumps(body).encode()
        with live.connect() as sock:
            sock.sendall(
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n".encode()
                + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content)
                + content
            )
            sock.settimeout(0.8)
            with pytest.raises(TimeoutError):
                sock.recv(10)
            gate.set()
            sock.settimeout(20)
            assert sock.recv(12) == b"HTTP/1.1 200"
        assert live.post("/v1/models/unload", {"model": "asked"})[0] in (200, 409)
        assert wait_until(lambda: live.post("/v1/models/unload", {"model": "asked"})[0] == 200)


def test_what_was_unknown_is_looked_at_again(
    live: Live, registry: Registry, sources: list[FakeSource]
) -> None:
    unknown, known = ModelFacts(("text",)), ModelFacts(("text",), 9, MemoryNeed(60, 60, 60))
    registry.models[0].facts = unknown
    sources[0].look = lambda: known  # type: ignore[method-assign]
    assert ask(live)[0] == 200
    assert registry.models[0].facts is known
