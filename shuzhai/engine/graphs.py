"""CUDA graphs of steps: one launch instead of hundreds, for steps of a few fixed sizes.

A graph has places for sequences that bring one token each, and, where it is for mixed steps, for
chunks of prompts behind them. What a step does not fill stays empty: sequences of length 0, tokens
that are stored nowhere and belong to nobody. Of large chunks, those have a graph that fill a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from shuzhai.engine.transfer import Packing
from shuzhai.engine.workspace import GraphSize, is_worth_its_places
from shuzhai.models.decoder import Decoder
from shuzhai.step import KVPages, StepInput


def fits(step: StepInput, size: GraphSize) -> bool:
    """A step on the host has room in a recorded one, and leaves not too much of it."""
    num_tokens = len(step.token_ids) - step.num_decodes
    return (
        step.num_decodes <= size.num_seqs
        and len(step.seq_lens) - step.num_decodes <= size.num_chunks
        and num_tokens <= size.num_tokens
        and is_worth_its_places(size, num_tokens)
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

    def spread(given: Tensor, length: int, empty: int) -> Tensor:
        made = given.new_full((length, *given.shape[1:]), empty)
        made[:count] = given[:count]
        made[count + gap : len(given) + gap] = given[count:]
        return made

    sources = step.sources
    if sources is None:
        sources = torch.full((len(step.token_ids),), -1, dtype=torch.int32)
    rows = step.logit_rows + gap * (step.logit_rows >= count)
    starts = torch.arange(num_seqs + 1, dtype=torch.int32).clamp(max=size.num_seqs)
    ends = step.cu_seqlens_q[count + 1 :] + gap
    starts[size.num_seqs + 1 : size.num_seqs + 1 + len(ends)] = ends
    starts[size.num_seqs + 1 + len(ends) :] = len(step.token_ids) + gap
    return replace(
        step,
        token_ids=spread(step.token_ids, num_tokens, 0),
        positions=spread(step.positions, num_tokens, 0),
        slots=spread(step.slots, num_tokens, -1),
        cu_seqlens_q=starts,
        seq_lens=spread(step.seq_lens, num_seqs, 0),
        block_tables=spread(step.block_tables, num_seqs, 0),
        logit_rows=F.pad(rows, (0, num_seqs - len(rows))),
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


class _Graph:
    """A captured step of one size, the tensors it reads and the hidden states it makes."""

    def __init__(self, size: GraphSize, tables: Tensor, last_ids: Tensor) -> None:
        self.size = size
        empty = _empty_step(size)
        self._packing = Packing(_packed(empty))
        self._buffer = torch.empty(
            self._packing.num_bytes, dtype=torch.uint8, device=last_ids.device
        )
        self._graph = torch.cuda.CUDAGraph()
        self._hidden: Tensor | None = None
        moved = dict(zip(_PACKED, self._packing.views(self._buffer), strict=True))
        tables = tables[: len(empty.seq_lens)]
        self._step = replace(empty, block_tables=tables, last_ids=last_ids, **moved)
        self._fill(empty)

    def capture(self, run: Callable[[StepInput], Tensor], pool: tuple[int, int]) -> None:
        run(self._step)  # compiles what is not compiled yet, which a capture must not
        torch.cuda.synchronize()
        # Other engines may go on in their threads.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._hidden = run(self._step)

    def replay(self, step: StepInput) -> Tensor:
        """Hidden states of the logit rows of a padded step, until the next replay."""
        assert self._hidden is not None, "captured"
        self._fill(step)
        self._graph.replay()
        return self._hidden

    def _fill(self, step: StepInput) -> None:
        host = torch.empty(self._packing.num_bytes, dtype=torch.uint8, pin_memory=True)
        for view, given in zip(self._packing.views(host), _packed(step), strict=True):
            view.copy_(given)
        self._buffer.copy_(host, non_blocking=True)


_PACKED = (
    "token_ids", "positions", "slots", "logit_rows", "cu_seqlens_q", "seq_lens", "sources",
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
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Captures them, the largest first: all share one pool of memory. num_pages: of a table.

        progress is called with the share that is done, 0 to 1.
        """
        ordered = sorted(sizes, key=lambda s: (s.num_seqs + s.num_tokens, s))
        places = max(size.num_seqs + size.num_chunks for size in ordered)
        self._tables = torch.zeros((places, num_pages), dtype=torch.int32, device=last_ids.device)
        self._known_tables = torch.zeros((0, 0), dtype=torch.int32)
        pool = torch.cuda.graph_pool_handle()
        self._graphs = [_Graph(size, self._tables, last_ids) for size in ordered]
        for i, graph in enumerate(reversed(self._graphs), 1):
            graph.capture(lambda step: decoder(step, kv), pool)
            if progress is not None:
                progress(i / len(ordered))

    def run(self, step: StepInput) -> Tensor | None:
        """Hidden states of a host step, to be used before the next step; None: no graph fits."""
        for graph in self._graphs:
            if fits(step, graph.size):
                full = padded(step, graph.size)
                self._set_tables(full.block_tables)
                return graph.replay(full)[: len(step.logit_rows)]
        return None

    def _set_tables(self, tables: Tensor) -> None:
        """Most steps of few sequences have the tables of the step before."""
        known = self._known_tables
        if known.shape == tables.shape and torch.equal(known, tables):
            return
        self._known_tables = tables
        rows, columns = tables.shape
        self._tables[:rows, :columns].copy_(tables.pin_memory(), non_blocking=True)
