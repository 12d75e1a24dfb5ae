"""The Python interface on a tiny model."""

from __future__ import annotations

import gc
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from shuzhai import LLM, ConfigError, InvalidRequestError, SamplingParams, ShuzhaiError

GREEDY = SamplingParams(temperature=0, max_tokens=12)
MESSAGES = [{"role": "user", "content": "Hello! 你好"}]


@pytest.fixture(scope="module")
def llm(tiny_folder: Path) -> LLM:
    return LLM(tiny_folder, device="cpu", dtype="float32")


def test_strings_ids_and_encoded_prompts_are_alike(llm: LLM) -> None:
    encoded = llm.processor.encode_text("Hello!")
    one = llm.generate("Hello!", GREEDY)
    assert one.token_ids == llm.generate(encoded.token_ids, GREEDY).token_ids
    many = llm.generate(["Hello!", encoded.token_ids, encoded], GREEDY)
    assert [o.text for o in many] == [one.text] * 3
    assert encoded.token_ids[0] == llm.tokenizer.bos_id
    assert one.finish_reason == "length"
    assert (one.usage.prompt_tokens, one.usage.completion_tokens) == (len(encoded.token_ids), 12)
    assert one.logprobs is None
    assert llm.generate([], GREEDY) == []


def test_more_prompts_than_places(tiny_folder: Path) -> None:
    with LLM(tiny_folder, max_num_seqs=2, dtype="float32") as small:
        outputs = small.generate([f"prompt {i}" for i in range(11)], GREEDY)
        assert len({o.text for o in outputs}) > 5
        assert outputs[7].text == small.generate("prompt 7", GREEDY).text


def test_a_stream_is_the_answer_in_pieces(llm: LLM) -> None:
    whole = llm.chat(MESSAGES, GREEDY).text
    assert "".join(llm.chat(MESSAGES, GREEDY, stream=True)) == whole


def test_streams_in_turn_and_abandoned_ones(llm: LLM) -> None:
    whole = llm.chat(MESSAGES, GREEDY).text
    first = llm.chat(MESSAGES, GREEDY, stream=True)
    second = llm.chat(MESSAGES, GREEDY, stream=True)
    dropped = llm.chat(MESSAGES, SamplingParams(max_tokens=500, seed=1), stream=True)
    next(dropped)
    pieces: list[list[str]] = [[], []]
    for mine, stream in zip(pieces, (first, second), strict=True):
        mine.append(next(stream))
    for mine, stream in zip(pieces, (first, second), strict=True):
        mine.extend(stream)
    dropped.close()
    assert ["".join(p) for p in pieces] == [whole, whole]
    stats = llm._engine.stats()
    assert stats.num_free_blocks == stats.num_blocks


def test_threads_share_one_model(llm: LLM) -> None:
    alone = [llm.generate(f"thread {i}", GREEDY).text for i in range(6)]
    together: list[str] = [""] * 6

    def work(i: int) -> None:
        together[i] = llm.generate(f"thread {i}", GREEDY).text

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_n_answers_and_their_seeds(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=11, max_tokens=10)
    outputs = llm.generate("Hello", params)
    assert len(outputs) == 3
    assert len({o.text for o in outputs}) == 3
    assert [o.text for o in llm.generate("Hello", params)] == [o.text for o in outputs]
    second = SamplingParams(seed=12, max_tokens=10)
    assert llm.generate("Hello", second).text == outputs[1].text
    assert outputs.usage.completion_tokens == 30


def test_stop_strings_end_the_answer_before_them(llm: LLM) -> None:
    free = llm.generate("Hello!", SamplingParams(temperature=0, max_tokens=40))
    for start in (3, 9, 14):
        stop = free.text[start : start + 5]
        stopped = llm.generate(
            "Hello!", SamplingParams(temperature=0, max_tokens=40, stop=[stop, "never there"])
        )
        assert stopped.text == free.text[: free.text.index(stop)]
        assert stopped.finish_reason == "stop"
        assert stopped.usage.completion_tokens < 40
    stats = llm._engine.stats()
    assert stats.num_free_blocks == stats.num_blocks


