"""The search for the score below which top_k and top_p leave tokens out, without sorting.

A row is cut into chunks by the size of the vocabulary alone, and a program sees to one chunk: one
row keeps the whole device busy, and a row's sums are made in one order in any company, without
atomic additions. Two kernels evaluate a few thresholds each, all at once, and so narrow a bracket
around the one that is sought; a third gathers the few scores in the bracket, among which
sampling.py bisects. Rows without filters are passed over.

Scores are s = (logit - best) log2(e) / temperature, so that a weight is 2^s and the best one is 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from shuzhai.kernels.triton.pointwise import enter

# Scores below this one are worth less than rounding: 2^-46 of the best, 2^-26 all of them together.
_FLOOR = tl.constexpr(-46.0)
_LOG2_E = tl.constexpr(1.4426950408889634)
# Numbers in the state of a row: lowest and highest place of the threshold, weight and number of
# tokens from the highest place on, weight of all tokens; eight, for the alignment.
STATE = tl.constexpr(8)


@triton.jit
def range_kernel(
    logits: tl.tensor,
    extremes: tl.tensor,
    vocab: tl.constexpr,
    chunk: tl.constexpr,
    chunks: tl.constexpr,
    use_pdl: tl.constexpr,
) -> None:
    """extremes [B, 2, chunks]: the largest number of each chunk, and the least finite one."""
    row, part = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    place = part * chunk + tl.arange(0, chunk)
    enter(use_pdl)
    start = logits + row.to(tl.int64) * vocab
    value = tl.load(start + place, mask=place < vocab, other=float("-inf"))
    finite = tl.where(value > float("-inf"), value, float("inf"))
    out = extremes + row.to(tl.int64) * (2 * chunks) + part
    tl.store(out, tl.max(value, axis=0))
    tl.store(out + chunks, tl.min(finite, axis=0))


@triton.jit
def row_extreme(
    extremes: tl.tensor,
    row: tl.tensor,
    which: tl.constexpr,
    chunks: tl.constexpr,
    parts: tl.constexpr,
) -> tl.tensor:
    """The largest number of a row (which = 0) or the least finite one (1)."""
    part = tl.arange(0, parts)
    place = extremes + row.to(tl.int64) * (2 * chunks) + which * chunks + part
    if which == 0:
        return tl.max(tl.load(place, mask=part < chunks, other=float("-inf")), axis=0)
    return tl.min(tl.load(place, mask=part < chunks, other=float("inf")), axis=0)


@triton.jit
def scores(
    logits: tl.tensor,
    row: tl.tensor,
    place: tl.tensor,
    best: tl.tensor,
    temperature: tl.tensor,
    vocab: tl.constexpr,
) -> tl.tensor:
    """Scores of these places of a row; -inf behind its end."""
    start = logits + row.to(tl.int64) * vocab
    value = tl.load(start + place, mask=place < vocab, other=float("-inf"))
    return (value - best) * (_LOG2_E / temperature)


@triton.jit
def filters(
    top_ks: tl.tensor, top_ps: tl.tensor, row: tl.tensor, vocab: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """(top_k, 0 where it keeps all; top_p) of a row"""
    top_k = tl.load(top_ks + row)
    return tl.where((top_k > 0) & (top_k < vocab), top_k, 0), tl.load(top_ps + row)


@triton.jit
def _step(low: tl.tensor, high: tl.tensor, bins: tl.constexpr) -> tl.tensor:
    """From one threshold to the next: of so few bits that its multiples are exact, and a threshold
    the same number however a compiler fuses the sum."""
    bits = ((high - low) * (1.0 / bins)).to(tl.int32, bitcast=True)
    return (bits & -4096).to(tl.float32, bitcast=True)


@triton.jit
def _first_state(
    lowest: tl.tensor,
    best: tl.tensor,
    temperature: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    vocab: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The state before the first pass; a total below 0 is not known yet."""
    low = tl.maximum((lowest - best) * (_LOG2_E / temperature), _FLOOR)
    # All tokens below this one together weigh less than what top_p leaves out.
    left_out = tl.log2(tl.maximum(1.0 - top_p, 1e-9) / vocab) - 0.01
    low = tl.minimum(tl.where(top_k > 0, low, tl.maximum(low, left_out)), 0.0)
    zero = tl.full((), 0.0, tl.float32)
    return low, 1e-30 - low * (1.0 / 1024), zero, zero, zero - 1.0


