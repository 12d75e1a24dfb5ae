"""One token a sequence: rotate, store, attend, in one kernel, split over the sequence.

A program has one kv head of a sequence with all its query heads, and one part of its past
(kernels/decode_parts.py). As many programs are launched for any lengths, so that a captured graph
serves all; those with nothing to do end at once. The program of the last part adds the new token
from its registers, which no other reads; the last to arrive of several adds up what they found.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shuzhai.kernels.decode_parts import PART
from shuzhai.kernels.triton.add_up import add_up, num_added
from shuzhai.kernels.triton.attention import (
    LOG2_E,
    Tile,
    as_query,
    attend_loaded,
    check,
    check_decode,
    check_ints,
    load_tile,
    no_state,
    pages_of,
    param_words,
    rows_of,
    store_result,
)
from shuzhai.kernels.triton.decode_codes import (
    attend_codes,
    in_units,
    load_codes,
    no_codes,
    query_factor,
    share_of,
    store_codes,
    unit_of,
)
from shuzhai.kernels.triton.decode_tiles import DecodeWorkspace, choose
from shuzhai.kernels.triton.kv_store import keep_halves, keep_whole, turned
from shuzhai.step import KVPages

_PART = tl.constexpr(PART)


@triton.jit
def _weights_of(state: tl.tuple, BITS: tl.constexpr) -> tl.tensor:
    """log2 of what a part weighs, [R]."""
    return state[0] + tl.log2(tl.sum(state[1], 1 if BITS >= 16 else 0))


@triton.jit
def _store(
    to: tl.tensor,
    state: tl.tuple,
    mask: tl.tensor,
    dtype: tl.constexpr,
    D: tl.constexpr,
    BITS: tl.constexpr,
) -> None:
    """Write the attended values to heads that begin at `to` [R]; 0 where nothing was seen. dtype:
    of queries in products."""
    if BITS >= 16:
        store_result(to, state, mask, D, BITS)
    else:
        store_codes(to, state, mask, dtype, D, BITS)


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
def _columns(x: tl.tensor, R: tl.constexpr) -> tl.tensor:
    """x [GP, W] as [W, R], over and over."""
    return tl.trans(_rows(x, R))


@triton.jit
def _spread(query: tl.tuple, R: tl.constexpr, BITS: tl.constexpr) -> tl.tuple:
    """_queries as the R rows of products; of codes, as the query of attend_codes."""
    q, q2 = query
    if BITS >= 16:
        q = _rows(q, R)
        spread = (q, q)
    else:
        q_sum = tl.sum(q.to(tl.float32), 1)
        if BITS == 4:
            q_sum += tl.sum(q2.to(tl.float32), 1)
            q, q2 = q * query_factor(0, q.dtype, BITS), q2 * query_factor(1, q.dtype, BITS)
        units = in_units(q, q2, BITS)
        first, second = _columns(units[0], R), _columns(units[1], R)
        if BITS == 8:
            spread = ((first, second), _repeated(q_sum, R))
        else:
            third, fourth = _columns(units[2], R), _columns(units[3], R)
            spread = ((first, second, third, fourth), _repeated(q_sum, R))
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
def _load_new(
    token: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    head: tl.tensor,
    is_new: tl.tensor,
    H: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    BITS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The new token's rotated key and value of a kv head [1, W], both halves where bits are 4;
    anything unless is_new."""
    W: tl.constexpr = D // 2 if BITS == 4 else D
    key = token + (H + head) * D + tl.zeros([1, 1], tl.int32)
    value, d = key + K * D, tl.arange(0, W)[None, :]
    has = (d < D) & is_new
    k, v = turned(key, cos, sin, d, has, D), tl.load(value + d, mask=has, other=0.0)
    k2, v2 = k, v
    if BITS == 4:
        k2, v2 = turned(key, cos, sin, d + W, has, D), tl.load(value + d + W, mask=has, other=0.0)
    return k, k2, v, v2


