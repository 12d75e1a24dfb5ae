"""CUDA graphs of the vision tower: one launch for a batch of tiles instead of hundreds.

Each number of tiles up to a few has its graph: none is padded. All read the same pixels and write
the same rows, one after the other. No picture and no request is known here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from shuzhai.engine.graphs import capture


class TowerGraphs:
    """The graphs of one tower."""

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        pixels: Tensor,
        rows: Tensor,
        pool: tuple[int, int],
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Captures them, the largest first.

        encode    tiles [N, size, size, 3] uint8 on the device -> [N * tokens_per_tile, n]
        pixels    [most tiles, size, size, 3] uint8, which the graphs read
        rows      [most tiles * tokens_per_tile, n], where they write, in a type of its own
        pool      of memory, of graphs that are replayed on the same stream
        progress  is called with the share that is done, 0 to 1
        """
        self._pixels = pixels
        most = len(pixels)

        def encoded(count: int) -> Tensor:
            return rows[: len(rows) // most * count].copy_(encode(pixels[:count]))

        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        for count in range(most, 0, -1):
            self._graphs[count] = capture(partial(encoded, count), pool)
            if progress is not None:
                progress((most - count + 1) / most)

    def run(self, tiles: Tensor) -> Tensor | None:
        """Rows of tiles [N, size, size, 3] uint8 on the host, pinned: to be used before the next
        call; None: no graph has so many."""
        recorded = self._graphs.get(len(tiles))
        if recorded is None:
            return None
        graph, rows = recorded
        self._pixels[: len(tiles)].copy_(tiles, non_blocking=True)
        graph.replay()
        return rows

    def rehearse(self) -> None:
        """Replay each once, as StepGraphs.rehearse does."""
        for count in self._graphs:
            shape = (count, *self._pixels.shape[1:])
            self.run(torch.zeros(shape, dtype=torch.uint8, pin_memory=True))
        torch.cuda.synchronize()
