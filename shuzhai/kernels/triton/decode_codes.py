"""A tile of keys and values in codes of 8 or 4 bits, attended to by the queries of one token.

Codes are not turned back into keys and values: they are multiplied as they are, and what their
scales and zeros add comes in where there is one number for a token.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Probabilities go into products times the scales of values, small numbers in float16, and this,
# with which not even the largest scale of values in 4 bits, 2 * 65504 / 15, is too large.
SHARE = tl.constexpr(4.0)


@triton.jit
def _raised8(codes: tl.tensor, dtype: tl.constexpr, ASM: tl.constexpr) -> tl.tensor:
    """Codes [N, W] of 8 bits as numbers, higher by _raise: 0x64 above a byte is 1024 + the byte in
    float16. Impure as decoded8."""
    if ASM and dtype == tl.float16:
        found = tl.inline_asm_elementwise(
            """{ .reg .b32 base;
            mov.b32 base, 0x64006400;
            prmt.b32 $0, $2, base, 0x7170;
            prmt.b32 $1, $2, base, 0x7372; }""",
            "=&r,=&r,r",
            [codes],
            dtype=tl.float16,
            is_pure=False,
            pack=4,
        )
    else:
        found = codes.to(dtype)
    return found


@triton.jit
def _raised4(
    codes: tl.tensor, dtype: tl.constexpr, ASM: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The same of the codes of 4 bits below and above: 0x54 above 16 times one is 64 + the code."""
    if ASM and dtype == tl.float16:
        low, high = tl.inline_asm_elementwise(
            """{ .reg .b32 base, low, high;
            mov.b32 base, 0x54005400;
            shl.b32 low, $4, 4;
            and.b32 low, low, 0xf0f0f0f0;
            and.b32 high, $4, 0xf0f0f0f0;
            prmt.b32 $0, low, base, 0x7170;
            prmt.b32 $1, low, base, 0x7372;
            prmt.b32 $2, high, base, 0x7170;
            prmt.b32 $3, high, base, 0x7372; }""",
            "=&r,=&r,=&r,=&r,r",
            [codes],
            dtype=(tl.float16, tl.float16),
            is_pure=False,
            pack=4,
        )
    else:
        low, high = (codes & 15).to(dtype), (codes >> 4).to(dtype)
    return low, high


@triton.jit
def _numbers(
    codes: tl.tensor, dtype: tl.constexpr, BITS: tl.constexpr, ASM: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Codes as numbers to multiply, both halves where bits are 4: too high by what _scales says."""
    if BITS == 8:
        found = _raised8(codes, dtype, ASM)
        second = found
    else:
        found, second = _raised4(codes, dtype, ASM)
    return found, second


@triton.jit
def _scales(
    word: tl.tensor, dtype: tl.constexpr, BITS: tl.constexpr, ASM: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.constexpr]:
    """Scale and zero [N, 1], float32, and how much too high _numbers are."""
    scale = (word & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    zero = ((word >> 16) & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    is_raised: tl.constexpr = ASM and dtype == tl.float16
    raised: tl.constexpr = (1024.0 if BITS == 8 else 64.0) if is_raised else 0.0
    return scale[:, None], zero[:, None], raised


@triton.jit
def load_codes(
    pages: tl.tuple,
    rows: tl.tensor,
    valid: tl.tensor,
    D: tl.constexpr,
    BITS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Codes [N, W] of rows [N] of keys and of values, and their parameters [N]: where not valid,
    any codes and parameters of 0."""
    W: tl.constexpr = D // 2 if BITS == 4 else D
    at, is_there = rows[:, None] * W + tl.arange(0, W)[None, :], valid[:, None]
    k, v = tl.load(pages[0] + at, mask=is_there), tl.load(pages[1] + at, mask=is_there)
    k_word = tl.load(pages[2] + rows, mask=valid, other=0)
    return k, v, k_word, tl.load(pages[3] + rows, mask=valid, other=0)


@triton.jit
def attend_codes(
    query: tl.tuple,
    state: tl.tuple,
    tile: tl.tuple,
    valid: tl.tensor,
    BITS: tl.constexpr,
    ASM: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The state after a tile of load_codes. Keys are the rows of all products, of which tensor
    cores need 16, and queries the columns, of which they need 8. Scales and zeros, one of each for
    a token, go into scores and probabilities; into `common` what the results of all columns have in
    common: the zeros, and what _numbers are too high by."""
    top, total, common, acc, acc2 = state
    q, q2, q_sum = query
    k, v, k_word, v_word = tile
    dtype: tl.constexpr = q.dtype
    k, k2 = _numbers(k, dtype, BITS, ASM)
    found = tl.dot(k, q, input_precision="ieee")
    if BITS == 4:
        found = tl.dot(k2, q2, found, input_precision="ieee")
    scale, zero, raised = _scales(k_word, dtype, BITS, ASM)
    found = found * scale + (zero - raised * scale) * q_sum[None, :]
    found = tl.where(valid[:, None], found, float("-inf"))
    new_top = tl.maximum(top, tl.max(found, 0))
    # Nothing may have been seen yet.
    new_top = tl.where(new_top == float("-inf"), 0.0, new_top)
    fade = tl.exp2(top - new_top)[None, :]
    p = tl.exp2(found - new_top[None, :])
    v, v2 = _numbers(v, dtype, BITS, ASM)
    scale, zero, raised = _scales(v_word, dtype, BITS, ASM)
    shares = (p * (scale * SHARE)).to(dtype)
    total = total * fade + p
    common = common * fade + (p * zero - shares.to(tl.float32) * (raised / SHARE))
    acc = tl.dot(tl.trans(v), shares, acc * fade, input_precision="ieee")
    if BITS == 4:
        acc2 = tl.dot(tl.trans(v2), shares, acc2 * fade, input_precision="ieee")
    return new_top, total, common, acc, acc2


@triton.jit
def store_codes(
    to: tl.tensor, state: tl.tuple, mask: tl.tensor, D: tl.constexpr, BITS: tl.constexpr
) -> None:
    """store_result of the state of attend_codes."""
    _, total, common, acc, acc2 = state
    total = tl.sum(total, 0)
    inverse = 1.0 / tl.where(total == 0.0, 1.0, total)
    common = (tl.sum(common, 0) * inverse)[None, :]
    inverse = (inverse * (1.0 / SHARE))[None, :]
    dtype: tl.constexpr = to.dtype.element_ty
    W: tl.constexpr = D // 2 if BITS == 4 else D
    at, has = to[None, :] + tl.arange(0, W)[:, None], mask[None, :]
    tl.store(at, (acc * inverse + common).to(dtype), mask=has)
    if BITS == 4:
        tl.store(at + W, (acc2 * inverse + common).to(dtype), mask=has)
