"""A step with empty places added gives what the step gives. (Capturing itself needs a GPU.)"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shuzhai.engine import runner
from shuzhai.engine.graphs import fits, padded
from shuzhai.engine.request import Request
from shuzhai.engine.runner import Runner
from shuzhai.engine.workspace import GraphSize, full_step_seqs, graph_sizes
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
        used.append(fits(step, size))
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
        (size,) = [s for s in sizes if fits(full, s)]
        assert size.num_seqs + size.num_tokens == 4096
        assert not any(fits(chunk_step(n, [2048]), s) for s in sizes)
    assert full_step_seqs(most, 1024) == []


def chunk_step(num_decodes: int, chunks: list[int]) -> StepInput:
    """As far as it matters for what it fits."""
    num_tokens, num_seqs = num_decodes + sum(chunks), num_decodes + len(chunks)
    tokens, seqs = torch.zeros(num_tokens), torch.zeros(num_seqs)
    return StepInput(tokens, tokens, tokens, seqs, seqs, seqs, seqs, num_decodes, max(chunks))
