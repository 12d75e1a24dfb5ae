"""Attention of chunks of prompts to the pages of their sequences (FlashAttention-2, 2307.08691).

A program has a block of tokens of a sequence and one kv head; all query heads of that kv head are
rows of one tile, which reads keys and values once for them. Programs find their sequence in
cu_seqlens_q, so that a mixture of long and short chunks launches few more of them than it needs.
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
    attend_tile,
    capability,
    check,
    check_ints,
    no_state,
    pages_of,
    param_words,
    rows_of,
    store_result,
)
from shuzhai.step import KVPages


def choose_tile(head_dim: int, dtype: torch.dtype, bits: int, rows: int, device_cc: int) -> Tile:
    """bits: of the pages; rows: of queries, the longest sequence's; device_cc: 90 for 9.0."""
    if dtype == torch.float32 or device_cc < 80:
        return Tile(32 if head_dim <= 128 else 16, 16, 8, 1)
    if head_dim == 256:
        return Tile(64, 32, 8, 1)
    if device_cc >= 90 and bits >= 16:
        return Tile(64, 64, 4, 3)
    if device_cc < 90 or rows <= 64:
        return Tile(64, 64, 8, 2)
    return Tile(128, 128, 8, 3)


@triton.jit
def _find_sequence(
    cu_seqlens_q: tl.tensor, num_sequences: tl.tensor, block: tl.tensor, Q: tl.constexpr
) -> tl.tensor:
    """The last sequence b that begins at or before this block. Its first block of Q tokens is
    number (tokens before it) // Q + b, which leaves every sequence as many as it needs."""
    low, high, start = num_sequences * 0, num_sequences - 1, tl.load(cu_seqlens_q)
    while low < high:
        middle = (low + high + 1) // 2
        if (tl.load(cu_seqlens_q + middle) - start) // Q + middle <= block:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit
def _attend_range(
    query: tl.tuple,
    state: tl.tuple,
    pages: tl.tuple,
    table: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    newest: tl.tensor,
    head: tl.tensor,
    unit: tl.tensor,
    K: tl.constexpr,
    D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BITS: tl.constexpr,
    N: tl.constexpr,
    MASKED: tl.constexpr,
    ASM: tl.constexpr,
) -> tl.tuple:
    """The state after the places first to last of a sequence. newest [R]: the last place that each
    row sees; MASKED where some row does not see all of them."""
    places = first + tl.arange(0, N)
    numbers = pages_of(table, places, last, PAGE_SIZE)
    for _ in range(first, last, N):
        valid = places < last if MASKED else tl.full([N], True, tl.int1)
        visible = (places[None, :] <= newest[:, None]) & valid[None, :]
        rows = rows_of(numbers, places, head, K, PAGE_SIZE)
        places += N
        numbers = pages_of(table, places, last, PAGE_SIZE)
        state = attend_tile(query, state, pages, rows, valid, visible, unit, D, BITS, MASKED, ASM)
    return state


