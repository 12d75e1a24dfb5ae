"""From logits to tokens: the best token of each row, or a random one, without sorting.

Every row takes its own way, whatever its neighbours are and however many: see nucleus.py. Nothing
here knows a request.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from shuzhai.kernels.triton.nucleus import (
    STATE,
    filters,
    gather_kernel,
    pass_kernel,
    range_kernel,
    restore,
    row_extreme,
    scores,
)
from shuzhai.kernels.triton.pointwise import describe, enter
from shuzhai.step import DrawInput

# The largest vocabulary; of a larger one, what nucleus.py neglects would not be negligible.
MAX_VOCAB = 2**20

_INT32_MAX = tl.constexpr(2147483647)
_INT64_MIN = tl.constexpr(-9223372036854775808)


@dataclass(frozen=True, slots=True)
class DrawConfig:
    """chunk: numbers of one; chunks a row; parts: these, rounded up to a power of two; slots of a
    chunk for numbers in the bracket; bins: thresholds of a pass; warps of the kernels of chunks and
    of the last kernel."""

    chunk: int
    chunks: int
    parts: int
    slots: int
    bins: int = 16
    warps: int = 4
    last_warps: int = 16


@triton.jit
def _best_kernel(
    logits: tl.tensor,
    best: tl.tensor,
    vocab: tl.constexpr,
    chunk: tl.constexpr,
    chunks: tl.constexpr,
    use_pdl: tl.constexpr,
) -> None:
    """Of a chunk, the largest number and its place, as one int64 that orders as they do."""
    row, part = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    place = part * chunk + tl.arange(0, chunk)
    enter(use_pdl)
    start = logits + row.to(tl.int64) * vocab
    value = tl.load(start + place, mask=place < vocab, other=float("-inf"))
    # -0 is 0; the bits of negative numbers order the other way; NaN is above everything.
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ _INT32_MAX, bits)
    key = tl.where(value != value, _INT32_MAX, key).to(tl.int64)
    # Of equals the first wins. What lies behind the row's end never does.
    key = tl.where(place < vocab, key * 2**32 + (_INT32_MAX - place), _INT64_MIN)
    tl.store(best + tl.program_id(0), tl.max(key, axis=0))


@triton.jit
def _first_best_kernel(
    best: tl.tensor,
    tokens: tl.tensor,
    chunks: tl.constexpr,
    parts: tl.constexpr,
    use_pdl: tl.constexpr,
) -> None:
    """The token of each row from the best of its chunks."""
    row = tl.program_id(0)
    part = tl.arange(0, parts)
    enter(use_pdl)
    place = best + row.to(tl.int64) * chunks + part
    key = tl.max(tl.load(place, mask=part < chunks, other=_INT64_MIN), axis=0)
    tl.store(tokens + row, _INT32_MAX - (key & 0xFFFFFFFF))


@triton.jit
def _reaching(
    depth: tl.tensor,
    weight: tl.tensor,
    limit: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    logits: tl.tensor,
    row: tl.tensor,
    best: tl.tensor,
    temperature: tl.tensor,
    length: tl.tensor,
    vocab: tl.constexpr,
    room: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """(weight, number) of the members of the bracket down to this depth, the bits of -score; and of
    those among the first `length` tokens of the row, where the members had no room."""
    mass = tl.sum(tl.where(depth <= limit, weight, 0.0), axis=0)
    count = tl.sum((depth <= limit).to(tl.int32), axis=0)
    start = length * 0
    while start < length:
        score = scores(logits, row, start + tl.arange(0, room), best, temperature, vocab)
        is_in = (score >= low) & (score < high)
        is_in = is_in & (tl.abs(score).to(tl.int32, bitcast=True) <= limit)
        mass += tl.sum(tl.where(is_in, tl.exp2(score), 0.0), axis=0)
        count += tl.sum(is_in.to(tl.int32), axis=0)
        start += room
    return mass, count


@triton.jit
def _bisect(
    limit: tl.tensor,
    target: tl.tensor,
    high_mass: tl.tensor,
    high_count: tl.tensor,
    depth: tl.tensor,
    weight: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    logits: tl.tensor,
    row: tl.tensor,
    best: tl.tensor,
    temperature: tl.tensor,
    length: tl.tensor,
    vocab: tl.constexpr,
    room: tl.constexpr,
    counts: tl.constexpr,
) -> tl.tensor:
    """The least depth down to which there are `target` tokens or, unless it counts, is the weight
    `target`; `limit` if there is none."""
    # Nothing in the bracket lies as high as this.
    above = tl.where(high > 0, -1, tl.abs(high).to(tl.int32, bitcast=True))
    while limit - above > 1:
        middle = above + (limit - above) // 2
        mass, count = _reaching(
            depth, weight, middle, low, high, logits, row, best, temperature, length, vocab, room
        )
        is_enough = high_count + count >= target if counts else high_mass + mass >= target
        above = tl.where(is_enough, above, middle)
        limit = tl.where(is_enough, middle, limit)
    return limit


@triton.jit
def _members(
    counts: tl.tensor,
    members: tl.tensor,
    row: tl.tensor,
    chunks: tl.constexpr,
    parts: tl.constexpr,
    slots: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """(scores [parts * slots] of the bracket's members, -inf in free slots; whether a chunk had too
    little room: then all are -inf)"""
    part, index = tl.arange(0, parts), tl.arange(0, parts * slots)
    start = row.to(tl.int64) * chunks
    most = tl.max(tl.load(counts + start + part, mask=part < chunks, other=0), axis=0)
    owner = index // slots
    count = tl.load(counts + start + owner, mask=owner < chunks, other=0)
    is_taken = (index % slots < count) & (most <= slots)
    score = tl.load(members + start * slots + index, mask=is_taken, other=float("-inf"))
    return score, most > slots


@triton.jit
def _pick(
    logits: tl.tensor,
    row: tl.tensor,
    best: tl.tensor,
    temperature: tl.tensor,
    lowest: tl.tensor,
    mass: tl.tensor,
    number: tl.tensor,
    vocab: tl.constexpr,
    chunk: tl.constexpr,
    parts: tl.constexpr,
) -> tl.tensor:
    """The token at the share `number` of the weight of tokens with scores from `lowest` on, whose
    sums in the chunks are mass [parts]; never one without weight."""
    part = tl.arange(0, parts)
    cumulative = tl.cumsum(mass.to(tl.float64), axis=0)
    target = number * tl.max(cumulative, axis=0)
    first = tl.min(tl.where((mass > 0) & (cumulative > target), part, parts), axis=0)
    last = tl.max(tl.where(mass > 0, part, 0), axis=0)
    first = tl.minimum(first, last)
    before = tl.sum(tl.where(part == first, cumulative - mass, 0.0), axis=0)
    place = first * chunk + tl.arange(0, chunk)
    score = scores(logits, row, place, best, temperature, vocab)
    weight = tl.where(score >= lowest, tl.exp2(score), 0.0)
    is_past = tl.cumsum(weight, axis=0) > (target - before).to(tl.float32)
    # Rounding may put the target past the last token that has a chance.
    first = tl.min(tl.where((weight > 0) & is_past, place, vocab), axis=0)
    last = tl.max(tl.where(weight > 0, place, 0), axis=0)
    return tl.minimum(first, last)


@triton.jit
def _sum_again(
    mass: tl.tensor,
    lowest: tl.tensor,
    logits: tl.tensor,
    row: tl.tensor,
    best: tl.tensor,
    temperature: tl.tensor,
    length: tl.tensor,
    vocab: tl.constexpr,
    chunk: tl.constexpr,
    parts: tl.constexpr,
) -> tl.tensor:
    """mass [parts] anew for the chunks of the first `length` tokens."""
    index = length * 0
    while index * chunk < length:
        place = index * chunk + tl.arange(0, chunk)
        score = scores(logits, row, place, best, temperature, vocab)
        kept = tl.sum(tl.where(score >= lowest, tl.exp2(score), 0.0), axis=0)
        mass = tl.where(tl.arange(0, parts) == index, kept, mass)
        index += 1
    return mass


@triton.jit(
    do_not_specialize_on_alignment=[
        "temperatures",
        "top_ks",
        "top_ps",
        "min_ps",
        "numbers",
        "tokens",
    ]
)
def _draw_kernel(
    logits: tl.tensor,
    temperatures: tl.tensor,
    top_ks: tl.tensor,
    top_ps: tl.tensor,
    min_ps: tl.tensor,
    numbers: tl.tensor,
    extremes: tl.tensor,
    states: tl.tensor,
    masses: tl.tensor,
    counts: tl.tensor,
    members: tl.tensor,
    tokens: tl.tensor,
    vocab: tl.constexpr,
    chunk: tl.constexpr,
    chunks: tl.constexpr,
    parts: tl.constexpr,
    slots: tl.constexpr,
    use_pdl: tl.constexpr,
) -> None:
    """The token of a row: bisect the bracket, then go to the chunk and the place in it."""
    row, part = tl.program_id(0), tl.arange(0, parts)
    room: tl.constexpr = parts * slots
    enter(use_pdl)
    top_k, top_p = filters(top_ks, top_ps, row, vocab)
    temperature = tl.load(temperatures + row)
    best = row_extreme(extremes, row, 0, chunks, parts)
    lowest = tl.log2(tl.load(min_ps + row))
    mass = tl.load(masses + row.to(tl.int64) * chunks + part, mask=part < chunks, other=0.0)
    if (top_k > 0) | (top_p < 1.0):
        low, high, high_mass, high_count, target = restore(states, row)
        score, is_over = _members(counts, members, row, chunks, parts, slots)
        depth, weight = tl.abs(score).to(tl.int32, bitcast=True), tl.exp2(score)
        limit = tl.abs(low).to(tl.int32, bitcast=True)
        length = tl.where(is_over, vocab, 0)
        if top_k > 0:
            limit = _bisect(
                limit, top_k, high_mass, high_count, depth, weight, low, high,
                logits, row, best, temperature, length, vocab, room, True,
            )  # fmt: skip
            more, _ = _reaching(
                depth, weight, limit, low, high, logits, row, best, temperature, length, vocab, room
            )
            target = high_mass + more
        if top_p < 1.0:
            limit = _bisect(
                limit, top_p * target, high_mass, high_count, depth, weight, low, high,
                logits, row, best, temperature, length, vocab, room, False,
            )  # fmt: skip
        lowest = tl.maximum(lowest, -limit.to(tl.float32, bitcast=True))
        kept = tl.where(score >= lowest, weight, 0.0)
        mass += tl.sum(tl.reshape(kept, (parts, slots)), axis=1)
        mass = _sum_again(mass, lowest, logits, row, best, temperature, length, vocab, chunk, parts)
    number = tl.load(numbers + row)
    token = _pick(logits, row, best, temperature, lowest, mass, number, vocab, chunk, parts)
    tl.store(tokens + row, token.to(tl.int64))


def choose_draw(vocab: int) -> DrawConfig:
    """By the vocabulary alone, so that a row does not depend on its neighbours. Chunks of 2,048
    numbers keep 46 multiprocessors busy with one row of 92,544; 8,192 members fit in registers."""
    chunk = max(2048, triton.next_power_of_2(triton.cdiv(vocab, 128)))
    chunks = triton.cdiv(vocab, chunk)
    parts = max(16, triton.next_power_of_2(chunks))
    return DrawConfig(chunk, chunks, parts, 8192 // parts)


def _check_logits(logits: Tensor) -> None:
    if logits.ndim != 2 or logits.dtype != torch.float32 or not logits.is_contiguous():
        raise ValueError(f"logits {list(logits.shape)}, {logits.dtype}, must be rows of float32")
    if not 1 <= logits.shape[1] <= MAX_VOCAB:
        raise ValueError(f"{logits.shape[1]} tokens; these kernels take 1 to {MAX_VOCAB}")


def argmax(logits: Tensor) -> Tensor:
    """The first of the largest numbers of each row [B, vocab] float32 -> [B] int64; NaN is larger
    than any number."""
    _check_logits(logits)
    (num_rows, vocab), config = logits.shape, choose_draw(logits.shape[1])
    tokens = logits.new_empty(num_rows, dtype=torch.int64)
    if not num_rows:
        return tokens
    use_pdl = describe(logits.device)[1]
    best = logits.new_empty(num_rows, config.chunks, dtype=torch.int64)
    _best_kernel[(num_rows * config.chunks,)](
        logits,
        best,
        vocab=vocab,
        chunk=config.chunk,
        chunks=config.chunks,
        use_pdl=use_pdl,
        num_warps=config.warps,
        launch_pdl=use_pdl,
    )
    _first_best_kernel[(num_rows,)](
        best,
        tokens,
        chunks=config.chunks,
        parts=config.parts,
        use_pdl=use_pdl,
        num_warps=1,
        launch_pdl=use_pdl,
    )
    return tokens


def draw(logits: Tensor, how: DrawInput, config: DrawConfig | None = None) -> Tensor:
    """Kernels.draw: one random token a row [B, vocab] float32 -> [B] int64.

    Equal to it up to rounding, of which chances of 2^-46 of the best one's are a part. A row
    without a finite number gives some token.
    """
    _check_logits(logits)
    (num_rows, vocab), device = logits.shape, logits.device
    for values, dtype in (
        (how.temperature, torch.float32),
        (how.top_k, torch.int32),
        (how.top_p, torch.float32),
        (how.min_p, torch.float32),
        (how.numbers, torch.float64),
    ):
        if values.shape != (num_rows,) or values.dtype != dtype or values.device != device:
            raise ValueError(f"{list(values.shape)}, {values.dtype}, must be [{num_rows}], {dtype}")
        if not values.is_contiguous():
            raise ValueError("operands must be contiguous")
    tokens = logits.new_empty(num_rows, dtype=torch.int64)
    if num_rows:
        _launch_draw(logits, how, config or choose_draw(vocab), tokens)
    return tokens


def _launch_draw(logits: Tensor, how: DrawInput, config: DrawConfig, tokens: Tensor) -> None:
    """Five kernels, or three where no row is filtered."""
    (num_rows, vocab), chunks, bins = logits.shape, config.chunks, config.bins
    use_pdl = describe(logits.device)[1]
    grid = (num_rows * chunks,)
    shape = {"vocab": vocab, "chunk": config.chunk, "chunks": chunks}
    launch = {"use_pdl": use_pdl, "num_warps": config.warps, "launch_pdl": use_pdl}
    wide = shape | {"parts": config.parts}
    extremes = logits.new_empty(num_rows, 2, chunks)
    states = logits.new_empty(3, num_rows, STATE.value)
    sums = logits.new_empty(2, num_rows, 2, bins, chunks)
    range_kernel[grid](logits, extremes, **shape, **launch)
    filtering = (how.temperature, how.top_k, how.top_p)
    if how.is_filtered:
        pass_kernel[grid](
            logits, *filtering, extremes, states[0], sums[0], states[0], sums[0],
            **wide, bins=bins, is_first=True, **launch,
        )  # fmt: skip
        pass_kernel[grid](
            logits, *filtering, extremes, states[0], sums[0], states[1], sums[1],
            **wide, bins=bins, is_first=False, **launch,
        )  # fmt: skip
    masses = logits.new_empty(num_rows, chunks)
    counts = logits.new_empty(num_rows, chunks, dtype=torch.int32)
    members = logits.new_empty(num_rows, chunks, config.slots)
    gather_kernel[grid](
        logits, *filtering, how.min_p, extremes, states[1], sums[1], states[2],
        masses, counts, members, **wide, slots=config.slots, bins=bins, **launch,
    )  # fmt: skip
    _draw_kernel[(num_rows,)](
        logits, *filtering, how.min_p, how.numbers, extremes, states[2],
        masses, counts, members, tokens, **wide, slots=config.slots,
        use_pdl=use_pdl, num_warps=config.last_warps, launch_pdl=use_pdl,
    )  # fmt: skip
