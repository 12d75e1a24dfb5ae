"""The official OpenAI client against a live server: each parameter works or is refused by name."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.server.fakes import FakeEngine
from tests.server.live import Live, live_server

HELLO = [{"role": "user", "content": "hi"}]


def chat(live: Live, **options: Any) -> Any:
    return live.client().chat.completions.create(model="tiny", messages=HELLO, **options)


def complete(live: Live, prompt: Any = "ab", **options: Any) -> Any:
    return live.client().completions.create(model="tiny", prompt=prompt, **options)


def test_chat(steady: Live) -> None:
    answer = chat(steady)
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == "Hello, world"
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    assert answer.usage.prompt_tokens == 9
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == 21
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


def test_a_stream_says_what_the_whole_answer_says(steady: Live) -> None:
    whole = chat(steady, n=2, logprobs=True, top_logprobs=2)
    texts, reasons, roles, logprobs = {}, {}, {}, {}
    for chunk in chat(steady, n=2, logprobs=True, top_logprobs=2, stream=True):
        assert chunk.usage is None
        for choice in chunk.choices:
            index = choice.index
            roles[index] = roles.get(index) or choice.delta.role
            texts[index] = texts.get(index, "") + (choice.delta.content or "")
            reasons[index] = choice.finish_reason
            logprobs.setdefault(index, [])
            if choice.logprobs:
                logprobs[index] += choice.logprobs.content
    assert roles == {0: "assistant", 1: "assistant"}
    for choice in whole.choices:
        assert texts[choice.index] == choice.message.content == "Hello, world"
        assert reasons[choice.index] == choice.finish_reason == "stop"
        assert logprobs[choice.index] == choice.logprobs.content


def test_usage_comes_last_in_a_stream(steady: Live) -> None:
    chunks = list(chat(steady, n=2, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 24
    assert chunks[-1].usage.prompt_tokens == 9
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_chat_logprobs(steady: Live) -> None:
    first = chat(steady, logprobs=True, top_logprobs=2).choices[0].logprobs.content[0]
    assert (first.token, first.bytes, first.logprob) == ("H", [72], -9999.0)  # never -Infinity
    assert [top.token for top in first.top_logprobs] == ["a", "b"]
    assert chat(steady, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def test_every_sampling_parameter_arrives(live: Live, engine: FakeEngine) -> None:
    chat(
        live,
        temperature=0,
        top_p=0.5,
        seed=7,
        n=2,
        presence_penalty=1,
        frequency_penalty=-1.5,
        logit_bias={"65": -100, "66": 1},
        stop="END",
        max_completion_tokens=5,
        user="somebody",
        extra_body={
            "top_k": 3,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "min_tokens": 2,
            "stop_token_ids": [9],
            "ignore_eos": True,
        },
    )
    params = engine.params[0]
    assert (params.temperature, params.top_p, params.seed, params.n) == (0, 0.5, 7, 2)
    assert (params.presence_penalty, params.frequency_penalty) == (1, -1.5)
    assert params.logit_bias == {65: -100, 66: 1}
    assert params.stop_strings == ("END",)
    assert params.max_tokens == 5
    assert (params.top_k, params.min_p, params.repetition_penalty) == (3, 0.1, 1.1)
    assert (params.min_tokens, params.stop_token_ids, params.ignore_eos) == (2, [9], True)


def test_what_is_not_asked_for_is_the_models_default(live: Live, engine: FakeEngine) -> None:
    chat(live)
    chat(live, temperature=None, stop=None, extra_body={"top_k": None})
    complete(live)
    assert [p.temperature for p in engine.params] == [0.7, 0.7, 0.7]
    assert [p.max_tokens for p in engine.params] == [None, None, 16]


@pytest.mark.parametrize(
    "neutral",
    [
        {"tools": []},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"logit_bias": None},
        {"store": False},
        {"service_tier": "auto"},
        {"parallel_tool_calls": True},
        {"modalities": ["text"]},
        {"metadata": {}},
    ],
    ids=lambda p: next(iter(p)),
)
def test_neutral_values_ask_for_nothing(steady: Live, neutral: dict[str, Any]) -> None:
    body = {"messages": HELLO, **neutral}
    assert steady.post("/v1/chat/completions", body)[0] == 200


@pytest.mark.parametrize(
    "parameter",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tool_choice": "required"},
        {"response_format": {"type": "json_object"}},
        {"functions": [{"name": "f"}]},
        {"store": True},
        {"store": 0},
        {"audio": {"voice": "x"}},
        {"modalities": ["audio"]},
        {"prediction": {"type": "content", "content": "x"}},
        {"reasoning_effort": "high"},
        {"web_search_options": {}},
        {"service_tier": "flex"},
        {"metadata": {"a": "b"}},
        {"verbosity": "low"},
        {"prompt_cache_key": "k"},
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"best_of": 2},
        {"no_such_thing": 1},
    ],
    ids=lambda p: next(iter(p)),
)
def test_what_is_not_implemented_is_refused_by_name(
    steady: Live, parameter: dict[str, Any]
) -> None:
    status, body = steady.post("/v1/chat/completions", {"messages": HELLO, **parameter})
    assert status == 400
    assert body["error"]["code"] == "unsupported_parameter"
    assert body["error"]["param"] == next(iter(parameter))


@pytest.mark.parametrize(
    ("parameter", "param"),
    [
        ({"n": 10**9}, "n"),
        ({"n": 0}, "n"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"max_tokens": 1e12}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None, "min_tokens": 10**9}, "min_tokens"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"stop": [str(i) for i in range(10000)]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"１": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"cache_salt": "x" * 257}, "cache_salt"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages"),
        ({"messages": [{"role": "user", "content": "hi", "tool_calls": [{}]}]}, "messages"),
        ({"model": 3}, "model"),
        ({"model": ["tiny"]}, "model"),
    ],
    ids=lambda p: str(p)[:40],
)
def test_bad_values_are_400(steady: Live, parameter: dict[str, Any], param: str) -> None:
    status, body = steady.post("/v1/chat/completions", {"messages": HELLO, **parameter})
    assert status == 400, body
    assert body["error"]["param"] == param
    assert body["error"]["type"] == "invalid_request_error"
    assert len(body["error"]["message"]) < 700


def test_missing_messages_and_prompt(steady: Live) -> None:
    for path, name in (("chat/completions", "messages"), ("completions", "prompt")):
        status, body = steady.post(f"/v1/{path}", {"model": "tiny"})
        assert (status, body["error"]["param"]) == (400, name)
        assert body["error"]["code"] == "missing_required_parameter"


def test_an_answer_can_be_sent_back(steady: Live) -> None:
    client = steady.client()
    message = chat(steady).choices[0].message
    messages = [*HELLO, message, *HELLO]
    client.chat.completions.create(model="tiny", messages=messages)
    whole = {**message.model_dump(), "tool_calls": [], "audio": None}
    client.chat.completions.create(model="tiny", messages=[*HELLO, whole])
    client.chat.completions.create(
        model="tiny", messages=[{"role": "developer", "content": "x"}, *HELLO]
    )


BEGUN = [*HELLO, {"role": "assistant", "content": "Hello, "}]


def test_an_answer_can_go_on(live: Live, engine: FakeEngine) -> None:
    """By vLLM's name for it; vLLM wants the other one said, too."""
    for more in ({}, {"add_generation_prompt": False}):
        body = {"messages": BEGUN, "continue_final_message": True, **more}
        status, answer = live.post("/v1/chat/completions", body)
        assert status == 200
        assert answer["choices"][0]["message"]["content"] == "Hello, world"
    assert live.post("/v1/chat/completions", {"messages": BEGUN, "add_generation_prompt": True})
    assert engine.goes_on == [True, True, False]
    assert engine.messages[0] == BEGUN


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"messages": HELLO}, "continue_final_message"),
        ({"messages": [BEGUN[1], HELLO[0]]}, "continue_final_message"),
        ({"continue_final_message": 1}, "continue_final_message"),
        ({"add_generation_prompt": True}, "add_generation_prompt"),
        ({"continue_final_message": False, "add_generation_prompt": False},
         "add_generation_prompt"),
    ],
)  # fmt: skip
def test_what_cannot_go_on(steady: Live, options: dict[str, Any], param: str) -> None:
    body = {"messages": BEGUN, "continue_final_message": True, **options}
    status, answer = steady.post("/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, param)


def test_too_long_a_prompt(steady: Live) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        steady.client().chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "x" * 300}]
        )
    assert caught.value.code == "context_length_exceeded"


