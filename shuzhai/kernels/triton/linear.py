"""Products of one row with a weight, which read the weight once at the speed of the memory.

A program holds a tile of whole weight rows in registers and multiplies it by the row, which it
normalises itself where asked: that costs less than a kernel of its own. Products of several rows
are the library's.

Programmatic dependent launch: the weights are the same in every step, so they are asked for before
a program waits for the kernel in front, and the kernel behind is let in to do likewise. (Asking the
L2 cache for the tiles of later programs as well was measured: it costs 7 %.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

# The widest row; a program holds it whole.
MAX_WIDTH = 16384
# Bytes of weights that a thread asks for at once: 64 registers, half of what it uses.
_BYTES_A_THREAD = 256
_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


@dataclass(frozen=True, slots=True)
class RowConfig:
    """rows: of the weight a tile (of each half, where gated); warps a program; tiles a program, one
    under way while it works on another"""

    rows: int
    warps: int
    tiles: int = 1


@cache
def _device(device: torch.device) -> tuple[int, bool]:
    """(multiprocessors, whether a kernel may start before the one in front has ended)"""
    if device.type != "cuda":
        return 1, False
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.major >= 9


def _choose(m: int, n: int, itemsize: int, is_gated: bool, num_sms: int) -> RowConfig:
    """Whole rows, as many as the threads can ask for at once, but a program an SM at least."""
    width = triton.next_power_of_2(n)
    warps = 4 if width <= 4096 else 8 if width <= 8192 else 16
    row_bytes = width * itemsize * (2 if is_gated else 1)
    # 16 warps have 128 registers a thread, of which a row so wide takes its share.
    rows = min(16, max(1, min(warps, 8) * 32 * _BYTES_A_THREAD // row_bytes))
    while rows > 1 and triton.cdiv(m, rows) < num_sms:
        rows //= 2
    # Two programs of 8 warps find room on a multiprocessor: those that all run at once need not
    # wait until others have ended.
    are_in_two_turns = warps == 8 and 2 * num_sms < triton.cdiv(m, rows) <= 4 * num_sms
    return RowConfig(rows, warps, 2 if are_in_two_turns else 1)


@triton.jit
def _pair(items: tl.tensor, dtype: tl.constexpr) -> tl.tuple:
    """Pairs of 16-bit numbers, packed in int32, taken apart: float32; a float32 and 0."""
    if dtype == tl.bfloat16:
        first = (items << 16).to(tl.float32, bitcast=True)
        second = (items & -65536).to(tl.float32, bitcast=True)
    elif dtype == tl.float16:
        first = items.to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
        second = (items >> 16).to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
    else:
        first, second = items, tl.zeros_like(items)
    return first, second


@triton.jit
def _add(a: tl.tensor, b: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """a + b, rounded, packed as they are."""
    if dtype == tl.float32:
        total = a + b
    else:
        first, second = _pair(a, dtype)
        more, second_more = _pair(b, dtype)
        low = (first + more).to(dtype).to(tl.int16, bitcast=True).to(tl.int32) & 65535
        high = (second + second_more).to(dtype).to(tl.int16, bitcast=True).to(tl.int32)
        total = low | (high << 16)
    return total


@triton.jit
def _load_rows(
    weight: tl.tensor, index: tl.tensor, m: tl.tensor, num: tl.constexpr, items: tl.constexpr,
    rows: tl.constexpr, is_gated: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Tile `index` of the weight: rows of `num` items, gate and up in turn where gated."""
    halves: tl.constexpr = 2 if is_gated else 1
    part, col = tl.arange(0, rows * halves), tl.arange(0, items)
    row = index.to(tl.int64) * rows + part // halves
    inside = (row < m)[:, None] & (col < num)[None, :]
    row += (part % halves) * m.to(tl.int64)
    place = weight + row[:, None] * num + col[None, :]
    return tl.load(place, mask=inside, other=0, eviction_policy="evict_first")


@triton.jit
def _multiply(
    tile: tl.tensor, x: tl.tuple, bias: tl.tensor, out: tl.tensor, index: tl.tensor, m: tl.tensor,
    rows: tl.constexpr, dtype: tl.constexpr, has_bias: tl.constexpr, is_gated: tl.constexpr,
) -> None:  # fmt: skip
    """Write what tile `index` of the weight makes of x: the first numbers of pairs, the second."""
    one, two = _pair(tile, dtype)
    result = tl.sum(one * x[0][None, :] + two * x[1][None, :], axis=1)
    if is_gated:
        gate, up = tl.split(tl.reshape(result, (rows, 2)))
        result = gate * tl.sigmoid(gate) * up
    row = index.to(tl.int64) * rows + tl.arange(0, rows)
    if has_bias:
        result += tl.load(bias + row, mask=row < m, other=0.0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=row < m)


