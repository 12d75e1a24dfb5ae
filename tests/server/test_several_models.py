"""Several models over HTTP, with real engines: what clients see, and what memory is left."""

from __future__ import annotations

import json
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shuzhai.config import EngineConfig, Environment
from shuzhai.errors import ModelNotFoundError
from shuzhai.server.registry import Registry
from shuzhai.server.settings import ServerConfig
from shuzhai.server.source import CheckpointSource
from tests.server.fakes import FakeSource
from tests.server.live import Live, live_registry, wait_until
from tests.support.tiny import TinyShape, write_checkpoint
from tests.support.tiny_vision import write_internvl2, write_xcomposer2

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "The quick brown fox"}]
CONFIG = EngineConfig(device="cpu", dtype="float32", max_num_seqs=4)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment.read({"SHUZHAI_HOME": str(tmp_path_factory.mktemp("home"))})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("models")
    text = [write_checkpoint(root / name, seed=seed) for seed, name in enumerate("ab")]
    return [str(folder) for folder in text]


def registry_of(folders: list[str], home: Environment, budget: int, **options: Any) -> Registry:
    return Registry([CheckpointSource(f, CONFIG, home) for f in folders], budget, **options)


def need_of(folders: list[str], home: Environment) -> int:
    need = CheckpointSource(folders[0], CONFIG, home).look().need
    assert need is not None
    return need.good_bytes


@pytest.fixture
def roomy(folders: list[str], home: Environment) -> Iterator[Live]:
    with live_registry(registry_of(folders, home, 2**30)) as live:
        yield live


def models(live: Live, **headers: str) -> dict[str, dict[str, Any]]:
    status, _, body = live.ask("GET", "/v1/models", **headers)
    assert status == 200
    return {model["id"]: model for model in json.loads(body)["data"]}


def chat(live: Live, model: str | None, **options: Any) -> tuple[int, dict[str, Any]]:
    body = {"messages": HELLO, "temperature": 0, "max_tokens": 8, **options}
    return live.post(CHAT, body | ({} if model is None else {"model": model}))


def test_models_come_when_they_are_asked_for(roomy: Live) -> None:
    before = models(roomy)
    assert [m["state"] for m in before.values()] == ["unloaded", "unloaded"]
    assert before["a"]["max_model_len"] == 2048
    assert before["a"]["memory_bytes"] is None
    assert before["a"]["input_modalities"] == ["text"]
    status, answer = chat(roomy, "b")
    assert (status, answer["model"]) == (200, "b")
    after = models(roomy)
    assert [m["state"] for m in after.values()] == ["unloaded", "loaded"]
    assert after["b"]["memory_bytes"] > 0
    assert after["b"]["idle_seconds"] is not None
    assert chat(roomy, "a")[1]["choices"] != answer["choices"]
    assert chat(roomy, "b")[1]["choices"] == answer["choices"]


def test_names(roomy: Live) -> None:
    status, answer = chat(roomy, "../a")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert "a, b" in answer["error"]["message"]
    status, answer = chat(roomy, None)
    assert (status, answer["error"]["code"]) == (400, "missing_required_parameter")
    assert [m["state"] for m in models(roomy).values()] == ["unloaded", "unloaded"]


def test_load_and_unload(roomy: Live) -> None:
    status, model = roomy.post("/v1/models/load", {"model": "a"})
    assert (status, model["id"], model["state"]) == (200, "a", "loaded")
    assert model["memory_bytes"] > 0
    status, model = roomy.post("/v1/models/unload", {"model": "a"})
    assert (status, model["state"], model["memory_bytes"]) == (200, "unloaded", None)
    for path in ("load", "unload"):
        for body, expected in (
            ({"model": "c"}, 404), ({}, 400), ({"model": 3}, 400), ({"model": "a", "x": 1}, 400),
            ([], 400),
        ):  # fmt: skip
            status, answer = roomy.post(f"/v1/models/{path}", body)
            assert (status, set(answer)) == (expected, {"error"})
        assert roomy.ask("GET", f"/v1/models/{path}")[0] == 404


def test_they_need_the_key(folders: list[str], home: Environment) -> None:
    config = ServerConfig(api_keys=("k",))
    with live_registry(registry_of(folders, home, 2**30), config) as live:
        for path in ("load", "unload"):
            assert live.post(f"/v1/models/{path}", {"model": "a"})[0] == 401
            reply = live.post(f"/v1/models/{path}", {"model": "a"}, authorization="Bearer k")
            assert reply[0] == 200


