"""From logits to tokens, for a whole batch at once.

The chance of a row depends on its seed and its place in the answer only, never on its neighbours or
on how often it was scheduled: a seeded request gives the same text in any company.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from shuzhai.engine.request import TokenLogprob
from shuzhai.engine.sequence import GREEDY_TEMPERATURE, Sequence
from shuzhai.engine.transfer import Fetch, to_device
from shuzhai.engine.workspace import SAMPLE_ROWS
from shuzhai.kernels.base import Kernels
from shuzhai.step import DrawInput


def uniform(seed: int, index: int) -> float:
    """The index-th number in [0, 1) of a seed."""
    message = seed.to_bytes(8, "little", signed=True) + index.to_bytes(8, "little")
    digest = hashlib.blake2b(message, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


class LogprobReport:
    """Log-probabilities of a token in each row [B, vocab], and of the row's best ones."""

    def __init__(self, logprobs: Tensor, token_ids: Tensor, counts: Seq[int]) -> None:
        """token_ids [B] on the device; counts: how many of the best, for each row."""
        self._counts = counts
        best = logprobs.topk(max(counts), dim=-1)
        chosen = logprobs.gather(1, token_ids[:, None])[:, 0]
        self._fetch = Fetch(token_ids, chosen, best.indices, best.values)

    def read(self) -> list[TokenLogprob]:
        rows = (tensor.tolist() for tensor in self._fetch.read())
        return [
            TokenLogprob(token, value, tuple(zip(ids[:count], values[:count], strict=True)))
            for token, value, ids, values, count in zip(*rows, self._counts, strict=True)
        ]


class Sampled:
    """The tokens that a step samples, on the device: ids [B] int64."""

    def __init__(self, ids: Tensor, reports: Seq[tuple[Seq[int], LogprobReport]]) -> None:
        """reports: log-probabilities for the sequences of these indices."""
        self.ids = ids
        self._reports = reports
        self._fetch = Fetch(ids)

    def read(self) -> tuple[list[int], dict[int, TokenLogprob]]:
        """The token of each sequence and, by place, log-probabilities where asked for; waits for
        them."""
        reports: dict[int, TokenLogprob] = {}
        for wanted, given in self._reports:
            reports |= zip(wanted, given.read(), strict=True)
        return self._fetch.read()[0].tolist(), reports


def sample(kernels: Kernels, logits: Tensor, sequences: Seq[Sequence]) -> Sampled:
    """The next token of each sequence from its row of logits [B, vocab] float32.

    Overwrites logits. Log-probabilities, where asked for, are those of the unchanged logits.
    """
    if all(s.is_plain for s in sequences):
        return Sampled(kernels.argmax(logits), [])
    ids: list[Tensor] = []
    reports: list[tuple[Seq[int], LogprobReport]] = []
    for first in range(0, len(sequences), SAMPLE_ROWS):
        some = slice(first, first + SAMPLE_ROWS)
        drawn, wanted, report = _sample_some(kernels, logits[some], sequences[some])
        ids.append(drawn)
        if report is not None:
            reports.append(([first + i for i in wanted], report))
    return Sampled(ids[0] if len(ids) == 1 else torch.cat(ids), reports)


def _sample_some(
    kernels: Kernels, logits: Tensor, sequences: Seq[Sequence]
) -> tuple[Tensor, list[int], LogprobReport | None]:
    """Tokens, and log-probabilities for the sequences of these indices, if any want them."""
    wanted = [i for i, s in enumerate(sequences) if s.request.params.logprobs is not None]
    logprobs = _rows(logits, wanted).log_softmax(-1) if wanted else None
    for row, sequence in enumerate(sequences):
        if sequence.adjusts_logits:
            _adjust(logits[row], sequence)
    random = [
        i for i, s in enumerate(sequences) if s.request.params.temperature >= GREEDY_TEMPERATURE
    ]
    if len(random) == len(sequences):
        ids = _draw(kernels, logits, sequences)
    else:
        ids = kernels.argmax(logits)
        if random:
            drawn = _draw(kernels, _rows(logits, random), [sequences[i] for i in random])
            ids.index_copy_(0, to_device(np.array(random), ids.device), drawn)
    report = None
    if logprobs is not None:
        counts = [sequences[i].request.params.logprobs or 0 for i in wanted]
        report = LogprobReport(logprobs, _rows(ids, wanted), counts)
    return ids, wanted, report


def _adjust(row: Tensor, sequence: Sequence) -> None:
    """Apply penalties, biases and the least length to one row of logits, in place."""
    params = sequence.request.params
    if params.repetition_penalty != 1.0:
        # -1 stands at positions of pictures.
        ids = list(set(sequence.token_ids) - {-1})
        seen = torch.tensor(ids, dtype=torch.long, device=row.device)
        values = row[seen]
        penalty = params.repetition_penalty
        row[seen] = torch.where(values > 0, values / penalty, values * penalty)
    counts = sequence.output_counts
    if counts and (params.presence_penalty or params.frequency_penalty):
        ids = torch.tensor(list(counts), device=row.device)
        times = torch.tensor(list(counts.values()), dtype=row.dtype, device=row.device)
        row[ids] -= params.presence_penalty + params.frequency_penalty * times
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=row.device)
        bias = torch.tensor(list(params.logit_bias.values()), dtype=row.dtype, device=row.device)
        row[ids] += bias
    if sequence.num_output_tokens < params.min_tokens and sequence.request.stop_ids:
        row[torch.tensor(list(sequence.request.stop_ids), device=row.device)] = float("-inf")


def _draw(kernels: Kernels, logits: Tensor, sequences: Seq[Sequence]) -> Tensor:
    """One random token a row [B, vocab] -> [B]."""
    params = [s.request.params for s in sequences]
    vocab = logits.shape[1]
    how = DrawInput(
        temperature=_floats([p.temperature for p in params], logits.device),
        top_k=to_device(
            np.array([p.top_k if p.top_k < vocab else 0 for p in params], np.int32), logits.device
        ),
        top_p=_floats([p.top_p for p in params], logits.device),
        min_p=_floats([p.min_p for p in params], logits.device),
        numbers=to_device(
            np.array([uniform(s.seed, s.num_output_tokens) for s in sequences]), logits.device
        ),
        is_filtered=any(0 < p.top_k < vocab or p.top_p < 1 or p.min_p > 0 for p in params),
    )
    return kernels.draw(logits, how)


def _rows(tensor: Tensor, rows: list[int]) -> Tensor:
    """A copy of these rows, without waiting for the device."""
    return tensor[to_device(np.array(rows), tensor.device)]


def _floats(values: list[float], device: torch.device) -> Tensor:
    return to_device(np.array(values, np.float32), device)
