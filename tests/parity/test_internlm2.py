"""InternLM2 against its own reference code, through the real engine, in float32.

Whole and chunked, alone and in company, from a cold and from a warm prefix cache, in large and in
small blocks: logits within the tolerance, greedy continuations equal.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shuzhai import LLM, SamplingParams
from shuzhai.checkpoint import read_checkpoint_config
from shuzhai.config import EngineConfig
from shuzhai.engine.engine import Engine
from shuzhai.engine.request import Request
from tests.support.reference import BESIDE, LOGITS_TOLERANCE, OWN, Reference, messages_of

OWN_REFERENCE = Reference.read(OWN / "internlm2")
SETTINGS = {
    "whole": {},
    "chunked": {"max_num_batched_tokens": 7},
    "small-blocks": {"block_size": 4, "max_num_batched_tokens": 33},
    "no-cache": {"enable_prefix_caching": False, "max_num_seqs": 2},
    "tiny-pool": {"num_blocks": 16, "block_size": 16, "max_num_batched_tokens": 50},
}
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


def load(folder: Path, **options: object) -> Engine:
    config = EngineConfig.from_options({"device": "cpu", "dtype": "float32", **options})
    return Engine.load(read_checkpoint_config(folder), config, folder)


def run(engine: Engine, requests: list[Request]) -> dict[str, tuple[list[int], list[torch.Tensor]]]:
    """New token ids and parts of the prompt logits of each request."""
    results: dict[str, tuple[list[int], list[torch.Tensor]]] = {r.id: ([], []) for r in requests}
    for request in requests:
        engine.check(request)
        engine.add(request)
    while engine.has_work:
        for output in engine.step():
            tokens, logits = results[output.request_id]
            tokens += output.token_ids
            if output.prompt_logits is not None:
                logits.append(output.prompt_logits)
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks
    return results


@pytest.mark.parametrize("setting", SETTINGS)
def test_logits_and_greedy_continuations(setting: str, tmp_path: Path) -> None:
    for case in OWN_REFERENCE.cases:
        engine = load(OWN_REFERENCE.checkpoint(case, tmp_path), **SETTINGS[setting])
        request = Request(case["name"], tuple(case["input_ids"]), GREEDY, want_prompt_logits=True)
        tokens, parts = run(engine, [request])[case["name"]]
        logits = torch.cat(parts)
        assert logits.argmax(-1).tolist() == case["argmax"]
        expected = OWN_REFERENCE.tensors[case["name"] + ".logits"]
        difference = (logits[case["logits_positions"]] - expected).abs().max().item()
        assert difference < LOGITS_TOLERANCE
        assert tokens == case.get("greedy_ids", tokens)


@pytest.mark.parametrize("setting", SETTINGS)
def test_all_cases_in_one_batch_twice(setting: str) -> None:
    """The second round finds the prompts in the prefix cache."""
    engine = load(OWN_REFERENCE.folder, **SETTINGS[setting])
    cases = [case for case in OWN_REFERENCE.cases if "greedy_ids" in case]
    for turn in ("cold", "warm"):
        requests = [
            Request(f"{turn}-{case['name']}", tuple(case["input_ids"]), GREEDY) for case in cases
        ]
        results = run(engine, requests)
        for case, request in zip(cases, requests, strict=True):
            assert results[request.id][0] == case["greedy_ids"]
    if setting == "whole":
        assert engine.stats().num_cached_prompt_tokens > 400


def test_logits_of_a_16_bit_run_are_near(tmp_path: Path) -> None:
    """Weights, activations and cache in bfloat16: 8 bits of each number are kept."""
    for case in OWN_REFERENCE.cases:
        engine = load(OWN_REFERENCE.checkpoint(case, tmp_path), dtype="bfloat16")
        request = Request("x", tuple(case["input_ids"]), GREEDY, want_prompt_logits=True)
        logits = torch.cat(run(engine, [request])["x"][1])
        expected = OWN_REFERENCE.tensors[case["name"] + ".logits"]
        # A hundredth of the logits' standard deviation of 2.6, times a few layers of rounding.
        assert (logits[case["logits_positions"]] - expected).abs().mean() < 0.1


@pytest.mark.skipif(not BESIDE.exists(), reason="no reference data beside the checkout")
@pytest.mark.parametrize("name", ["internlm2", "internlm2-realvocab"])
def test_prompts_and_answers_through_the_public_interface(name: str, tmp_path: Path) -> None:
    reference = Reference.read(BESIDE / name)
    with LLM(reference.folder, device="cpu", dtype="float32") as llm:
        for case in reference.cases:
            if "greedy_ids" not in case:
                continue
            prompt: object = case["input_ids"]
            if case["prompt"] is not None:
                prompt = llm.encode_chat(messages_of(case))
                assert prompt.text == case["prompt"]
                assert prompt.token_ids == case["input_ids"]
            output = llm.generate(prompt, GREEDY)
            assert output.token_ids == case["greedy_ids"]
            assert output.text == case["greedy_text"]
            logits = llm.logits(prompt)[case["logits_positions"]]
            expected = reference.tensors[case["name"] + ".logits"]
            assert (logits - expected).abs().max() < LOGITS_TOLERANCE