@triton.jit(do_not_specialize=["m"])
def _row_kernel(
    x: tl.tensor, residual: tl.tensor, norm: tl.tensor, weight: tl.tensor, bias: tl.tensor,
    out: tl.tensor, total: tl.tensor, m: tl.tensor, eps: tl.tensor, n: tl.constexpr,
    width: tl.constexpr, rows: tl.constexpr, dtype: tl.constexpr,
    has_norm: tl.constexpr, has_residual: tl.constexpr, has_bias: tl.constexpr,
    is_gated: tl.constexpr, TILES: tl.constexpr, use_pdl: tl.constexpr,
) -> None:  # fmt: skip
    """out [m] of x [n], weight [m, n] or, gated, [2m, n]; width: n up to a power of 2. TILES of
    the weight a program.

    x, residual, norm, weight and total are float32, or int32 that hold pairs of `dtype`: the
    compiler takes smaller numbers apart as soon as they are asked for, and so waits for them. Here
    they are taken apart after the wait for the kernel in front, and all are under way together.
    """
    num: tl.constexpr = n if dtype == tl.float32 else n // 2  # items in a row
    items: tl.constexpr = width if dtype == tl.float32 else width // 2
    col, index, step = tl.arange(0, items), tl.program_id(0), tl.num_programs(0)
    tile = _load_rows(weight, index, m, num, items, rows, is_gated)
    if has_norm:
        scale = tl.load(norm + col, mask=col < num, other=0)
    if use_pdl:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    value = tl.load(x + col, mask=col < num, other=0)
    if has_residual:
        value = _add(value, tl.load(residual + col, mask=col < num, other=0), dtype)
        tl.store(total + col, value, mask=(col < num) & (index == 0))
    first, second = _pair(value, dtype)
    if has_norm:
        inverse = tl.rsqrt(tl.sum(first * first + second * second, axis=0) / n + eps)
        by, second_by = _pair(scale, dtype)
        first *= inverse * by
        second *= inverse * second_by
    pair = (first, second)
    for _ in tl.range(1, TILES, num_stages=1):
        later = _load_rows(weight, index + step, m, num, items, rows, is_gated)
        _multiply(tile, pair, bias, out, index, m, rows, dtype, has_bias, is_gated)
        tile = later
        index += step
    _multiply(tile, pair, bias, out, index, m, rows, dtype, has_bias, is_gated)


def supports(x: Tensor, weight: Tensor) -> bool:
    """Whether x [T, n] is a row that these products multiply by weight [m, n]."""
    if x.ndim != 2 or x.shape[0] != 1 or x.dtype != weight.dtype or x.dtype not in _TYPES:
        return False
    return x.shape[1] <= MAX_WIDTH and (x.shape[1] % 2 == 0 or x.dtype == torch.float32)


def _check(x: Tensor, weight: Tensor, **others: tuple[Tensor | None, int]) -> None:
    """others: name=(tensor, the elements it must have)."""
    if not supports(x, weight):
        raise ValueError(
            f"x {list(x.shape)}, {x.dtype}, and a weight of {weight.dtype}: x must be one row, at "
            f"most {MAX_WIDTH} wide, of an even width where of a 16-bit type, like the weight's"
        )
    if weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"shapes do not match: {list(x.shape)} and {list(weight.shape)}")
    operands = {"x": (x, x.numel()), "weight": (weight, weight.numel()), **others}
    for name, (tensor, numel) in operands.items():
        if tensor is None:
            continue
        if tensor.numel() != numel or tensor.dtype != x.dtype:
            raise ValueError(f"{name} {list(tensor.shape)}, {tensor.dtype}: not {numel} {x.dtype}")
        if not tensor.is_contiguous() or tensor.device != x.device:
            raise ValueError(f"{name} must be contiguous and on the device of x")


def run(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    config: RowConfig,
    bias: Tensor | None = None,
    norm: Tensor | None = None,
    residual: Tensor | None = None,
    total: Tensor | None = None,
    eps: float = 0.0,
    is_gated: bool = False,
) -> None:
    """Launch the kernel with checked operands: out [1, m]; total [1, n] where residual."""
    use_pdl, m = _device(x.device)[1], out.shape[1]
    # What a pointer stands for that is not read does not matter.
    operands = (
        x,
        x if residual is None else residual,
        x if norm is None else norm,
        weight,
        x if total is None else total,
    )
    if x.itemsize == 2:
        operands = tuple(t.view(torch.int32) for t in operands)
    _row_kernel[(triton.cdiv(m, config.rows * config.tiles),)](
        *operands[:4],
        out if bias is None else bias,
        out,
        operands[4],
        m,
        eps,
        n=x.shape[1],
        width=max(2, triton.next_power_of_2(x.shape[1])),
        rows=config.rows,
        dtype=_TYPES[x.dtype],
        has_norm=norm is not None,
        has_residual=residual is not None,
        has_bias=bias is not None,
        is_gated=is_gated,
        TILES=config.tiles,
        use_pdl=use_pdl,
        num_warps=config.warps,
        launch_pdl=use_pdl,
    )


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """x [1, n], weight [m, n], bias [m] -> [1, m] in out_dtype or the type of x."""
    _check(x, weight, bias=(bias, weight.shape[0]))
    m, n = weight.shape
    out = torch.empty(1, m, dtype=out_dtype or x.dtype, device=x.device)
    run(x, weight, out, _choose(m, n, x.itemsize, False, _device(x.device)[0]), bias)
    return out


def norm_linear(
    x: Tensor,
    residual: Tensor | None,
    norm: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None = None,
    is_gated: bool = False,
) -> tuple[Tensor, Tensor]:
    """Kernels.norm_linear of one row, but that the normalised row is not rounded. is_gated: of
    norm_gated_linear, without bias."""
    numel = x.numel()
    like_x = {"norm": (norm, numel), "residual": (residual, numel)}
    _check(x, weight, bias=(bias, weight.shape[0]), **like_x)
    m, n = weight.shape
    m = m // 2 if is_gated else m
    out = torch.empty(1, m, dtype=x.dtype, device=x.device)
    total = x if residual is None else torch.empty_like(x)
    config = _choose(m, n, x.itemsize, is_gated, _device(x.device)[0])
    run(x, weight, out, config, bias, norm, residual, total, eps, is_gated)
    return out, total


def norm_gated_linear(
    x: Tensor, residual: Tensor | None, norm: Tensor, eps: float, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Kernels.norm_gated_linear of one row, with nothing rounded between."""
    return norm_linear(x, residual, norm, eps, weight, is_gated=True)