def test_a_stream_goes_on_while_others_come_and_go(folders: list[str], home: Environment) -> None:
    """The budget holds one and a half: the busy one stays."""
    budget = need_of(folders, home) * 3 // 2
    registry = registry_of(folders, home, budget, room_seconds=0.3)
    with live_registry(registry) as live:
        stream = live.client().chat.completions.create(
            model="a", messages=HELLO, stream=True, max_tokens=1500,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        next(stream)
        assert live.post("/v1/models/unload", {"model": "a"})[0] == 409
        status, answer = chat(live, "b")
        assert (status, answer["error"]["code"]) == (503, "models_busy")
        assert models(live)["a"]["requests"] == 1
        stream.close()
        registry._room_seconds = 15.0
        assert wait_until(lambda: models(live)["a"]["requests"] == 0)
        assert chat(live, "b")[0] == 200
        assert [m["state"] for m in models(live).values()] == ["unloaded", "loaded"]


def test_disconnects_leak_no_hold(folders: list[str], home: Environment) -> None:
    """Two models that cannot be loaded together, and clients that leave at any time."""
    rng = random.Random(5)
    registry = registry_of(folders, home, need_of(folders, home) * 3 // 2)
    with live_registry(registry) as live:
        for i in range(200):
            body = {"model": rng.choice("ab"), "messages": HELLO, "max_tokens": 200, "n": 1 + i % 2}
            content = json.dumps({**body, "stream": i % 3 > 0, "ignore_eos": True}).encode()
            sock = live.connect()
            sock.sendall(
                f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(content)}\r\n\r\n".encode()
                + content
            )
            time.sleep(rng.random() * 0.03)
            sock.close()
        assert wait_until(lambda: all(m["requests"] == 0 for m in models(live).values()))
        assert wait_until(lambda: all(m["state"] != "loading" for m in models(live).values()))
        for name in "ab":
            assert chat(live, name)[0] == 200
        for model in registry.models:
            if model.engine is not None:
                stats = model.engine.stats()
                assert (stats.num_running, stats.num_free_blocks) == (0, stats.num_blocks)


def test_what_a_broken_folder_is_told_as(
    folders: list[str], home: Environment, tmp_path: Path
) -> None:
    broken = write_checkpoint(tmp_path / "broken")
    config = (broken / "config.json").read_text()
    (broken / "config.json").write_text("{}")
    with live_registry(registry_of([folders[0], str(broken)], home, 2**30)) as live:
        assert models(live)["broken"]["max_model_len"] is None
        status, answer = chat(live, "broken")
        assert (status, answer["error"]["code"]) == (500, "model_damaged")
        assert str(tmp_path) not in answer["error"]["message"]
        shown = models(live)["broken"]
        assert (shown["state"], shown["status"]) == ("failed", answer["error"]["message"])
        assert chat(live, "a")[0] == 200
        assert live.ask("GET", "/health")[0] == 200
        (broken / "config.json").write_text(config)
        assert chat(live, "broken")[0] == 200


def test_health_tells_of_all(folders: list[str], home: Environment) -> None:
    a, b = FakeSource("a"), FakeSource("b")
    with live_registry(Registry([a, b], 100)) as live:
        assert chat(live, "a")[0] == 200
        assert chat(live, "b")[0] == 200
        a.engine.running, b.engine.running = 2, 3
        health = json.loads(live.ask("GET", "/health")[2])
        assert set(health) == {"status", "running", "waiting", "models"}
        assert (health["status"], health["running"]) == ("ok", 5)
        assert health["models"] == {"a": "loaded", "b": "loaded"}
        a.engine.cause_of_death = "boom"
        health = json.loads(live.ask("GET", "/health")[2])
        assert (health["status"], health["models"]["a"]) == ("ok", "failed")
        b.engine.step_seconds = 200.0
        status, _, body = live.ask("GET", "/health")
        health = json.loads(body)
        assert (status, health["model"], health["status"]) == (503, "b", "stuck")
        b.engine.step_seconds, b.engine.cause_of_death = 0.0, "bang"
        assert live.ask("GET", "/health")[0] == 503
        assert chat(live, "a")[0] == 200  # loaded again
        assert live.ask("GET", "/health")[0] == 200
        a.engine.running = b.engine.running = 0


def test_a_client_that_waits_for_a_load_may_leave(home: Environment) -> None:
    a, b = FakeSource("a"), FakeSource("b")
    with live_registry(Registry([a, b], 100)) as live:
        a.may_fetch.clear()
        threads = [threading.Thread(target=chat, args=(live, "a")) for _ in range(3)]
        for thread in threads:
            thread.start()
        sock = live.connect()
        sock.sendall(
            b"POST /v1/models/load HTTP/1.1\r\nHost: localhost\r\nContent-Length: 13\r\n"
            b'Content-Type: application/json\r\n\r\n{"model":"a"}'
        )
        assert wait_until(lambda: models(live)["a"]["requests"] == 4)
        sock.close()
        assert wait_until(lambda: models(live)["a"]["requests"] == 3)
        shown = models(live)["a"]
        assert (shown["state"], shown["status"], shown["progress"]) == (
            "loading", "Downloading a", 0.25,
        )  # fmt: skip
        assert chat(live, "b")[0] == 200
        a.may_fetch.set()
        for thread in threads:
            thread.join()
        assert a.num_fetches == 1


def test_a_limit_of_one_model_is_told_when_that_one_is_loaded(
    folders: list[str], home: Environment, tmp_path: Path
) -> None:
    short = write_checkpoint(tmp_path / "short", TinyShape(max_position_embeddings=256))
    config = EngineConfig(device="cpu", dtype="float32", max_num_seqs=4, max_model_len=512)
    sources = [CheckpointSource(f, config, home) for f in (folders[0], str(short))]
    with live_registry(Registry(sources, 2**30)) as live:
        assert models(live)["short"]["max_model_len"] is None
        status, answer = chat(live, "short")
        assert (status, answer["error"]["code"]) == (500, "model_options_invalid")
        assert answer["error"]["message"].startswith("short could not be loaded: max_model_len 512")
        assert chat(live, "a")[0] == 200


def test_other_machines_are_not_looked_at(
    home: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    for name in ("isdir", "isfile"):
        monkeypatch.setattr(os.path, name, looked.append)
    for share in ("//server/share", "\\\\server\\share", "/\\server", "https://server/x"):
        with pytest.raises(ModelNotFoundError):
            CheckpointSource(share, CONFIG, home)
    assert looked == []


def test_pictures_load_no_model_that_reads_text_only(
    folders: list[str], home: Environment, tmp_path: Path
) -> None:
    broken = write_checkpoint(tmp_path / "broken")
    (broken / "config.json").write_text("{}")
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    asking = [{"role": "user", "content": [picture, {"type": "text", "text": "What?"}]}]
    with live_registry(registry_of([*folders, str(broken)], home, 2**30)) as live:
        status, answer = chat(live, "a", messages=asking)
        assert (status, answer["error"]["param"]) == (400, "messages")
        assert "a reads text only; choose a vision model" in answer["error"]["message"]
        assert models(live)["a"]["state"] == "unloaded"
        asking[0]["content"][0] = {"type": "sound"}
        status, answer = chat(live, "a", messages=asking)
        assert (status, "reads text only" in answer["error"]["message"]) == (400, False)
        assert models(live)["a"]["state"] == "unloaded"
        # Of this one it is not known what it reads.
        asking[0]["content"][0] = picture
        status, answer = chat(live, "broken", messages=asking)
        assert (status, answer["error"]["code"]) == (500, "model_damaged")


@pytest.mark.parametrize(
    ("write", "modalities"),
    [(write_internvl2, ["text", "image", "video"]), (write_xcomposer2, ["text", "image"])],
)
def test_modalities_without_loading(
    write: Callable[[Path], Path], modalities: list[str], tmp_path: Path, home: Environment
) -> None:
    folder = tmp_path / "sees"
    write(folder)
    with live_registry(registry_of([str(folder)], home, 2**30)) as live:
        before = models(live)["sees"]
        assert before["input_modalities"] == modalities
        after = live.post("/v1/models/load", {"model": "sees"})[1]
        assert after["input_modalities"] == modalities
        assert after["max_model_len"] == before["max_model_len"]


def test_nothing_keeps_an_unloaded_model(home: Environment, folders: list[str]) -> None:
    """What its memory comes to is seen in test_serve_command."""
    registry = registry_of(folders, home, 2**30)
    with live_registry(registry) as live:
        for _ in range(3):
            assert chat(live, "b")[0] == 200
            model = registry.models[1]
            assert model.engine is not None
            engine = weakref.ref(model.engine)
            weights = weakref.ref(model.engine._engine._runner.decoder)
            assert live.post("/v1/models/unload", {"model": "b"})[0] == 200
            assert engine() is None
            assert weights() is None
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("shuzhai-engine") == 0