@triton.jit(
    do_not_specialize=["table_stride", "num_sequences", "first_token"],
    do_not_specialize_on_alignment=["cu_seqlens_q", "seq_lens", "tables"],
)
def _prefill_kernel(
    q: tl.tensor, keys: tl.tensor, values: tl.tensor, key_params: tl.tensor,
    value_params: tl.tensor, out: tl.tensor, cu_seqlens_q: tl.tensor, seq_lens: tl.tensor,
    tables: tl.tensor, table_stride: tl.tensor, num_sequences: tl.tensor, first_token: tl.tensor,
    score_scale: tl.tensor, H: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
    PAGE_SIZE: tl.constexpr, BITS: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
    ASM: tl.constexpr,
) -> None:  # fmt: skip
    """One block of R // G tokens and one kv head."""
    G: tl.constexpr = H // K
    Q: tl.constexpr = R // G
    W: tl.constexpr = D // 2 if BITS == 4 else D
    head = tl.program_id(0)
    # The last blocks of a sequence see the most: they go first.
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    b = _find_sequence(cu_seqlens_q, num_sequences, block, Q)
    begin = tl.load(cu_seqlens_q + b)
    num_new = tl.load(cu_seqlens_q + b + 1) - begin
    first = (block - (begin - tl.load(cu_seqlens_q)) // Q - b) * Q
    if first >= num_new:
        return
    length = tl.load(seq_lens + b)
    r, d = tl.arange(0, R), tl.arange(0, W)[None, :]
    place = first + r // G
    has = (r < Q * G) & (place < num_new)
    token = (begin - first_token + place).to(tl.int64)
    heads = token * (H * D) + (head * G + r % G) * D
    at = q + heads[:, None] + d
    x = as_query(tl.load(at, mask=has[:, None], other=0.0), score_scale, BITS)
    if BITS == 4:
        x2 = as_query(tl.load(at + W, mask=has[:, None], other=0.0), score_scale, BITS)
    else:
        x2 = x
    query, pages = (x, x2), (keys, values, key_params, value_params)
    unit = score_scale if BITS >= 16 else 1.0
    table = tables + b.to(tl.int64) * table_stride
    newest = length - num_new + place
    seen_by_all = (tl.maximum(length - num_new + first + 1, 0) // N) * N
    last = tl.minimum(length - num_new + first + Q, length)
    state = no_state(R, 1, D, BITS)
    state = _attend_range(
        query, state, pages, table, 0, seen_by_all, newest, head, unit,
        K, D, PAGE_SIZE, BITS, N, False, ASM,
    )  # fmt: skip
    state = _attend_range(
        query, state, pages, table, seen_by_all, last, newest, head, unit,
        K, D, PAGE_SIZE, BITS, N, True, ASM,
    )  # fmt: skip
    store_result(out + heads, state, has, D, BITS)


def prefill_attention(
    q: Tensor,
    pages: KVPages,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    max_seqlen_q: int,
    scale: float,
    first_token: int = 0,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Causal attention of rotated queries to their sequences' pages, which hold their keys already.

    q [T, H, D] contiguous, the step's tokens from `first_token` on; cu_seqlens_q [B+1] int32 of the
    whole step, those of the B sequences to attend for; seq_lens [B] int32; block_tables [B, P]
    int32 -> out [T, H, D]; rows that belong to none of the sequences are not written.
    tile: None chooses.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, page_size = pages.keys.shape[2], pages.keys.shape[1]
    check(q, pages, num_heads)
    check_ints(torch.int32, cu_seqlens_q=cu_seqlens_q, seq_lens=seq_lens)
    batch, out = seq_lens.shape[0], torch.empty_like(q) if out is None else out
    if block_tables.dtype != torch.int32 or block_tables.stride(1) != 1:
        raise ValueError(f"block_tables {block_tables.dtype}, {block_tables.stride()}")
    if cu_seqlens_q.shape != (batch + 1,) or block_tables.shape[0] != batch:
        raise ValueError(f"{batch} lengths, {tuple(cu_seqlens_q.shape)} starts")
    if out.shape != q.shape or out.dtype != q.dtype:
        raise ValueError(f"out {out.dtype}, {tuple(out.shape)}")
    if not (q.is_contiguous() and out.is_contiguous()):
        raise ValueError("q and out must be contiguous")
    if not (num_tokens and batch):
        return out
    group = num_heads // num_kv_heads
    device_cc = capability(q.device)
    tile = tile or choose_tile(head_dim, q.dtype, pages.bits, max_seqlen_q * group, device_cc)
    num_blocks = num_tokens // (tile.rows // group) + batch
    _prefill_kernel[(num_kv_heads, num_blocks)](
        q, pages.keys, pages.values, *param_words(pages), out, cu_seqlens_q, seq_lens,
        block_tables, block_tables.stride(0), batch, first_token, scale * LOG2_E, H=num_heads,
        K=num_kv_heads, D=head_dim, PAGE_SIZE=page_size, BITS=pages.bits, R=tile.rows,
        N=tile.keys, ASM=q.is_cuda, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out
