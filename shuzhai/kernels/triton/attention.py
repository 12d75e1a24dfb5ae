"""What the attention kernels share: queries, rows of pages, one tile of keys and values.

Codes of formats/kv.py become float16 in registers, two at a time, and are multiplied as such:
queries are scaled first, so that those of bfloat16 fit. Scores are in units of log2, which the
hardware's exponential takes.

In shape comments: R rows of queries, N keys of a tile, W elements: D, or D/2 where bits are 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from shuzhai.step import KVPages

LOG2_E = 1.4426950408889634
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_MAX_GROUP = 64


@dataclass(frozen=True, slots=True)
class Tile:
    """rows of queries and keys that a program takes at a time; warps; stages of the pipeline."""

    rows: int
    keys: int
    warps: int
    stages: int


def supports(head_dim: int, dtype: torch.dtype, bits: int, group: int) -> bool:
    """The kernels serve heads of this size in activations of this type, KV pages of these bits and
    so many query heads to a kv head."""
    # A head is at least 16 units of 16 bits, which codes are multiplied by.
    fits = head_dim in (16, 32, 64, 128, 256) and head_dim * bits >= 256
    known = bits in (4, 8) or bits == 8 * dtype.itemsize
    return fits and known and dtype in _FLOATS and group <= _MAX_GROUP


def check(x: Tensor, pages: KVPages, num_heads: int) -> None:
    """Raise ValueError unless x [T, H, D] (or a part of it) and the pages are as they must be."""
    num_kv_heads, head_dim = pages.keys.shape[2], x.shape[-1]
    if num_heads % num_kv_heads or x.stride(-1) != 1 or x.stride(-2) != head_dim:
        raise ValueError(f"{num_heads} heads, strides {x.stride()} of {num_kv_heads} kv heads")
    if not supports(head_dim, x.dtype, pages.bits, num_heads // num_kv_heads):
        raise ValueError(f"no kernel for {x.dtype}, heads of {head_dim}, {pages.bits}-bit pages")
    is_coded = pages.bits < 16
    width = head_dim * pages.bits // 8 if is_coded else head_dim
    for stored, params in ((pages.keys, pages.key_params), (pages.values, pages.value_params)):
        dtype = torch.uint8 if is_coded else x.dtype
        if stored.dtype != dtype or stored.shape[3] != width or not stored.is_contiguous():
            raise ValueError(f"pages of {stored.dtype}, {tuple(stored.shape)}: not as expected")
        if stored.shape != pages.keys.shape or (params is not None) != is_coded:
            raise ValueError("keys, values and their parameters do not belong together")
        if params is not None and not (
            params.dtype == torch.float16
            and params.shape == (*stored.shape[:3], 2)
            and params.is_contiguous()
        ):
            raise ValueError(f"parameters of {params.dtype}, {tuple(params.shape)}")


def check_ints(dtype: torch.dtype, **tensors: Tensor) -> None:
    """Raise ValueError unless these are contiguous and of this type."""
    for name, tensor in tensors.items():
        if tensor.dtype != dtype or not tensor.is_contiguous():
            raise ValueError(f"{name}: contiguous {dtype}, not {tensor.dtype}, {tensor.stride()}")


def check_decode(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    out: Tensor,
    num_kv_heads: int,
) -> None:
    """Raise ValueError unless the operands of decode_attend belong together."""
    batch, head_dim = qkv.shape[0], qkv.shape[2]
    check_ints(torch.int64, slots=slots)
    check_ints(torch.int32, seq_lens=seq_lens)
    check_ints(torch.float32, cos=cos, sin=sin)
    if block_tables.dtype != torch.int32 or block_tables.stride(1) != 1:
        raise ValueError(f"block_tables {block_tables.dtype}, {block_tables.stride()}")
    num_heads = qkv.shape[1] - 2 * num_kv_heads
    expected = {
        "cos": (cos, (batch, head_dim // 2)),
        "sin": (sin, (batch, head_dim // 2)),
        "slots": (slots, (batch,)),
        "seq_lens": (seq_lens, (batch,)),
        "block_tables": (block_tables, (batch, block_tables.shape[1])),
        "out": (out, (batch, num_heads, head_dim)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"{name}: {tuple(tensor.shape)}, not {shape}")
    if out.dtype != qkv.dtype or not (out.is_contiguous() and qkv.is_contiguous()):
        raise ValueError("qkv and out: contiguous, of one type")


def param_words(pages: KVPages) -> tuple[Tensor, Tensor]:
    """Scale and zero of keys and of values as one int32 each; anything where there are none."""
    if pages.key_params is None or pages.value_params is None:
        return pages.keys, pages.values
    return pages.key_params.view(torch.int32), pages.value_params.view(torch.int32)


def capability(device: torch.device) -> int:
    """90 for 9.0; 0 for a CPU, where the interpreter runs the kernels."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@triton.jit
