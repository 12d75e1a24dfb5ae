"""The first steps on a GPU, taken on the CPU: every kind of step runs."""

from __future__ import annotations

import pytest
import torch

from shuzhai.engine.warmup import run_largest
from tests.parity.test_internlm2 import OWN_REFERENCE, load


@pytest.mark.parametrize("num_seqs", [1, 3, 60])
def test_every_kind_of_step_runs(monkeypatch: pytest.MonkeyPatch, num_seqs: int) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    runner = load(OWN_REFERENCE.folder, max_num_seqs=num_seqs, max_num_batched_tokens=300)._runner
    heads: list[int] = []
    logits = runner.decoder.logits

    def count(hidden: torch.Tensor) -> torch.Tensor:
        heads.append(len(hidden))
        return logits(hidden)

    monkeypatch.setattr(runner.decoder, "logits", count)
    with torch.inference_mode():
        run_largest(runner.decoder, runner.kernels, runner.kv, runner.plan, runner.device)
    assert heads == {1: [1], 3: [3, 2, 1], 60: [60, 40, 20, 2, 1]}[num_seqs]
