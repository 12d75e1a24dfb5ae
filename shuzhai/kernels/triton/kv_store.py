"""Rotary positions and the way into the pages, in one kernel; what stores a token elsewhere.

A head's two halves are apart here, as both the rotation and codes of 4 bits pair them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shuzhai.kernels.triton.attention import capability, check, check_ints, param_words
from shuzhai.step import KVPages

_LARGEST = tl.constexpr(65504.0)  # of float16


@triton.jit
def turned(
    heads: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    d: tl.tensor,
    mask: tl.tensor,
    D: tl.constexpr,
) -> tl.tensor:
    """Elements d [1, W] of the rotated heads that begin at `heads` [R, 1], in their own type; cos
    and sin: of their token, [D/2]."""
    half: tl.constexpr = D // 2
    x = tl.load(heads + d, mask=mask, other=0.0).to(tl.float32)
    pair = tl.load(heads + (d + half) % D, mask=mask, other=0.0).to(tl.float32)
    c, s = tl.load(cos + d % half), tl.load(sin + d % half)
    return (x * c + pair * tl.where(d < half, -s, s)).to(heads.dtype.element_ty)


@triton.jit
def _is_nan(x: tl.tensor) -> tl.tensor:
    """Rows [R] of x [R, W] that hold a NaN, as int32."""
    return tl.max((x != x).to(tl.int32), 1)


@triton.jit
def _store_params(
    params: tl.tensor,
    rows: tl.tensor,
    mask: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    is_nan: tl.tensor,
    BITS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Scale and zero [R] of rows with these bounds, as float16 keeps them; written to the rows. A
    row with a NaN is NaN as a whole."""
    levels: tl.constexpr = 2.0**BITS - 1.0
    step = tl.div_rn(high - low, tl.full(low.shape, levels, tl.float32))
    scale = tl.where(is_nan > 0, float("nan"), step).to(tl.float16)
    zero = tl.where(is_nan > 0, float("nan"), low).to(tl.float16)
    below = scale.to(tl.uint16, bitcast=True).to(tl.uint32)
    above = zero.to(tl.uint16, bitcast=True).to(tl.uint32)
    word = (below | (above << 16)).to(tl.int32, bitcast=True)
    tl.store(params + rows, word, mask=mask)
    return scale.to(tl.float32), zero.to(tl.float32)


