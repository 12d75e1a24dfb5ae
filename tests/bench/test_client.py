"""The benchmark's client: what it makes of what comes over the network, whole or not."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuzhai.bench.client import Recording
from shuzhai.bench.serve import serve, served_model
from shuzhai.errors import ShuzhaiError
from tests.server.fakes import FakeEngine
from tests.server.live import live_server

EVENTS = [{"text": "a"}, {"text": "书\n生"}, {"usage": 3}]
LINES = [f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode() for event in EVENTS]
LINES.append(b"data: [DONE]\n\n")
BODY = b"".join(LINES)
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
REPLY = HEAD + b"".join(b"%x\r\n%b\r\n" % (len(line), line) for line in LINES) + b"0\r\n\r\n"


async def heard(pieces: list[bytes]) -> list[tuple[float, dict[str, object]]]:
    recording = Recording("http://here")
    recording.http.send(h11.Request(method="GET", target="/", headers={"host": "here"}.items()))
    recording.http.send(h11.EndOfMessage())
    for piece in pieces:
        recording.data_received(piece)
    recording.connection_lost(None)
    await recording.end()
    return list(recording.events())


@settings(max_examples=100, deadline=None)
@given(cuts=st.lists(st.integers(1, len(REPLY) - 1), max_size=8))
def test_events_come_however_the_network_cuts_them(cuts: list[int]) -> None:
    pieces = [REPLY[a:b] for a, b in pairwise(sorted({0, len(REPLY), *cuts}))]
    events = asyncio.run(heard(pieces))
    assert [event for _, event in events] == EVENTS
    times = [at for at, _ in events]
    assert times == sorted(times)
    assert times[0] > 0


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD,
    ],
)
def test_other_words_for_yes(head: bytes) -> None:
    assert [event for _, event in asyncio.run(heard([head, REPLY[len(HEAD) :]]))] == EVENTS


def test_an_old_server_says_yes() -> None:
    assert [e for _, e in asyncio.run(heard([b"HTTP/1.0 200 OK\r\n\r\n", BODY]))] == EVENTS


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://127.0.0.1:99999", None),
        ("http://127.0.0.1:1/a b", None),
        ("http://127.0.0.1:1", "schlüssel"),
        ("http://[::1", None),
        ("127.0.0.1:8000", None),
    ],
)
def test_where_nothing_can_be_asked(url: str, key: str | None) -> None:
    with pytest.raises(ShuzhaiError, match=r"does not answer|not to be talked to"):
        served_model(url, key, None)


@pytest.mark.parametrize(
    ("reply", "what"),
    [
        (REPLY[:-9], "closed in the middle of an answer"),
        (b"", "closed in the middle of an answer"),
        (b"HTTP/1.0 200 OK\r\n\r\n" + LINES[0], r"without \[DONE\]"),
        (b"SSH-2.0-x\r\n\r\n", "broke off"),
        (b"HTTP/1.1 503 No\r\ncontent-length: 4\r\n\r\nbusy", "answered 503: busy"),
    ],
)
def test_what_is_no_answer_is_said(reply: bytes, what: str) -> None:
    with pytest.raises(ShuzhaiError, match=what):
        asyncio.run(heard([reply] if reply else []))


def test_an_error_in_the_middle_is_said() -> None:
    engine = FakeEngine()
    engine.fail_after = 2
    with live_server([engine]) as live, pytest.raises(ShuzhaiError, match="has stopped"):
        serve(f"{live.url}/v1/", None, "tiny", [([1, 2], 8)], 0.0, 4)
