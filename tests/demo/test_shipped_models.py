"""The shipped models, asked over HTTP as the page asks them: their answers must be true."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from shuzhai import LLM
from shuzhai.frontend.async_engine import AsyncEngine
from tests.demo.table import CASES, EXAMPLES, TALK, Words, example, picture
from tests.server.live import live_server

MODELS = ("tiny-internvl2", "tiny-xcomposer2")
LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Served:
    """A client of a server that has one model. It answers greedily, as the models' configs say."""

    model: str
    client: OpenAI

    def ask(self, messages: list[dict[str, Any]], salt: str) -> tuple[str, int]:
        """The answer, and how many tokens of the prompt were in the prefix cache."""
        reply = self.client.chat.completions.create(
            model=self.model, messages=messages, max_tokens=48, extra_body={"cache_salt": salt}
        )
        assert reply.choices[0].finish_reason == "stop"
        return reply.choices[0].message.content, reply.usage.prompt_tokens_details.cached_tokens


@pytest.fixture(scope="module")
def no_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing is pulled and nothing can be: the store would have to lie in a file."""
    file = tmp_path_factory.mktemp("home") / "file"
    file.write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHUZHAI_HOME", str(file))
        for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT", "PIP_INDEX_URL", "HTTPS_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")
        yield file


@pytest.fixture(scope="module", params=[(m, d) for m in MODELS for d in ("float32", "bfloat16")],
                ids="-".join)  # fmt: skip
def served(request: pytest.FixtureRequest, no_home: Path) -> Iterator[Served]:
    model, dtype = request.param
    engine = AsyncEngine.load(model, device="cpu", dtype=dtype, memory="1GiB")
    with live_server([engine], names=(model,)) as live:
        yield Served(model, live.client())


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", CASES)
def test_a_picture(served: Served, name: str, language: str) -> None:
    """Asked cold, asked again with a warm cache, and asked on in a second turn."""
    case, salt = CASES[name], f"{name} {language}"
    messages = [user(case.first.question[language], *map(picture, case.pictures))]
    cold, num_cached = served.ask(messages, salt)
    assert num_cached == 0
    check(cold, case.first.words[language])
    warm, num_cached = served.ask(messages, salt)
    assert num_cached > 0
    check(warm, case.first.words[language])
    if case.then is not None:
        messages += [
            {"role": "assistant", "content": warm},
            user(case.then.question[language]),
        ]
        answer, num_cached_then = served.ask(messages, salt)
        assert num_cached_then >= num_cached
        check(answer, case.then.words[language])


@pytest.mark.parametrize("language", LANGUAGES)
def test_who_it_is(served: Served, language: str) -> None:
    question, words = TALK[language]
    check(served.ask([user(question)], f"talk {language}")[0], words)


@pytest.mark.parametrize("model", MODELS)
def test_offline(model: str, no_home: Path) -> None:
    """The same by name in Python, with no store and no network."""
    content = [
        {"type": "image", "image": example("animal.webp")},
        {"type": "text", "text": "What is this?"},
    ]
    with LLM(model, device="cpu", dtype="float32", memory="1GiB") as llm:
        assert llm.name == model
        check(llm.chat([{"role": "user", "content": content}]).text, ("penguin",))
    assert no_home.read_text() == ""


def test_what_the_page_offers_is_in_the_table() -> None:
    listed = (EXAMPLES / "examples.json").read_text(encoding="utf-8")
    for offered in json.loads(listed):
        case = CASES[offered["id"]]
        assert list(case.pictures) == offered["pictures"]
        assert case.first.question == offered["question"]


def user(text: str, *pictures: bytes) -> dict[str, Any]:
    """A message as the page sends it: pictures first."""
    parts = []
    for content in pictures:
        kind = "webp" if content.startswith(b"RIFF") else "png"
        url = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def check(answer: str, words: Words) -> None:
    pattern = ".*".join(map(re.escape, words))
    assert re.search(pattern, answer, re.I | re.S), f"{answer!r} does not say {words}"
    numbers = [word for word in words if word.isdigit()]
    assert re.findall(r"\d+", answer) == numbers, f"{answer!r} says other numbers than {numbers}"
