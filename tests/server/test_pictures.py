"""Pictures through the API, over the real engine with a tiny vision model: good and bad ones."""

from __future__ import annotations

import base64
import io
import json
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from shuzhai.frontend.async_engine import AsyncEngine
from tests.server.live import Live, live_server, wait_until
from tests.server.test_connections import send
from tests.server.test_fetch import image
from tests.server.web import Body, Web
from tests.support.tiny_vision import TinyInternVL2, write_internvl2

CHAT = "/v1/chat/completions"
GREEDY = {"temperature": 0, "max_tokens": 12}


def png(width: int = 60, height: int = 40, seed: int = 0, **options: Any) -> bytes:
    """Stripes that differ with the seed."""
    rows, columns, colours = np.ogrid[:height, :width, :3]
    pixels = (columns * 7 + rows * (seed + 3) + colours * 50) % 256
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG", **options)
    return file.getvalue()


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def show(*contents: bytes | dict[str, Any], text: str = "What is this?") -> list[dict[str, Any]]:
    parts = [c if isinstance(c, dict) else image(data_url(c)) for c in contents]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_internvl2(tmp_path_factory.mktemp("vision"), TinyInternVL2(tile_size=28))


@pytest.fixture(scope="module")
def engine(folder: Path) -> AsyncEngine:
    return AsyncEngine.load(folder, device="cpu", dtype="float32", max_num_seqs=8, num_blocks=160)


@pytest.fixture(scope="module")
def web() -> Web:
    return Web({"/picture": lambda: httpx.Response(200, stream=Body([png()]))})


@pytest.fixture(scope="module")
def live(engine: AsyncEngine, web: Web) -> Iterator[Live]:
    with live_server([engine], fetcher=web.fetcher()) as server:
        yield server


def ask(live: Live, messages: object, **options: Any) -> dict[str, Any]:
    status, body = live.post(CHAT, {"messages": messages, **GREEDY, **options})
    assert status == 200, body
    return body


