"""Clients that leave, that send slowly and that never read: nothing of theirs stays."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from shuzhai.server.settings import ServerConfig
from tests.server.fakes import FakeEngine
from tests.server.live import HastyProtocol, Live, live_server, parse, read_all, wait_until

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hi"}]}


def head(length: int, path: str = CHAT) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def send(live: Live, body: object, path: str = CHAT) -> socket.socket:
    content = json.dumps(body).encode()
    sock = live.connect()
    sock.sendall(head(len(content), path) + content)
    return sock


def frees(engine: FakeEngine) -> bool:
    return wait_until(lambda: engine.stats().num_free_blocks == engine.stats().num_blocks, 2)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_client_leaves_before_the_first_token(
    live: Live, engine: FakeEngine, path: str, n: int, stream: bool
) -> None:
    engine.first_pause = 60
    body = {"prompt": ["a", "b"]} if path != CHAT else HELLO
    sock = send(live, {**body, "n": n, "stream": stream}, path)
    assert wait_until(lambda: engine.running == (1 if path == CHAT else 2))
    sock.close()
    assert frees(engine)
    engine.first_pause = 0
    assert live.post(CHAT, HELLO)[0] == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
def test_a_client_leaves_in_the_middle(
    live: Live, engine: FakeEngine, stream: bool, prompt: object
) -> None:
    engine.words, engine.pause = "x" * 100_000, 0.01
    sock = send(live, {"prompt": prompt, "max_tokens": 200, "stream": stream}, "/v1/completions")
    if stream:
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
    else:
        assert wait_until(lambda: engine.running > 0)
    sock.close()
    assert frees(engine)


def test_many_clients_leave_at_any_time(live: Live, engine: FakeEngine) -> None:
    engine.pause = engine.first_pause = 0.001
    for i in range(150):
        sock = send(live, {**HELLO, "stream": i % 2 == 0, "n": 1 + i % 3})
        time.sleep(0.0007 * (i % 23))
        if i % 5 == 0:  # a reset instead of an end
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
    assert frees(engine)
    assert live.post(CHAT, HELLO)[0] == 200


def test_a_client_leaves_while_it_sends(live: Live, engine: FakeEngine) -> None:
    with live.connect() as sock:
        sock.sendall(head(1000) + b'{"mess')
    assert live.post(CHAT, HELLO)[0] == 200
    assert engine.num_started == 1


def test_a_slow_head(hasty: Live) -> None:
    with hasty.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        start = time.monotonic()
        sock.settimeout(5)
        answer = b""
        while not answer:
            sock.sendall(b"X: y\r\n")
            sock.settimeout(0.1)
            try:
                answer = sock.recv(1000)
            except TimeoutError:
                continue
        assert parse(answer)[0] == 408
        assert 0.4 < time.monotonic() - start < 3
        assert read_all(sock) == b""


def test_a_slow_head_of_a_second_request(hasty: Live) -> None:
    with hasty.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while b'"status":"ok"' not in answer:
            answer += sock.recv(2000)
        sock.sendall(b"GET /hea")
        assert b"408" in sock.recv(2000)


def test_a_silent_connection(hasty: Live) -> None:
    with hasty.connect() as sock:
        assert b" 408 " in read_all(sock)


@pytest.mark.parametrize("pause", [60.0, 0.1])
def test_a_slow_body(engine: FakeEngine, pause: float) -> None:
    """Silence is cut short, and so is one byte now and then."""
    config = ServerConfig(body_idle_seconds=0.5)
    with live_server([engine], config) as live, live.connect() as sock:
        sock.sendall(head(1000) + b"{")
        sock.settimeout(pause)
        start = time.monotonic()
        answer = b""
        while not answer and time.monotonic() - start < 5:
            try:
                answer = sock.recv(2000)
            except TimeoutError:
                sock.sendall(b" ")
        assert parse(answer)[0] == 408
        assert time.monotonic() - start < 2


def test_a_reader_that_never_reads(hasty: Live, engine: FakeEngine) -> None:
    """Its answer waits, then ends; others are served all the while."""
    engine.words = "x" * 40_000
    engine.processor.max_model_len = 50_000
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", hasty.port))
    content = json.dumps({**HELLO, "stream": True}).encode()
    sock.sendall(head(len(content)) + content)
    assert wait_until(lambda: engine.running == 1)
    status, _ = hasty.post("/v1/completions", {"prompt": "x", "max_tokens": 3})
    assert status == 200
    assert wait_until(lambda: engine.running == 0, 10)
    sock.close()


def test_too_many_connections(hasty: Live) -> None:
    socks = [hasty.connect() for _ in range(HastyProtocol.max_connections)]
    try:
        status, _, body = parse(hasty.raw(b""))
        assert status == 503
        assert json.loads(body)["error"]["code"] == "too_many_connections"
    finally:
        for sock in socks:
            sock.close()
    assert wait_until(lambda: hasty.ask("GET", "/health")[0] == 200)


def test_running_answers_finish_when_the_server_stops() -> None:
    engine = FakeEngine()
    engine.pause = 0.05
    answers = []
    with live_server([engine]) as live:
        thread = threading.Thread(target=lambda: answers.append(live.post(CHAT, HELLO)))
        thread.start()
        assert wait_until(lambda: engine.running == 1)
    thread.join()
    assert answers[0][0] == 200
    assert answers[0][1]["choices"][0]["message"]["content"] == "Hello, world"