@triton.jit
def _take_new(
    new: tl.tuple,
    pages: tl.tuple,
    row: tl.tensor,
    query: tl.tuple,
    unit: tl.tensor,
    D: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
    BITS: tl.constexpr,
) -> tl.tuple:
    """Store what _load_new found in a row of the pages, unless it is negative; the state that has
    seen only it, as it lies there: that of attend_tile where bits are 16, else that of
    attend_codes."""
    k, k2, v, v2 = new
    dtype: tl.constexpr = query[0].dtype
    row += tl.zeros([1], tl.int64)
    if BITS == 4:
        k, k2 = keep_halves(pages[0], pages[2], row, row >= 0, k, k2, D, BITS)
        v, v2 = keep_halves(pages[1], pages[3], row, row >= 0, v, v2, D, BITS)
        v2 *= share_of(BITS) * unit_of(1, dtype, BITS)
        top = tl.sum(query[0].to(tl.float32) * k + query[1].to(tl.float32) * k2, 1)
    else:
        k = keep_whole(pages[0], pages[2], row, row >= 0, k, D, BITS)
        v = keep_whole(pages[1], pages[3], row, row >= 0, v, D, BITS)
        top = tl.sum(query[0].to(tl.float32) * k, 1)
    top = _repeated(top, R) * unit
    if BITS >= 16:
        is_first = tl.arange(0, N)[None, :] == 0
        total = tl.where(is_first, tl.full([R, N], 1.0, tl.float32), 0.0)
        state = (top, total, tl.zeros([R, D], tl.float32) + v, tl.zeros([R, 1], tl.float32))
    else:
        none = tl.zeros([N, R], tl.float32)
        total = tl.where(tl.arange(0, N)[:, None] == 0, none + 1.0, none)
        values = in_units(v * (share_of(BITS) * unit_of(0, dtype, BITS)), v2, BITS)
        first, second = _columns(values[0], R), _columns(values[1], R)
        if BITS == 8:
            sums = (first, second)
        else:
            sums = (first, second, _columns(values[2], R), _columns(values[3], R))
        state = (top, total, none, sums)
    return state


@triton.jit
def _begin(
    new: tl.tuple,
    pages: tl.tuple,
    row: tl.tensor,
    query: tl.tuple,
    unit: tl.tensor,
    is_new: tl.tensor,
    D: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
    BITS: tl.constexpr,
) -> tl.tuple:
    """What _take_new makes where is_new, else the state that has seen nothing."""
    if is_new:
        state = _take_new(new, pages, row, query, unit, D, R, N, BITS)
    elif BITS >= 16:
        state = no_state(R, N, D, BITS)
    else:
        state = no_codes(R, N, D, BITS)
    return state


@triton.jit
def _attend(
    query: tl.tuple,
    state: tl.tuple,
    tile: tl.tuple,
    valid: tl.tensor,
    unit: tl.tensor,
    BITS: tl.constexpr,
    ASM: tl.constexpr,
) -> tl.tuple:
    """The state after a tile."""
    if BITS >= 16:
        state = attend_loaded(query, state, tile, valid[None, :], unit, BITS, True)
    else:
        state = attend_codes(query, state, tile, valid, BITS, ASM)
    return state


@triton.jit
def _hand_over(
    to: tl.tensor,
    state: tl.tuple,
    found: tl.tuple,
    pair: tl.tensor,
    start: tl.tensor,
    which: tl.tensor,
    used: tl.tensor,
    K: tl.constexpr,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    BITS: tl.constexpr,
    FEW: tl.constexpr,
    dtype: tl.constexpr,
) -> None:
    """Write one part's result beside those of the others, which are K apart; the last to arrive
    adds up all."""
    partials, weights, counters = found
    part, r = start + which * K, tl.arange(0, R)
    _store(partials + (part * G + r) * D, state, r < G, dtype, D, BITS)
    tl.store(weights + part * G + r, _weights_of(state, BITS), mask=r < G)
    # All threads' writes come before the one that says so.
    tl.debug_barrier()
    if tl.atomic_add(counters + pair, 1, sem="acq_rel") == used - 1:
        tl.store(counters + pair, 0)
        start *= G
        add_up(to, partials + start * D, weights + start, used, G, GP, D, K, FEW)