def decoded8(
    codes: tl.tensor, scale: tl.tensor, zero: tl.tensor, dtype: tl.constexpr, ASM: tl.constexpr
) -> tl.tensor:
    """Codes of 8 bits [N, W] times scale plus zero [N, 1] -> [N, W] dtype.

    0x64 above a byte is 1024 + the byte in float16. Said to be impure so that it stays where it is:
    the compiler would else move it behind shared memory, from where bytes come singly.
    """
    if ASM and dtype == tl.float16:
        scale = tl.broadcast_to(scale, codes.shape)
        zero = tl.broadcast_to(zero, codes.shape)
        found = tl.inline_asm_elementwise(
            """{ .reg .b32 base;
            mov.b32 base, 0x64006400;
            prmt.b32 $0, $2, base, 0x7170;
            prmt.b32 $1, $2, base, 0x7372;
            sub.rn.f16x2 $0, $0, base;
            sub.rn.f16x2 $1, $1, base;
            fma.rn.f16x2 $0, $0, $3, $5;
            fma.rn.f16x2 $1, $1, $4, $6; }""",
            "=&r,=&r,r,r,r,r,r",
            [codes, scale, zero],
            dtype=tl.float16,
            is_pure=False,
            pack=4,
        )
    else:
        found = (codes.to(tl.float32) * scale + zero).to(dtype)
    return found


