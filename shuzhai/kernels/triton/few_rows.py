"""Products of few rows with a weight, which read the weight once near the speed of the memory.

The weight's rows are the tall operand of the tensor cores and the few rows the narrow one, so that
there is little padding. Where the weight has few rows, several programs share a tile's columns, and
the last to arrive adds up what they found, always in the same order.

Programmatic dependent launch, which the library's products know nothing of, closes the gaps to the
kernels in front and behind: more is gained by that than by the products themselves.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

# The most rows that are few. They are padded to the next of these: each is compiled at the start.
_PADDED_ROWS = (16, 32, 64)
MAX_ROWS = _PADDED_ROWS[-1]
_TYPES = (torch.bfloat16, torch.float16)
_NUM_COUNTERS = 4096
# A tile of the weight, and the stages of its pipeline: swept on an H100 for the shapes of
# InternLM2-1.8B.
_TILE_ROWS, _TILE_COLUMNS, _WARPS, _STAGES = 64, 128, 4, 4
# Tiles that a program goes through: at least, and where a second program shares its multiprocessor.
_LEAST_STEPS, _LEAST_SHARED_STEPS = 4, 8
# Tiles of each program that the L2 cache is asked for while the kernel in front still works. More
# was measured: it takes from those in front what it gains.
_AHEAD = 2


class FewRowsWorkspace:
    """What these products keep between calls on one device and one stream: zeroed counters."""

    def __init__(self, device: torch.device) -> None:
        self.counters = torch.zeros(_NUM_COUNTERS, dtype=torch.int32, device=device)


@cache
def _device(device: torch.device) -> tuple[int, int, int]:
    """(multiprocessors, compute capability, 90 for 9.0, bytes of shared memory of a program)"""
    if device.type != "cuda":  # the interpreter
        return 4, 80, 2**17
    properties = torch.cuda.get_device_properties(device)
    cc = 10 * properties.major + properties.minor
    return properties.multi_processor_count, cc, properties.shared_memory_per_block_optin


def pad_rows(count: int) -> int:
    """What so many rows are padded to."""
    return next(size for size in _PADDED_ROWS if count <= size)


def choose_splits(m: int, n: int, count: int, num_sms: int) -> int:
    """How many programs share the columns of a tile of a weight [m, n] that `count` rows are
    multiplied by: a power of 2, so that about every multiprocessor has one, or two where there is
    enough for each and little to add up."""
    tiles, splits, steps = triton.cdiv(m, _TILE_ROWS), 1, n // _TILE_COLUMNS

    def is_too_few(splits: int, programs: int, least_steps: int) -> bool:
        return tiles * splits < programs * 3 // 4 and steps >= 2 * splits * least_steps

    while is_too_few(splits, num_sms, _LEAST_STEPS):
        splits *= 2
    if pad_rows(count) < MAX_ROWS and is_too_few(splits, 2 * num_sms, _LEAST_SHARED_STEPS):
        splits *= 2
    return splits


@triton.jit
def _prefetch(places: tl.tensor, num_bytes: tl.constexpr) -> None:
    """Ask the L2 cache of a GPU of 9.0 or later for so many bytes from each of these places on, all
    multiples of 16."""
    tl.inline_asm_elementwise(
        "{ cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0; }",
        "=r,l,r",
        [places.to(tl.int64), tl.full(places.shape, num_bytes, tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _finish(
    result: tl.tensor, bias: tl.tensor, out: tl.tensor, tile: tl.tensor, m: tl.tensor,
    count: tl.tensor, ROWS: tl.constexpr, TOKENS: tl.constexpr, has_bias: tl.constexpr,
    is_gated: tl.constexpr,
) -> None:  # fmt: skip
    """Write result [ROWS, TOKENS], or, gated, silu of its even rows times its odd ones."""
    rows: tl.constexpr = ROWS // 2 if is_gated else ROWS
    if is_gated:
        pairs = tl.permute(tl.reshape(result, (rows, 2, TOKENS)), (0, 2, 1))
        gate, up = tl.split(pairs)
        result = gate * tl.sigmoid(gate) * up
    row = tile.to(tl.int64) * rows + tl.arange(0, rows)
    token = tl.arange(0, TOKENS)
    if has_bias:
        result += tl.load(bias + row, mask=row < m, other=0.0).to(tl.float32)[:, None]
    place = out + token[None, :].to(tl.int64) * m + row[:, None]
    inside = (row < m)[:, None] & (token < count)[None, :]
    tl.store(place, result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["m", "count"])
def _few_rows_kernel(
    x: tl.tensor, weight: tl.tensor, bias: tl.tensor, out: tl.tensor, partials: tl.tensor,
    counters: tl.tensor, m: tl.tensor, count: tl.tensor, n: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr, has_bias: tl.constexpr,
    is_gated: tl.constexpr, use_pdl: tl.constexpr, AHEAD: tl.constexpr,
) -> None:  # fmt: skip
    """out [count, m] of x [count, n], weight [m, n] or, gated, [2m, n], of which even rows of a
    tile are gates and odd ones ups. partials [SPLITS, tiles, ROWS, TOKENS] float32."""
    STEPS: tl.constexpr = (n + SPLITS * COLUMNS - 1) // (SPLITS * COLUMNS)
    IS_EVEN: tl.constexpr = n == SPLITS * STEPS * COLUMNS
    tile, begin = tl.program_id(0), tl.program_id(1) * (STEPS * COLUMNS)
    # Rows beyond the last are the last one's again: what comes of them is not written.
    part = tl.arange(0, ROWS)
    if is_gated:
        row = tl.minimum(tile * (ROWS // 2) + part // 2, m - 1).to(tl.int64)
        row += (part % 2) * m.to(tl.int64)
    else:
        row = tl.minimum(tile * ROWS + part, m - 1).to(tl.int64)
    if use_pdl:
        if IS_EVEN and STEPS >= AHEAD:
            half = AHEAD * COLUMNS // 2  # numbers, of two bytes
            part_of_row = begin + tl.arange(0, 2) * half
            _prefetch(weight + row[:, None] * n + part_of_row[None, :], 2 * half)
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token, col = tl.arange(0, TOKENS), tl.arange(0, COLUMNS)
    weights = weight + row[:, None] * n + (begin + col)[None, :]
    others = x + token[None, :] * n + (begin + col)[:, None]
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for i in range(STEPS):
        is_token = (token < count)[None, :]
        if IS_EVEN:
            a = tl.load(weights, eviction_policy="evict_first")
            b = tl.load(others, mask=is_token, other=0.0)
        else:
            inside = begin + i * COLUMNS + col < n
            a = tl.load(weights, mask=inside[None, :], other=0.0, eviction_policy="evict_first")
            b = tl.load(others, mask=is_token & inside[:, None], other=0.0)
        total = tl.dot(a, b, total)
        weights += COLUMNS
        others += COLUMNS
    if SPLITS == 1:
        _finish(total, bias, out, tile, m, count, ROWS, TOKENS, has_bias, is_gated)
    else:
        size = tl.num_programs(0).to(tl.int64) * (ROWS * TOKENS)
        inner = tile.to(tl.int64) * (ROWS * TOKENS) + part[:, None] * TOKENS + token[None, :]
        tl.store(partials + tl.program_id(1) * size + inner, total)
        # All threads' writes come before the one that says so.
        tl.debug_barrier()
        if tl.atomic_add(counters + tile, 1, sem="acq_rel") == SPLITS - 1:
            tl.store(counters + tile, 0)
            result = tl.load(partials + inner, cache_modifier=".cg")
            for other in tl.static_range(1, SPLITS):
                result += tl.load(partials + other * size + inner, cache_modifier=".cg")
            _finish(result, bias, out, tile, m, count, ROWS, TOKENS, has_bias, is_gated)


def supports(x: Tensor, weight: Tensor) -> bool:
    """Whether x [T, n] are few rows that these products multiply by weight [m, n]."""
    if x.ndim != 2 or not 2 <= x.shape[0] <= MAX_ROWS or x.dtype not in _TYPES:
        return False
    if x.dtype != weight.dtype or x.shape[1] % 16 or not x.shape[1]:
        return False
    return _device(x.device)[1] >= 80


def _check(x: Tensor, weight: Tensor, out: Tensor, bias: Tensor | None, is_gated: bool) -> None:
    if not supports(x, weight):
        raise ValueError(
            f"x {list(x.shape)}, {x.dtype}, and a weight of {weight.dtype}: x must be few rows, 2 "
            f"to {MAX_ROWS}, a multiple of 16 wide, of a 16-bit type like the weight's"
        )
    if weight.ndim != 2 or x.shape[1] != weight.shape[1] or not weight.shape[0]:
        raise ValueError(f"shapes do not match: {list(x.shape)} and {list(weight.shape)}")
    if is_gated and weight.shape[0] % 2:
        raise ValueError(f"weight {list(weight.shape)} must be two halves")
    m = weight.shape[0] // (2 if is_gated else 1)
    if out.shape != (x.shape[0], m):
        raise ValueError(f"out {list(out.shape)} is not {[x.shape[0], m]}")
    if bias is not None and (bias.shape != (m,) or bias.dtype != x.dtype):
        raise ValueError(f"bias {list(bias.shape)}, {bias.dtype}: not {m} {x.dtype}")
    for name, tensor in (("x", x), ("weight", weight), ("out", out), ("bias", bias)):
        if tensor is not None and (not tensor.is_contiguous() or tensor.device != x.device):
            raise ValueError(f"{name} must be contiguous and on the device of x")
    if weight.data_ptr() % 16:
        raise ValueError("weight must begin at a multiple of 16 bytes")


def run(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    splits: int,
    workspace: FewRowsWorkspace,
    bias: Tensor | None = None,
    is_gated: bool = False,
) -> None:
    """Launch the kernel with checked operands: out [T, m]."""
    count, m = out.shape
    _, cc, shared_bytes = _device(x.device)
    use_pdl, tokens = cc >= 90, pad_rows(count)
    stage_bytes = 2 * _TILE_COLUMNS * (_TILE_ROWS + tokens)
    stages = min(_STAGES, shared_bytes // stage_bytes)
    tiles = triton.cdiv(weight.shape[0], _TILE_ROWS)
    partials = out  # not read
    if splits > 1:
        assert tiles <= _NUM_COUNTERS, "so many need no splits"
        size = splits * tiles * _TILE_ROWS * tokens
        partials = torch.empty(size, dtype=torch.float32, device=x.device)
    options = {"launch_pdl": True} if use_pdl else {}
    _few_rows_kernel[(tiles, splits)](
        x, weight, out if bias is None else bias, out, partials, workspace.counters, m, count,
        n=x.shape[1], ROWS=_TILE_ROWS, COLUMNS=_TILE_COLUMNS, TOKENS=tokens, SPLITS=splits,
        has_bias=bias is not None, is_gated=is_gated, use_pdl=use_pdl, AHEAD=_AHEAD,
        num_warps=_WARPS, num_stages=stages, **options,
    )  # fmt: skip


def linear(
    x: Tensor,
    weight: Tensor,
    workspace: FewRowsWorkspace,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    is_gated: bool = False,
) -> Tensor:
    """x [T, n], weight [m, n], bias [m] -> [T, m] in out_dtype or the type of x; gated: weight
    [2m, n], gate first, and what comes out is silu(gate) * up, with nothing rounded between."""
    m = weight.shape[0] // (2 if is_gated else 1)
    out = torch.empty(x.shape[0], m, dtype=out_dtype or x.dtype, device=x.device)
    _check(x, weight, out, bias, is_gated)
    splits = choose_splits(*weight.shape, x.shape[0], _device(x.device)[0])
    run(x, weight, out, splits, workspace, bias, is_gated)
    return out
