"""The first steps on a GPU, taken on the CPU: every kind of step runs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from shuzhai.engine import warmup
from shuzhai.engine.warmup import launch_tokens, measure_launch_tokens, run_largest
from shuzhai.engine.workspace import LOGIT_ROWS
from shuzhai.kernels.head_rows import head_rows
from tests.parity.test_internlm2 import OWN_REFERENCE, load


@pytest.mark.parametrize("num_seqs", [1, 3, 60, 200])
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
    largest = {1: [1], 3: [3, 2, 1], 60: [60, 40, 20, 2, 1], 200: [200, 40, 20, 2, 1]}[num_seqs]
    assert heads[-len(largest) :] == largest
    # No request is the first to have so many rows: of its prompt, too.
    rows = heads[: -len(largest)]
    assert {*rows} == {head_rows(n) for n in range(1, max(num_seqs, LOGIT_ROWS) + 1)}
    assert rows == sorted(rows, reverse=True), "smaller ones take their memory of the largest"


def test_no_more_rows_than_tokens_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    runner = load(OWN_REFERENCE.folder, max_num_seqs=60, max_num_batched_tokens=30)._runner
    heads: list[int] = []
    logits = runner.decoder.logits
    monkeypatch.setattr(
        runner.decoder, "logits", lambda hidden: heads.append(len(hidden)) or logits(hidden)
    )
    with torch.inference_mode():
        run_largest(runner.decoder, runner.kernels, runner.kv, runner.plan, runner.device)
    assert max(heads) == 30


def test_tokens_that_launching_takes_as_long_as() -> None:
    assert launch_tokens(4096, 0.010, 0.025) == 1638
    assert launch_tokens(4096, 0.010, 0.400) == 102
    assert launch_tokens(4096, 0.020, 0.024) == 3413


def test_a_gpu_that_waits_for_the_host_sets_no_limit() -> None:
    """A small step may be all that is allowed; recorded ones with more places are as good."""
    for num_tokens in (256, 4096):
        assert launch_tokens(num_tokens, 0.0101, 0.0102) >= 10**6
        assert launch_tokens(num_tokens, 0.023, 0.025) >= 10**6


def test_launching_is_measured_by_steps_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that is held up in one of them is not taken for a slow one."""
    times = iter([0.0, 0.1, 5.0, 10.0, 11.0, 14.0, 20.0, 22.0, 24.0])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(warmup, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    runner = load(OWN_REFERENCE.folder, max_num_seqs=3, max_num_batched_tokens=300)._runner
    with torch.inference_mode():
        found = measure_launch_tokens(runner.decoder, runner.kv, runner.plan, runner.device)
    assert found == 300 // 4
    assert next(times, None) is None
