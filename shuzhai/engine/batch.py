"""From what the scheduler decided to the tensors of one step."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from shuzhai.engine.scheduler import Scheduled
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
    """Gathers a fresh StepInput from the sequences' own state; nothing is kept between steps."""

    def __init__(self, block_size: int, rope_limit: int | None, device: torch.device) -> None:
        """rope_limit: the length beyond which rotary bases follow it (dynamic NTK), or None."""
        self._block_size = block_size
        self._rope_limit = rope_limit
        self._device = device

    def build(self, scheduled: Seq[Scheduled]) -> Batch:
        token_ids: list[int] = []
        positions: list[int] = []
        starts = [0]
        rows: list[int] = []
        sample_rows: list[tuple[int, int]] = []
        prompt_rows: list[PromptRows] = []
        image_rows: list[int] = []
        image_states: list[Tensor] = []
        for i, entry in enumerate(scheduled):
            base = len(token_ids) - entry.start  # row of the step = base + position
            token_ids += entry.sequence.token_ids[entry.start : entry.end]
            positions += range(entry.start, entry.end)
            starts.append(len(token_ids))
            for first, states in _picture_parts(entry):
                new_rows = range(base + first, base + first + len(states))
                # The id of a picture's position may be none of the vocabulary.
                token_ids[new_rows.start : new_rows.stop] = [0] * len(states)
                image_rows += new_rows
                image_states.append(states)
            prompt = self._prompt_span(entry)
            if prompt:
                first = len(rows)
                rows += (base + p for p in prompt)
                prompt_rows.append(PromptRows(i, first, len(rows), prompt.start))
            if entry.reaches_end:
                if not prompt or prompt.stop != entry.end:
                    rows.append(base + entry.end - 1)
                sample_rows.append((i, len(rows) - 1))
        block_tables = self._block_tables(scheduled)
        places = self._tensor(positions)
        owner = torch.repeat_interleave(
            torch.arange(len(scheduled)), torch.tensor([e.end - e.start for e in scheduled])
        ).to(self._device)
        pages = block_tables[owner, places // self._block_size].long()
        step = StepInput(
            token_ids=self._tensor(token_ids),
            positions=places,
            slots=pages * self._block_size + places % self._block_size,
            cu_seqlens_q=self._tensor(starts, torch.int32),
            seq_lens=self._tensor([e.end for e in scheduled], torch.int32),
            block_tables=block_tables,
            logit_rows=self._tensor(rows),
            rope_lengths=self._rope_lengths(scheduled),
            image_rows=self._tensor(image_rows) if image_rows else None,
            image_states=torch.cat(image_states) if image_rows else None,
        )
        return Batch(step, sample_rows, prompt_rows)

    def _prompt_span(self, entry: Scheduled) -> range:
        """Prompt positions of this entry whose logits are asked for and not handed out yet."""
        sequence = entry.sequence
        if not sequence.wants_prompt_rows:
            return range(0)
        start = max(entry.start, sequence.num_reported_tokens)
        return range(start, min(entry.end, sequence.num_prompt_tokens))

    def _block_tables(self, scheduled: Seq[Scheduled]) -> Tensor:
        width = max(len(e.sequence.block_table) for e in scheduled)
        rows = [
            e.sequence.block_table + [0] * (width - len(e.sequence.block_table)) for e in scheduled
        ]
        return self._tensor(rows, torch.int32)

    def _rope_lengths(self, scheduled: Seq[Scheduled]) -> Tensor | None:
        longest = max(max(e.end, e.sequence.num_prompt_tokens) for e in scheduled)
        if self._rope_limit is None or longest <= self._rope_limit:
            return None
        return self._tensor(
            [
                max(e.sequence.num_prompt_tokens, position + 1)
                for e in scheduled
                for position in range(e.start, e.end)
            ]
        )

    def _tensor(self, values: list, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(self._device)


def _picture_parts(entry: Scheduled) -> Iterator[tuple[int, Tensor]]:
    """(first position, rows) of each stretch of an entry that belongs to a picture."""
    sequence = entry.sequence
    if entry.start >= sequence.images_end:
        return
    for i, image in enumerate(sequence.request.images):
        low, high = max(entry.start, image.start), min(entry.end, image.end)
        if low < high:
            rows = sequence.pictures[i].rows
            assert rows is not None, "the scheduler goes no further than rows are ready"
            yield low, rows[low - image.start : high - image.start]
