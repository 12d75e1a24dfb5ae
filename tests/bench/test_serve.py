"""`shuzhai bench serve --url`: which model is asked, and what is no whole answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from shuzhai.bench.serve import serve, served_model
from shuzhai.errors import ShuzhaiError

WORD = {"choices": [{"text": "a"}]}
USAGE = {"choices": [], "usage": {"completion_tokens": 8}}


@contextmanager
def server(reply: str) -> Iterator[tuple[str, list[str]]]:
    """Gives this to every request, closes, and notes which models were asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply.encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            asked.append(json.loads(body)["model"])
            self.do_GET()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}", asked
        finally:
            http.shutdown()
            thread.join()


def stream(*events: object) -> str:
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
    return "".join(f"data: {line}\n\n" for line in lines)


def test_the_model_that_is_asked() -> None:
    with server(json.dumps({"data": [{"id": "one"}, {"id": "two"}]})) as (url, _):
        assert served_model(url, None, None) == "one"
        assert served_model(url, None, "two") == "two"
        with pytest.raises(ShuzhaiError, match=r"no model 'three'; give one of: one, two"):
            served_model(url, None, "three")
    with server(stream(WORD, USAGE, "[DONE]")) as (url, asked):
        serve(url, None, "two", [([1], 8)], 0.0, 1)
        assert asked == ["two"]


@pytest.mark.parametrize("reply", ["[1]", '{"data": null}', '{"data": []}', '{"data": ["x"]}'])
def test_models_of_another_shape(reply: str) -> None:
    with server(reply) as (url, _), pytest.raises(ShuzhaiError, match="not to be talked to"):
        served_model(url, None, None)


@pytest.mark.parametrize(
    ("events", "what"),
    [
        ([{"choices": ["x"]}, USAGE, "[DONE]"], "not to be talked to"),
        ([{"choices": None}, USAGE, "[DONE]"], "not to be talked to"),
        ([WORD, {"choices": [], "usage": [1]}, "[DONE]"], "not to be talked to"),
        ([WORD, {"choices": [], "usage": None}, "[DONE]"], "include_usage"),
        ([WORD, {"choices": [], "usage": {"completion_tokens": "8"}}, "[DONE]"], "include_usage"),
        ([WORD, "[DONE]"], "include_usage"),
        ([WORD], r"without \[DONE\]"),
        ([WORD, USAGE], r"without \[DONE\]"),
    ],
)
def test_answers_of_another_shape(events: list[object], what: str) -> None:
    with server(stream(*events)) as (url, _), pytest.raises(ShuzhaiError, match=what):
        serve(url, None, "one", [([1], 8)], 0.0, 1)


def test_an_answer_that_came_as_one_piece_does_not_count_for_tpot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would count as 8 tokens in no time. Nor does one token that came as two pieces."""

    async def ask_all(*args: object) -> tuple[list[SimpleNamespace], float]:
        counts = (([1.0], 8), ([1.0, 2.0], 5), ([1.0, 2.0], 1))
        answers = [SimpleNamespace(asked=0.0, pieces=p, num_tokens=n) for p, n in counts]
        return answers, 2.0

    monkeypatch.setattr("shuzhai.bench.serve._ask_all", ask_all)
    (result,) = serve("http://here", None, "one", [([1], 8)] * 3, 0.0, 3).results
    assert result["tpot_p50_s"] == result["tpot_p99_s"] == 0.25
