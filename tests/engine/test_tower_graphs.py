"""What is around the graphs of a tower, on a CPU, where graphs are played."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shuzhai.engine import tower_graphs
from shuzhai.engine.engine import Engine
from shuzhai.engine.tower_graphs import TowerGraphs
from tests.engine.test_engine import load
from tests.engine.test_pictures import answers, asked, span
from tests.support.played import capture
from tests.support.tiny_vision import TinyInternVL2, write_internvl2

MOST = 3


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Tiles of 56 pixels, 4 tokens each; up to MOST at a time are recorded."""
    monkeypatch.setattr(tower_graphs, "capture", capture)
    engine = load(write_internvl2(tmp_path, TinyInternVL2(tile_size=56)))
    runner, done = engine._runner, []
    assert runner.tower is None  # on a CPU
    rows = torch.full((4 * MOST, runner.model.decoder.hidden_size), torch.nan)
    tiles = runner._empty_tiles(MOST)
    tower = TowerGraphs(runner._encode_plainly, tiles, rows, (0, 0), done.append)
    assert done == [1 / 3, 2 / 3, 1]
    engine._runner = replace(runner, tower=tower)
    return engine


def num_replays(engine: Engine) -> int:
    return sum(graph.num_replays for graph, _ in engine._runner.tower._graphs.values())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_rows_are_those_of_the_plain_tower(engine: Engine, count: int) -> None:
    """Those of larger batches come from the plain one."""
    pixels = np.random.default_rng(count).integers(0, 256, (count, 56, 56, 3), np.uint8)
    found = engine.vision_features(pixels)
    assert num_replays(engine) == (count <= MOST)
    engine._runner = replace(engine._runner, tower=None)
    assert torch.equal(found, engine.vision_features(pixels))


def test_rows_that_were_taken_stay(engine: Engine) -> None:
    """A replay writes over those of the one before: by then the engine has its own."""
    plan = replace(engine.plan, tiles_per_batch=MOST)
    engine._runner = replace(engine._runner, plan=plan)
    requests = [
        asked("a", span(10, 3, seed=1)),
        asked("bb", span(20, 2, seed=2), span(40, 3, seed=3)),
        asked("ccc", span(30, 1, seed=4)),
    ]
    found = answers(engine, *requests)
    assert num_replays(engine) > 2
    engine._runner = replace(engine._runner, tower=None)
    others = [replace(request, cache_salt=b"another") for request in requests]
    assert answers(engine, *others) == found