@triton.jit(
    do_not_specialize=["table_stride"],
    do_not_specialize_on_alignment=["slots", "seq_lens", "tables", "parts"],
)
def _decode_kernel(
    qkv: tl.tensor, cos: tl.tensor, sin: tl.tensor, keys: tl.tensor, values: tl.tensor,
    key_params: tl.tensor, value_params: tl.tensor, out: tl.tensor, slots: tl.tensor,
    seq_lens: tl.tensor, tables: tl.tensor, table_stride: tl.tensor, partials: tl.tensor,
    weights: tl.tensor, counters: tl.tensor, parts: tl.tensor, score_scale: tl.tensor,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, PAGE_SIZE: tl.constexpr, BITS: tl.constexpr,
    R: tl.constexpr, N: tl.constexpr, GP: tl.constexpr, FEW: tl.constexpr, ASM: tl.constexpr,
    USE_PDL: tl.constexpr,
) -> None:  # fmt: skip
    """One part of one sequence and kv head. partials [places, K, G, D] and weights [places, K, G],
    the log2 of what each part weighs, are float32."""
    G: tl.constexpr = H // K
    head, own = tl.program_id(0), parts + tl.program_id(1) * _PART
    b, first, last = tl.load(own).to(tl.int64), tl.load(own + 1), tl.load(own + 2)
    which, used, start = tl.load(own + 3), tl.load(own + 4), tl.load(own + 5)
    if b < 0:
        return
    # The past was stored by steps before: its first tile is on its way while the kernel in front
    # still works on the new token.
    pages, unit = (keys, values, key_params, value_params), score_scale if BITS >= 16 else 1.0
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
    slot, is_new = tl.load(slots + b), (which == used - 1) & (tl.load(seq_lens + b) > 0)
    new = _load_new(token, cos, sin, head, is_new, H, K, D, BITS)
    state = _begin(new, pages, slot * K + head, query, unit, is_new, D, R, N, BITS)
    dtype: tl.constexpr = query[0].dtype
    query = _spread(query, R, BITS)
    state = _attend(query, state, tile, valid, unit, BITS, ASM)
    for _ in range(first + N, last, N):
        valid, rows = places < last, rows_of(numbers, places, head, K, PAGE_SIZE)
        places += N
        numbers = pages_of(table, places, last, PAGE_SIZE)
        tile = _load(pages, rows, valid, dtype, D, BITS, ASM)
        state = _attend(query, state, tile, valid, unit, BITS, ASM)
    to, pair = out + (b * K + head) * (G * D), b * K + head
    if used == 1:
        _store(to + tl.arange(0, R) * D, state, tl.arange(0, R) < G, dtype, D, BITS)
    else:
        _hand_over(
            to, state, (partials, weights, counters), pair, start * K + head, which, used,
            K, G, GP, D, R, BITS, FEW, dtype,
        )  # fmt: skip


def decode_attend(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    pages: KVPages,
    slots: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    parts: Tensor,
    scale: float,
    workspace: DecodeWorkspace,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Kernels.attend of B sequences that bring one token each.

    qkv [B, H + 2K, D] contiguous; cos, sin [B, D/2] float32; slots [B] int64; seq_lens [B] int32,
    new token included; block_tables [B, P] int32; parts: what decode_parts makes of seq_lens
    -> out [B, H, D], 0 where the length is 0. tile: None chooses.
    seq_lens, block_tables, parts and the past in the pages were there before the first kernel of
    the step began, itself launched without programmatic dependence: they are read before the kernel
    in front has ended.
    """
    batch, num_heads, head_dim = qkv.shape
    num_kv_heads, page_size = pages.keys.shape[2], pages.keys.shape[1]
    num_heads -= 2 * num_kv_heads
    check(qkv, pages, num_heads)
    out = qkv.new_empty(batch, num_heads, head_dim) if out is None else out
    check_decode(qkv, cos, sin, slots, seq_lens, block_tables, out, num_kv_heads)
    check_ints(torch.int32, parts=parts)
    if batch * num_kv_heads > len(workspace.counters) or parts.shape[1:] != (PART,):
        raise ValueError(f"{batch} sequences of {num_kv_heads} kv heads, {tuple(parts.shape)}")
    if not batch:
        return out
    sizes = (batch, num_heads, num_kv_heads, head_dim, qkv.dtype, pages.bits, workspace)
    tile = tile or choose(*sizes)[0]
    places, group = len(parts), num_heads // num_kv_heads
    count = places * num_heads
    found = torch.empty(count * (head_dim + 1), dtype=torch.float32, device=qkv.device)
    group_p2 = triton.next_power_of_2(group)
    use_pdl = workspace.capability >= 90
    options = {"launch_pdl": True} if use_pdl else {}
    _decode_kernel[(num_kv_heads, places)](
        qkv, cos, sin, pages.keys, pages.values, *param_words(pages), out, slots, seq_lens,
        block_tables, block_tables.stride(0), found, found[count * head_dim :],
        workspace.counters, parts, scale * LOG2_E, H=num_heads, K=num_kv_heads, D=head_dim,
        PAGE_SIZE=page_size, BITS=pages.bits, R=tile.rows, N=tile.keys, GP=group_p2,
        FEW=num_added(head_dim, group_p2, tile.warps), ASM=qkv.is_cuda, USE_PDL=use_pdl,
        num_warps=tile.warps, num_stages=tile.stages, **options,
    )  # fmt: skip
    return out
