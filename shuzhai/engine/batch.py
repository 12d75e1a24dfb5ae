"""From what the scheduler decided to the tensors of one step."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shuzhai.engine.scheduler import Scheduled
from shuzhai.engine.sequence import PENDING, Sequence
from shuzhai.step import StepInput


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Logit rows [start, end) of a step are those of prompt positions [position, ...)."""

    entry: int
    start: int
    end: int
    position: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A step's input, and whose the logit rows are.

    sample_rows  for each entry that reaches its end: (entry, row)
    prompt_rows  for each entry whose prompt logits are asked for
    """

    step: StepInput
    sample_rows: list[tuple[int, int]]
    prompt_rows: list[PromptRows]


class BatchBuilder:
    """Gathers a fresh StepInput from the sequences' own state; nothing is kept between steps.

    Its tensors are on the host, but for what stands at the positions of pictures: the runner moves
    them.
    """

    def __init__(self, block_size: int, rope_limit: int | None) -> None:
        """rope_limit: the length beyond which rotary bases follow it (dynamic NTK), or None."""
        self._block_size = block_size
        self._rope_limit = rope_limit

    def build(
        self,
        scheduled: Seq[Scheduled],
        places: Mapping[Sequence, int] | None = None,
        last_ids: Tensor | None = None,
    ) -> Batch:
        """scheduled: those that bring one token come first.

        places  of sequences whose last token is pending, in last_ids [S]
        """
        starts = np.array([e.start for e in scheduled], np.int64)
        ends = np.array([e.end for e in scheduled], np.int64)
        counts = ends - starts
        cu_seqlens = np.concatenate(([0], counts.cumsum()))
        rows = np.arange(cu_seqlens[-1], dtype=np.int64)
        positions = rows - (cu_seqlens[:-1] - starts).repeat(counts)
        tables = self._block_tables(scheduled)
        owner = np.arange(len(scheduled)).repeat(counts)
        pages = tables[owner, positions // self._block_size].astype(np.int64)
        slots = pages * self._block_size + positions % self._block_size
        token_ids = array("q")
        for e in scheduled:
            token_ids.extend(e.sequence.token_ids[e.start : e.end])
        ids = np.frombuffer(token_ids, np.int64)
        logit_rows, sample_rows, prompt_rows = self._logit_rows(scheduled, cu_seqlens)
        image_rows, image_states = _pictures(scheduled, cu_seqlens)
        step = StepInput(
            # Below 0 are pending tokens, and those at the positions of pictures.
            token_ids=torch.from_numpy(np.maximum(ids, 0)),
            positions=torch.from_numpy(positions),
            slots=torch.from_numpy(slots),
            cu_seqlens_q=torch.from_numpy(cu_seqlens.astype(np.int32)),
            seq_lens=torch.from_numpy(ends.astype(np.int32)),
            block_tables=torch.from_numpy(tables),
            logit_rows=torch.from_numpy(np.array(logit_rows, np.int64)),
            num_decodes=int((counts == 1).sum()),
            max_seqlen_q=int(counts.max()),
            sources=self._sources(scheduled, ids, cu_seqlens, places or {}),
            last_ids=last_ids,
            rope_lengths=self._rope_lengths(scheduled),
            image_rows=torch.from_numpy(np.array(image_rows, np.int64)) if image_rows else None,
            image_states=torch.cat(image_states) if image_rows else None,
        )
        return Batch(step, sample_rows, prompt_rows)

    def _logit_rows(
        self, scheduled: Seq[Scheduled], cu_seqlens: np.ndarray
    ) -> tuple[list[int], list[tuple[int, int]], list[PromptRows]]:
        """Rows of the step, and whose they are."""
        if cu_seqlens[-1] == len(scheduled) and not any(
            e.sequence.wants_prompt_rows or e.end < len(e.sequence.token_ids) for e in scheduled
        ):  # most steps are so
            every = list(range(len(scheduled)))
            return every, list(zip(every, every, strict=True)), []
        rows: list[int] = []
        sample_rows: list[tuple[int, int]] = []
        prompt_rows: list[PromptRows] = []
        for i, (entry, end) in enumerate(zip(scheduled, cu_seqlens[1:].tolist(), strict=True)):
            sequence = entry.sequence
            sampled = entry.end == len(sequence.token_ids)
            if sequence.wants_prompt_rows and (prompt := self._prompt_span(entry)):
                first = len(rows)
                rows += (end - entry.end + p for p in prompt)
                prompt_rows.append(PromptRows(i, first, len(rows), prompt.start))
                if sampled and prompt.stop == entry.end:
                    sample_rows.append((i, len(rows) - 1))
                    continue
            if sampled:
                sample_rows.append((i, len(rows)))
                rows.append(end - 1)
        return rows, sample_rows, prompt_rows

    def _sources(
        self,
        scheduled: Seq[Scheduled],
        ids: np.ndarray,
        cu_seqlens: np.ndarray,
        places: Mapping[Sequence, int],
    ) -> Tensor | None:
        """A pending token is the last one that its sequence brings."""
        if not places:
            return None
        sources = np.full(len(ids), -1, np.int32)
        last = cu_seqlens[1:] - 1
        for i in (ids[last] == PENDING).nonzero()[0].tolist():
            sources[last[i]] = places[scheduled[i].sequence]
        return torch.from_numpy(sources)

    def _prompt_span(self, entry: Scheduled) -> range:
        """Prompt positions of this entry whose logits are asked for and not handed out yet."""
        sequence = entry.sequence
        start = max(entry.start, sequence.num_reported_tokens)
        return range(start, min(entry.end, sequence.num_prompt_tokens))

    def _block_tables(self, scheduled: Seq[Scheduled]) -> np.ndarray:
        rows = [e.sequence.block_table.tobytes() for e in scheduled]
        size = max(map(len, rows))
        tables = bytearray().join([row.ljust(size, b"\0") for row in rows])
        return np.frombuffer(tables, np.int32).reshape(len(rows), -1)

    def _rope_lengths(self, scheduled: Seq[Scheduled]) -> Tensor | None:
        if self._rope_limit is None:
            return None
        longest = max(max(e.end, e.sequence.num_prompt_tokens) for e in scheduled)
        if longest <= self._rope_limit:
            return None
        return torch.from_numpy(
            np.array(
                [
                    max(e.sequence.num_prompt_tokens, position + 1)
                    for e in scheduled
                    for position in range(e.start, e.end)
                ]
            )
        )


def _pictures(scheduled: Seq[Scheduled], cu_seqlens: np.ndarray) -> tuple[list[int], list[Tensor]]:
    """Rows of the step that belong to pictures, and what stands there."""
    rows: list[int] = []
    states: list[Tensor] = []
    for i, entry in enumerate(scheduled):
        if entry.start >= entry.sequence.images_end:
            continue
        for first, part in _picture_parts(entry):
            at = int(cu_seqlens[i]) - entry.start + first
            rows += range(at, at + len(part))
            states.append(part)
    return rows, states


def _picture_parts(entry: Scheduled) -> Iterator[tuple[int, Tensor]]:
    """(first position, rows) of each stretch of an entry that belongs to a picture."""
    sequence = entry.sequence
    for i, image in enumerate(sequence.request.images):
        low, high = max(entry.start, image.start), min(entry.end, image.end)
        if low < high:
            rows = sequence.pictures[i].rows
            assert rows is not None, "the scheduler goes no further than rows are ready"
            yield low, rows[low - image.start : high - image.start]
