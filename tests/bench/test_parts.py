"""The workload that all engines are measured on, and how figures are made."""

from __future__ import annotations

import pytest

from shuzhai.bench.driver import Run, Step
from shuzhai.bench.machine import Limits
from shuzhai.bench.report import percentile
from shuzhai.bench.text import steady_step
from shuzhai.bench.work import Work, encode_flops, prefill_flops
from shuzhai.bench.workload import workload
from shuzhai.hub.shapes import SHAPES


def test_the_workload_is_the_one_of_the_others() -> None:
    asked = workload()
    assert len(asked) == 512
    assert sum(len(ids) for ids, _ in asked) == 104_897
    assert sum(answer for _, answer in asked) == 94_429
    ids = [i for prompt, _ in asked for i in prompt]
    assert min(ids) >= 10
    assert max(ids) < 92544 - 600
    others = workload(which=1)
    assert [(len(i), n) for i, n in others] == [(len(i), n) for i, n in asked]
    assert not any(a[:4] == b[:4] for (a, _), (b, _) in zip(asked, others, strict=True))
    small = workload(vocab_size=700)
    assert [(len(i), n) for i, n in small] == [(len(i), n) for i, n in asked]
    assert max(i for prompt, _ in small for i in prompt) < 100
    assert max(max(len(i), n) for i, n in workload(20, max_tokens=64)) == 64


def test_percentiles() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert percentile(list(range(1000)), 0.99) == 989
    assert percentile([5.0], 0.5) == 5.0


def test_steady_steps_are_those_that_bring_everybody_a_token() -> None:
    at = [0.0, 1.0, 1.5, 1.75, 2.0, 2.25, 2.5, 9.0]
    counts = [0, 1, 2, 2, 2, 2, 2, 1]  # a step may bring its tokens one call late
    steps = [Step(*step) for step in zip(at, counts, strict=True)]
    assert steady_step(Run(9.0, {}, steps), 2) == 0.25


def test_the_limit_of_one_stream_is_to_read_the_weights() -> None:
    """The figures of an H100: 853 tokens a second. A picture of 13 tiles is 9.5 TFLOP, 1.3 of them
    attention."""
    model = SHAPES["internlm2-chat-1.8b"]
    limits = Limits(2.9e12, 781e12)
    parameters = 1_889_110_016 - 92544 * 2048
    work = Work(model, limits, 2 * parameters, parameters, 98304)
    assert 1 / work.decode_seconds(1, 0) == pytest.approx(853, rel=2e-3)
    assert work.decode_seconds(256, 4096) > 1.5 * work.decode_seconds(256, 0)
    assert work.decode_seconds(512, 0) > 1.5 * work.decode_seconds(1, 0)
    assert 3500 / work.prefill_seconds(3500) == pytest.approx(225_000, rel=0.1)
    assert encode_flops(SHAPES["internvl2-2b"], 13) == pytest.approx(9.49e12, rel=1e-3)
    with_lora = SHAPES["internlm-xcomposer2-vl-1.8b"]
    assert prefill_flops(with_lora, 100, 50) > prefill_flops(with_lora, 100, 0)
    assert work.serve_seconds([(10, 5), (10, 9)], 4) >= 9 * work.decode_seconds(1, 0)
