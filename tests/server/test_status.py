"""All the models that the page shows, and one more that is served while the server runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shuzhai.config import EngineConfig, Environment
from shuzhai.errors import DownloadError
from shuzhai.hub.catalog import CATALOG
from shuzhai.server.offers import Offers
from shuzhai.server.registry import Registry
from shuzhai.server.settings import ServerConfig
from shuzhai.server.source import CheckpointSource
from tests.server.fakes import FakeSource
from tests.server.live import Live, live_registry, wait_until
from tests.server.play import play, refused, states, until

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]
NAMES = list(CATALOG)
KEYS = set(
    """id title served installed shipped download_bytes state progress status max_model_len
    input_modalities memory_bytes plan sampling languages""".split()
)


class Sources(dict[str, FakeSource]):
    """Made when they are asked for."""

    def __missing__(self, name: str) -> FakeSource:
        return self.setdefault(name, FakeSource(name, 30, 40, 50))


@pytest.fixture
def sources() -> Sources:
    return Sources()


@pytest.fixture
def registry(sources: Sources) -> Registry:
    return Registry([sources["own"]], 100)


@pytest.fixture
def live(registry: Registry, sources: Sources) -> Iterator[Live]:
    with live_registry(registry, offers=Offers(sources.__getitem__)) as live:
        yield live


def status(live: Live, **headers: str) -> dict[str, Any]:
    code, _, body = live.ask("GET", "/api/status", **headers)
    assert code == 200
    return json.loads(body)


def model(live: Live, name: str) -> dict[str, Any]:
    return next(each for each in status(live)["models"] if each["id"] == name)


def pull(live: Live, name: object, **more: object) -> tuple[int, dict[str, Any]]:
    return live.post("/api/models/pull", {"model": name, **more})


def test_all_models_are_shown(live: Live, sources: Sources) -> None:
    shown = status(live)
    assert set(shown) == {"version", "can_pull", "models"}
    assert shown["can_pull"] is True
    assert [each["id"] for each in shown["models"]] == ["own", *NAMES]
    assert all(set(each) == KEYS for each in shown["models"])
    own, other, *_ = shown["models"]
    assert (own["served"], own["state"], own["title"]) == (True, "unloaded", "The own")
    assert own["plan"] == {
        "fits": True, "least_bytes": 30, "good_bytes": 40, "budget_bytes": 100,
    }  # fmt: skip
    assert (other["served"], other["installed"], other["state"]) == (False, False, "absent")
    assert (other["download_bytes"], other["languages"]) == (100, ["en"])
    sources[NAMES[1]].has_come = True  # somebody has pulled it
    assert model(live, NAMES[1])["state"] == "unloaded"
    assert model(live, NAMES[1])["installed"] is True


def test_a_loaded_one_tells_its_defaults(live: Live) -> None:
    assert model(live, "own")["sampling"] is None
    assert live.post("/v1/models/load", {"model": "own"})[0] == 200
    for state in ("loaded", "unloaded"):
        shown = model(live, "own")
        assert shown["state"] == state
        assert (shown["memory_bytes"] is None) == (state == "unloaded")
        assert shown["sampling"] == {
            "temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
        }  # fmt: skip
        assert live.post("/v1/models/unload", {"model": "own"})[0] == 200


def test_a_pull(live: Live, sources: Sources, registry: Registry) -> None:
    """Its progress is shown; it takes no memory before it is asked something."""
    name = NAMES[3]
    sources[name].may_fetch.clear()
    code, shown = pull(live, name)
    assert (code, shown["id"], shown["state"], shown["served"]) == (200, name, "loading", True)
    assert wait_until(lambda: model(live, name)["progress"] == 0.25)
    shown = model(live, name)
    assert (shown["state"], shown["status"]) == ("loading", f"Downloading {name}")
    assert [each["id"] for each in status(live)["models"]][:2] == ["own", name]
    assert pull(live, name)[0] == 200  # goes on
    sources[name].may_fetch.set()
    assert wait_until(lambda: model(live, name)["state"] == "unloaded")
    assert model(live, name)["installed"] is True
    assert (sources[name].num_fetches, sources[name].engines) == (1, [])
    assert registry.models[1].memory_bytes == 0
    code, answer = live.post(CHAT, {"model": name, "messages": HELLO})
    assert (code, answer["model"]) == (200, name)
    assert [each["id"] for each in json.loads(live.ask("GET", "/v1/models")[2])["data"]] == [
        "own", name,
    ]  # fmt: skip
    # Who names no model means the one that was alone at the start.
    assert live.post(CHAT, {"messages": HELLO})[1]["model"] == "own"


def test_a_pull_of_what_is_here(live: Live, sources: Sources) -> None:
    sources[NAMES[0]].has_come = True
    code, shown = pull(live, NAMES[0].upper())
    assert (code, shown["state"], shown["installed"]) == (200, "unloaded", True)
    assert sources[NAMES[0]].num_fetches == 0
    assert pull(live, "own")[0] == 200
    assert len(status(live)["models"]) == 1 + len(NAMES)


def test_a_pull_that_fails_can_be_tried_again(live: Live, sources: Sources) -> None:
    name = NAMES[4]
    sources[name].fetch_error = DownloadError("the hub does not answer")
    assert pull(live, name)[0] == 200
    assert wait_until(lambda: model(live, name)["state"] == "failed")
    assert "the hub does not answer" in model(live, name)["status"]
    sources[name].fetch_error = None
    assert pull(live, name)[0] == 200
    assert wait_until(lambda: model(live, name)["state"] == "unloaded")
    assert model(live, name)["status"] is None


def test_a_pull_that_is_stopped(live: Live, sources: Sources) -> None:
    name = NAMES[3]
    sources[name].may_fetch.clear()
    assert pull(live, name)[0] == 200
    code, shown = live.post("/v1/models/unload", {"model": name})
    assert (code, shown["state"]) == (200, "unloaded")
    assert model(live, name)["served"] is True


def test_an_answer_that_waits_for_a_pull(live: Live, sources: Sources, registry: Registry) -> None:
    """It has the model loaded when it is here."""
    name = NAMES[3]
    sources[name].may_fetch.clear()
    assert pull(live, name)[0] == 200
    content = json.dumps({"model": name, "messages": HELLO}).encode()
    with live.connect() as sock:
        sock.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        assert wait_until(lambda: registry.models[1].num_holds == 1)
        sources[name].may_fetch.set()
        assert sock.recv(12) == b"HTTP/1.1 200"
    assert sources[name].num_fetches == 2  # the second finds it here


@pytest.mark.parametrize(
    ("name", "code"),
    [("nix", 404), ("../../etc", 404), ("", 404), ("x" * 257, 400), (None, 400), (3, 400)],
)
def test_what_is_no_model(live: Live, name: object, code: int) -> None:
    assert pull(live, name)[0] == code
    assert len(status(live)["models"]) == 1 + len(NAMES)


def test_other_words(live: Live) -> None:
    assert pull(live, NAMES[0], source="http://evil.example")[0] == 400
    assert live.ask("GET", "/api/status?x=1")[0] == 400


def test_no_pull(registry: Registry, sources: Sources) -> None:
    offers = Offers(sources.__getitem__, may_pull=False)
    with live_registry(registry, offers=offers) as live:
        assert status(live)["can_pull"] is False
        code, answer = pull(live, NAMES[0])
        assert (code, answer["error"]["code"]) == (403, "pull_not_allowed")
        assert len(registry.models) == 1


def test_the_page_needs_the_key(registry: Registry, sources: Sources) -> None:
    config = ServerConfig(api_keys=("k",))
    with live_registry(registry, config, offers=Offers(sources.__getitem__)) as live:
        assert live.ask("GET", "/api/status")[0] == 401
        assert pull(live, NAMES[0])[0] == 401
        assert status(live, authorization="Bearer k")["models"]


def test_the_catalog_as_it_is(tmp_path: Path) -> None:
    """Nothing is here; all is known that a choice needs. Paths are told nobody."""
    environment = Environment.read({"SHUZHAI_HOME": str(tmp_path)})
    config = EngineConfig(device="cpu")
    offers = Offers(lambda name: CheckpointSource(name, config, environment, is_name=True))
    with live_registry(Registry([FakeSource("own")], 2 * 2**30), offers=offers) as live:
        _, *offered = status(live)["models"]
    assert [each["id"] for each in offered] == NAMES
    by_id = {each["id"]: each for each in offered}
    small, large = by_id["tiny-internvl2"], by_id["internlm2-chat-1.8b"]
    assert (small["shipped"], small["state"], small["plan"]["fits"]) == (True, "unloaded", True)
    assert (large["shipped"], large["state"], large["plan"]["fits"]) == (False, "absent", False)
    assert 3e9 < large["plan"]["least_bytes"] < large["plan"]["good_bytes"] < 6e9
    assert "image" in by_id["internvl2-2b"]["input_modalities"]
    assert by_id["smollm2-135m"]["languages"] == ["en"]
    assert str(tmp_path) not in json.dumps(offered)


def test_two_add_the_same() -> None:
    async def scenario() -> None:
        registry = Registry([FakeSource("own")], 100)
        first = await registry.add(FakeSource("more"))
        assert await registry.add(FakeSource("more")) is first
        assert states(registry) == "UU"
        registry.begin_fetch(first)
        registry.begin_fetch(first)
        assert states(registry) == "UL"
        await until(lambda: states(registry) == "UU")
        assert first.source.num_fetches == 1
        await registry.shutdown()
        assert (await refused(registry.add(FakeSource("late"))))[0] == 503

    play(scenario)


def test_one_more_may_push_an_idle_one_out() -> None:
    """It shares the budget as if it had been there from the start."""

    async def scenario() -> None:
        registry = Registry([FakeSource("own", 60, 60, 60)], 100)
        await registry.load("own")
        await registry.add(FakeSource("more", 60, 60, 60))
        await registry.load("more")
        assert states(registry) == "Ul"
        assert sum(each.memory_bytes for each in registry.models) <= 100
        await registry.shutdown()

    play(scenario)
