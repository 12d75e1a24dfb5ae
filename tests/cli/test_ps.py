"""`shuzhai ps` and `shuzhai stop`: what they show, and what they say where they cannot."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from shuzhai.cli import ps
from shuzhai.cli.main import main
from shuzhai.cli.ps import _time
from shuzhai.errors import DownloadError
from shuzhai.server.registry import Registry
from shuzhai.server.settings import ServerConfig
from tests.server.fakes import FakeSource
from tests.server.live import Live, live_registry, wait_until


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHUZHAI_API_KEY", raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    # A proxy must not be asked for this machine's own server.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")


@pytest.fixture
def sources() -> list[FakeSource]:
    return [FakeSource(name, 2**28, 2**28, 2**28) for name in ("text", "sees", "slow")]


@pytest.fixture
def live(sources: list[FakeSource]) -> Iterator[Live]:
    with live_registry(Registry(sources, 2**30, keep_alive=300)) as live:
        yield live


def ask(live: Live, name: str) -> int:
    return live.post("/v1/models/load", {"model": name})[0]


def shown(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["MODEL", "STATE", "MEMORY", "REQUESTS", "IDLE"]
    return {line.split()[0]: " ".join(line.split()[1:]) for line in lines[1:] if line}


def test_a_table_of_what_goes_on(
    live: Live, sources: list[FakeSource], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(live, "text") == 200
    sources[2].may_fetch.clear()
    with ExitStack() as stack:
        sock = stack.enter_context(live.connect())
        sock.sendall(
            b"POST /v1/models/load HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16\r\n"
            b'Content-Type: application/json\r\n\r\n{"model":"slow"}'
        )
        assert wait_until(lambda: sources[2].num_fetches == 1)
        assert main(["ps", "--url", live.url + "/v1/"]) == 0
        table = shown(capsys)
        assert table["slow:"] == "Downloading slow"
        assert re.fullmatch(r"loaded 0\.25 GiB 0 \d+s, unloaded in (5m 0|4m \d+)s", table["text"])
        assert table["sees"] == "unloaded 0"
        assert table["slow"] == "loading 25% 1"
    sources[2].may_fetch.set()


def test_a_name_is_said_once(
    live: Live, sources: list[FakeSource], capsys: pytest.CaptureFixture[str]
) -> None:
    sources[1].fetch_error = DownloadError("the index is silent")
    assert ask(live, "sees") == 503
    assert main(["ps", "--url", live.url.removeprefix("http://")]) == 0
    assert "\nsees could not be loaded: the index is silent\n" in capsys.readouterr().out


def test_stop(live: Live, sources: list[FakeSource], capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(live, "text") == 200
    assert main(["stop", "text", "--url", live.url]) == 0
    assert "text is not loaded any more" in capsys.readouterr().out
    assert sources[0].engine.stopping
    assert main(["stop", "nix", "--url", live.url]) == 1
    assert "'nix' is not served here; there is: text, sees, slow" in capsys.readouterr().err


def test_a_key_is_needed(
    sources: list[FakeSource],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with live_registry(Registry(sources, 2**30), ServerConfig(api_keys=("k",))) as live:
        assert main(["ps", "--url", live.url]) == 1
        assert "needs its API key: give --api-key KEY or set SHUZHAI_API_KEY" in flat(capsys)
        assert main(["stop", "text", "--url", live.url, "--api-key", "x"]) == 1
        assert "does not know this API key" in flat(capsys)
        assert main(["ps", "--url", live.url, "--api-key", "k"]) == 0
        monkeypatch.setenv("SHUZHAI_API_KEY", "k")
        assert main(["ps", "--url", live.url]) == 0


def flat(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_no_server_there(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    assert main(["ps", "--url", f"http://127.0.0.1:{port}"]) == 1
    message = flat(capsys)
    assert f"no server answers at http://127.0.0.1:{port}" in message
    assert "shuzhai serve" in message
    for url in ("nonsense", "ftp://127.0.0.1", "http://[", "http://127.0.0.1:99999"):
        assert main(["ps", "--url", url]) == 1
        assert "http" in flat(capsys)


def test_a_server_that_takes_its_time(
    sources: list[FakeSource],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ps, "_SECONDS", 0.3)
    with live_registry(Registry(sources, 2**30)) as live:
        assert ask(live, "text") == 200
        ended = threading.Event()

        async def shutdown(drain_seconds: float = 0.0) -> None:
            await asyncio.to_thread(ended.wait, 20)

        monkeypatch.setattr(sources[0].engine, "shutdown", shutdown)
        assert main(["stop", "text", "--url", live.url]) == 1
        message = flat(capsys)
        assert "has not answered for 0 seconds: it is still at it" in message
        assert "shuzhai ps" in message
        assert "no server" not in message
        assert main(["ps", "--url", live.url]) == 0
        ended.set()


def test_times() -> None:
    assert [_time(s) for s in (-1, 0, 59.9, 60, 3599, 3600, 86399)] == [
        "0s", "0s", "59s", "1m 0s", "59m 59s", "1h 0m", "23h 59m",
    ]  # fmt: skip
