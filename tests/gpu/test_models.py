"""The reference checkpoints through the real engine on a GPU, against the models' own code.

Tolerances are those of the arithmetic: float32 on a GPU sums in another order than on a CPU; with
bfloat16, 8 bits of every number are kept, with float16, 11.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from shuzhai.checkpoint import read_checkpoint_config
from shuzhai.config import EngineConfig
from shuzhai.engine.engine import Engine
from shuzhai.engine.graphs import StepGraphs
from shuzhai.engine.process_memory import release_memory
from shuzhai.engine.request import Request, SamplingParams
from shuzhai.engine.tower_graphs import TowerGraphs
from shuzhai.step import StepInput
from tests.parity.test_internlm2 import GREEDY, run
from tests.parity.test_internlm2 import load as load_on_cpu
from tests.parity.test_vision import request_of
from tests.support.reference import BESIDE, OWN, Reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

# Of the logits' largest and mean difference from the reference, whose standard deviation is 2.6;
# with pages of codes from a CPU that has the same codes, but for those that rounding moved.
TOLERANCES = {
    "float32": (2e-3, 2e-4),
    "bfloat16": (0.6, 0.1),
    "float16": (0.1, 0.015),
    "float32-int8": (0.2, 0.02),
    "float32-int4": (1.5, 0.1),
    "bfloat16-int8": (1.0, 0.12),
    "bfloat16-int4": (6.0, 0.6),
}
FOLDERS = [OWN / "internlm2", OWN / "internvl2", BESIDE / "internlm-xcomposer2"]


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda f: f"{f.parent.name}-{f.name}")
def reference(request: pytest.FixtureRequest) -> Reference:
    if not request.param.exists():
        pytest.skip("no reference data beside the checkout")
    return Reference.read(request.param)


def load(folder: Path, kind: str, **options: object) -> Engine:
    dtype, _, kv_dtype = kind.partition("-")
    config = EngineConfig.from_options(
        {"device": "cuda", "dtype": dtype, "kv_dtype": kv_dtype or "auto", "memory": "4GiB",
         "max_num_seqs": 16, "max_num_batched_tokens": 2048, "num_blocks": 512, **options}
    )  # fmt: skip
    return Engine.load(read_checkpoint_config(folder), config, folder)


def requests_of(reference: Reference, engine: Engine, **more: object) -> list[Request]:
    requests = []
    for case in reference.cases:
        if "config_overrides" in case:
            continue
        if "images" in case:
            requests.append(request_of(case, reference, engine, **more))
        else:
            requests.append(Request(case["name"], tuple(case["input_ids"]), GREEDY, **more))
    return requests


def cases_of(reference: Reference) -> list[dict]:
    return [case for case in reference.cases if "config_overrides" not in case]


@pytest.mark.parametrize("kind", TOLERANCES)
def test_logits(reference: Reference, kind: str) -> None:
    engine = load(reference.folder, kind)
    results = run(engine, requests_of(reference, engine, want_prompt_logits=True))
    expected: dict[str, torch.Tensor] = {}
    if "-" in kind:
        kv_dtype = kind.partition("-")[2]
        on_cpu = load_on_cpu(reference.folder, kv_dtype=kv_dtype, max_num_batched_tokens=2048)
        told = run(on_cpu, requests_of(reference, on_cpu, want_prompt_logits=True))
        expected = {name: torch.cat(parts) for name, (_, parts) in told.items()}
    largest, mean = TOLERANCES[kind]
    for case in cases_of(reference):
        logits = torch.cat(results[case["name"]][1])
        if expected:
            difference = (logits - expected[case["name"]]).abs()
        else:
            known = reference.tensors[case["name"] + ".logits"]
            difference = (logits[case["logits_positions"]] - known).abs()
        assert difference.max() < largest, (case["name"], difference.max(), difference.mean())
        assert difference.mean() < mean, (case["name"], difference.max(), difference.mean())


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 48, "num_blocks": 200}])
def test_greedy_answers_in_float32(reference: Reference, options: dict) -> None:
    """In company, recorded decode steps included, from a cold and from a warm prefix cache."""
    engine = load(reference.folder, "float32", **options)
    for _ in range(2):
        results = run(engine, requests_of(reference, engine))
        for case in cases_of(reference):
            if "greedy_ids" in case:
                assert results[case["name"]][0] == case["greedy_ids"]
    assert engine.stats().num_cached_prompt_tokens > 0


@pytest.mark.parametrize("kind", ["bfloat16", "bfloat16-int8", "bfloat16-int4"])
def test_batched_is_alone(kind: str) -> None:
    """Logits of a prompt among others, and in chunks, against those of the prompt by itself: what
    differs is rounding."""
    reference = Reference.read(OWN / "internlm2")
    engine = load(reference.folder, kind, enable_prefix_caching=False)
    requests = requests_of(reference, engine, want_prompt_logits=True)
    together = run(engine, requests)
    chunked = load(reference.folder, kind, enable_prefix_caching=False, max_num_batched_tokens=37)
    for request in requests:
        alone = torch.cat(run(engine, [request])[request.id][1])
        for other in (together[request.id][1], run(chunked, [request])[request.id][1]):
            difference = (torch.cat(other) - alone).abs()
            # Codes of 4 bits turn what rounding moved over a border into a whole step. (Measured:
            # 0.025, 0.032, and 0.16 with them, where the logits' standard deviation is 2.6.)
            assert difference.mean() < (0.3 if kind.endswith("int4") else 0.05)


def test_a_recorded_step_is_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens with graphs and without, one chat and sixteen."""
    reference = Reference.read(OWN / "internlm2")
    answers = []
    for is_recorded in (True, False):
        engine = load(reference.folder, "bfloat16")
        assert engine._runner.graphs is not None
        if not is_recorded:
            monkeypatch.setattr(type(engine._runner.graphs), "run", lambda self, step: None)
        requests = requests_of(reference, engine)
        answers.append([run(engine, [requests[0]]), run(engine, requests)])
    recorded, eager = answers
    for a, b in zip(recorded, eager, strict=True):
        assert {k: v[0] for k, v in a.items()} == {k: v[0] for k, v in b.items()}


