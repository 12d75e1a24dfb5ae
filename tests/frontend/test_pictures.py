"""Pictures through the public interface: where they stand, how many tiles, what is refused."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shuzhai import LLM, ConfigError, ContextLengthError, InvalidRequestError, SamplingParams
from shuzhai.errors import OverloadedError
from shuzhai.frontend.async_engine import AsyncEngine
from tests.support.tiny_vision import TinyInternVL2, write_internvl2, write_xcomposer2

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def drawing(width: int = 90, height: int = 30, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def url(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def user(*parts: Any) -> dict[str, Any]:
    """A turn; texts as they are, everything else a picture."""
    return {
        "role": "user",
        "content": [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else part
            if isinstance(part, dict)
            else {"type": "image", "image": part}
            for part in parts
        ],
    }


@pytest.fixture(scope="module")
def internvl2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_internvl2(tmp_path_factory.mktemp("internvl2"), TinyInternVL2(tile_size=56))


@pytest.fixture(scope="module")
def internvl2(internvl2_folder: Path) -> Iterator[LLM]:
    with LLM(internvl2_folder) as llm:
        yield llm


@pytest.fixture(scope="module")
def xcomposer2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(write_xcomposer2(tmp_path_factory.mktemp("xcomposer2"))) as llm:
        yield llm


def test_every_way_to_give_a_picture_is_the_same(internvl2: LLM, tmp_path: Path) -> None:
    image = drawing()
    (tmp_path / "a.png").write_bytes(png(image))
    part = {"type": "image_url", "image_url": {"url": url(image)}}
    ways = [image, png(image), str(tmp_path / "a.png"), tmp_path / "a.png"]
    prompts = [
        internvl2.encode_chat([user(picture, "What is it?")])
        for picture in [*({"type": "image", "image": way} for way in ways), part]
    ]
    assert all(p == prompts[0] for p in prompts)
    assert prompts[0].images[0].pixels.shape == (4, 56, 56, 3)  # 3 x 1 and a thumbnail
    assert "user\n<img>" + "<IMG_CONTEXT>" * 16 + "</img>\nWhat is it?" in prompts[0].text
    assert len({internvl2.generate(p, GREEDY).text for p in prompts}) == 1


def test_tiles_follow_detail_and_limits(internvl2: LLM, internvl2_folder: Path) -> None:
    def count(llm: LLM, detail: str | None = None, max_tiles: int | None = None) -> int:
        link = {"url": url(drawing())} | ({"detail": detail} if detail else {})
        part = {"type": "image_url", "image_url": link}
        return len(llm.encode_chat([user(part)], max_tiles=max_tiles).images[0].pixels)

    assert [count(internvl2, d) for d in ("low", "auto", "high", None)] == [1, 4, 4, 4]
    assert [count(internvl2, max_tiles=n) for n in (1, 2, 3, 30)] == [1, 3, 4, 4]
    assert count(internvl2, "low", max_tiles=12) == 1
    with LLM(internvl2_folder, max_tiles=2) as llm:
        assert [count(llm), count(llm, "high"), count(llm, max_tiles=3)] == [3, 3, 4]
    for bad in (0, 65, True):
        with pytest.raises(InvalidRequestError, match="max_tiles"):
            count(internvl2, max_tiles=bad)
    with pytest.raises(ConfigError, match="max_tiles"):
        LLM(internvl2_folder, max_tiles=0)


def test_pictures_stand_where_they_are_put(internvl2: LLM, xcomposer2: LLM) -> None:
    chat = [
        user("Look: ", drawing(seed=1), "and", drawing(40, 40, seed=2)),
        {"role": "assistant", "content": "Yes."},
        user(drawing(seed=3), "this?"),
    ]
    prompt = internvl2.encode_chat(chat)
    shown = prompt.text.replace("<IMG_CONTEXT>", "")
    assert shown.endswith(
        "user\nLook: \nImage-1: <img></img>\nand\nImage-2: <img></img><|im_end|>"
        "<|im_start|>assistant\nYes.<|im_end|>"
        "<|im_start|>user\n<img></img>\nthis?<|im_end|><|im_start|>assistant\n"
    )
    assert [len(image.pixels) for image in prompt.images] == [4, 1, 4]
    token = internvl2.tokenizer.token_id("<IMG_CONTEXT>")
    assert prompt.token_ids.count(token) == 4 * 9
    inline = xcomposer2.encode_chat(chat)
    assert "user\nLook: <ImageHere>and<ImageHere>[UNUSED_TOKEN_145]\n" in inline.text
    assert inline.token_ids.count(-1) == 3 * 16
    assert inline.token_ids.count(xcomposer2.tokenizer.bos_id) == 1


def test_a_later_turn_finds_its_pictures_in_the_cache(
    internvl2: LLM, internvl2_folder: Path
) -> None:
    chat = [user(drawing(seed=7), "Describe it at some length, please, and take your time.")]
    first = internvl2.chat(chat, GREEDY)
    chat += [{"role": "assistant", "content": first.text}, user("And the colours?")]
    second = internvl2.chat(chat, GREEDY)
    assert second[0].usage.cached_tokens > first[0].usage.prompt_tokens - 17
    with LLM(internvl2_folder, enable_prefix_caching=False) as cold:
        assert cold.chat(chat, GREEDY).text == second.text


def test_typed_marks_are_plain_text(internvl2: LLM, xcomposer2: LLM) -> None:
    typed = "<image> <IMG_CONTEXT> <img></img> <ImageHere> [UNUSED_TOKEN_146]"
    for llm in (internvl2, xcomposer2):
        prompt = llm.encode_chat([user(typed)])
        assert prompt.images == ()
        special = [llm.tokenizer.token_id(t) for t in ("<IMG_CONTEXT>", "<img>")]
        assert not {-1, *special} & set(prompt.token_ids)
        assert typed in llm.tokenizer.decode(prompt.token_ids)
        with_picture = llm.encode_chat([user(drawing(40, 40), typed)])
        assert len(llm.generate(with_picture, GREEDY).token_ids) == 8


@pytest.mark.parametrize("which", ["internvl2", "xcomposer2"])
def test_ids_may_be_replaced_around_the_pictures(
    which: str, request: pytest.FixtureRequest
) -> None:
    llm: LLM = request.getfixturevalue(which)
    prompt = llm.encode_chat([user(drawing(), drawing(40, 40, seed=1), "Hi")])
    answer = llm.generate(prompt, GREEDY)
    longer = replace(prompt, token_ids=prompt.token_ids + answer.token_ids[:4])
    assert llm.generate(longer, replace(GREEDY, max_tokens=4)).token_ids == answer.token_ids[4:]
    shifted = replace(prompt, token_ids=[1, *prompt.token_ids])
    assert llm.logits(shifted).shape[0] == len(prompt.token_ids) + 1
    ids = list(prompt.token_ids)
    picture_id = llm.tokenizer.token_id("<IMG_CONTEXT>") or -1
    token = ids.index(picture_id)
    ids[token] = 5
    with pytest.raises(InvalidRequestError, match="positions for pictures"):
        llm.generate(replace(prompt, token_ids=ids), GREEDY)
    ids = list(prompt.token_ids)
    ids.insert(token + 3, 5)
    with pytest.raises(InvalidRequestError, match="splits a picture"):
        llm.logits(replace(prompt, token_ids=ids))


def test_prompts_with_pictures_have_their_limits(xcomposer2: LLM) -> None:
    prompt = xcomposer2.encode_chat([user(drawing(), "Hi")])
    with pytest.raises(InvalidRequestError, match="prompt_logprobs"):
        xcomposer2.generate(prompt, SamplingParams(prompt_logprobs=1))
    with pytest.raises(InvalidRequestError, match="token ids"):
        xcomposer2.generate(prompt.token_ids, GREEDY)
    penalised = SamplingParams(temperature=0, max_tokens=4, repetition_penalty=1.5)
    assert len(xcomposer2.generate(prompt, penalised).token_ids) <= 4


def test_features_of_a_picture(internvl2: LLM, xcomposer2: LLM) -> None:
    features = internvl2.vision_features(drawing())
    assert (features.shape, features.dtype) == ((4, 4, 32), torch.float32)
    assert internvl2.vision_features(png(drawing()), max_tiles=1).shape == (1, 4, 32)
    assert xcomposer2.vision_features(drawing()).shape == (1, 16, 32)


def test_what_cannot_be_seen_is_said(
    tiny_folder: Path, xcomposer2: LLM, internvl2: LLM, internvl2_folder: Path
) -> None:
    with LLM(tiny_folder) as llm:
        for call in (lambda: llm.encode_chat([user(drawing())]), lambda: llm.vision_features(b"")):
            with pytest.raises(InvalidRequestError, match="reads text only"):
                call()
    video = {"type": "video", "video": b"..."}
    with pytest.raises(InvalidRequestError, match="no videos"):
        xcomposer2.encode_chat([user(video)])
    with pytest.raises(InvalidRequestError, match=r"messages\[0\]\.content\[1\]: "):
        internvl2.encode_chat([user("x", b"not a picture")])
    with (
        LLM(internvl2_folder, max_model_len=64) as small,
        pytest.raises(ContextLengthError, match=r"content\[4\]: the pictures up to this one"),
    ):
        small.encode_chat([user(*[drawing()] * 9)])


def test_a_server_opens_no_files_and_bounds_what_waits(
    internvl2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(png(drawing()))
    monkeypatch.setattr("shuzhai.frontend.async_engine._MAX_PIXEL_BYTES", 150_000)

    async def run() -> None:
        engine = AsyncEngine.load(internvl2_folder)
        try:
            with pytest.raises(InvalidRequestError, match="files cannot be named"):
                await engine.encode_chat([user(tmp_path / "a.png")])
            prompt = await engine.encode_chat([user(png(drawing()), "Hi")])
            assert prompt.images[0].pixels.nbytes == 4 * 56 * 56 * 3
            params = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
            streams = [engine.generate(prompt, params) for _ in range(4)]
            for stream in streams[:3]:
                await anext(stream)
            with pytest.raises(OverloadedError, match="pictures"):
                await anext(streams[3])
            for stream in streams:
                await stream.aclose()
            last = engine.generate(prompt, GREEDY)
            assert [delta.finish_reason async for delta in last][-1] == "length"
        finally:
            await engine.shutdown()

    asyncio.run(run())


def test_a_tower_that_fails_is_no_half_result(
    internvl2: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> torch.Tensor:
        raise MemoryError

    prompt = internvl2.encode_chat([user(drawing(seed=42), "Hi")])
    monkeypatch.setattr("shuzhai.engine.runner.Runner.encode", exhausted)
    for call in (internvl2.logits, internvl2.generate):
        with pytest.raises(OverloadedError, match="memory"):
            call(prompt)
    monkeypatch.undo()
    assert internvl2.logits(prompt).shape[0] == len(prompt.token_ids)


def test_digests_are_not_to_be_forged(internvl2: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """One hash that collides is not enough for two pictures to be taken for one."""

    class Constant:
        def __init__(self, *_: object) -> None: ...
        def update(self, *_: object) -> None: ...
        def digest(self) -> bytes:
            return bytes(32)

    chats = [[user(drawing(seed=seed), "Hi")] for seed in (50, 51)]
    expected = [internvl2.logits(internvl2.encode_chat(chat))[-1] for chat in chats]
    monkeypatch.setattr("hashlib.sha256", Constant)
    prompts = [internvl2.encode_chat(chat) for chat in chats]
    monkeypatch.undo()
    for prompt, logits in zip(prompts, expected, strict=True):
        assert internvl2.generate(prompt, GREEDY).token_ids[0] == logits.argmax()
    with pytest.raises(ValueError, match="digest"):
        replace(prompts[0].images[0], digest=prompts[1].images[0].digest)


def test_who_leaves_leaves_no_work_behind(
    internvl2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the data that was sent nor the pictures that were still to be opened."""
    gate, opened = threading.Event(), []

    def slow(source: object, where: str) -> Image.Image:
        opened.append(where)
        gate.wait(10)
        return drawing()

    monkeypatch.setattr("shuzhai.frontend.processor.open_image", slow)

    async def run() -> None:
        engine = AsyncEngine.load(internvl2_folder)
        try:
            chats = [Chat([user(b"1", b"2", b"3")]) for _ in range(9)]
            alive = [weakref.ref(chat) for chat in chats]
            tasks = [asyncio.create_task(engine.encode_chat(chat)) for chat in chats]
            while len(opened) < 2:  # both threads are busy
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            del chats, tasks, task
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 2
            gate.set()
        finally:
            await engine.shutdown()
        engine._picture_pool.shutdown(wait=True)
        assert len(opened) == 2

    asyncio.run(run())


class Chat(list):
    """A list that can be referred to weakly."""
