"""Bad requests: the right status, an OpenAI error object, and the next good request works."""

from __future__ import annotations

import inspect
import json
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from shuzhai import errors
from shuzhai.config import EngineConfig, Environment
from shuzhai.errors import CheckpointError, InvalidRequestError, OverloadedError, ShuzhaiError
from shuzhai.hub.progress import SilentProgress
from shuzhai.server.errors import TABLE, load_problem, problem_of, without_secrets
from shuzhai.server.model import ServedModel
from shuzhai.server.settings import ServerConfig
from shuzhai.server.source import CheckpointSource
from tests.server.fakes import FakeEngine
from tests.server.live import Live, live_server, parse, read_all, wait_until
from tests.support.tiny import write_checkpoint

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hi"}]}


def is_error(body: bytes, code: str | None = None) -> bool:
    error = json.loads(body)["error"]
    return set(error) == {"message", "type", "param", "code"} and code in (None, error["code"])


@pytest.fixture(autouse=True)
def still_serves(request: pytest.FixtureRequest) -> Any:
    """After each test, its server answers as before."""
    names = {"live", "steady", "hasty"}.intersection(request.fixturenames)
    servers = [request.getfixturevalue(name) for name in names]
    yield
    for server in servers:
        status, body = server.post(CHAT, HELLO)
        assert status == 200
        assert body["choices"][0]["message"]["content"] == "Hello, world"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"3",
        b'{"messages": [], "messages": []}',
        b'{"messages": [{"role": "user", "role": "system", "content": "x"}]}',
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"temperature": -Infinity}',
        b'{"temperature": 1e999}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"messages": ' + b"[" * 10000 + b"]" * 10000 + b"}",
        b'{"a":' * 10000 + b"1" + b"}" * 10000,
        b'{"user": "\xff"}',
        b'{"user": "\\ud800"}',
        b'\xef\xbb\xbf{"user": "x"}',
        '{"user": "x"}'.encode("utf-16"),
    ],
    ids=lambda b: repr(b[:24]),
)
def test_bad_json(steady: Live, body: bytes) -> None:
    status, _, answer = steady.ask("POST", CHAT, body, content_length=str(len(body)))
    assert status == 400
    assert is_error(answer)


def test_a_pair_of_surrogates_is_a_character(live: Live, engine: FakeEngine) -> None:
    body = b'{"messages": [{"role": "user", "content": "\\ud83d\\ude00"}]}'
    assert live.ask("POST", CHAT, body)[0] == 200
    assert engine.prompts[0].text == "[user]\U0001f600"


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""],
)
def test_only_json_is_taken(steady: Live, kind: str) -> None:
    status, _, body = steady.ask("POST", CHAT, HELLO, content_type=kind)
    assert status == 415
    assert is_error(body, "unsupported_media_type")


def test_json_with_a_charset_and_no_compression(steady: Live) -> None:
    kind = "Application/JSON; charset=utf-8"
    assert steady.ask("POST", CHAT, HELLO, content_type=kind)[0] == 200
    assert steady.ask("POST", CHAT, HELLO, content_encoding="gzip")[0] == 415


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/models/nothing", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/assets/", 404),
        ("GET", "/assets/../../app.py", 404),
        ("GET", "/assets/..%2f..%2fapp.py", 404),
        ("GET", "/assets/%2e%2e/%2e%2e/errors.py", 404),
        ("GET", "//windows/win.ini", 404),
        ("GET", "/assets/a.js::$DATA", 404),
        ("GET", "/assets/\\\\host\\share", 404),
        ("GET", "/assets/a.js%00", 404),
        ("GET", "http://evil.example/health", 404),
        ("POST", "/nothing", 404),
        ("GET", CHAT, 405),
        ("PUT", CHAT, 405),
        ("DELETE", "/v1/models/tiny", 405),
        ("OPTIONS", CHAT, 405),
        ("POST", "/health", 405),
        ("BREW", "/", 405),
    ],
)
def test_wrong_paths_and_methods(steady: Live, method: str, path: str, status: int) -> None:
    got, headers, body = steady.ask(method, path)
    assert got == status
    assert is_error(body)
    assert ("allow" in headers) == (status == 405)


