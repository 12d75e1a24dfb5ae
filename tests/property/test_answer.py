"""However the steps' outputs are put together: the same text, ids, log-probabilities and end."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuzhai.engine.request import FinishReason, Request, SamplingParams, StepOutput, TokenLogprob
from shuzhai.errors import OverloadedError
from shuzhai.frontend.answer import Answer
from shuzhai.frontend.outputs import Delta
from shuzhai.frontend.tokenizer import Tokenizer, load_tokenizer
from tests.support.tiny import write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder)


def an_answer(tokenizer: Tokenizer, params: SamplingParams) -> Answer:
    return Answer(Request("a", (1, 2, 3), params), 0, tokenizer)


def run(answer: Answer, outputs: list[StepOutput], cuts: list[int]) -> list[Delta]:
    """The pieces that groups of outputs make, until the answer ends."""
    bounds = sorted({0, len(outputs), *(c % len(outputs) for c in cuts)})
    deltas = []
    for a, b in pairwise(bounds):
        deltas.append(answer.push(outputs[a:b]))
        if deltas[-1].finish_reason is not None:
            break
    return deltas


def joined(answer: Answer, deltas: list[Delta]) -> dict[str, Any]:
    return {
        "text": "".join(d.text for d in deltas),
        "token_ids": [i for d in deltas for i in d.token_ids],
        "logprobs": [p for d in deltas for p in d.logprobs],
        "prompt_logprobs": [p for d in deltas for p in d.prompt_logprobs],
        "usage": deltas[-1].usage,
        "ends": [d.finish_reason for d in deltas if d.finish_reason is not None],
        "stopped_early": answer.stopped_early,
    }


@st.composite
def steps(draw: st.DrawFn, vocab_size: int) -> list[StepOutput]:
    """Those of one request: chunks of its prompt, then tokens; perhaps it is still under way."""
    prompt = [TokenLogprob(i, -1.0) for i in draw(st.lists(st.integers(3, 90), max_size=3))]
    outputs = [StepOutput("a", prompt_logprobs=(entry,)) for entry in prompt]
    ids = draw(st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=25))
    for i in ids:
        logprobs = (TokenLogprob(i, -0.5, ((i, -0.5), (3, -2.0))),) if prompt else ()
        outputs.append(StepOutput("a", (i,), logprobs, num_cached_tokens=2))
    reason = draw(st.sampled_from([None, FinishReason.STOP, FinishReason.LENGTH]))
    outputs[-1].finish_reason = reason
    outputs[-1].stop_id = ids[-1] if reason is FinishReason.STOP else None
    return outputs


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_grouping_makes_the_same_answer(tokenizer: Tokenizer, data: st.DataObject) -> None:
    outputs = data.draw(steps(tokenizer.vocab_size))
    text = tokenizer.decode(i for o in outputs for i in o.token_ids)
    places = data.draw(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 5)), max_size=3))
    stops = [stop for at, size in places if (stop := text[at : at + size])]
    least = data.draw(st.integers(0, 8))
    params = SamplingParams(stop=stops, min_tokens=least)
    alone, together = an_answer(tokenizer, params), an_answer(tokenizer, params)
    expected = joined(alone, run(alone, outputs, list(range(len(outputs)))))
    cuts = data.draw(st.lists(st.integers(0, 100), max_size=6))
    assert joined(together, run(together, outputs, cuts)) == expected
    if not stops and outputs[-1].finish_reason is FinishReason.LENGTH:
        assert expected["text"] == text


def test_the_error_of_a_request_is_raised(tokenizer: Tokenizer) -> None:
    error = OverloadedError("no memory")
    answer = an_answer(tokenizer, SamplingParams())
    with pytest.raises(OverloadedError, match="no memory"):
        answer.push([StepOutput("a", finish_reason=FinishReason.ERROR, error=error)])