def test_stop_ids_end_the_answer_without_their_text(llm: LLM) -> None:
    free = llm.generate("Hello!", GREEDY)
    stop = free.token_ids[5]
    params = SamplingParams(temperature=0, max_tokens=12, stop_token_ids=[stop])
    stopped = llm.generate("Hello!", params)
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    assert stopped.text == llm.tokenizer.decode(stopped.token_ids[:-1])
    assert stopped.finish_reason == "stop"


def test_logprobs_agree_with_logits(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=3, prompt_logprobs=2)
    prompt = llm.processor.encode_text("Hello there")
    output = llm.generate(prompt, params)
    table = llm.logits(prompt.token_ids + output.token_ids).log_softmax(-1)
    at = len(prompt.token_ids) - 1
    for i, entry in enumerate(output.logprobs):
        best = table[at + i].topk(3)
        assert entry.token_id == output.token_ids[i]
        assert entry.logprob == pytest.approx(table[at + i, entry.token_id].item(), abs=1e-4)
        assert [t.token_id for t in entry.top] == best.indices.tolist()
    assert b"".join(e.bytes for e in output.logprobs) == b"".join(
        llm.tokenizer.token_bytes(i) for i in output.token_ids
    )
    assert [e.token_id for e in output.prompt_logprobs] == prompt.token_ids[1:]
    for i, entry in enumerate(output.prompt_logprobs):
        assert entry.logprob == pytest.approx(table[i, entry.token_id].item(), abs=1e-4)


def test_logits_and_perplexity(llm: LLM) -> None:
    ids = llm.processor.encode_text("The quick brown fox").token_ids
    logits = llm.logits(ids)
    assert logits.shape == (len(ids), llm.tokenizer.vocab_size)
    logits.zero_()  # it is the caller's own
    table = llm.logits("The quick brown fox").log_softmax(-1)
    mean = -sum(table[i, token].item() for i, token in enumerate(ids[1:])) / (len(ids) - 1)
    assert llm.perplexity("The quick brown fox") == pytest.approx(math.exp(mean), rel=1e-4)
    with pytest.raises(InvalidRequestError):
        llm.perplexity([5])


def test_bad_input_harms_nobody(llm: LLM) -> None:
    expected = llm.generate("Hello!", GREEDY).text
    with pytest.raises(InvalidRequestError):
        llm.generate(["fine", [1, 10**6]], GREEDY)
    with pytest.raises(InvalidRequestError):
        llm.generate([[1, "two"]], GREEDY)
    with pytest.raises(InvalidRequestError):
        llm.generate([[]], GREEDY)
    stats = llm._engine.stats()
    assert not stats.num_running
    assert not stats.num_waiting
    assert llm.generate("Hello!", GREEDY).text == expected


def test_options_and_closing(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="gpu_share"):
        LLM(tiny_folder, gpu_share=0.5)
    with LLM(tiny_folder) as llm:
        pass
    with pytest.raises(ShuzhaiError, match="closed"):
        llm.generate("Hello")


def test_a_stream_lost_in_a_cycle_does_not_lock_the_model(llm: LLM) -> None:
    """The collector may close it in the middle of a step of another one."""

    class Holder:
        pass

    step = llm._engine.step
    lost = Holder()
    lost.stream = llm.chat(MESSAGES, SamplingParams(max_tokens=400, seed=1), stream=True)
    next(lost.stream)
    lost.itself = lost
    del lost

    def collecting_step() -> object:
        gc.collect()
        return step()

    llm._engine.step = collecting_step
    try:
        assert llm.generate("Hello!", GREEDY).finish_reason == "length"
    finally:
        del llm._engine.step
    llm.generate("Hello!", GREEDY)
    stats = llm._engine.stats()
    assert stats.num_free_blocks == stats.num_blocks


@pytest.mark.parametrize("prompt", [None, 5, ["a", 1], [[5], None]])
def test_what_is_no_prompt_is_named(llm: LLM, prompt: object) -> None:
    with pytest.raises(InvalidRequestError, match="prompt"):
        llm.generate(prompt, GREEDY)


def test_ids_of_other_libraries(llm: LLM) -> None:
    ids = llm.processor.encode_text("Hello!").token_ids
    expected = llm.generate(ids, GREEDY).text
    assert llm.generate(np.array(ids), GREEDY).text == expected
    assert llm.tokenizer.decode(torch.tensor(ids)) == llm.tokenizer.decode(ids) == "Hello!"