def test_too_large_a_body_is_refused_before_it_is_sent(live: Live) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with live.connect() as sock:
        sock.sendall(f"{head}Content-Length: 99999999999\r\n\r\n{{".encode())
        status, headers, body = parse(read_all(sock))
    assert status == 413
    assert headers["connection"] == "close"
    assert is_error(body, "body_too_large")


def test_an_endless_chunked_body(engine: FakeEngine) -> None:
    config = ServerConfig(max_body_bytes=200_000)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with live_server([engine], config) as live, live.connect() as sock:
        sock.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        sent = 0
        sock.settimeout(0.01)
        answer = b""
        while not answer and sent < 2**27:
            sock.settimeout(5)
            sock.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
            sent += 65536
            sock.settimeout(0.005)
            try:
                answer = sock.recv(65536)
            except TimeoutError:
                continue
        assert parse(answer)[0] == 413
        assert sent < 4_000_000
        assert live.post(CHAT, HELLO)[0] == 200


def test_a_chunked_body_is_fine(steady: Live) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    content = json.dumps(HELLO).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in content) + b"0\r\n\r\n"
    assert parse(steady.raw(head.encode() + chunks))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        [f"X-Big: {'x' * 2**20}"],
        [f"X-Big: {'x' * 50_000}"],
        [f"X-{i}: y" for i in range(10_000)],
        [f"X-{i}: y" for i in range(200)],
    ],
    ids=["1 MB", "50 kB", "10k", "200"],
)
def test_big_heads(hasty: Live, headers: list[str]) -> None:
    lines = ["GET /health HTTP/1.1", "Host: localhost", "Connection: close", *headers, "", ""]
    status, _, body = parse(hasty.raw("\r\n".join(lines).encode()))
    assert status == 431
    assert is_error(body, "headers_too_large")


def test_a_long_path(hasty: Live) -> None:
    assert hasty.ask("GET", "/" + "x" * 40_000)[0] == 431


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 70000,
    ],
)
def test_what_is_not_http(hasty: Live, data: bytes) -> None:
    status, _, body = parse(hasty.raw(data))
    assert status in (400, 431)
    assert is_error(body)


def test_overload_is_429(live: Live, engine: FakeEngine) -> None:
    engine.refuse = OverloadedError("too many")
    for stream in (False, True):
        status, headers, body = live.ask("POST", CHAT, {**HELLO, "stream": stream})
        assert status == 429
        assert int(headers["retry-after"]) >= 1
        assert is_error(body, "overloaded")
    engine.refuse = None


def test_a_stuck_engine_is_not_called_healthy(engine: FakeEngine) -> None:
    with live_server([engine]) as live:
        engine.step_seconds = 600.0
        status, _, body = live.ask("GET", "/health")
        assert (status, json.loads(body)["status"]) == (503, "stuck")
        engine.step_seconds = 3.0
        assert live.ask("GET", "/health")[0] == 200


def test_a_dead_engine(engine: FakeEngine) -> None:
    with live_server([engine]) as live:
        assert live.ask("GET", "/health")[0] == 200
        engine.cause_of_death = "RuntimeError: boom at 0x7f00 in /secret/place/file.py\nTraceback"
        engine.refuse = engine.failure
        status, _, body = live.ask("GET", "/health")
        assert status == 503
        assert json.loads(body)["cause"] == "RuntimeError: boom at 0x... in (path)"
        status, _, body = live.ask("POST", CHAT, HELLO)
        assert (status, is_error(body, "engine_dead")) == (503, True)
        assert b"secret" not in body


@pytest.mark.parametrize("failure", [ValueError("/secret/x at 0x1234"), KeyError("secret")])
def test_an_unforeseen_fault_is_a_500_without_secrets(
    live: Live, engine: FakeEngine, failure: Exception
) -> None:
    engine.refuse = failure
    status, _, body = live.ask("POST", CHAT, HELLO)
    assert status == 500
    assert is_error(body, "internal_error")
    assert b"secret" not in body
    assert b"0x" not in body
    engine.refuse = None


@pytest.mark.parametrize("failure", [None, ValueError("secret")])
def test_a_fault_in_mid_stream_is_an_event(
    live: Live, engine: FakeEngine, failure: Exception | None
) -> None:
    engine.fail_after = 3
    engine.failure = failure or engine.failure
    status, _, body = live.ask("POST", CHAT, {**HELLO, "stream": True})
    assert status == 200
    events = re.findall(rb"data: (.*)\n\n", body)
    assert events[-1] == b"[DONE]"
    assert is_error(events[-2])
    assert b"secret" not in body
    status, _, body = live.ask("POST", CHAT, HELLO)
    assert status == (503 if failure is None else 500)
    engine.fail_after = None


