"""The engine on a tiny model: limits, aborts at every stage, determinism, two in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from shuzhai import (
    ConfigError,
    ContextLengthError,
    InvalidRequestError,
    MemoryBudgetError,
    SamplingParams,
)
from shuzhai.checkpoint import read_checkpoint_config
from shuzhai.config import EngineConfig
from shuzhai.engine.engine import Engine
from shuzhai.engine.request import FinishReason, Request, StepOutput
from shuzhai.engine.runner import Runner
from shuzhai.step import StepInput
from tests.support.tiny import write_checkpoint

GREEDY = {"temperature": 0.0}


def load(folder: Path, **options: object) -> Engine:
    config = EngineConfig.from_options({"device": "cpu", "dtype": "float32", **options})
    return Engine.load(read_checkpoint_config(folder), config, folder)


def request(name: str, tokens: tuple[int, ...], max_tokens: int | None = 8, **params) -> Request:
    salt = params.pop("cache_salt", b"")
    return Request(name, tokens, SamplingParams(max_tokens=max_tokens, **params), cache_salt=salt)


def finish(engine: Engine) -> dict[str, list[StepOutput]]:
    outputs: dict[str, list[StepOutput]] = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def tokens_of(outputs: list[StepOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def answer(engine: Engine, asked: Request) -> list[int]:
    engine.add(asked)
    return tokens_of(finish(engine)[asked.id])


def all_free(engine: Engine) -> bool:
    stats = engine.stats()
    return stats.num_free_blocks == stats.num_blocks and not stats.num_running


PROMPTS = [tuple((7 * i + k * k) % 390 + 5 for k in range(3 + 11 * i)) for i in range(9)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 5},
        {"num_blocks": 9, "block_size": 16, "max_num_batched_tokens": 40},
        {"max_num_seqs": 3, "block_size": 3},
        {"enable_prefix_caching": False},
    ],
)
def test_batched_equals_alone(tiny_folder: Path, options: dict) -> None:
    """Greedy and seeded answers, while others come, go and are preempted."""
    kinds = [GREEDY, {"seed": 5}, {"seed": 6, "top_p": 0.9, "repetition_penalty": 1.2}]
    asked = [
        request(str(i), prompt, 36, **kinds[i % len(kinds)]) for i, prompt in enumerate(PROMPTS)
    ]
    alone = {r.id: answer(load(tiny_folder), r) for r in asked}
    engine = load(tiny_folder, **options)
    for r in asked:
        engine.add(r)
    outputs = finish(engine)
    assert {name: tokens_of(parts) for name, parts in outputs.items()} == alone
    assert all_free(engine)
    if options.get("num_blocks"):
        assert engine.stats().num_preemptions > 0


def test_abort_at_every_stage(tiny_folder: Path) -> None:
    """Waiting, mid-prefill, decoding, finished, unknown: blocks come back, others go on."""
    expected = answer(load(tiny_folder), request("keep", PROMPTS[3], 12, **GREEDY))
    for stage in range(25):
        engine = load(tiny_folder, max_num_batched_tokens=16, max_num_seqs=2)
        engine.add(request("gone", PROMPTS[8], 6, **GREEDY))
        engine.add(request("keep", PROMPTS[3], 12, **GREEDY))
        engine.add(request("queued", PROMPTS[4], 6, **GREEDY))
        kept = []
        for step in range(200):
            if step == stage:
                engine.abort("gone")
                engine.abort("queued")
                engine.abort("never there")
            kept += [t for o in engine.step() if o.request_id == "keep" for t in o.token_ids]
        assert kept == expected
        assert not engine.has_work
        assert all_free(engine)


def test_prefix_cache_is_reused_and_salted(tiny_folder: Path) -> None:
    engine = load(tiny_folder)
    cold = answer(engine, request("cold", PROMPTS[8], **GREEDY))
    assert engine.stats().num_cached_prompt_tokens == 0
    assert answer(engine, request("warm", PROMPTS[8], **GREEDY)) == cold
    cached = engine.stats().num_cached_prompt_tokens
    assert cached == (len(PROMPTS[8]) - 1) // 16 * 16
    assert answer(engine, request("other", PROMPTS[8], cache_salt=b"key", **GREEDY)) == cold
    assert engine.stats().num_cached_prompt_tokens == cached


def test_stop_ids_and_lengths(tiny_folder: Path) -> None:
    engine = load(tiny_folder)
    free = answer(engine, request("free", PROMPTS[2], 10, **GREEDY))
    stop = free[4]
    params = SamplingParams(max_tokens=10, temperature=0)
    engine.add(Request("stop", PROMPTS[2], params, frozenset({stop})))
    last = finish(engine)["stop"][-1]
    assert (last.finish_reason, last.stop_id) == (FinishReason.STOP, stop)
    engine.add(request("length", PROMPTS[2], 10, **GREEDY))
    outputs = finish(engine)["length"]
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    assert len(tokens_of(outputs)) == 10
    late = SamplingParams(max_tokens=10, temperature=0, min_tokens=7)
    engine.add(Request("late", PROMPTS[2], late, frozenset({stop})))
    assert len(tokens_of(finish(engine)["late"])) >= 7


def test_the_context_is_filled_to_its_end(tiny_folder: Path) -> None:
    engine = load(tiny_folder, max_model_len=64)
    engine.add(request("x", PROMPTS[4], None, **GREEDY))
    outputs = finish(engine)["x"]
    assert len(PROMPTS[4]) + len(tokens_of(outputs)) == 64
    assert outputs[-1].finish_reason is FinishReason.LENGTH


def test_what_cannot_run_is_refused_before_it_is_queued(tiny_folder: Path) -> None:
    engine = load(tiny_folder, max_model_len=64)
    with pytest.raises(InvalidRequestError, match="empty"):
        engine.check(request("x", ()))
    with pytest.raises(ContextLengthError, match="64"):
        engine.check(request("x", (5,) * 64, None))
    with pytest.raises(ContextLengthError, match="at most 24"):
        engine.check(request("x", (5,) * 40, 25))
    engine.check(request("x", (5,) * 40, 24))
    with pytest.raises(ContextLengthError, match="at most 24"):
        engine.check(request("x", (5,) * 40, None, min_tokens=25))
    with pytest.raises(InvalidRequestError, match="token ids must be from 0"):
        engine.check(request("x", (5, 10_000)))
    with pytest.raises(InvalidRequestError, match="logit_bias"):
        engine.check(request("x", (5,), logit_bias={10_000: 1.0}))


def test_a_context_larger_than_the_pool_is_cut_or_refused(tiny_folder: Path) -> None:
    assert load(tiny_folder, num_blocks=4, block_size=8).max_model_len == 32
    with pytest.raises(ConfigError, match="32 tokens"):
        load(tiny_folder, num_blocks=4, block_size=8, max_model_len=33)
    with pytest.raises(MemoryBudgetError, match="give memory="):
        load(tiny_folder, memory="100KB")
    with pytest.raises(MemoryBudgetError, match="num_blocks"):
        load(tiny_folder, num_blocks=10**9)
    with pytest.raises(ConfigError, match="2048"):
        load(tiny_folder, max_model_len=2049)


def test_prompt_logprobs_are_whole_whatever_the_chunks(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Runner.run

    def check(self: Runner, step: StepInput) -> torch.Tensor:
        assert len(step.logit_rows.unique()) == len(step.logit_rows), "StepInput says: none twice"
        return run(self, step)

    monkeypatch.setattr(Runner, "run", check)
    prompt = PROMPTS[7]
    results = []
    for options in ({}, {"max_num_batched_tokens": 7}, {"num_blocks": 7, "block_size": 16}):
        engine = load(tiny_folder, **options)
        engine.add(request("x", prompt, 4, prompt_logprobs=1, **GREEDY))
        engine.add(request("y", PROMPTS[5], 4, **GREEDY))
        reports = [r for o in finish(engine)["x"] for r in o.prompt_logprobs]
        assert [r.token_id for r in reports] == list(prompt[1:])
        results.append([r.logprob for r in reports])
    assert results[1] == pytest.approx(results[0], abs=1e-4)
    assert results[2] == pytest.approx(results[0], abs=1e-4)


def test_two_engines_in_one_process(tiny_folder: Path, tmp_path: Path) -> None:
    first, second = load(tiny_folder), load(write_checkpoint(tmp_path / "other", seed=1))
    alone = [answer(e, request("a", PROMPTS[5], 12, **GREEDY)) for e in (first, second)]
    assert alone[0] != alone[1]
    for engine in (first, second):
        engine.add(request("b", PROMPTS[5], 12, **GREEDY))
    together: list[list[int]] = [[], []]
    while first.has_work or second.has_work:
        for tokens, engine in zip(together, (first, second), strict=True):
            tokens += [t for o in engine.step() for t in o.token_ids]
    assert together == alone


def test_dynamic_rope_does_not_mix_prompts_of_different_lengths(tmp_path: Path) -> None:
    """Beyond the training length keys depend on the length of the prompt: no shared blocks."""
    folder = write_checkpoint(tmp_path / "ntk", rope_scaling={"type": "dynamic", "factor": 2.0})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 32
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    long, longer = PROMPTS[6], PROMPTS[6] + PROMPTS[5]
    expected = answer(load(folder), request("x", longer, 12, **GREEDY))
    engine = load(folder)
    answer(engine, request("first", long, 12, **GREEDY))
    assert answer(engine, request("x", longer, 12, **GREEDY)) == expected
    assert engine.stats().num_cached_prompt_tokens == 0
    chunked = load(folder, max_num_batched_tokens=9)
    assert answer(chunked, request("x", longer, 12, **GREEDY)) == expected
