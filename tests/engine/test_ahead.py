"""A step started before the one before it has been read gives the same answers. (GPUs work so; here
the CPU is made to.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from shuzhai.engine.engine import Engine
from shuzhai.engine.request import FinishReason, Request, SamplingParams, StepOutput
from shuzhai.engine.runner import Runner
from tests.parity.test_internlm2 import GREEDY, OWN_REFERENCE, SETTINGS, load, run

CASES = [case for case in OWN_REFERENCE.cases if "greedy_ids" in case]


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runner, "works_ahead", True)


def ids(case: dict) -> tuple[int, ...]:
    return tuple(case["input_ids"])


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("setting", SETTINGS)
def test_greedy_answers(setting: str) -> None:
    engine = load(OWN_REFERENCE.folder, **SETTINGS[setting])
    for turn in ("cold", "warm"):
        results = run(engine, [Request(f"{turn}{c['name']}", ids(c), GREEDY) for c in CASES])
        for case in CASES:
            assert results[turn + case["name"]][0] == case["greedy_ids"]


PARAMS = [
    {"temperature": 0, "logprobs": 2},
    {"temperature": 0, "repetition_penalty": 3.0, "frequency_penalty": 0.7},
    {"temperature": 1.0, "top_p": 0.9, "seed": 3, "min_tokens": 5},
    {"temperature": 1.0, "seed": 4, "presence_penalty": 1.0, "prompt_logprobs": 1},
    {"temperature": 0.7, "top_k": 20, "seed": 5, "logit_bias": {7: 3.0}},
]


def outputs_of(folder: Path) -> dict[str, list[tuple]]:
    """All that each request is told, whatever the steps."""
    engine = load(folder, max_num_batched_tokens=50, num_blocks=40)
    told: dict[str, list[tuple]] = {}
    for i, case in enumerate(CASES):
        for j, params in enumerate(PARAMS):
            wanted = SamplingParams(max_tokens=9 + i + j, **params)
            request = Request(f"{i}.{j}", ids(case), wanted, frozenset(range(0, 400, 7)))
            engine.add(request)
            told[request.id] = []
    while engine.has_work:
        for output in engine.step():
            told[output.request_id].append(essence(output))
    assert engine.stats().num_free_blocks == 40
    return {name: [e for e in told[name] if any(e)] for name in told}


def essence(output: StepOutput) -> tuple:
    rounded = [
        [(t.token_id, round(t.logprob, 3)) for t in reports]
        for reports in (output.logprobs, output.prompt_logprobs)
    ]
    return output.token_ids, *rounded, output.finish_reason, output.stop_id


def test_every_kind_of_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Penalties, which need the token before; log-probabilities; stops; too small a pool."""
    expected = outputs_of(OWN_REFERENCE.folder)
    monkeypatch.setattr(Runner, "works_ahead", True)
    assert outputs_of(OWN_REFERENCE.folder) == expected
    reasons = {outputs[-1][3] for outputs in expected.values()}
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH}


@pytest.mark.usefixtures("ahead")
def test_aborted_while_its_step_runs() -> None:
    engine: Engine = load(OWN_REFERENCE.folder)
    for i, case in enumerate(CASES):
        engine.add(Request(str(i), ids(case), GREEDY))
    engine.step()
    engine.step()
    engine.abort("0")
    told = {output.request_id for _ in range(3) for output in engine.step()}
    assert "0" not in told
    assert len(told) == len(CASES) - 1
    for i in range(1, len(CASES)):
        engine.abort(str(i))
    assert engine.has_work, "a step runs"
    assert engine.step() == []
    assert not engine.has_work
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