def test_the_table_knows_every_error() -> None:
    classes = {c for _, c in inspect.getmembers(errors, inspect.isclass)}
    assert {c for c in classes if issubclass(c, ShuzhaiError)} == set(TABLE)
    for kind in TABLE:
        problem = problem_of(kind("what it says"))
        assert 400 <= problem.status < 600
        assert set(problem.body()["error"]) == {"message", "type", "param", "code"}
        assert problem.status < 500 or "what it says" not in problem.body()["error"]["message"]


def test_messages_are_short_and_can_be_sent() -> None:
    problem = problem_of(InvalidRequestError("\ud800" + "x" * 10**6))
    assert len(json.dumps(problem.body(), ensure_ascii=False).encode("utf-8")) < 1000
    assert without_secrets("C:\\Users\\me\\x.py: and/or 1/2") == "(path): and/or 1/2"
    for path in ("models/big", "/home/me/my models/big", "D:\\my models\\big", "./x y/big"):
        for message in (f"{path}/config.json is bad", f"no {path!r}", "x" * 595 + path):
            shown = without_secrets(message, ["/home/me", path])
            assert "my models" not in shown
            assert "big" not in shown
            assert "x y" not in shown


def test_the_paths_of_a_model_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my models").mkdir()
    folder = write_checkpoint(tmp_path / "my models" / "big")
    (tmp_path / "link dir").symlink_to(tmp_path / "my models")
    (folder / "config.json").write_text("{")
    home = Environment.read({"SHUZHAI_HOME": str(tmp_path / "a home")})
    for given in ("my models/big", "./my models/big/", str(folder), "link dir/big"):
        source = CheckpointSource(given, EngineConfig(device="cpu"), home)
        with pytest.raises(CheckpointError) as caught:
            source.fetch(SilentProgress())
        model = ServedModel(source, source.look())
        message = load_problem(model.name, caught.value, source.secrets).message or ""
        assert message.startswith("big could not be loaded: (path)")
        for word in ("my models", "link dir", "a home", str(tmp_path)):
            assert word not in message
        assert model.public(f"in {tmp_path / 'a home' / 'models'}: full") == "in (path): full"
        assert model.public("and/or, a / b, big") == "and/or, a / b, big"


def test_a_big_bad_body_does_not_stop_others(live: Live, engine: FakeEngine) -> None:
    """While megabytes are parsed and refused, another's tokens keep coming."""
    engine.words = "x" * 200
    engine.pause = 0.005
    big = json.dumps({"prompt": [1] * 2_000_000, "echo": 1}).encode()
    gaps = []

    def read_stream() -> None:
        last = time.monotonic()
        for _ in live.client().completions.create(
            model="tiny", prompt="x", max_tokens=150, stream=True
        ):
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    thread = threading.Thread(target=read_stream)
    thread.start()
    assert wait_until(lambda: len(gaps) > 5)
    for _ in range(3):
        assert live.ask("POST", "/v1/completions", big)[0] == 400
    thread.join()
    assert len(gaps) == 150
    assert max(gaps[1:]) < 1.0
    engine.words = "Hello, world"


def test_pipelined_requests(steady: Live) -> None:
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert steady.raw(one * 3 + last).count(b'"status":"ok"') == 4


def test_security_headers_are_on_everything(steady: Live) -> None:
    for method, path in (("GET", "/"), ("GET", "/health"), ("GET", "/nix"), ("POST", CHAT)):
        _, headers, _ = steady.ask(method, path)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers


def test_a_get_with_a_body(steady: Live) -> None:
    status, headers, body = steady.ask("GET", "/health", b"x" * 1000)
    assert status == 400
    assert headers["connection"] == "close"
    assert is_error(body)


def test_websockets_are_not_spoken(steady: Live) -> None:
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec_websocket_version": "13"}
    with socket.create_connection(("127.0.0.1", steady.port)) as sock:
        lines = ["GET / HTTP/1.1", "Host: localhost", *(f"{k}: {v}" for k, v in upgrade.items())]
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
