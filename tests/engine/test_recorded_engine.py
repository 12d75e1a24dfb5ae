"""The whole engine with recorded steps, on a CPU, where graphs are played."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from shuzhai.config import DecoderConfig
from shuzhai.engine import graphs, tower_graphs
from shuzhai.engine.engine import Engine
from shuzhai.engine.request import Request
from shuzhai.engine.workspace import GraphSize, graph_sizes
from shuzhai.kernels.base import Kernels
from shuzhai.kernels.decode_parts import choose_parts, cut
from shuzhai.step import KVPages
from tests.parity.test_internlm2 import GREEDY, load, run
from tests.parity.test_vision import request_of
from tests.support.played import capture
from tests.support.reference import OWN, Reference


def _parts(
    self: Kernels, seq_lens: Tensor, config: DecoderConfig, pages: KVPages, dtype: torch.dtype
) -> Tensor | None:
    if not len(seq_lens):
        return None
    aim, places = choose_parts(len(seq_lens), config.num_kv_heads, 64)
    return torch.from_numpy(cut(seq_lens.numpy(), aim, places, 32))


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (graphs, tower_graphs):
        monkeypatch.setattr(module, "capture", capture)
    monkeypatch.setattr("shuzhai.engine.runner.make_kernels", lambda _: Kernels())
    monkeypatch.setattr(Kernels, "can_record", lambda *_: True)
    monkeypatch.setattr(Kernels, "decode_parts", _parts)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    for name in ("empty", "zeros"):
        plain = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda *a, plain=plain, pin_memory=False, **more: plain(*a, **more)
        )


def _recorded(engine: Engine) -> list[float]:
    """Let the engine run on recorded steps from now on: the progress that was told."""
    told: list[float] = []
    sizes = graph_sizes(engine.plan.max_num_seqs, engine.plan.max_num_batched_tokens)
    with torch.inference_mode():
        engine._runner = engine._runner._with_graphs(sizes, 10**9, told.append)
    return told


def test_the_scheduler_is_told_of_full_steps_that_were_recorded() -> None:
    options = {"max_num_batched_tokens": 4096, "num_blocks": 512, "max_num_seqs": 300}
    runner = load(Reference.read(OWN / "internlm2").folder, **options)._runner
    assert runner.full_step_seqs == []
    sizes = graph_sizes(300, 4096)
    for kept in (sizes, [s for s in sizes if (s.num_seqs, s.num_tokens) != (64, 4032)], []):
        told = replace(runner, graphs=SimpleNamespace(sizes=kept)).full_step_seqs
        assert told == [n for n in (16, 64, 256, 300) if GraphSize(n, 64, 4096 - n) in kept]


@pytest.mark.parametrize("name", ["internlm2", "internvl2"])
def test_recorded_steps_give_the_same_answers(name: str, played: None) -> None:
    reference = Reference.read(OWN / name)
    engine = load(reference.folder, max_num_batched_tokens=300, num_blocks=512, max_num_seqs=3)
    with torch.inference_mode():
        for pages in engine._runner.kv:
            pages.keys.fill_(7)  # they hold anything, NaN perhaps
    told = _recorded(engine)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)
    runner = engine._runner
    assert all((pages.keys == 7).all() for pages in runner.kv), "recording stores nothing"
    assert runner.graphs is not None
    rehearsed = sum(graph._graph.num_replays for graph in runner.graphs._graphs)
    assert rehearsed == len(runner.graphs.sizes), "each was replayed once"
    cases = [c for c in reference.cases if "config_overrides" not in c and "greedy_ids" in c]
    requests = [
        request_of(case, reference, engine)
        if "images" in case
        else Request(case["name"], tuple(case["input_ids"]), GREEDY)
        for case in cases
    ]
    found = run(engine, requests)
    for case in cases:
        assert found[case["name"]][0] == case["greedy_ids"], case["name"]
    replays = sum(graph._graph.num_replays for graph in runner.graphs._graphs)
    assert replays > rehearsed + 20
    if name == "internvl2":
        assert runner.tower is not None
        assert any(graph.num_replays > 1 for graph, _ in runner.tower._graphs.values())