def test_completion(steady: Live) -> None:
    answer = complete(steady, max_tokens=5)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == "Hello"
    assert answer.choices[0].finish_reason == "length"
    chunks = list(complete(steady, max_tokens=5, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == "Hello"
    assert chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "num"),
    [("ab", 1), (["ab", "cd", "é"], 3), ([97, 98], 1), ([[97], [98, 99]], 2), (["a", [98]], 2)],
)
def test_kinds_of_prompts(steady: Live, prompt: Any, num: int) -> None:
    answer = complete(steady, prompt, n=2, echo=True)
    assert [c.index for c in answer.choices] == list(range(2 * num))
    prompts = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
    for choice in answer.choices:
        own = prompts[choice.index // 2]
        text = own if isinstance(own, str) else "".join(map(chr, own))
        assert choice.text == text + "Hello, world"
    assert answer.usage.completion_tokens == 24 * num


@pytest.mark.parametrize(
    "prompt", [[], [[]], ["a", 1], [1, "a"], [1.5], [True], {}, 5, [[1], [[2]]], ["x"] * 129]
)
def test_bad_prompts(steady: Live, prompt: Any) -> None:
    status, body = steady.post("/v1/completions", {"prompt": prompt})
    assert (status, body["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs(steady: Live, stream: bool) -> None:
    """Offsets point at the tokens, the first has no probability, a BOS shows nothing."""
    options = {"echo": True, "logprobs": 2, "max_tokens": 3, "n": 2}
    answer = complete(steady, "aé书b", stream=stream, **options)
    for index in range(2):
        if stream:
            answer = list(answer) if index == 0 else answer
            choices = [c for chunk in answer for c in chunk.choices if c.index == index]
        else:
            choices = [c for c in answer.choices if c.index == index]
        text = "".join(c.text for c in choices)
        tokens = [t for c in choices for t in c.logprobs.tokens]
        offsets = [o for c in choices for o in c.logprobs.text_offset]
        values = [v for c in choices for v in c.logprobs.token_logprobs]
        tops = [t for c in choices for t in c.logprobs.top_logprobs]
        assert text == "aé书bHel"
        assert tokens == ["", "a", "é", "书", "b", "H", "e", "l"]
        assert offsets == [0, 0, 1, 2, 3, 4, 5, 6]
        assert values == [None, *[-2.0] * 4, *[-9999.0] * 3]
        assert tops[0] is None
        assert tops[1] == {"a": -2.0}
        assert tops[5] == {"a": -1.0, "b": -1.0, "H": -9999.0}


def test_echo_only(steady: Live) -> None:
    answer = complete(steady, "ab", echo=True, logprobs=0, max_tokens=0)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == ("ab", "length")
    assert choice.logprobs.tokens == ["", "a", "b"]
    assert choice.logprobs.top_logprobs == [None, None, None]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 0)
    status, body = steady.post("/v1/completions", {"prompt": "ab", "max_tokens": 0})
    assert (status, body["error"]["param"]) == (400, "max_tokens")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": "yes"}, "echo"),
        ({"messages": HELLO}, "messages"),
    ],
)
def test_completions_refuse(steady: Live, options: dict[str, Any], param: str) -> None:
    status, body = steady.post("/v1/completions", {"prompt": "a", **options})
    assert (status, body["error"]["param"]) == (400, param)


def test_best_of_n_is_n(steady: Live) -> None:
    assert len(complete(steady, best_of=2, n=2).choices) == 2


def test_models() -> None:
    with live_server([FakeEngine("one"), FakeEngine("two")], names=["a", "b"]) as live:
        client = live.client()
        assert [model.id for model in client.models.list()] == ["a", "b"]
        assert client.models.retrieve("b").max_model_len == 256
        for name, text in (("a", "one"), ("b", "two"), ("b-folder", "two")):
            answer = client.completions.create(model=name, prompt="x")
            assert (answer.choices[0].text, answer.model) == (text, name[0])
        status, body = live.post("/v1/completions", {"prompt": "x"})
        assert (status, body["error"]["param"]) == (400, "model")


@pytest.mark.parametrize(
    "name", ["gpt-4", "", "../..", "..\\..", "C:\\", "\\\\host\\x", "http://x/", "a\0b", "x" * 9999]
)
def test_unknown_models_are_404(steady: Live, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        steady.client().completions.create(model=name, prompt="x")
    assert caught.value.code == "model_not_found"
    assert len(str(caught.value)) < 400