@triton.jit
def _two_sums(first: tl.tensor, second: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """In one reduction."""
    return tl.split(tl.sum(tl.join(first, second), axis=0))


@triton.jit
def _narrow(
    low: tl.tensor,
    high: tl.tensor,
    high_mass: tl.tensor,
    high_count: tl.tensor,
    total: tl.tensor,
    sums: tl.tensor,
    row: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    chunks: tl.constexpr,
    parts: tl.constexpr,
    bins: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The state of a row after a pass over thresholds from `low` up to `high`, whose sums lie in
    sums [B, 2, bins, chunks]: weights, then counts, of what reaches each threshold.

    top_p counts in what top_k has left. Where both filter, the bracket holds both thresholds: the
    second one needs the first one exactly.
    """
    index, part = tl.arange(0, bins), tl.arange(0, parts)
    place = sums + row.to(tl.int64) * (2 * bins * chunks)
    place = place + index[:, None] * chunks + part[None, :]
    inside = tl.broadcast_to((part < chunks)[None, :], (bins, parts))
    mass = tl.sum(tl.load(place, mask=inside, other=0.0), axis=1)
    inside = inside & (top_k > 0)
    count = tl.sum(tl.load(place + bins * chunks, mask=inside, other=0.0), axis=1)
    # The last threshold that top_k tokens reach; the first one if there is none.
    first, k_count = _two_sums(
        tl.where(index == 0, mass, 0.0), ((count >= top_k) & (index > 0)).to(tl.float32)
    )
    total, k_bin = tl.where(total < 0, first, total), k_count.to(tl.int32)
    # The weight of what top_k leaves lies between these.
    more, less = _two_sums(
        tl.where(index == k_bin, mass, 0.0), tl.where(index == k_bin + 1, mass, 0.0)
    )
    less = tl.where(k_bin == bins - 1, high_mass, less)
    less, more = tl.where(top_k > 0, less, total), tl.where(top_k > 0, more, total)
    low_count, nucleus_count = _two_sums(
        ((mass >= top_p * more) & (index > 0)).to(tl.float32),
        ((mass >= top_p * less) & (index > 0)).to(tl.float32),
    )
    low_bin = tl.where(top_k > 0, k_bin, low_count.to(tl.int32))
    high_bin = tl.where(top_p < 1.0, nucleus_count.to(tl.int32), k_bin)
    high_bin = tl.maximum(high_bin, low_bin) + 1
    step = _step(low, high, bins)
    is_inner = high_bin < bins
    new_mass, new_count = _two_sums(
        tl.where(index == high_bin, mass, 0.0), tl.where(index == high_bin, count, 0.0)
    )
    return (
        low + low_bin * step,
        tl.where(is_inner, low + high_bin * step, high),
        tl.where(is_inner, new_mass, high_mass),
        tl.where(is_inner, new_count, high_count),
        total,
    )


@triton.jit
def _save(
    states: tl.tensor,
    row: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    high_mass: tl.tensor,
    high_count: tl.tensor,
    total: tl.tensor,
) -> None:
    place = states + row.to(tl.int64) * STATE
    tl.store(place, low)
    tl.store(place + 1, high)
    tl.store(place + 2, high_mass)
    tl.store(place + 3, high_count)
    tl.store(place + 4, total)


@triton.jit
def restore(
    states: tl.tensor, row: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    place = states + row.to(tl.int64) * STATE
    low, high = tl.load(place), tl.load(place + 1)
    return low, high, tl.load(place + 2), tl.load(place + 3), tl.load(place + 4)


@triton.jit(do_not_specialize_on_alignment=["temperatures", "top_ks", "top_ps"])
def pass_kernel(
    logits: tl.tensor,
    temperatures: tl.tensor,
    top_ks: tl.tensor,
    top_ps: tl.tensor,
    extremes: tl.tensor,
    states: tl.tensor,
    sums: tl.tensor,
    new_states: tl.tensor,
    new_sums: tl.tensor,
    vocab: tl.constexpr,
    chunk: tl.constexpr,
    chunks: tl.constexpr,
    parts: tl.constexpr,
    bins: tl.constexpr,
    is_first: tl.constexpr,
    use_pdl: tl.constexpr,
) -> None:
    """Sums of a chunk above the thresholds in the bracket that `states` and `sums` give: see
    _narrow. The first threshold of the first pass is below everything: the weight of all."""
    row, part = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    enter(use_pdl)
    top_k, top_p = filters(top_ks, top_ps, row, vocab)
    if (top_k > 0) | (top_p < 1.0):
        temperature = tl.load(temperatures + row)
        best = row_extreme(extremes, row, 0, chunks, parts)
        if is_first:
            lowest = row_extreme(extremes, row, 1, chunks, parts)
            low, high, high_mass, high_count, total = _first_state(
                lowest, best, temperature, top_k, top_p, vocab
            )
        else:
            low, high, high_mass, high_count, total = restore(states, row)
            low, high, high_mass, high_count, total = _narrow(
                low, high, high_mass, high_count, total,
                sums, row, top_k, top_p, chunks, parts, bins,
            )  # fmt: skip
        if part == 0:
            _save(new_states, row, low, high, high_mass, high_count, total)
        place = part * chunk + tl.arange(0, chunk)
        score = scores(logits, row, place, best, temperature, vocab)
        weight = tl.exp2(score)
        step = _step(low, high, bins)
        out = new_sums + row.to(tl.int64) * (2 * bins * chunks) + part
        for index in tl.static_range(0, bins, 4):
            # Four sums in one reduction: half the time of a small one goes to its barriers.
            first = low + index * step
            if is_first and index == 0:
                first = tl.full((), float("-inf"), tl.float32)
            reached = tl.join(
                tl.join(score >= first, score >= low + (index + 1) * step),
                tl.join(score >= low + (index + 2) * step, score >= low + (index + 3) * step),
            )
            # [2, 2]: of the index, the second digit, then the first one
            digit = index + 2 * tl.arange(0, 2)[None, :] + tl.arange(0, 2)[:, None]
            mass = tl.sum(tl.where(reached, weight[:, None, None], 0.0), axis=0)
            tl.store(out + digit * chunks, mass)
            if top_k > 0:
                count = tl.sum(reached.to(tl.int32), axis=0).to(tl.float32)
                tl.store(out + (bins + digit) * chunks, count)


@triton.jit(do_not_specialize_on_alignment=["temperatures", "top_ks", "top_ps", "min_ps"])
def gather_kernel(
    logits: tl.tensor,
    temperatures: tl.tensor,
    top_ks: tl.tensor,
    top_ps: tl.tensor,
    min_ps: tl.tensor,
    extremes: tl.tensor,
    states: tl.tensor,
    sums: tl.tensor,
    new_states: tl.tensor,
    masses: tl.tensor,
    counts: tl.tensor,
    members: tl.tensor,
    vocab: tl.constexpr,
    chunk: tl.constexpr,
    chunks: tl.constexpr,
    parts: tl.constexpr,
    slots: tl.constexpr,
    bins: tl.constexpr,
    use_pdl: tl.constexpr,
) -> None:
    """Of a chunk: the weight of the tokens above the bracket, which are kept for certain, to masses
    [B, chunks], the number of those in the bracket to counts [B, chunks], their scores to members
    [B, chunks, slots] as far as there is room."""
    row, part = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    enter(use_pdl)
    top_k, top_p = filters(top_ks, top_ps, row, vocab)
    floor = tl.log2(tl.load(min_ps + row))  # of 0, which leaves nothing out, -inf
    best = row_extreme(extremes, row, 0, chunks, parts)
    place = part * chunk + tl.arange(0, chunk)
    score = scores(logits, row, place, best, tl.load(temperatures + row), vocab)
    sure = tl.full((), float("-inf"), tl.float32)
    if (top_k > 0) | (top_p < 1.0):
        low, high, high_mass, high_count, total = restore(states, row)
        low, high, high_mass, high_count, total = _narrow(
            low, high, high_mass, high_count, total, sums, row, top_k, top_p, chunks, parts, bins
        )
        if part == 0:
            _save(new_states, row, low, high, high_mass, high_count, total)
        is_member = (score >= low) & (score < high)
        slot = tl.cumsum(is_member.to(tl.int32), axis=0) - 1
        start = members + tl.program_id(0).to(tl.int64) * slots
        tl.store(start + slot, score, mask=is_member & (slot < slots))
        tl.store(counts + tl.program_id(0), tl.sum(is_member.to(tl.int32), axis=0))
        sure = high
    kept = score >= tl.maximum(sure, floor)
    tl.store(masses + tl.program_id(0), tl.sum(tl.where(kept, tl.exp2(score), 0.0), axis=0))
