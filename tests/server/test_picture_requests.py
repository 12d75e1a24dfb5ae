"""Chats with pictures at the HTTP side: what reaches the engine, what is refused, what is held."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from shuzhai.server.body import MAX_BRACKETS, MAX_COMMAS
from shuzhai.server.held import FREE_BYTES
from shuzhai.server.settings import ServerConfig
from tests.server.fakes import EYES, FakeEngine
from tests.server.live import Live, live_server, parse, read_all, wait_until
from tests.server.test_connections import head, send
from tests.server.test_fetch import image, moved
from tests.server.web import PICTURE, Body, Web

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hi"}]}
DATA = "data:image/png;base64,iVBORw0KGgo="
A = "https://a.example/x.png"


def asking(*parts: object) -> dict[str, Any]:
    content = [*parts, {"type": "text", "text": "What is this?"}]
    return {"messages": [{"role": "user", "content": content}]}


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine()
    engine.processor.image_spec = EYES
    return engine


@pytest.fixture
def web() -> Web:
    return Web()


@pytest.fixture
def seeing(engine: FakeEngine, web: Web) -> Iterator[Live]:
    """A server that may fetch from a.example; it answers to the end."""
    with live_server([engine], fetcher=web.fetcher()) as live:
        yield live
        status, body = live.post(CHAT, asking(image(DATA)))
        assert (status, body["choices"][0]["message"]["content"]) == (200, "Hello, world")


def test_the_openai_client_shows_pictures(seeing: Live, engine: FakeEngine, web: Web) -> None:
    messages = asking(image(DATA, detail="low"), image(A))["messages"]
    for stream in (False, True):
        answer = seeing.client().chat.completions.create(
            model="tiny", messages=messages, stream=stream
        )
        if stream:
            assert "".join(c.choices[0].delta.content or "" for c in answer) == "Hello, world"
        else:
            assert answer.choices[0].message.content == "Hello, world"
            assert answer.usage.prompt_tokens == 1 + len("[user]<image><image>What is this?")
    for seen in engine.messages:
        first, second, text = seen[0]["content"]
        assert first == image(DATA, detail="low")
        assert second == {"type": "image", "image": PICTURE}
        assert text["text"] == "What is this?"
    assert len(web.asked) == 2


def test_models_say_what_they_read(engine: FakeEngine) -> None:
    blind, still = FakeEngine(), FakeEngine()
    still.processor.image_spec = type(EYES)(tile_size=28, tokens_per_tile=1, max_tiles=1)
    with live_server([engine, blind, still], names=("a", "b", "c")) as live:
        models = json.loads(live.ask("GET", "/v1/models")[2])["data"]
        assert [model["input_modalities"] for model in models] == [
            ["text", "image", "video"],
            ["text"],
            ["text", "image"],
        ]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "/etc/passwd"},
        {"type": "video", "video": "/etc/passwd"},
        {"type": "image_url", "image_url": "/etc/passwd"},
        {"type": "video_url"},
        image("/etc/passwd"),
        image("file:///etc/passwd"),
        image("http://169.254.169.254/latest/meta-data/"),
        image("http://b.example/x.png"),
        image(None),
    ],
    ids=lambda p: str(p)[:60],
)
def test_parts_that_are_refused(
    seeing: Live, engine: FakeEngine, web: Web, part: dict[str, Any]
) -> None:
    status, body = seeing.post(CHAT, asking(image(DATA), part))
    assert (status, body["error"]["param"]) == (400, "messages")
    assert body["error"]["message"].startswith("messages[0].content[1]")
    assert (web.asked, engine.messages) == ([], [])


def test_a_thousand_pictures(seeing: Live, engine: FakeEngine, web: Web) -> None:
    for url in (DATA, A):
        status, body = seeing.post(CHAT, asking(*[image(url)] * 1000))
        assert status == 400
        assert "1000 pictures" in body["error"]["message"]
    assert (web.asked, engine.messages) == ([], [])


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(404),
        moved("http://127.0.0.1:6379/"),
        moved("/x.png"),
        httpx.Response(200, headers={"content-encoding": "gzip"}),
        httpx.Response(200, headers={"content-length": str(2**40)}),
    ],
    ids=lambda a: str(a.headers),
)
def test_a_hostile_picture_server(seeing: Live, web: Web, answer: httpx.Response) -> None:
    web.answers["/x.png"] = lambda: answer
    status, body = seeing.post(CHAT, {**asking(image(DATA), image(A)), "stream": True})
    assert (status, body["error"]["param"]) == (400, "messages")
    message = body["error"]["message"]
    assert message.startswith("messages[0].content[1]: ")
    assert "127.0.0.1" not in message
    assert "0x" not in message


def test_nothing_is_fetched_for_a_model_without_eyes() -> None:
    web = Web()
    with live_server([FakeEngine()], fetcher=web.fetcher()) as live:
        for url in (A, DATA):
            status, body = live.post(CHAT, asking(image(url)))
            assert (status, body["error"]["param"]) == (400, "messages")
            assert "text only" in body["error"]["message"]
        assert live.post(CHAT, HELLO)[0] == 200
    assert web.asked == []


def test_a_client_that_leaves_ends_the_fetch(seeing: Live, engine: FakeEngine, web: Web) -> None:
    web.pause = 60
    for stream in (False, True):
        sock = send(seeing, {**asking(image(A)), "stream": stream})
        assert wait_until(lambda: web.running == 1)
        sock.close()
        assert wait_until(lambda: web.running == 0)
    assert (web.cancelled, engine.messages) == (2, [])


def test_others_are_served_while_pictures_are_fetched(seeing: Live, web: Web) -> None:
    web.pause = 0.5
    threads = [
        threading.Thread(target=seeing.post, args=(CHAT, asking(image(f"{A}?{i}"))))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: web.running == 4)
    start = time.monotonic()
    assert seeing.post(CHAT, HELLO)[0] == 200
    assert time.monotonic() - start < 0.4
    for thread in threads:
        thread.join()
    assert (web.most_running, len(web.asked)) == (4, 8)


# What is held, and how big a request may be.


def big(num_bytes: int) -> dict[str, Any]:
    return asking(image("data:image/png;base64," + "A" * num_bytes))


@contextmanager
def sending(live: Live, num_bytes: int) -> Iterator[None]:
    """A client that has sent so many bytes of a body and takes its time with the rest."""
    with live.connect() as sock:
        sock.sendall(head(num_bytes + 1) + b" " * num_bytes)
        time.sleep(0.2)
        yield


def test_many_big_bodies_are_refused_and_small_ones_are_not(engine: FakeEngine) -> None:
    config = ServerConfig(max_held_bytes=10**6)
    with live_server([engine], config) as live:
        assert live.post(CHAT, big(10**6))[0] == 200
        with sending(live, 800_000 + FREE_BYTES):
            status, headers, body = live.ask("POST", CHAT, big(10**6))
            assert status == 503
            assert int(headers["retry-after"]) >= 1
            assert json.loads(body)["error"]["code"] == "too_many_bytes"
            assert live.post(CHAT, HELLO)[0] == 200
            assert live.post(CHAT, big(200_000))[0] == 200
            assert live.ask("GET", "/health")[0] == 200
        assert wait_until(lambda: live.post(CHAT, big(10**6))[0] == 200)


def test_an_answer_that_is_being_written_holds_nothing(engine: FakeEngine) -> None:
    engine.words, engine.pause = "x" * 1000, 0.1
    with live_server([engine], ServerConfig(max_held_bytes=10**6)) as live:
        first = send(live, {**big(10**6), "stream": True})
        assert wait_until(lambda: engine.running == 1)
        second = send(live, big(10**6))
        assert wait_until(lambda: engine.running == 2)
        first.close()
        second.close()


def test_fetched_bytes_count_until_the_prompt_is_made(engine: FakeEngine, web: Web) -> None:
    web.answers["/x.png"] = lambda: httpx.Response(200, stream=Body([bytes(2 * 10**6)]))
    with live_server([engine], ServerConfig(max_held_bytes=10**6), fetcher=web.fetcher()) as live:
        assert live.post(CHAT, asking(image(A)))[0] == 503
        assert live.post(CHAT, big(10**6))[0] == 200


@pytest.mark.parametrize(
    ("path", "num_bytes", "status"),
    [
        (CHAT, 48 * 2**20, None),
        (CHAT, 48 * 2**20 + 1, 413),
        ("/v1/completions", 8 * 2**20, None),
        ("/v1/completions", 8 * 2**20 + 1, 413),
        ("/nothing", 8 * 2**20 + 1, 413),
    ],
)
def test_how_big_a_body_may_be(
    engine: FakeEngine, path: str, num_bytes: int, status: int | None
) -> None:
    """Judged by what the head says, before a byte of the body."""
    with live_server([engine]) as live, live.connect() as sock:
        sock.sendall(head(num_bytes, path) + b"{")
        sock.settimeout(0.3 if status is None else 5)
        if status is None:
            with pytest.raises(TimeoutError):
                sock.recv(1)
        else:
            assert parse(read_all(sock))[0] == status


def test_a_body_that_drips_at_its_end(engine: FakeEngine) -> None:
    """What was sent fast earns no hours for the rest."""
    config = ServerConfig(body_seconds=0.6)
    with live_server([engine], config) as live, live.connect() as sock:
        sock.sendall(head(2**22) + b" " * (2**22 - 1000))
        sock.settimeout(0.1)
        start = time.monotonic()
        answer = b""
        while not answer and time.monotonic() - start < 5:
            try:
                answer = sock.recv(2000)
            except TimeoutError:
                sock.sendall(b" ")
        assert parse(answer)[0] == 408
        assert time.monotonic() - start < 2


@pytest.mark.parametrize("more", [0, 5])
@pytest.mark.parametrize("unit", ["[]", "{}", '{"role": "user"}', '"\\ud83d\\ude00"', "1"])
def test_a_body_of_very_many_values(steady: Live, unit: str, more: int) -> None:
    """As many as are let through are refused as fast, with one fault named, not all."""
    limit = MAX_COMMAS if unit[0] in '1"' else MAX_BRACKETS
    units = ",".join([unit] * (limit - 2 + more))
    for body in (f'{{"messages": [{units}]}}', f'{{"stop": [{units}], "messages": [1]}}'):
        start = time.monotonic()
        status, answer = steady.post(CHAT, body.encode())
        assert status == 400
        assert not more or answer["error"]["code"] == "invalid_json"
        assert time.monotonic() - start < 3
    assert steady.post(CHAT, HELLO)[0] == 200


def test_very_many_keys(steady: Live) -> None:
    keys = {f"key{i}": 1 for i in range(MAX_COMMAS // 8)}
    for body in (keys, {"messages": [keys]}, {**HELLO, "logit_bias": keys}):
        start = time.monotonic()
        assert steady.post(CHAT, body)[0] == 400
        assert time.monotonic() - start < 2
    assert steady.post(CHAT, HELLO)[0] == 200


@pytest.mark.parametrize("text", ["plain", "书 \\ud83d\\ude00"])
def test_a_very_big_picture_does_not_stop_others(engine: FakeEngine, text: str) -> None:
    engine.words, engine.pause = "x" * 200, 0.005
    gaps = []

    def read_stream() -> None:
        last = time.monotonic()
        for _ in live.client().completions.create(
            model="tiny", prompt="x", max_tokens=200, stream=True
        ):
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    start = (
        b'{"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "text", "text": "'
    )
    middle = b'"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,'
    body = start + text.encode() + middle + b"A" * (40 * 2**20) + b'"}}]}]}'
    with live_server([engine]) as live:
        thread = threading.Thread(target=read_stream)
        thread.start()
        assert wait_until(lambda: len(gaps) > 5)
        assert live.ask("POST", CHAT, body)[0] == 200
        thread.join()
    assert len(gaps) == 200
    assert max(gaps[1:]) < 1.0