def test_full_steps_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of several steps, in company: the same tokens with graphs and without."""
    folder, budget, found = OWN / "internlm2", 2100, []
    full: list[int] = []
    run_recorded = StepGraphs.run

    def count(self: StepGraphs, step: StepInput) -> torch.Tensor | None:
        hidden = run_recorded(self, step)
        full.extend([len(step.token_ids)] * (hidden is not None and len(step.token_ids) > 2000))
        return hidden

    for replaced in (count, lambda self, step: None):
        monkeypatch.setattr(StepGraphs, "run", replaced)
        engine = load(folder, "float32", max_num_batched_tokens=budget, num_blocks=1024)
        rng = np.random.default_rng(1)
        prompts = [rng.integers(3, 2000, n).tolist() for n in (20, 5000, 1500, 30, 1700, 2500)]
        requests = [Request(str(i), tuple(ids), GREEDY) for i, ids in enumerate(prompts)]
        found.append({name: result[0] for name, result in run(engine, requests).items()})
    assert found[0] == found[1]
    assert len(full) >= 3
    assert all(n <= budget for n in full)


def test_an_engine_gives_its_memory_back() -> None:
    """Graphs, too, though it refers to itself."""
    reference = Reference.read(OWN / "internlm2")
    engine = load(reference.folder, "bfloat16")
    run(engine, requests_of(reference, engine))
    del engine
    release_memory(collect=True)
    before = torch.cuda.memory_reserved()
    engine = load(reference.folder, "bfloat16")
    run(engine, requests_of(reference, engine))
    engine.cycle = [engine, engine._runner.graphs]
    assert torch.cuda.memory_reserved() > before
    del engine
    release_memory(collect=True)
    assert torch.cuda.memory_reserved() <= before


def test_no_step_waits_for_the_device() -> None:
    """Greedy, drawn and with log-probabilities: between the start of a step and its being read,
    nothing asks the device."""
    reference = Reference.read(OWN / "internlm2")
    engine = load(reference.folder, "bfloat16")
    kinds = [
        {"temperature": 0}, {"temperature": 0.8, "top_p": 0.8, "top_k": 40, "min_p": 0.01},
        {"temperature": 0.8}, {"temperature": 0, "logprobs": 3},
    ]  # fmt: skip
    for i in range(12):
        params = SamplingParams(max_tokens=24, ignore_eos=True, seed=i, **kinds[i % len(kinds)])
        engine.add(Request(str(i), tuple(range(3, 40 + i)), params))
    for _ in range(4):
        engine.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(12):
            engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    while engine.has_work:
        engine.step()


def test_drawn_answers_are_repeatable() -> None:
    reference = Reference.read(OWN / "internlm2")
    engine = load(reference.folder, "float32", enable_prefix_caching=False)
    params = SamplingParams(max_tokens=24, ignore_eos=True, seed=5, temperature=1.0, top_p=0.9)
    ids = tuple(reference.cases[0]["input_ids"])
    first = run(engine, [Request("a", ids, params)])["a"][0]
    company = [Request(str(i), ids, SamplingParams(max_tokens=30)) for i in range(9)]
    again = run(engine, [*company, Request("b", ids, params)])["b"][0]
    assert first == again


def test_a_penalty_is_read_before_the_next_step() -> None:
    reference = Reference.read(OWN / "internlm2")
    engine = load(reference.folder, "float32")
    ids = tuple(reference.cases[0]["input_ids"])
    once = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, presence_penalty=2.0,
                          frequency_penalty=2.0, repetition_penalty=50.0)  # fmt: skip
    plain = Request("plain", ids, GREEDY)
    tokens = run(engine, [plain, Request("x", ids, once)])["x"][0]
    assert len(set(tokens)) == len(tokens)


def test_the_memory_stays_within_the_budget() -> None:
    reference = Reference.read(OWN / "internvl2")
    torch.cuda.empty_cache()
    engine = load(reference.folder, "bfloat16", memory="2GiB", num_blocks=None)
    torch.cuda.reset_peak_memory_stats()
    run(engine, requests_of(reference, engine))
    context = engine.plan.workspace.context_bytes
    assert torch.cuda.max_memory_reserved() + context <= 2 * 2**30
    assert engine.plan.total_bytes <= 2 * 2**30


@pytest.mark.parametrize("folder", FOLDERS[1:], ids=lambda f: f"{f.parent.name}-{f.name}")
def test_a_recorded_tower_is_the_tower(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows and answers with graphs and without; rows that were taken stay, though each
    replay writes over those of the one before."""
    if not folder.exists():
        pytest.skip("no reference data beside the checkout")
    reference = Reference.read(folder)
    engine = load(folder, "float32")
    runner, vision = engine._runner, engine.model_config.vision
    assert runner.tower is not None
    most = max(runner.tower._graphs)
    assert most == min(8, engine.plan.tiles_per_batch)
    side, rng = vision.image_size, np.random.default_rng(1)
    tiles = [rng.integers(0, 256, (n, side, side, 3), np.uint8) for n in range(1, most + 2)]
    replays: list[int] = []
    run_recorded = TowerGraphs.run

    def count(self: TowerGraphs, pixels: torch.Tensor) -> torch.Tensor | None:
        rows = run_recorded(self, pixels)
        replays.extend([len(pixels)] * (rows is not None))
        return rows

    found = []
    for replaced in (count, lambda self, pixels: None):
        monkeypatch.setattr(TowerGraphs, "run", replaced)
        features = [engine.vision_features(pixels) for pixels in tiles]
        salt = bytes([len(found)])  # no picture is kept for the second time
        requests = requests_of(reference, engine, cache_salt=salt)
        answers = {name: result[0] for name, result in run(engine, requests).items()}
        found.append((features, answers))
    assert set(replays) >= set(range(1, most + 1))
    (recorded, answers), (plain, expected) = found
    assert answers == expected
    for a, b in zip(recorded, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    with torch.inference_mode(), runner.current():
        monkeypatch.setattr(TowerGraphs, "run", run_recorded)
        first = runner.encode([tiles[1]])
        kept = first.clone()
        second = runner.encode([tiles[0]])
        assert second.data_ptr() == first.data_ptr()  # to be copied before the next call
        torch.testing.assert_close(kept.float().cpu(), plain[1], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(second.float().cpu(), plain[0], rtol=1e-3, atol=1e-3)