@triton.jit
def _encoded(x: tl.tensor, scale: tl.tensor, zero: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """Codes of x [R, W], still float32; 0 where the scale is 0 or NaN."""
    one, has_range = tl.full(scale.shape, 1.0, tl.float32), scale > 0.0
    inverse = tl.div_rn(one, tl.where(has_range, scale, one))
    levels: tl.constexpr = 2.0**BITS - 1.0
    code = tl.clamp((x - zero[:, None]) * inverse[:, None], 0.0, levels)
    code = tl.where(has_range[:, None], code, 0.0)
    # 1.5 * 2^23 leaves no room for a fraction: the sum rounds to even, as torch does.
    return (code + 12582912.0) - 12582912.0


@triton.jit
def keep_whole(
    to: tl.tensor,
    params: tl.tensor,
    rows: tl.tensor,
    mask: tl.tensor,
    x: tl.tensor,
    D: tl.constexpr,
    BITS: tl.constexpr,
) -> tl.tensor:
    """Write heads x [R, D] to rows [R] of pages in 8 or more bits -> as they lie there, float32."""
    at = to + rows[:, None] * D + tl.arange(0, D)[None, :]
    if BITS >= 16:
        codes = x.to(to.dtype.element_ty)
        kept = codes.to(tl.float32)
    else:
        x32 = tl.clamp(x.to(tl.float32), -_LARGEST, _LARGEST)
        low, high = tl.min(x32, 1), tl.max(x32, 1)
        scale, zero = _store_params(params, rows, mask, low, high, _is_nan(x), BITS)
        codes = _encoded(x32, scale, zero, BITS)
        kept = codes * scale[:, None] + zero[:, None]
        codes = codes.to(tl.int32).to(tl.uint8)
    tl.store(at, codes, mask=mask[:, None])
    return kept


@triton.jit
def keep_halves(
    to: tl.tensor,
    params: tl.tensor,
    rows: tl.tensor,
    mask: tl.tensor,
    x: tl.tensor,
    x2: tl.tensor,
    D: tl.constexpr,
    BITS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The same for the halves [R, D/2] of heads, in any bits."""
    half: tl.constexpr = D // 2
    W: tl.constexpr = half if BITS == 4 else D
    at = to + rows[:, None] * W + tl.arange(0, half)[None, :]
    if BITS >= 16:
        codes, codes2 = x.to(to.dtype.element_ty), x2.to(to.dtype.element_ty)
        kept, kept2 = codes.to(tl.float32), codes2.to(tl.float32)
    else:
        a = tl.clamp(x.to(tl.float32), -_LARGEST, _LARGEST)
        b = tl.clamp(x2.to(tl.float32), -_LARGEST, _LARGEST)
        low = tl.minimum(tl.min(a, 1), tl.min(b, 1))
        high = tl.maximum(tl.max(a, 1), tl.max(b, 1))
        is_nan = tl.maximum(_is_nan(x), _is_nan(x2))
        scale, zero = _store_params(params, rows, mask, low, high, is_nan, BITS)
        codes, codes2 = _encoded(a, scale, zero, BITS), _encoded(b, scale, zero, BITS)
        kept = codes * scale[:, None] + zero[:, None]
        kept2 = codes2 * scale[:, None] + zero[:, None]
        codes, codes2 = codes.to(tl.int32), codes2.to(tl.int32)
    if BITS == 4:
        tl.store(at, (codes | (codes2 << 4)).to(tl.uint8), mask=mask[:, None])
    else:
        tl.store(at, codes.to(to.dtype.element_ty), mask=mask[:, None])
        tl.store(at + half, codes2.to(to.dtype.element_ty), mask=mask[:, None])
    return kept, kept2


@triton.jit(do_not_specialize_on_alignment=["slots"])
def _rotate_and_store_kernel(
    qkv: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    key_params: tl.tensor,
    value_params: tl.tensor,
    slots: tl.tensor,
    q: tl.tensor,
    k: tl.tensor,
    H: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    HP: tl.constexpr,
    KP: tl.constexpr,
    BITS: tl.constexpr,
    KEEP_KEYS: tl.constexpr,
    USE_PDL: tl.constexpr,
) -> None:
    """One token. HP, KP: H and K rounded up to powers of 2."""
    half: tl.constexpr = D // 2
    token = tl.program_id(0).to(tl.int64)
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    slot = tl.load(slots + token)
    d = tl.arange(0, half)[None, :]
    c, s = tl.load(cos + token * half + d), tl.load(sin + token * half + d)
    heads = tl.arange(0, HP)
    at, has = heads[:, None] * D + d, (heads < H)[:, None]
    source = qkv + token * ((H + 2 * K) * D)
    a = tl.load(source + at, mask=has, other=0.0).to(tl.float32)
    b = tl.load(source + at + half, mask=has, other=0.0).to(tl.float32)
    dtype: tl.constexpr = q.dtype.element_ty
    tl.store(q + token * (H * D) + at, (a * c - b * s).to(dtype), mask=has)
    tl.store(q + token * (H * D) + at + half, (b * c + a * s).to(dtype), mask=has)
    heads = tl.arange(0, KP)
    at, is_head = heads[:, None] * D + d, heads < K
    has = is_head[:, None]
    a = tl.load(source + H * D + at, mask=has, other=0.0).to(tl.float32)
    b = tl.load(source + H * D + at + half, mask=has, other=0.0).to(tl.float32)
    v = tl.load(source + (H + K) * D + at, mask=has, other=0.0)
    v2 = tl.load(source + (H + K) * D + at + half, mask=has, other=0.0)
    a, b = (a * c - b * s).to(dtype), (b * c + a * s).to(dtype)
    if KEEP_KEYS:
        tl.store(k + token * (K * D) + at, a, mask=has)
        tl.store(k + token * (K * D) + at + half, b, mask=has)
    rows, is_kept = slot * K + heads, is_head & (slot >= 0)
    keep_halves(keys, key_params, rows, is_kept, a, b, D, BITS)
    keep_halves(values, value_params, rows, is_kept, v, v2, D, BITS)


def rotate_and_store(
    qkv: Tensor, cos: Tensor, sin: Tensor, pages: KVPages, slots: Tensor, keep_keys: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Rotate queries and keys; keys and values to their slots of the pages, as codes where these
    hold codes; tokens of slot -1 are not written.

    qkv [T, H + 2K, D], queries first, then keys, then values, contiguous; cos, sin [T, D/2]
    float32; slots [T] int64 -> (queries [T, H, D], the rotated keys [T, K, D] if keep_keys).
    """
    num_tokens, num_heads, head_dim = qkv.shape
    num_kv_heads = pages.keys.shape[2]
    num_heads -= 2 * num_kv_heads
    check(qkv, pages, num_heads)
    check_ints(torch.int64, slots=slots)
    check_ints(torch.float32, cos=cos, sin=sin)
    if not (qkv.is_contiguous() and num_heads > 0 and slots.shape == (num_tokens,)):
        raise ValueError(f"qkv {tuple(qkv.shape)}, {qkv.stride()}; slots {tuple(slots.shape)}")
    if cos.shape != (num_tokens, head_dim // 2) or sin.shape != cos.shape:
        raise ValueError(f"cos {tuple(cos.shape)}, sin {tuple(sin.shape)} of {num_tokens} tokens")
    q = qkv.new_empty(num_tokens, num_heads, head_dim)
    k = qkv.new_empty(num_tokens, num_kv_heads, head_dim) if keep_keys else None
    if not num_tokens:
        return q, k
    use_pdl = capability(qkv.device) >= 90
    options = {"launch_pdl": True} if use_pdl else {}
    _rotate_and_store_kernel[(num_tokens,)](
        qkv, cos, sin, pages.keys, pages.values, *param_words(pages), slots, q,
        q if k is None else k, H=num_heads, K=num_kv_heads, D=head_dim,
        HP=triton.next_power_of_2(num_heads), KP=triton.next_power_of_2(num_kv_heads),
        BITS=pages.bits, KEEP_KEYS=keep_keys, USE_PDL=use_pdl, num_warps=4, **options,
    )  # fmt: skip
    return q, k
