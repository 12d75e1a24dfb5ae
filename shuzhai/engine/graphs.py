"""CUDA graphs of steps: one launch instead of hundreds, for steps of a few fixed sizes.

A graph has places for sequences that bring one token each, and, where it is for mixed steps, for
chunks of prompts behind them. What a step does not fill stays empty: sequences of length 0, tokens
that are stored nowhere and belong to nobody. Large chunks have a graph where they about fill it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from shuzhai.engine.transfer import Packing
from shuzhai.engine.workspace import GraphSize, is_worth_its_places
from shuzhai.models.decoder import Decoder
from shuzhai.step import KVPages, StepInput


def fits(step: StepInput, size: GraphSize, launch_tokens: int) -> bool:
    """A step on the host has room in a recorded one, and leaves not too much of it.

    launch_tokens  see is_worth_its_places
    """
    num_tokens = len(step.token_ids) - step.num_decodes
    return (
        step.num_decodes <= size.num_seqs
        and len(step.seq_lens) - step.num_decodes <= size.num_chunks
        and num_tokens <= size.num_tokens
        and is_worth_its_places(size, len(step.token_ids), launch_tokens)
        and len(step.logit_rows) <= size.num_seqs + size.num_chunks
        and (size.num_tokens > 0 or len(step.logit_rows) == len(step.token_ids))
        and step.rope_lengths is None
        and step.image_rows is None
    )


def padded(step: StepInput, size: GraphSize) -> StepInput:
    """A step on the host, which fits, with all places of a recorded one. Sequences of one token
    keep theirs, chunks go behind the last place for those; logit rows keep their order."""
    count, num_tokens = step.num_decodes, size.num_seqs + size.num_tokens
    gap, num_seqs = size.num_seqs - count, size.num_seqs + size.num_chunks

    # In numpy, whose operations on so little take a third of PyTorch's.
    def spread(given: Tensor, length: int, empty: int) -> Tensor:
        found = given.numpy()
        made = np.full((length, *found.shape[1:]), empty, found.dtype)
        made[:count] = found[:count]
        made[count + gap : len(found) + gap] = found[count:]
        return torch.from_numpy(made)

    sources = step.sources
    if sources is None:
        sources = torch.from_numpy(np.full(len(step.token_ids), -1, np.int32))
    given_rows = step.logit_rows.numpy()
    rows = np.zeros(num_seqs, np.int64)
    rows[: len(given_rows)] = given_rows + gap * (given_rows >= count)
    starts = np.arange(num_seqs + 1, dtype=np.int32)
    ends = step.cu_seqlens_q.numpy()[count + 1 :] + gap
    starts[size.num_seqs + 1 : size.num_seqs + 1 + len(ends)] = ends
    starts[size.num_seqs + 1 + len(ends) :] = len(step.token_ids) + gap
    return replace(
        step,
        token_ids=spread(step.token_ids, num_tokens, 0),
        positions=spread(step.positions, num_tokens, 0),
        slots=spread(step.slots, num_tokens, -1),
        cu_seqlens_q=torch.from_numpy(starts),
        seq_lens=spread(step.seq_lens, num_seqs, 0),
        block_tables=spread(step.block_tables, num_seqs, 0),
        logit_rows=torch.from_numpy(rows),
        num_decodes=size.num_seqs,
        max_seqlen_q=max(1, size.num_tokens),
        sources=spread(sources, num_tokens, -1),
    )


def _empty_step(size: GraphSize) -> StepInput:
    """Nothing but empty places."""
    none, none32 = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int32)
    starts = torch.zeros(1, dtype=torch.int32)
    tables = torch.zeros((0, 1), dtype=torch.int32)
    return padded(StepInput(none, none, none, starts, none32, tables, none, 0, 1), size)


def capture(
    run: Callable[[], Tensor], pool: tuple[int, int]
) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """Record what this launches: the graph, and the tensor that each replay writes again."""
    run()  # compiles what is not compiled yet, which a capture must not
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Other engines may go on in their threads.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        made = run()
    return graph, made


class _Graph:
    """A captured step of one size, the tensors it reads and the hidden states it makes."""

    def __init__(
        self,
        size: GraphSize,
        empty: StepInput,
        tables: Tensor,
        last_ids: Tensor,
        run: Callable[[StepInput], Tensor],
        pool: tuple[int, int],
    ) -> None:
        self.size = size
        self._packing = Packing(_packed(empty))
        self._buffer = torch.empty(
            self._packing.num_bytes, dtype=torch.uint8, device=last_ids.device
        )
        moved = dict(zip(_PACKED, self._packing.views(self._buffer), strict=True))
        tables = tables[: len(empty.seq_lens)]
        placed = replace(empty, block_tables=tables, last_ids=last_ids, **moved)
        self._fill(empty)
        self._graph, self._hidden = capture(lambda: run(placed), pool)

    def replay(self, step: StepInput) -> Tensor:
        """Hidden states of the logit rows of a padded step, until the next replay."""
        self._fill(step)
        self._graph.replay()
        return self._hidden

    def _fill(self, step: StepInput) -> None:
        host = torch.empty(self._packing.num_bytes, dtype=torch.uint8, pin_memory=True)
        self._packing.fill(host, _packed(step))
        self._buffer.copy_(host, non_blocking=True)


_PACKED = (
    "token_ids", "positions", "slots", "logit_rows", "cu_seqlens_q", "seq_lens", "sources", "parts",
)  # fmt: skip


def _packed(step: StepInput) -> list[Tensor]:
    """What changes with every step: all but the block tables."""
    tensors = step.tensors()
    return [tensors[name] for name in _PACKED]


class StepGraphs:
    """The graphs of one decoder."""

    def __init__(
        self,
        decoder: Decoder,
        kv: list[KVPages],
        sizes: Iterable[GraphSize],
        num_pages: int,
        last_ids: Tensor,
        pool: tuple[int, int],
        launch_tokens: int,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Captures them, the largest first: all share one pool of memory.

        num_pages      of a table
        pool           other graphs may have it, too, that are replayed on the same stream
        launch_tokens  that the GPU computes while the host launches a step
        progress       is called with the share that is done, 0 to 1
        """
        self._launch_tokens = launch_tokens
        ordered = sorted(sizes, key=lambda s: (s.num_seqs + s.num_tokens, s))
        places = max(size.num_seqs + size.num_chunks for size in ordered)
        self._tables = torch.zeros((places, num_pages), dtype=torch.int32, device=last_ids.device)
        self._known_tables = torch.zeros((0, 0), dtype=torch.int32)
        self._prepare = partial(decoder.prepared, pages=kv[0])
        graphs: list[_Graph] = []
        for size in reversed(ordered):
            empty = self._prepare(_empty_step(size))
            graphs.append(
                _Graph(size, empty, self._tables, last_ids, lambda step: decoder(step, kv), pool)
            )
            if progress is not None:
                progress(len(graphs) / len(ordered))
        self._graphs = graphs[::-1]

    @property
    def sizes(self) -> list[GraphSize]:
        return [graph.size for graph in self._graphs]

    def run(self, step: StepInput) -> Tensor | None:
        """Hidden states of a host step, to be used before the next step; None: no graph fits."""
        for graph in self._graphs:
            if fits(step, graph.size, self._launch_tokens):
                full = self._prepare(padded(step, graph.size))
                self._set_tables(full.block_tables)
                return graph.replay(full)[: len(step.logit_rows)]
        return None

    def rehearse(self) -> None:
        """Replay each once with nothing but empty places, which stores nothing: a graph is brought
        to the GPU at its first launch. To be called behind all captures, each of which gives the
        pinned memory back that replays take."""
        for graph in self._graphs:
            graph.replay(self._prepare(_empty_step(graph.size)))
        torch.cuda.synchronize()

    def _set_tables(self, tables: Tensor) -> None:
        """Most steps of few sequences have the tables of the step before."""
        known = self._known_tables
        if known.shape == tables.shape and torch.equal(known, tables):
            return
        self._known_tables = tables
        rows, columns = tables.shape
        self._tables[:rows, :columns].copy_(tables.pin_memory(), non_blocking=True)
