"""A tile of keys and values in codes of 8 or 4 bits, attended to by the queries of one token.

Codes are not turned back into keys and values: they are multiplied as they are, and what their
scales and zeros add comes in where there is one number for a token. They are loaded as units of 16
bits, 2 codes or 4: a tile of units goes from shared memory to where tensor cores want it as a tile
of float16 would, and only there becomes as many tiles of numbers, each multiplied by itself.

The bits of a code, alone in a float16, are a number below the normal ones, 2**-24 times the code,
and tensor cores multiply such numbers exactly. (Bits that make it 1024 more than the code cost as
little. But tensor cores cut sums off where others round: of 32,000 tokens of 4 bits, whose sums are
mostly that 1024, this made errors of 6 % of the answer.)

In shape comments: R columns of queries, N keys of a tile, U units of a head, C codes of a unit.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def share_of(bits: int) -> float:
    """What probabilities are multiplied by beside the scales of values, small numbers in float16:
    as much as the largest scale there is allows, 2 * 65504 / 15 or / 255."""
    return 4.0 if bits == 4 else 64.0


@triton.constexpr_function
def unit_of(place: int, dtype: tl.dtype, bits: int) -> float:
    """What 1 is in the _numbers at this place among the codes of a unit."""
    if dtype != tl.float16:
        return 1.0
    return 2.0**-20 if bits == 4 and place % 2 else 2.0**-24


@triton.constexpr_function
def query_factor(place: int, dtype: tl.dtype, bits: int) -> float:
    """What queries are multiplied by for the numbers at this place, so that all products count the
    same. Half the way each: float16 has room for little at either end."""
    unit, other = unit_of(place, dtype, bits), unit_of(1 - place % 2, dtype, bits)
    return (other / unit) ** 0.5


@triton.jit
def _as_number(bits: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """The lowest bits of units as float16, or what they count as another type."""
    return bits.to(dtype, bitcast=True) if dtype == tl.float16 else bits.to(dtype)


@triton.jit
def _numbers8(
    units: tl.tensor, dtype: tl.constexpr, ASM: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Both codes of units as numbers of unit_of."""
    if ASM and dtype == tl.float16:
        first, second = tl.inline_asm_elementwise(
            """and.b32 $0, $2, 0x00ff00ff;
            prmt.b32 $1, $2, 0, 0x4341;""",
            "=&r,=r,r",
            [units],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    else:
        first, second = _as_number(units & 255, dtype), _as_number(units >> 8, dtype)
    return first, second


@triton.jit
def _numbers4(
    units: tl.tensor, dtype: tl.constexpr, ASM: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The same of the four codes, the lowest first. Those at odd places stay 4 bits up in float16,
    which saves the work of moving them down."""
    if ASM and dtype == tl.float16:
        first, second, third, fourth = tl.inline_asm_elementwise(
            """{ .reg .b32 above;
            shr.u32 above, $4, 8;
            and.b32 $0, $4, 0x000f000f;
            and.b32 $1, $4, 0x00f000f0;
            and.b32 $2, above, 0x000f000f;
            and.b32 $3, above, 0x00f000f0; }""",
            "=&r,=&r,=&r,=&r,r",
            [units],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    else:
        odd: tl.constexpr = 0 if dtype == tl.float16 else 4
        first, second = _as_number(units & 15, dtype), _as_number((units & 240) >> odd, dtype)
        above = units >> 8
        third, fourth = _as_number(above & 15, dtype), _as_number((above & 240) >> odd, dtype)
    return first, second, third, fourth


@triton.jit
def _numbers(
    units: tl.tensor, dtype: tl.constexpr, BITS: tl.constexpr, ASM: tl.constexpr
) -> tl.tuple:
    """The C codes of units as tensors of numbers to multiply, 1 being unit_of."""
    return _numbers8(units, dtype, ASM) if BITS == 8 else _numbers4(units, dtype, ASM)


@triton.jit
def in_units(x: tl.tensor, x2: tl.tensor, BITS: tl.constexpr) -> tl.tuple:
    """Heads x [R, D], or both halves x, x2 [R, D/2] where bits are 4, as C tensors [R, U]: element
    u of each belongs to a code of unit u. Those of x2 are at the odd places."""
    R: tl.constexpr = x.shape[0]
    U: tl.constexpr = x.shape[1] // 2
    even, odd = tl.split(tl.reshape(x, (R, U, 2)))
    if BITS == 8:
        found = (even, odd)
    else:
        even2, odd2 = tl.split(tl.reshape(x2, (R, U, 2)))
        found = (even, even2, odd, odd2)
    return found


@triton.jit
def _scales(word: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Scale and zero [N, 1], float32."""
    scale = (word & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    zero = ((word >> 16) & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    return scale[:, None], zero[:, None]


@triton.jit
def _score(query: tl.tuple, units: tl.tensor, BITS: tl.constexpr, ASM: tl.constexpr) -> tl.tensor:
    """Codes [N, R] of keys times queries."""
    k = _numbers(units, query[0].dtype, BITS, ASM)
    found = tl.dot(k[0], query[0], input_precision="ieee")
    for i in tl.static_range(1, len(k)):
        found = tl.dot(k[i], query[i], found, input_precision="ieee")
    return found


@triton.jit
def attend_codes(
    query: tl.tuple,
    state: tl.tuple,
    tile: tl.tuple,
    valid: tl.tensor,
    BITS: tl.constexpr,
    ASM: tl.constexpr,
) -> tl.tuple:
    """The state after a tile of load_codes. Keys are the rows of all products, of which tensor
    cores need 16, and queries the columns, of which they need 8. Scales and zeros, one of each for
    a token, go into scores and probabilities.

    query: C tensors [U, R], times query_factor, and sums [R] without it. The state: the highest
    score [R]; sums [N, R] of probabilities, and of these times zeros; C sums of values [U, R],
    times share_of, in numbers of unit_of."""
    q, q_sum = query
    top, total, zeros, sums = state
    dtype: tl.constexpr = q[0].dtype
    k, v, k_word, v_word = tile
    found = _score(q, k, BITS, ASM)
    scale, zero = _scales(k_word)
    unit: tl.constexpr = unit_of(0, dtype, BITS) * query_factor(0, dtype, BITS)
    found = found * (scale * (1.0 / unit)) + zero * q_sum[None, :]
    found = tl.where(valid[:, None], found, float("-inf"))
    new_top = tl.maximum(top, tl.max(found, 0))
    # Nothing may have been seen yet.
    new_top = tl.where(new_top == float("-inf"), 0.0, new_top)
    fade = tl.exp2(top - new_top)[None, :]
    p = tl.exp2(found - new_top[None, :])
    scale, zero = _scales(v_word)
    shares = (p * (scale * share_of(BITS))).to(dtype)
    v = _numbers(v, dtype, BITS, ASM)
    first = tl.dot(v[0], shares, sums[0] * fade, input_precision="ieee")
    second = tl.dot(v[1], shares, sums[1] * fade, input_precision="ieee")
    if BITS == 8:
        sums = (first, second)
    else:
        third = tl.dot(v[2], shares, sums[2] * fade, input_precision="ieee")
        fourth = tl.dot(v[3], shares, sums[3] * fade, input_precision="ieee")
        sums = (first, second, third, fourth)
    return new_top, total * fade + p, zeros * fade + p * zero, sums


@triton.jit
def store_codes(
    to: tl.tensor,
    state: tl.tuple,
    mask: tl.tensor,
    dtype: tl.constexpr,
    D: tl.constexpr,
    BITS: tl.constexpr,
) -> None:
    """store_result of the state of attend_codes, whose products were of this type."""
    _, total, zeros, sums = state
    total = tl.sum(total, 0)
    inverse = 1.0 / tl.where(total == 0.0, 1.0, total)
    zero = tl.sum(zeros, 0) * inverse
    inverse *= 1.0 / share_of(BITS)
    U: tl.constexpr = D * BITS // 16
    at, has = to[None, :] + 2 * tl.arange(0, U)[:, None], mask[None, :]
    for i in tl.static_range(len(sums)):
        # Of 4 bits, each odd place is that of the second half; of 8, that of the next element.
        place = i if BITS == 8 else i // 2 + i % 2 * (D // 2)
        found = sums[i] * (inverse * (1.0 / unit_of(i, dtype, BITS)))[None, :] + zero[None, :]
        tl.store(at + place, found.to(to.dtype.element_ty), mask=has)


@triton.jit
def no_codes(R: tl.constexpr, N: tl.constexpr, D: tl.constexpr, BITS: tl.constexpr) -> tl.tuple:
    """The state of attend_codes when nothing has been seen."""
    U: tl.constexpr = D * BITS // 16
    none, sums = tl.zeros([N, R], tl.float32), tl.zeros([U, R], tl.float32)
    top = tl.full([R], float("-inf"), tl.float32)
    if BITS == 8:
        state = (top, none, none, (sums, sums))
    else:
        state = (top, none, none, (sums, sums, sums, sums))
    return state


@triton.jit
def load_codes(
    pages: tl.tuple,
    rows: tl.tensor,
    valid: tl.tensor,
    D: tl.constexpr,
    BITS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Units of rows [N] of keys, [N, U], and of values, [U, N], and their parameters [N]: where not
    valid, any codes and parameters of 0."""
    U: tl.constexpr = D * BITS // 16
    unit: tl.constexpr = tl.pointer_type(tl.uint16)
    u, keys, values = tl.arange(0, U), pages[0].to(unit), pages[1].to(unit)
    k = tl.load(keys + (rows[:, None] * U + u[None, :]), mask=valid[:, None])
    v = tl.load(values + (rows[None, :] * U + u[:, None]), mask=valid[None, :])
    k_word = tl.load(pages[2] + rows, mask=valid, other=0)
    return k, v, k_word, tl.load(pages[3] + rows, mask=valid, other=0)
