"""A step with empty places added gives what the step gives. (Capturing itself needs a GPU.)"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shuzhai.engine import runner
from shuzhai.engine.graphs import fits, padded
from shuzhai.engine.request import Request
from shuzhai.engine.runner import Runner
from shuzhai.engine.workspace import GraphSize, full_step_seqs, graph_sizes, worth_recording
from shuzhai.kernels.base import Kernels
from shuzhai.step import StepInput
from tests.parity.test_internlm2 import GREEDY, OWN_REFERENCE, load, run

CASES = [case for case in OWN_REFERENCE.cases if "greedy_ids" in case]


@pytest.mark.parametrize(
    "size", [GraphSize(1), GraphSize(6), GraphSize(5, 4, 40), GraphSize(1, 6, 70)], ids=str
)
def test_a_padded_step_is_the_step(size: GraphSize, monkeypatch: pytest.MonkeyPatch) -> None:
    """In company and from chunks, so that steps are mixed."""
    run_plain, used = Runner.run, []

    def run_padded(self: Runner, step: StepInput) -> Tensor:
        used.append(fits(step, size, 100))
        if not used[-1]:
            return run_plain(self, step)
        full = padded(step, size)
        assert len(full.token_ids) == size.num_seqs + size.num_tokens
        assert len(full.seq_lens) == len(full.block_tables) == size.num_seqs + size.num_chunks
        return run_plain(self, full)[: len(step.logit_rows)]

    monkeypatch.setattr(Runner, "run", run_padded)
    # Empty places are not for the CPU's own kernels.
    monkeypatch.setattr(runner, "make_kernels", lambda device: Kernels())
    engine = load(OWN_REFERENCE.folder, max_num_batched_tokens=37, num_blocks=64)
    asked = [Request(c["name"], tuple(c["input_ids"]), GREEDY) for c in CASES]
    results = run(engine, asked) | run(engine, [Request("alone", asked[0].token_ids, GREEDY)])
    for case in CASES:
        assert results[case["name"]][0] == case["greedy_ids"]
    assert results["alone"][0] == CASES[0]["greedy_ids"]
    assert sum(used) > 10


@pytest.mark.parametrize("most", [1, 3, 16, 64, 256, 1000])
def test_recorded_sizes(most: int) -> None:
    sizes = graph_sizes(most, 4096)
    assert len(set(sizes)) == len(sizes) < 60
    assert {s.num_seqs for s in sizes if not s.num_tokens} >= {1, min(most, 512)}
    assert all(s.num_seqs <= most for s in sizes)
    assert all(not s.num_tokens for s in graph_sizes(most, 63))


@pytest.mark.parametrize(("most", "places"), [(256, [16, 64, 256]), (1000, [16, 64, 256, 512])])
def test_full_steps_are_recorded(most: int, places: list[int]) -> None:
    """As the scheduler fills them, whatever is left of a budget; no step that is half empty."""
    assert full_step_seqs(most, 4096) == places
    sizes = graph_sizes(most, 4096)
    for n in places:
        full = chunk_step(n, [4096 - n])
        (size,) = [s for s in sizes if fits(full, s, 1024)]
        assert size.num_seqs + size.num_tokens == 4096
        assert not any(fits(chunk_step(n, [2600]), s, 1024) for s in sizes)
    assert full_step_seqs(most, 1024) == []


@pytest.mark.parametrize(
    ("num_decodes", "num_tokens", "place"),
    [
        (0, 1024, 1024), (0, 1025, None), (0, 1400, 1520), (0, 1520, 1520), (0, 1600, None),
        (0, 1800, 2032), (0, 2048, 2048), (0, 2300, 2544), (0, 2600, None), (0, 3000, 3056),
        (0, 3500, 3568), (16, 3500, 3568), (17, 3300, None), (0, 3600, 4080), (64, 4000, 4032),
        (200, 1400, 1536), (200, 2000, 2048), (257, 2000, None),
    ],
)  # fmt: skip
def test_a_long_prompt_has_a_step_that_it_about_fills(
    num_decodes: int, num_tokens: int, place: int | None
) -> None:
    """place: tokens of chunks in the smallest one"""
    sizes = sorted(graph_sizes(256, 4096), key=lambda s: s.num_seqs + s.num_tokens)
    step = chunk_step(num_decodes, [num_tokens])
    found = [s.num_tokens for s in sizes if fits(step, s, 1024)]
    assert (found[0] if found else None) == place


@pytest.mark.parametrize(
    ("launch_tokens", "num_decodes", "num_tokens", "place"),
    [
        (100, 0, 60, 64), (100, 0, 520, None), (100, 0, 1000, 1024), (100, 100, 60, None),
        (1650, 0, 520, 1024), (1650, 0, 1100, 1520), (1650, 0, 1600, None), (1650, 200, 500, 512),
        (4096, 0, 1600, 2032), (4096, 17, 3300, 4032), (4096, 200, 1200, 1536),
    ],
)  # fmt: skip
def test_places_stay_empty_where_launching_takes_longer(
    launch_tokens: int, num_decodes: int, num_tokens: int, place: int | None
) -> None:
    sizes = sorted(graph_sizes(256, 4096), key=lambda s: s.num_seqs + s.num_tokens)
    step = chunk_step(num_decodes, [num_tokens])
    found = [s.num_tokens for s in sizes if fits(step, s, launch_tokens)]
    assert (found[0] if found else None) == place


@pytest.mark.parametrize(("launch_tokens", "largest"), [(130, 513), (400, 1536), (1650, 4096)])
def test_a_slow_gpu_records_no_large_steps(launch_tokens: int, largest: int) -> None:
    sizes = graph_sizes(256, 4096)
    kept = worth_recording(sizes, launch_tokens)
    assert max(s.num_seqs + s.num_tokens for s in kept) == largest
    alone = [s for s in sizes if not s.num_tokens]
    assert [s for s in kept if not s.num_tokens] == alone
    assert worth_recording(sizes, 0) == alone
    # What is not recorded is launched as fast: no step wants it but where it is full.
    for size in set(sizes) - set(kept):
        step = chunk_step(size.num_seqs, [size.num_tokens // 2])
        assert not fits(step, size, launch_tokens)


def test_steps_of_one_token_each_are_worth_their_places() -> None:
    assert fits(chunk_step(200, []), GraphSize(256), 0)
    assert not fits(chunk_step(200, []), GraphSize(256, 4, 64), 0)


@pytest.mark.parametrize(("most", "budget"), [(1, 4096), (16, 2048), (256, 4096), (256, 1552)])
def test_long_steps_leave_no_tile_of_a_product_half_empty(most: int, budget: int) -> None:
    rows = {s.num_seqs + s.num_tokens for s in graph_sizes(most, budget) if s.num_tokens > 1024}
    assert all(n == budget or (n % 128 == 0 and n < budget - 16) for n in rows)
    assert len(rows) == {(256, 4096): 8, (1, 4096): 6, (16, 2048): 1, (256, 1552): 0}[most, budget]


def chunk_step(num_decodes: int, chunks: list[int]) -> StepInput:
    """As far as it matters for what it fits."""
    num_tokens, num_seqs = num_decodes + sum(chunks), num_decodes + len(chunks)
    tokens, seqs = torch.zeros(num_tokens), torch.zeros(num_seqs)
    longest = max(chunks, default=1)
    return StepInput(tokens, tokens, tokens, seqs, seqs, seqs, seqs, num_decodes, longest)
