"""One token a sequence: rotate, store, attend, in one kernel, split over the sequence.

A program has one kv head of a sequence with all its query heads, and one of `num_splits` parts of
the past. So many programs are launched for any length, that a captured graph serves all lengths;
those with nothing to do end at once. The program of the last part adds the new token from its
registers, which no other reads; the last to arrive of several adds up what they found.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shuzhai.kernels.triton.attention import (
    LOG2_E,
    Tile,
    as_query,
    attend_loaded,
    attend_tile,
    capability,
    check,
    check_decode,
    load_tile,
    pages_of,
    param_words,
    rows_of,
    store_result,
)
from shuzhai.kernels.triton.decode_codes import SHARE, attend_codes, load_codes, store_codes
from shuzhai.kernels.triton.kv_store import keep_halves, keep_whole, turned
from shuzhai.step import KVPages

_MAX_SPLITS = tl.constexpr(64)
# Counters of arrivals: one for each sequence and kv head of a step.
_NUM_COUNTERS = 2**16
# Programs a multiprocessor to aim at, and those that find room on one: too few leave memory idle,
# too many add up more parts, or wait.
_PROGRAMS = 8
_RESIDENT = 3
# So many multiprocessors a pair leave one pair's latency as all that counts.
_IDLE = 4
# A part is not worth its adding up below so many tokens: where few sequences leave multiprocessors
# idle, where there is about enough to do, and where there is too much. Of codes, whose programs are
# small, and of 16 bits.
_CODE_SPANS, _MIN_SPANS = (32, 64, 128), (32, 128, 512)


class DecodeWorkspace:
    """What decode_attend keeps between calls on one device and one stream: zeroed counters."""

    def __init__(self, device: torch.device) -> None:
        self.counters = torch.zeros(_NUM_COUNTERS, dtype=torch.int32, device=device)
        self.capability = capability(device)
        is_cuda = device.type == "cuda"
        self.num_processors = (
            torch.cuda.get_device_properties(device).multi_processor_count if is_cuda else 4
        )


def choose_splits(num_pairs: int, num_processors: int, bits: int) -> tuple[int, int]:
    """(most parts, least tokens of a part) of each of so many pairs of sequence and kv head."""
    few, enough, much = _CODE_SPANS if bits < 16 else _MIN_SPANS
    room = _RESIDENT * num_processors
    least = few if 4 * num_pairs <= room else enough if num_pairs <= room else much
    most = max(1, min(_MAX_SPLITS.value, _PROGRAMS * num_processors // num_pairs))
    return most, least


def choose_tile(
    head_dim: int, dtype: torch.dtype, bits: int, group: int, device_cc: int, is_idle: bool
) -> Tile:
    """bits: of the pages; group: query heads a kv head; device_cc: capability, 90 for 9.0;
    is_idle: there are far fewer programs than could run.

    Small programs of few warps, which rarely wait for each other, are fastest for codes; of 16 bits
    where nothing else counts but when the last one is ready."""
    rows = triton.next_power_of_2(group)
    if dtype == torch.float32 or device_cc < 80:
        # Without tensor cores: the compiler has none for float32 as such, nor before 8.0.
        is_small = head_dim <= 128 and rows <= 4
        return Tile(rows, 32 if is_small else 16, 4 if head_dim <= 128 else 8, 1)
    is_small = rows <= 16 and head_dim <= 128
    if bits >= 16:
        if is_small and is_idle:
            return Tile(16, 32, 2, 2)
        return Tile(max(16, rows), 64 if head_dim <= 128 else 32, 4, 3)
    if not is_small:
        return Tile(max(8, rows), 32, 4, 2)
    return Tile(max(8, rows), 32, 1, 3 if bits == 4 else 1)


@triton.jit
def _weights_of(state: tl.tuple, BITS: tl.constexpr) -> tl.tensor:
    """log2 of what a part weighs, [R]."""
    return state[0] + tl.log2(tl.sum(state[1], 1 if BITS >= 16 else 0))


@triton.jit
def _store(
    to: tl.tensor, state: tl.tuple, mask: tl.tensor, D: tl.constexpr, BITS: tl.constexpr
) -> None:
    """Write the attended values to heads that begin at `to` [R]; 0 where nothing was seen."""
    if BITS >= 16:
        store_result(to, state, mask, D, BITS)
    else:
        store_codes(to, state, mask, D, BITS)


@triton.jit
def _queries(
    token: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    head: tl.tensor,
    score_scale: tl.tensor,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    BITS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The rotated queries [GP, W] of a kv head, both halves where bits are 4."""
    W: tl.constexpr = D // 2 if BITS == 4 else D
    r, d = tl.arange(0, GP)[:, None], tl.arange(0, W)[None, :]
    heads = token + (head * G + r) * D
    q = as_query(turned(heads, cos, sin, d, r < G, D), score_scale, BITS)
    q2 = as_query(turned(heads, cos, sin, d + W, r < G, D), score_scale, BITS) if BITS == 4 else q
    return q, q2


