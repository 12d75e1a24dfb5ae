"""From logits to tokens, for a whole batch at once.

The chance of a row depends on its seed and its place in the answer only, never on its neighbours or
on how often it was scheduled: a seeded request gives the same text in any company.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from shuzhai.engine.request import SamplingParams, TokenLogprob
from shuzhai.engine.sequence import Sequence

# Below this the softmax has one entry; dividing by it would overflow.
_GREEDY_TEMPERATURE = 1e-4
# How many of the best tokens are sorted at first to find a nucleus.
_NUCLEUS_CANDIDATES = 1024


def uniform(seed: int, index: int) -> float:
    """The index-th number in [0, 1) of a seed."""
    message = seed.to_bytes(8, "little", signed=True) + index.to_bytes(8, "little")
    digest = hashlib.blake2b(message, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def sample(logits: Tensor, sequences: Seq[Sequence]) -> tuple[list[int], list[TokenLogprob | None]]:
    """The next token of each sequence from its row of logits [B, vocab] float32.

    Overwrites logits. Log-probabilities, where asked for, are those of the unchanged logits.
    """
    wanted = [i for i, s in enumerate(sequences) if s.request.params.logprobs is not None]
    logprobs = logits[wanted].log_softmax(-1) if wanted else None
    for row, sequence in zip(logits, sequences, strict=True):
        _adjust(row, sequence)
    tokens = logits.argmax(-1)
    random = [
        i for i, s in enumerate(sequences) if s.request.params.temperature >= _GREEDY_TEMPERATURE
    ]
    if random:
        rows = logits[random] if len(random) < len(sequences) else logits
        tokens[random] = _draw(rows, [sequences[i] for i in random])
    ids = tokens.tolist()
    reports: list[TokenLogprob | None] = [None] * len(sequences)
    if logprobs is not None:
        counts = [sequences[i].request.params.logprobs or 0 for i in wanted]
        chosen = report_logprobs(logprobs, [ids[i] for i in wanted], counts)
        for i, report in zip(wanted, chosen, strict=True):
            reports[i] = report
    return ids, reports


def report_logprobs(logprobs: Tensor, token_ids: Seq[int], counts: Seq[int]) -> list[TokenLogprob]:
    """TokenLogprob of a token in each row [B, vocab], with the row's count of best ones."""
    index = torch.tensor(token_ids, device=logprobs.device)
    chosen = logprobs.gather(1, index[:, None])[:, 0].tolist()
    best = logprobs.topk(max(counts), dim=-1)
    return [
        TokenLogprob(token, value, tuple(zip(ids[:count], values[:count], strict=True)))
        for token, value, ids, values, count in zip(
            token_ids, chosen, best.indices.tolist(), best.values.tolist(), counts, strict=True
        )
    ]


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


def _draw(logits: Tensor, sequences: Seq[Sequence]) -> Tensor:
    """One random token a row [B, vocab] -> [B]: inverse transform over the vocabulary's order.

    That order, unlike one by probability, does not change when rounding differs between batches.
    """
    params = [s.request.params for s in sequences]
    numbers = [uniform(s.seed, s.num_output_tokens) for s in sequences]
    temperature = torch.tensor([p.temperature for p in params], device=logits.device)
    probs = (logits / temperature[:, None]).softmax(-1)
    _keep_top_k(probs, params)
    _keep_top_p(probs, params)
    _keep_min_p(probs, params)
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    target = torch.tensor(numbers, dtype=torch.float64, device=logits.device)
    target = target[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, target, right=True)[:, 0]
    # Rounding may put the target at the very end, past the last token that has a chance.
    last = cumulative.shape[1] - 1 - (probs.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(tokens, last)


def _keep_top_k(probs: Tensor, params: Seq[SamplingParams]) -> None:
    """Set all but the top_k probabilities of each row to 0; ties with the last one stay."""
    vocab = probs.shape[1]
    rows = [i for i, p in enumerate(params) if 0 < p.top_k < vocab]
    if not rows:
        return
    counts = [params[i].top_k for i in rows]
    best = probs[rows].topk(max(counts), dim=-1).values
    least = best.gather(1, torch.tensor(counts, device=probs.device)[:, None] - 1)
    probs[rows] = probs[rows].masked_fill(probs[rows] < least, 0.0)


def _keep_top_p(probs: Tensor, params: Seq[SamplingParams]) -> None:
    """Keep the fewest best tokens of each row whose share of the row's mass reaches top_p."""
    rows = [i for i, p in enumerate(params) if p.top_p < 1.0]
    if not rows:
        return
    kept = probs[rows]
    top_p = torch.tensor([params[i].top_p for i in rows], device=probs.device)
    mass = (top_p * kept.sum(-1))[:, None]
    candidates = min(_NUCLEUS_CANDIDATES, kept.shape[1])
    best = kept.topk(candidates, dim=-1).values
    if bool((best.sum(-1, keepdim=True) < mass).any()):
        best = kept.sort(-1, descending=True).values
    before = best.cumsum(-1) - best
    inside = (before < mass).sum(-1, keepdim=True).clamp(min=1)
    least = best.gather(1, inside - 1)
    probs[rows] = kept.masked_fill(kept < least, 0.0)


def _keep_min_p(probs: Tensor, params: Seq[SamplingParams]) -> None:
    """Set probabilities below min_p times the row's best to 0."""
    if any(p.min_p > 0 for p in params):
        min_p = torch.tensor([p.min_p for p in params], device=probs.device)
        probs.masked_fill_(probs < min_p[:, None] * probs.amax(-1, keepdim=True), 0.0)