@triton.jit
def decoded4(
    codes: tl.tensor, scale: tl.tensor, zero: tl.tensor, dtype: tl.constexpr, ASM: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The same of the codes of 4 bits below and above."""
    if ASM and dtype == tl.float16:
        scale = tl.broadcast_to(scale, codes.shape)
        zero = tl.broadcast_to(zero, codes.shape)
        low, high = tl.inline_asm_elementwise(
            """{ .reg .b32 base, low, high;
            mov.b32 base, 0x64006400;
            and.b32 low, $4, 0x0f0f0f0f;
            shr.u32 high, $4, 4;
            and.b32 high, high, 0x0f0f0f0f;
            prmt.b32 $0, low, base, 0x7170;
            prmt.b32 $1, low, base, 0x7372;
            prmt.b32 $2, high, base, 0x7170;
            prmt.b32 $3, high, base, 0x7372;
            sub.rn.f16x2 $0, $0, base;
            sub.rn.f16x2 $1, $1, base;
            sub.rn.f16x2 $2, $2, base;
            sub.rn.f16x2 $3, $3, base;
            fma.rn.f16x2 $0, $0, $5, $7;
            fma.rn.f16x2 $1, $1, $6, $8;
            fma.rn.f16x2 $2, $2, $5, $7;
            fma.rn.f16x2 $3, $3, $6, $8; }""",
            "=&r,=&r,=&r,=&r,r,r,r,r,r",
            [codes, scale, zero],
            dtype=(tl.float16, tl.float16),
            is_pure=False,
            pack=4,
        )
    else:
        low = ((codes & 15).to(tl.float32) * scale + zero).to(dtype)
        high = ((codes >> 4).to(tl.float32) * scale + zero).to(dtype)
    return low, high


@triton.jit
def load_tile(
    stored: tl.tensor,
    params: tl.tensor,
    rows: tl.tensor,
    valid: tl.tensor,
    dtype: tl.constexpr,
    D: tl.constexpr,
    BITS: tl.constexpr,
    ASM: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Keys or values [N, W] of rows [N], both halves where bits are 4: 0 where not valid, since
    what lies there is garbage."""
    W: tl.constexpr = D // 2 if BITS == 4 else D
    at, is_there = rows[:, None] * W + tl.arange(0, W)[None, :], valid[:, None]
    if BITS >= 16:
        found = tl.load(stored + at, mask=is_there, other=0.0)
        second = found
    else:
        codes = tl.load(stored + at)
        word = tl.load(params + rows, mask=valid, other=0)[:, None]
        scale = (word & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True)
        zero = ((word >> 16) & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True)
        if BITS == 8:
            found = decoded8(codes, scale, zero, dtype, ASM)
            second = found
        else:
            found, second = decoded4(codes, scale, zero, dtype, ASM)
    return found, second


@triton.jit
def as_query(q: tl.tensor, score_scale: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """Queries [R, W] as attend_tile takes them."""
    if BITS < 16:
        narrow: tl.constexpr = tl.float32 if q.dtype == tl.float32 else tl.float16
        q = (q.to(tl.float32) * score_scale).to(narrow)
    return q


@triton.jit
def no_state(
    R: tl.constexpr, N: tl.constexpr, D: tl.constexpr, BITS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Of nothing seen: (highest score [R], sums of probabilities [R, N], sums of values [R, W], and
    of their second half where bits are 4).

    N: 1, or the keys of a tile, whose sum is then left for later: adding up between warps costs
    them a barrier.
    """
    top = tl.full([R], float("-inf"), tl.float32)
    if BITS == 4:
        acc = tl.zeros([R, D // 2], tl.float32)
        acc2 = acc
    else:
        acc = tl.zeros([R, D], tl.float32)
        acc2 = tl.zeros([R, 1], tl.float32)
    return top, tl.zeros([R, N], tl.float32), acc, acc2


@triton.jit
def attend_tile(
    query: tl.tuple,
    state: tl.tuple,
    pages: tl.tuple,
    rows: tl.tensor,
    valid: tl.tensor,
    visible: tl.tensor,
    unit: tl.tensor,
    D: tl.constexpr,
    BITS: tl.constexpr,
    MASKED: tl.constexpr,
    ASM: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The state after the keys of rows [N] = slot * K + head, of which valid [N] hold any and
    visible ([R, N] or [1, N]) may be looked at; all of them unless MASKED. query: both halves
    where bits are 4, unit: of the scores, in log2."""
    dtype: tl.constexpr = query[0].dtype
    k, k2 = load_tile(pages[0], pages[2], rows, valid, dtype, D, BITS, ASM)
    v, v2 = load_tile(pages[1], pages[3], rows, valid, dtype, D, BITS, ASM)
    return attend_loaded(query, state, (k, k2, v, v2), visible, unit, BITS, MASKED)


@triton.jit
def attend_loaded(
    query: tl.tuple,
    state: tl.tuple,
    tile: tl.tuple,
    visible: tl.tensor,
    unit: tl.tensor,
    BITS: tl.constexpr,
    MASKED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """attend_tile of keys and values that are here already, both halves where bits are 4."""
    top, total, acc, acc2 = state
    k, k2, v, v2 = tile
    dtype: tl.constexpr = query[0].dtype
    found = tl.dot(query[0], tl.trans(k), input_precision="ieee")
    if BITS == 4:
        found = tl.dot(query[1], tl.trans(k2), found, input_precision="ieee")
    if MASKED:
        found = tl.where(visible, found, float("-inf"))
    new_top = tl.maximum(top, tl.max(found, 1) * unit)
    if MASKED:  # nothing may have been seen yet
        new_top = tl.where(new_top == float("-inf"), 0.0, new_top)
    fade = tl.exp2(top - new_top)[:, None]
    p = tl.exp2(found * unit - new_top[:, None])
    total = total * fade + (p if total.shape[1] > 1 else tl.sum(p, 1)[:, None])
    p = p.to(dtype)
    acc = tl.dot(p, v, acc * fade, input_precision="ieee")
    if BITS == 4:
        acc2 = tl.dot(p, v2, acc2 * fade, input_precision="ieee")
    return new_top, total, acc, acc2


@triton.jit
def pages_of(
    table: tl.tensor, places: tl.tensor, last: tl.tensor, PAGE_SIZE: tl.constexpr
) -> tl.tensor:
    """The pages [N] of these places of a sequence; page 0 from `last` on.

    Loops ask for those of the next tile while they work on one: a load that waits for a load in the
    same turn would cost the pipeline a stage.
    """
    return tl.load(table + places.to(tl.uint32) // PAGE_SIZE, mask=places < last, other=0)


@triton.jit
def rows_of(
    pages: tl.tensor,
    places: tl.tensor,
    head: tl.tensor,
    K: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
) -> tl.tensor:
    """Rows [N] int64 of a kv head at these places, which lie in these pages."""
    return (pages.to(tl.int64) * PAGE_SIZE + places.to(tl.uint32) % PAGE_SIZE) * K + head


@triton.jit
def store_result(
    to: tl.tensor, state: tl.tuple, mask: tl.tensor, D: tl.constexpr, BITS: tl.constexpr
) -> None:
    """Write the attended values to rows that begin at `to` [R]; 0 where nothing was seen."""
    _, total, acc, acc2 = state
    total = tl.sum(total, 1)
    inverse = (1.0 / tl.where(total == 0.0, 1.0, total))[:, None]
    dtype: tl.constexpr = to.dtype.element_ty
    W: tl.constexpr = D // 2 if BITS == 4 else D
    at = to[:, None] + tl.arange(0, W)[None, :]
    tl.store(at, (acc * inverse).to(dtype), mask=mask[:, None])
    if BITS == 4:
        tl.store(at + W, (acc2 * inverse).to(dtype), mask=mask[:, None])