@triton.jit
def _rows(x: tl.tensor, R: tl.constexpr) -> tl.tensor:
    """x [GP, W] as [R, W], over and over."""
    GP: tl.constexpr = x.shape[0]
    if R > GP:
        x = tl.broadcast_to(x[None, :, :], (R // GP, GP, x.shape[1])).reshape(R, x.shape[1])
    return x


@triton.jit
def _repeated(x: tl.tensor, R: tl.constexpr) -> tl.tensor:
    """x [GP] as [R], over and over."""
    GP: tl.constexpr = x.shape[0]
    if R > GP:
        x = tl.broadcast_to(x[None, :], (R // GP, GP)).reshape(R)
    return x


@triton.jit
def _spread(query: tl.tuple, R: tl.constexpr, BITS: tl.constexpr) -> tl.tuple:
    """_queries as the R rows of products; of codes, as their columns, and the sum of each [R]."""
    q, q2 = query
    if BITS >= 16:
        q = _rows(q, R)
        spread = (q, q)
    else:
        q_sum = tl.sum(q.to(tl.float32), 1)
        if BITS == 4:
            q_sum += tl.sum(q2.to(tl.float32), 1)
        spread = (tl.trans(_rows(q, R)), tl.trans(_rows(q2, R)), _repeated(q_sum, R))
    return spread


@triton.jit
def _load(
    pages: tl.tuple,
    rows: tl.tensor,
    valid: tl.tensor,
    dtype: tl.constexpr,
    D: tl.constexpr,
    BITS: tl.constexpr,
    ASM: tl.constexpr,
) -> tl.tuple:
    """A tile of keys and values, as attend_loaded or attend_codes takes it."""
    if BITS >= 16:
        k, _ = load_tile(pages[0], pages[2], rows, valid, dtype, D, BITS, ASM)
        v, _ = load_tile(pages[1], pages[3], rows, valid, dtype, D, BITS, ASM)
        tile = (k, k, v, v)
    else:
        tile = load_codes(pages, rows, valid, D, BITS)
    return tile


@triton.jit
def _take_new(
    token: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    pages: tl.tuple,
    slot: tl.tensor,
    head: tl.tensor,
    query: tl.tuple,
    unit: tl.tensor,
    is_new: tl.tensor,
    H: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
    BITS: tl.constexpr,
) -> tl.tuple:
    """Store the new key and value of a kv head; the state that has seen only them, as they lie in
    the pages: both only where is_new. No branch, so that all loads go together.

    The state: that of attend_tile where bits are 16; that of attend_codes is the highest score
    [R]; sums of probabilities [N, R], and what results have in common [N, R], both to be added up
    later; sums of values [W, R], times SHARE, and of their second half where bits are 4."""
    W: tl.constexpr = D // 2 if BITS == 4 else D
    key = token + (H + head) * D + tl.zeros([1, 1], tl.int32)
    value, d = key + K * D, tl.arange(0, W)[None, :]
    rows = slot * K + head + tl.zeros([1], tl.int64)
    is_kept, has = (rows >= 0) & is_new, d < D
    k, v = turned(key, cos, sin, d, has, D), tl.load(value + d)
    if BITS == 4:
        k2, v2 = turned(key, cos, sin, d + W, has, D), tl.load(value + d + W)
        k, k2 = keep_halves(pages[0], pages[2], rows, is_kept, k, k2, D, BITS)
        v, v2 = keep_halves(pages[1], pages[3], rows, is_kept, v, v2, D, BITS)
        top = tl.sum(query[0].to(tl.float32) * k + query[1].to(tl.float32) * k2, 1)
    else:
        k = keep_whole(pages[0], pages[2], rows, is_kept, k, D, BITS)
        v = keep_whole(pages[1], pages[3], rows, is_kept, v, D, BITS)
        top = tl.sum(query[0].to(tl.float32) * k, 1)
        v2 = tl.zeros([1, 1], tl.float32)
    top = tl.where(is_new, _repeated(top, R) * unit, float("-inf"))
    if BITS >= 16:
        is_first = (tl.arange(0, N)[None, :] == 0) & is_new
        total = tl.where(is_first, tl.full([R, N], 1.0, tl.float32), 0.0)
        acc = tl.where(is_new, tl.zeros([R, W], tl.float32) + v, 0.0)
        state = (top, total, acc, tl.zeros([R, 1], tl.float32))
    else:
        is_first = (tl.arange(0, N)[:, None] == 0) & is_new
        total = tl.where(is_first, tl.full([N, R], 1.0, tl.float32), 0.0)
        v, v2 = tl.where(is_new, v * SHARE, 0.0), tl.where(is_new, v2 * SHARE, 0.0)
        acc = tl.zeros([W, R], tl.float32) + tl.trans(v)
        acc2 = tl.zeros([W if BITS == 4 else 1, R], tl.float32) + tl.trans(v2)
        state = (top, total, tl.zeros([N, R], tl.float32), acc, acc2)
    return state


@triton.jit
def _add_up(
    to: tl.tensor,
    partials: tl.tensor,
    weights: tl.tensor,
    used: tl.tensor,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    FEW: tl.constexpr,
) -> None:
    """Write the mean of the parts' results [used, G, D], weighted by 2 ** weights [used, G]; FEW
    parts at a time. GP: G rounded up to a power of 2."""
    g, d = tl.arange(0, GP), tl.arange(0, D)
    top = tl.full([GP], float("-inf"), tl.float32)
    whole, acc = tl.zeros([GP], tl.float32), tl.zeros([GP, D], tl.float32)
    for first in tl.range(0, used, FEW, num_stages=1):
        parts = first + tl.arange(0, FEW)[:, None]
        at, has = parts * G + g[None, :], (parts < used) & (g < G)[None, :]
        # Past the first-level cache, which does not see what other processors write.
        share = tl.load(weights + at, mask=has, other=float("-inf"), cache_modifier=".cg")
        found = partials + at[:, :, None] * D + d[None, None, :]
        found = tl.load(found, mask=has[:, :, None], other=0.0, cache_modifier=".cg")
        new_top = tl.maximum(top, tl.max(share, 0))
        new_top = tl.where(new_top == float("-inf"), 0.0, new_top)
        fade, share = tl.exp2(top - new_top), tl.exp2(share - new_top[None, :])
        whole = whole * fade + tl.sum(share, 0)
        acc = acc * fade[:, None] + tl.sum(found * share[:, :, None], 0)
        top = new_top
    whole = tl.where(whole == 0.0, 1.0, whole)
    to += g[:, None] * D + d[None, :]
    tl.store(to, (acc / whole[:, None]).to(to.dtype.element_ty), mask=(g < G)[:, None])


@triton.jit
def _hand_over(
    to: tl.tensor,
    state: tl.tuple,
    parts: tl.tuple,
    pair: tl.tensor,
    split: tl.tensor,
    num_splits: tl.tensor,
    used: tl.tensor,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    BITS: tl.constexpr,
    FEW: tl.constexpr,
) -> None:
    """Write one part's result beside those of the others; the last to arrive adds up all."""
    partials, weights, counters = parts
    part, r = pair * num_splits + split, tl.arange(0, R)
    _store(partials + (part * G + r) * D, state, r < G, D, BITS)
    tl.store(weights + part * G + r, _weights_of(state, BITS), mask=r < G)
    # All threads' writes come before the one that says so.
    tl.debug_barrier()
    if tl.atomic_add(counters + pair, 1, sem="acq_rel") == used - 1:
        tl.store(counters + pair, 0)
        part = pair * num_splits * G
        _add_up(to, partials + part * D, weights + part, used, G, GP, D, FEW)


@triton.jit(
    do_not_specialize=["table_stride", "num_splits", "min_span"],
    do_not_specialize_on_alignment=["slots", "seq_lens", "tables"],
)
def _decode_kernel(
    qkv: tl.tensor, cos: tl.tensor, sin: tl.tensor, keys: tl.tensor, values: tl.tensor,
    key_params: tl.tensor, value_params: tl.tensor, out: tl.tensor, slots: tl.tensor,
    seq_lens: tl.tensor, tables: tl.tensor, table_stride: tl.tensor, partials: tl.tensor,
    weights: tl.tensor, counters: tl.tensor, num_splits: tl.tensor, min_span: tl.tensor,
    score_scale: tl.tensor, H: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
    PAGE_SIZE: tl.constexpr, BITS: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
    GP: tl.constexpr, FEW: tl.constexpr, ASM: tl.constexpr, USE_PDL: tl.constexpr,
) -> None:  # fmt: skip
    """One part of one sequence and kv head. partials [B, K, num_splits, G, D] and weights
    [B, K, num_splits, G], the log2 of what each part weighs, are float32."""
    G: tl.constexpr = H // K
    head, split, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    length = tl.load(seq_lens + b)
    past = length - 1
    span = tl.cdiv(tl.maximum(tl.cdiv(past, num_splits), min_span), N) * N
    used = tl.maximum(tl.cdiv(past, span), 1)
    if split >= used:
        return
    # The past was stored by steps before: its first tile is on its way while the kernel in front
    # still works on the new token.
    pages, unit = (keys, values, key_params, value_params), score_scale if BITS >= 16 else 1.0
    first, last = split * span, tl.minimum(split * span + span, past)
    table, places = tables + b * table_stride, first + tl.arange(0, N)
    numbers = pages_of(table, places, last, PAGE_SIZE)
    valid, rows = places < last, rows_of(numbers, places, head, K, PAGE_SIZE)
    places += N
    numbers = pages_of(table, places, last, PAGE_SIZE)
    tile = _load(pages, rows, valid, qkv.dtype.element_ty, D, BITS, ASM)
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
        # Not before: the weights that the kernels behind ask for would stand in front of the past.
        tl.extra.cuda.gdc_launch_dependents()
    token = qkv + b * ((H + 2 * K) * D)
    cos, sin = cos + b * (D // 2), sin + b * (D // 2)
    query = _queries(token, cos, sin, head, score_scale, G, GP, D, BITS)
    slot, is_new = tl.load(slots + b), (split == used - 1) & (length > 0)
    state = _take_new(token, cos, sin, pages, slot, head, query, unit, is_new, H, K, D, R, N, BITS)
    query = _spread(query, R, BITS)
    if BITS >= 16:
        state = attend_loaded(query, state, tile, valid[None, :], unit, BITS, True)
    else:
        state = attend_codes(query, state, tile, valid, BITS, ASM)
    for _ in range(first + N, last, N):
        valid, rows = places < last, rows_of(numbers, places, head, K, PAGE_SIZE)
        places += N
        numbers = pages_of(table, places, last, PAGE_SIZE)
        if BITS >= 16:
            state = attend_tile(
                query, state, pages, rows, valid, valid[None, :], unit, D, BITS, True, ASM
            )
        else:
            tile = load_codes(pages, rows, valid, D, BITS)
            state = attend_codes(query, state, tile, valid, BITS, ASM)
    to, pair = out + (b * K + head) * (G * D), b * K + head
    if used == 1:
        _store(to + tl.arange(0, R) * D, state, tl.arange(0, R) < G, D, BITS)
    else:
        parts = (partials, weights, counters)
        _hand_over(to, state, parts, pair, split, num_splits, used, G, GP, D, R, BITS, FEW)


def decode_attend(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    pages: KVPages,
    slots: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    scale: float,
    workspace: DecodeWorkspace,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Kernels.attend of B sequences that bring one token each.

    qkv [B, H + 2K, D] contiguous; cos, sin [B, D/2] float32; slots [B] int64; seq_lens [B] int32,
    new token included; block_tables [B, P] int32 -> out [B, H, D], 0 where the length is 0.
    tile: None chooses. seq_lens, block_tables and the past in the pages were there before the
    first kernel of the step began, itself launched without programmatic dependence: they are read
    before the kernel in front has ended.
    """
    batch, num_heads, head_dim = qkv.shape
    num_kv_heads, page_size = pages.keys.shape[2], pages.keys.shape[1]
    num_heads -= 2 * num_kv_heads
    check(qkv, pages, num_heads)
    out = qkv.new_empty(batch, num_heads, head_dim) if out is None else out
    check_decode(qkv, cos, sin, slots, seq_lens, block_tables, out, num_kv_heads)
    if batch * num_kv_heads > _NUM_COUNTERS:
        raise ValueError(f"{batch} sequences of {num_kv_heads} kv heads: too many")
    if not batch:
        return out
    pairs, group = batch * num_kv_heads, num_heads // num_kv_heads
    splits, min_span = choose_splits(pairs, workspace.num_processors, pages.bits)
    tile = tile or choose_tile(
        head_dim, qkv.dtype, pages.bits, group, workspace.capability,
        pairs * _IDLE <= workspace.num_processors,
    )  # fmt: skip
    parts = torch.empty(
        pairs * splits * group * (head_dim + 1), dtype=torch.float32, device=qkv.device
    )
    group_p2 = triton.next_power_of_2(group)
    use_pdl = workspace.capability >= 90
    options = {"launch_pdl": True} if use_pdl else {}
    _decode_kernel[(num_kv_heads, splits, batch)](
        qkv, cos, sin, pages.keys, pages.values, *param_words(pages), out, slots, seq_lens,
        block_tables, block_tables.stride(0), parts, parts[pairs * splits * group * head_dim :],
        workspace.counters, splits, min_span, scale * LOG2_E, H=num_heads, K=num_kv_heads,
        D=head_dim, PAGE_SIZE=page_size, BITS=pages.bits, R=tile.rows, N=tile.keys, GP=group_p2,
        FEW=max(1, min(_MAX_SPLITS.value, 2048 * tile.warps // (group_p2 * head_dim))),
        ASM=qkv.is_cuda, USE_PDL=use_pdl, num_warps=tile.warps, num_stages=tile.stages, **options,
    )  # fmt: skip
    return out
