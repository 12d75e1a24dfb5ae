"""From what the scheduler decided to the tensors of one step."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
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

    entries      those that reach their end
    sample_rows  [len(entries)] int64, of the logit rows, theirs
    prompt_rows  for each entry whose prompt logits are asked for
    """

    step: StepInput
    entries: list[int]
    sample_rows: np.ndarray
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

    def build(self, scheduled: Seq[Scheduled], last_ids: Tensor | None = None) -> Batch:
        """scheduled: those that bring one token come first.

        last_ids  [S] what the step before sampled, in its order
        """
        sequences, *columns = zip(*scheduled, strict=True)
        starts, ends = (np.array(column, np.int64) for column in columns)
        counts = ends - starts
        num_decodes = int((counts == 1).sum())
        cu_seqlens = np.concatenate(([0], counts.cumsum()))
        rows = np.arange(cu_seqlens[-1], dtype=np.int64)
        positions = rows - (cu_seqlens[:-1] - starts).repeat(counts)
        tables = _block_tables(sequences)
        owner = np.arange(len(scheduled)).repeat(counts)
        pages = tables[owner, positions // self._block_size].astype(np.int64)
        slots = pages * self._block_size + positions % self._block_size
        ids = _token_ids(scheduled, num_decodes)
        num_prompt = np.array([s.num_prompt_tokens for s in sequences], np.int64)
        prompts = (starts < num_prompt).nonzero()[0].tolist()
        logit_rows, entries, sample_rows, prompt_rows = _logit_rows(
            scheduled, prompts, ends, cu_seqlens
        )
        image_rows, image_states = _pictures(scheduled, prompts, cu_seqlens)
        step = StepInput(
            # Below 0 are pending tokens, and those at the positions of pictures.
            token_ids=torch.from_numpy(np.maximum(ids, 0)),
            positions=torch.from_numpy(positions),
            slots=torch.from_numpy(slots),
            cu_seqlens_q=torch.from_numpy(cu_seqlens.astype(np.int32)),
            seq_lens=torch.from_numpy(ends.astype(np.int32)),
            block_tables=torch.from_numpy(tables),
            logit_rows=torch.from_numpy(logit_rows),
            num_decodes=num_decodes,
            max_seqlen_q=int(counts.max()),
            sources=_sources(ids),
            last_ids=last_ids,
            rope_lengths=self._rope_lengths(num_prompt, counts, positions),
            image_rows=torch.from_numpy(np.array(image_rows, np.int64)) if image_rows else None,
            image_states=torch.cat(image_states) if image_rows else None,
        )
        return Batch(step, entries, sample_rows, prompt_rows)

    def _rope_lengths(
        self, num_prompt: np.ndarray, counts: np.ndarray, positions: np.ndarray
    ) -> Tensor | None:
        if self._rope_limit is None:
            return None
        if max(num_prompt.max(), positions.max() + 1) <= self._rope_limit:
            return None
        return torch.from_numpy(np.maximum(num_prompt.repeat(counts), positions + 1))


def _block_tables(sequences: Seq[Sequence]) -> np.ndarray:
    rows = [s.block_table.tobytes() for s in sequences]
    size = max(map(len, rows))
    tables = bytearray().join([row.ljust(size, b"\0") for row in rows])
    return np.frombuffer(tables, np.int32).reshape(len(rows), -1)


def _token_ids(scheduled: Seq[Scheduled], num_decodes: int) -> np.ndarray:
    ids = array("q", [s.token_ids[start] for s, start, _ in scheduled[:num_decodes]])
    for sequence, start, end in scheduled[num_decodes:]:
        ids.extend(sequence.token_ids[start:end])
    return np.frombuffer(ids, np.int64)


def _sources(ids: np.ndarray) -> Tensor | None:
    """A pending token says which one it is of those that the step before sampled."""
    if ids.min() > PENDING:
        return None
    return torch.from_numpy(np.where(ids > PENDING, -1, PENDING - ids).astype(np.int32))


def _logit_rows(
    scheduled: Seq[Scheduled], prompts: list[int], ends: np.ndarray, cu_seqlens: np.ndarray
) -> tuple[np.ndarray, list[int], np.ndarray, list[PromptRows]]:
    """Rows of the step whose logits are wanted, the entries that reach their end, which of these
    rows are theirs, and which are prompts'. prompts: the entries that begin within one"""
    if not any(scheduled[i][0].wants_prompt_rows for i in prompts):
        lengths = np.array([len(s.token_ids) for s, _, _ in scheduled])
        at_end = (ends == lengths).nonzero()[0]
        return cu_seqlens[1:][at_end] - 1, at_end.tolist(), np.arange(len(at_end)), []
    rows: list[int] = []
    entries: list[int] = []
    sample_rows: list[int] = []
    prompt_rows: list[PromptRows] = []
    for i, (entry, last) in enumerate(zip(scheduled, (cu_seqlens[1:] - 1).tolist(), strict=True)):
        sequence, _, end = entry
        if sequence.wants_prompt_rows and (prompt := _prompt_span(entry)):
            first = len(rows)
            rows += (last - (end - 1) + p for p in prompt)
            prompt_rows.append(PromptRows(i, first, len(rows), prompt.start))
        if end == len(sequence.token_ids):
            if not rows or rows[-1] != last:  # it is no prompt's row anyway
                rows.append(last)
            entries.append(i)
            sample_rows.append(len(rows) - 1)
    return np.array(rows, np.int64), entries, np.array(sample_rows, np.int64), prompt_rows


def _prompt_span(entry: Scheduled) -> range:
    """Prompt positions of this entry whose logits are asked for and not handed out yet."""
    sequence, start, end = entry
    return range(max(start, sequence.num_reported_tokens), min(end, sequence.num_prompt_tokens))


def _pictures(
    scheduled: Seq[Scheduled], prompts: list[int], cu_seqlens: np.ndarray
) -> tuple[list[int], list[Tensor]]:
    """Rows of the step that belong to pictures, and what stands there."""
    rows: list[int] = []
    states: list[Tensor] = []
    for i in prompts:
        for first, part in _picture_parts(scheduled[i]):
            at = int(cu_seqlens[i]) - scheduled[i][1] + first
            rows += range(at, at + len(part))
            states.append(part)
    return rows, states


def _picture_parts(entry: Scheduled) -> Iterator[tuple[int, Tensor]]:
    """(first position, rows) of each stretch of an entry that belongs to a picture."""
    sequence, start, end = entry
    for i, image in enumerate(sequence.request.images):
        low, high = max(start, image.start), min(end, image.end)
        if low < high:
            rows = sequence.pictures[i].rows
            assert rows is not None, "the scheduler goes no further than rows are ready"
            yield low, rows[low - image.start : high - image.start]