def text_of(body: dict[str, Any]) -> str:
    return body["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def good(live: Live) -> str:
    """What a good request is answered before anything bad comes."""
    return text_of(ask(live, show(png())))


@pytest.fixture(autouse=True)
def serves_as_before(live: Live, good: str, engine: AsyncEngine) -> Iterator[None]:
    """After each test a good request is answered as before, and no block is held."""
    yield
    assert text_of(ask(live, show(png()))) == good
    assert wait_until(lambda: engine.stats().num_running + engine.stats().num_waiting == 0)
    assert wait_until(lambda: engine.stats().num_free_blocks == engine.stats().num_blocks)
    assert live.ask("GET", "/health")[0] == 200


def test_whole_and_streamed(live: Live, engine: AsyncEngine, good: str) -> None:
    messages = show(png())
    client = live.client()
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
            **GREEDY,
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == good
    prompt = engine.processor.encode_chat(messages)
    assert chunks[-1].usage.prompt_tokens == len(prompt.token_ids)
    assert [picture.num_tokens for picture in prompt.images] == [7]  # 3 x 2 tiles, and all of it
    # In company as alone.
    answer = client.chat.completions.create(model="tiny", messages=messages, n=3, **GREEDY)
    assert [choice.message.content for choice in answer.choices] == [good] * 3


def test_the_picture_matters(live: Live) -> None:
    def logprobs(content: bytes) -> list[float]:
        body = ask(live, show(content), logprobs=True)
        return [item["logprob"] for item in body["choices"][0]["logprobs"]["content"]]

    assert logprobs(png()) == pytest.approx(logprobs(png(compress_level=0)), abs=1e-3)
    assert logprobs(png()) != pytest.approx(logprobs(png(seed=9)), abs=1e-2)


def test_the_same_from_another_host(live: Live, web: Web, good: str) -> None:
    asked = len(web.asked)
    part = image("https://a.example/picture")
    assert text_of(ask(live, show(part))) == good
    both = ask(live, show(part, image(data_url(png()), detail="low"), part))
    assert len(web.asked) == asked + 2
    assert both["usage"]["prompt_tokens"] > 7 + 1 + 7


def test_detail_is_the_number_of_tiles(live: Live) -> None:
    def tokens(**options: str) -> int:
        part = image(data_url(png(400, 100)), **options)
        return ask(live, show(part))["usage"]["prompt_tokens"]

    assert tokens(detail="low") < tokens(detail="high") == tokens(detail="auto") == tokens()


def test_max_tiles_is_a_ceiling(folder: Path) -> None:
    engine = AsyncEngine.load(folder, device="cpu", dtype="float32", num_blocks=64, max_tiles=2)
    with live_server([engine]) as live:

        def tokens(*contents: bytes) -> int:
            messages = show(*(image(data_url(c), detail="high") for c in contents))
            return ask(live, messages)["usage"]["prompt_tokens"]

        # Two tiles and the thumbnail, both times.
        assert tokens(png(400, 100)) == tokens(png())
        assert [p.num_tokens for p in engine.processor.encode_chat(show(png())).images] == [3]


def test_frames_of_a_video(live: Live) -> None:
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(16):
            pixels = np.full((48, 64, 3), i * 15, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())
    url = {"url": data_url(file.getvalue(), "video/mp4")}

    def tokens(**options: int) -> int:
        part = {"type": "video_url", "video_url": url, **options}
        return ask(live, show(part))["usage"]["prompt_tokens"]

    assert tokens() == tokens(num_frames=8) > tokens(num_frames=2)


def test_pictures_stay_in_later_turns(live: Live) -> None:
    turns = show(png(100, 100, seed=1), text="Look at this. " * 8)
    ask(live, turns, cache_salt="turns")
    turns += [{"role": "assistant", "content": "I see."}, *show(png(seed=2), text="And this?")]
    details = ask(live, turns, cache_salt="turns")["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] >= 32
    details = ask(live, turns, cache_salt="other")["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] < 32


def test_typed_markers_are_text(live: Live, engine: AsyncEngine) -> None:
    text = "<image> <IMG_CONTEXT> <img></img> <ImageHere> Image-1: <image>"
    prompt = engine.processor.encode_chat(show(png(), text=text))
    assert len(prompt.images) == 1
    usage = ask(live, show(png(), text=text))["usage"]
    assert usage["prompt_tokens"] == len(prompt.token_ids)
    assert ask(live, [{"role": "user", "content": text}])


def test_models_say_that_they_see(live: Live) -> None:
    models = json.loads(live.ask("GET", "/v1/models")[2])["data"]
    assert models[0]["input_modalities"] == ["text", "image", "video"]


# What is bad: a 400 that says so, and no more.


def refused(live: Live, messages: object, **options: Any) -> str:
    """The message of the 400, the same whether it is to be streamed or not."""
    told = []
    for stream in (False, True):
        status, _, content = live.ask(
            "POST", CHAT, {"messages": messages, "stream": stream, **options}
        )
        error = json.loads(content)["error"]
        assert status == 400, error
        assert error["param"] in ("messages", "max_tokens")
        message = error["message"]
        assert not any(secret in message for secret in ("object at", "0x", "/tmp", "Traceback"))
        assert len(message) < 700
        told.append(message)
    assert told[0] == told[1]
    return told[0]


def claims(width: int, height: int) -> bytes:
    """A small PNG whose head says it is large."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = b"IDAT" + zlib.compress(bytes(1000))
    chunks = (
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c))
        for c in (head, idat, b"IEND")
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    "content",
    {
        "empty": b"",
        "noise": bytes(range(256)) * 40,
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>',
        "truncated": png(300, 300)[:-2000],
        "head only": png()[:40],
        "bomb": claims(60_000, 60_000),
        "lies": claims(500, 500),
        "huge": claims(2**31 - 1, 2**31 - 1),
        "1x1": png(1, 1),
        "1x20000": claims(1, 20_000),
        "20000x10": claims(20_000, 10),
        "fits": b"SIMPLE  =                    T".ljust(2880),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
        "psd": b"8BPS\0\1" + bytes(20),
        "jp2": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
        "tiff": b"II*\0\x08\0\0\0" + bytes(40),
        "ico": b"\0\0\1\0\1\0" + bytes(40),
        "pdf": b"%PDF-1.7\n",
    }.items(),
    ids=lambda item: item[0],
)
def test_bad_pictures(live: Live, content: tuple[str, bytes]) -> None:
    message = refused(live, show(png(), content[1]))
    assert message.startswith("messages[0].content[1]")


@pytest.mark.parametrize(
    "url",
    [
        "data:",
        "data:,",
        "data:image/png",
        "data:image/png,abc",
        "data:image/png;base64",
        "data:image/png;base64,",
        "data:image/png;base64,****",
        "data:image/png;base64,iVBORw0KGgo",
        "data:image/png;base64,iVBOR w0KGgo=",
        "data:image/png;base64,\u5b57" * 10,
        "data:text/html;base64,PGI+",
        "data:image/png;base64," + "=" * 1000,
        data_url(png())[:-30],
        " " + data_url(png()),
        "file:///etc/passwd",
        "http://127.0.0.1/x.png",
    ],
    ids=lambda url: url[:40],
)
def test_bad_urls(live: Live, url: str) -> None:
    assert refused(live, show(image(url))).startswith("messages[0].content[0]")


@pytest.mark.parametrize("num_bytes", [34 * 2**20, 45 * 2**20])
def test_a_huge_picture(live: Live, num_bytes: int) -> None:
    """More bytes than a picture may have; then of base64, almost a whole body of it."""
    start = time.monotonic()
    url = "data:image/png;base64," + "A" * num_bytes
    status, body = live.post(CHAT, {"messages": show(image(url))})
    assert status == 400
    assert len(body["error"]["message"]) < 700
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "part",
    [
        image(data_url(png()), detail="huge"),
        image(data_url(png()), detail=["low"]),
        image(data_url(png()), fps=10**9),
        {**image(data_url(png())), "max_tiles": 10**6},
        {"type": "image", "image": "/etc/passwd"},
        {"type": "image", "image": {"path": "/etc/passwd"}},
        {"type": "image_url", "image_url": data_url(png())},
        {"type": "video_url", "video_url": {"url": data_url(png(), "video/mp4")}},
        {"type": "video_url", "video_url": {"url": data_url(b"", "video/mp4")}},
        {
            "type": "video_url",
            "video_url": {"url": data_url(png(), "video/mp4")},
            "num_frames": 10**9,
        },
        {"type": "video_url", "video_url": {"url": data_url(png())}, "fps": 1000},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "image_file", "image_file": "/etc/passwd"},
    ],
    ids=lambda part: str({k: str(v)[:30] for k, v in part.items()}),
)
def test_bad_parts(live: Live, part: dict[str, Any]) -> None:
    refused(live, show(png(), part))


@pytest.mark.parametrize("count", [65, 1000])
def test_too_many_pictures(live: Live, count: int) -> None:
    start = time.monotonic()
    assert f"{count} pictures" in refused(
        live, show(*[image("data:image/png;base64,AAAA")] * count)
    )
    assert time.monotonic() - start < 2


def test_pictures_that_do_not_fit(folder: Path, live: Live) -> None:
    """Together longer than the context, or than the cache."""
    engine = AsyncEngine.load(folder, device="cpu", dtype="float32", num_blocks=4)
    small = AsyncEngine.load(
        folder, device="cpu", dtype="float32", num_blocks=64, max_model_len=128
    )
    with live_server([engine, small], names=("few", "short")) as server:
        for name in ("few", "short"):
            status, body = server.post(
                CHAT, {"model": name, "messages": show(*[png(200, 150)] * 12)}
            )
            assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
            tiny = show(image(data_url(png()), detail="low"), text="a")
            tiny = [{"role": "system", "content": ""}, *tiny]
            assert ask(server, tiny, model=name, max_tokens=2)


def test_a_picture_to_a_text_only_model(tiny_folder: Path, live: Live) -> None:
    web = Web()
    blind = AsyncEngine.load(tiny_folder, device="cpu", dtype="float32", num_blocks=64)
    with live_server([blind], fetcher=web.fetcher()) as server:
        hello = [{"role": "user", "content": "hi"}]
        before = text_of(ask(server, hello))
        for part in (png(), image("https://a.example/picture"), image("data:,")):
            refused(server, show(part))
        models = json.loads(server.ask("GET", "/v1/models")[2])["data"]
        assert models[0]["input_modalities"] == ["text"]
        assert text_of(ask(server, hello)) == before
    assert web.asked == []


# Clients that leave, and others beside them.


def test_clients_that_leave_hold_nothing(live: Live, engine: AsyncEngine) -> None:
    for i in range(30):
        messages = show(*[png(300, 200, seed=100 + 3 * i + j) for j in range(3)])
        body = {"messages": messages, "max_tokens": 300, "ignore_eos": True, "n": 1 + i % 2}
        sock = send(live, {**body, "stream": i % 2 == 0})
        time.sleep(0.004 * (i % 15))
        sock.close()
    assert wait_until(lambda: engine.stats().num_running + engine.stats().num_waiting == 0, 15)
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_good_and_bad_at_once(live: Live, good: str) -> None:
    answers: list[str] = []
    refusals: list[int] = []

    def ask_well() -> None:
        answers.append(text_of(ask(live, show(png()))))

    def ask_badly(content: bytes) -> None:
        refusals.append(live.post(CHAT, {"messages": show(png(), content)})[0])

    bad = [b"", claims(60_000, 60_000), png(300, 300)[:-2000]]
    threads = [threading.Thread(target=ask_well) for _ in range(8)]
    threads += [threading.Thread(target=ask_badly, args=(c,)) for c in bad * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [good] * 8
    assert refusals == [400] * 9


def test_the_client_library_says_what_is_wrong(live: Live) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        live.client().chat.completions.create(model="tiny", messages=show(b"GIF89a"))
    assert caught.value.param == "messages"
    assert "messages[0].content[0]" in caught.value.message
