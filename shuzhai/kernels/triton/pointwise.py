"""Norms, activations, rotary angles and the embedding: each reads its input once and writes once.

Arithmetic is float32; results are rounded once, where the reference kernels round between steps.
All kernels take part in programmatic dependent launch: they ask for weights, let the kernel behind
in, and touch nothing else before the kernel in front has ended. None knows a layer or a step.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

# The widest row that one program normalises: 32 numbers a thread.
MAX_NORM_WIDTH = 16384

_TYPES = (torch.bfloat16, torch.float16, torch.float32)
# Numbers a program of an elementwise kernel makes, 8 a thread: 16 bytes of a 16-bit type.
_BLOCK = 1024
_BLOCK_WARPS = 4
# Numbers a thread of a norm holds where there are few rows, and latency counts, or many.
_FEW_ROWS_WORK, _MANY_ROWS_WORK = 8, 16
# Angles a program of rotary_angles makes.
_ANGLES = 256


@cache
def describe(device: torch.device) -> tuple[int, bool]:
    """(multiprocessors, whether a kernel may start before the one in front has ended)"""
    if device.type != "cuda":  # the interpreter
        return 1, False
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.major >= 9


@triton.jit
def enter(use_pdl: tl.constexpr) -> None:
    """Let the kernel behind in and wait for the end of the one in front."""
    if use_pdl:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def _rms_norm_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    normed: tl.tensor,
    total: tl.tensor,
    eps: tl.tensor,
    n: tl.constexpr,
    width: tl.constexpr,
    has_residual: tl.constexpr,
    use_pdl: tl.constexpr,
) -> None:
    """One row [n] of each a program; total = x + residual, where there is one."""
    col = tl.arange(0, width)
    place = tl.program_id(0).to(tl.int64) * n + col
    inside = col < n
    scale = tl.load(weight + col, mask=inside, other=0.0).to(tl.float32)
    enter(use_pdl)
    value = tl.load(x + place, mask=inside, other=0.0)
    if has_residual:
        other = tl.load(residual + place, mask=inside, other=0.0)
        # The sum is rounded before it is normalised, as it is where it goes on.
        value = (value.to(tl.float32) + other.to(tl.float32)).to(x.dtype.element_ty)
        tl.store(total + place, value, mask=inside)
    wide = value.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, axis=0) * (1.0 / n) + eps)
    tl.store(normed + place, (wide * inverse * scale).to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _layer_norm_kernel(
    x: tl.tensor,
    branch: tl.tensor,
    branch_scale: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    normed: tl.tensor,
    total: tl.tensor,
    eps: tl.tensor,
    n: tl.constexpr,
    width: tl.constexpr,
    has_branch: tl.constexpr,
    has_scale: tl.constexpr,
    use_pdl: tl.constexpr,
) -> None:
    """One row [n] of each a program; total = x + branch * branch_scale [n], where there are."""
    col = tl.arange(0, width)
    place = tl.program_id(0).to(tl.int64) * n + col
    inside = col < n
    scale = tl.load(weight + col, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + col, mask=inside, other=0.0).to(tl.float32)
    if has_scale:
        channel = tl.load(branch_scale + col, mask=inside, other=0.0).to(tl.float32)
    enter(use_pdl)
    value = tl.load(x + place, mask=inside, other=0.0)
    if has_branch:
        other = tl.load(branch + place, mask=inside, other=0.0).to(tl.float32)
        if has_scale:
            other = other * channel
        # The sum is rounded before it is normalised, as it is where it goes on.
        value = (value.to(tl.float32) + other).to(x.dtype.element_ty)
        tl.store(total + place, value, mask=inside)
    wide = value.to(tl.float32)
    centred = tl.where(inside, wide - tl.sum(wide, axis=0) * (1.0 / n), 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, axis=0) * (1.0 / n) + eps)
    result = centred * inverse * scale + shift
    tl.store(normed + place, result.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _silu_mul_kernel(
    gate_up: tl.tensor,
    out: tl.tensor,
    n: tl.constexpr,
    block: tl.constexpr,
    use_pdl: tl.constexpr,
) -> None:
    """`block` numbers of a row of out [T, n] from gate_up [T, 2n]."""
    blocks: tl.constexpr = tl.cdiv(n, block)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    col = tl.program_id(0) % blocks * block + tl.arange(0, block)
    place = gate_up + row * (2 * n) + col
    enter(use_pdl)
    gate = tl.load(place, mask=col < n, other=0.0).to(tl.float32)
    up = tl.load(place + n, mask=col < n, other=0.0).to(tl.float32)
    value = gate * tl.sigmoid(gate) * up
    tl.store(out + row * n + col, value.to(out.dtype.element_ty), mask=col < n)


@triton.jit
def _quick_gelu_kernel(
    x: tl.tensor,
    out: tl.tensor,
    count: tl.tensor,
    block: tl.constexpr,
    use_pdl: tl.constexpr,
) -> None:
    """x sigmoid(1.702 x) of `block` of the `count` numbers."""
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    enter(use_pdl)
    value = tl.load(x + place, mask=place < count, other=0.0).to(tl.float32)
    value = value * tl.sigmoid(1.702 * value)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=place < count)


@triton.jit(do_not_specialize=["num_tokens"], do_not_specialize_on_alignment=["positions"])
def _rotary_angles_kernel(
    positions: tl.tensor,
    inv_freq: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    num_tokens: tl.tensor,
    half: tl.constexpr,
    rows: tl.constexpr,
    width: tl.constexpr,
    has_shared_freq: tl.constexpr,
    use_pdl: tl.constexpr,
) -> None:
    """`rows` rows of cos and sin [T, half]; inv_freq [half] where shared, else [T, half]."""
    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    col = tl.arange(0, width)
    place = row[:, None] * half + col[None, :]
    inside = (row < num_tokens)[:, None] & (col < half)[None, :]
    if has_shared_freq:
        freq = tl.load(inv_freq + col, mask=col < half, other=0.0)[None, :]
        enter(use_pdl)
    else:
        enter(use_pdl)
        freq = tl.load(inv_freq + place, mask=inside, other=0.0)
    position = tl.load(positions + row, mask=row < num_tokens, other=0).to(tl.float32)
    angle = position[:, None] * freq
    # The exact functions of the device's library, which reduce angles of any size: no approximate
    # instruction. A test on the device holds them to it.
    tl.store(cos + place, tl.cos(angle), mask=inside)
    tl.store(sin + place, tl.sin(angle), mask=inside)


@triton.jit(
    do_not_specialize=["num_last"],
    do_not_specialize_on_alignment=["token_ids", "last_ids", "source"],
)
def _embed_kernel(
    token_ids: tl.tensor,
    table: tl.tensor,
    last_ids: tl.tensor,
    source: tl.tensor,
    out: tl.tensor,
    num_last: tl.tensor,
    vocab: tl.constexpr,
    n: tl.constexpr,
    block: tl.constexpr,
    use_pdl: tl.constexpr,
) -> None:
    """`block` numbers of a row of out [T, n]."""
    blocks: tl.constexpr = tl.cdiv(n, block)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    col = tl.program_id(0) % blocks * block + tl.arange(0, block)
    enter(use_pdl)
    place = tl.load(source + row)
    latest = tl.load(last_ids + tl.minimum(place, num_last - 1), mask=place >= 0, other=0)
    token = tl.where(place >= 0, latest, tl.load(token_ids + row))
    token = tl.minimum(tl.maximum(token, 0), vocab - 1)
    value = tl.load(table + token * n + col, mask=col < n, other=0.0)
    tl.store(out + row * n + col, value, mask=col < n)


def _choose_norm(num_rows: int, n: int, num_sms: int) -> tuple[int, int]:
    """(width of the tile, warps of a program)"""
    width = triton.next_power_of_2(n)
    work = _FEW_ROWS_WORK if num_rows <= num_sms else _MANY_ROWS_WORK
    return width, min(16, max(1, width // (32 * work)))


def _choose_angles(half: int) -> tuple[int, int]:
    """(rows a program, width of the tile)"""
    width = triton.next_power_of_2(half)
    return max(1, _ANGLES // width), width


def _check(*tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.dtype not in _TYPES:
            raise ValueError(f"{tensor.dtype} is not one of {', '.join(map(str, _TYPES))}")
        if not tensor.is_contiguous() or tensor.device != tensors[0].device:
            raise ValueError("operands must be contiguous and on one device")


def _check_rows(x: Tensor, *vectors: Tensor) -> None:
    _check(x, *vectors)
    if x.ndim != 2 or not 1 <= x.shape[1] <= MAX_NORM_WIDTH:
        raise ValueError(f"x {list(x.shape)} must be rows of 1 to {MAX_NORM_WIDTH} numbers")
    for vector in vectors:
        if vector.shape != x.shape[1:]:
            raise ValueError(f"{list(vector.shape)} is not for rows of {x.shape[1]}")


def _check_addend(x: Tensor, addend: Tensor) -> None:
    _check(x, addend)
    if addend.shape != x.shape or addend.dtype != x.dtype:
        raise ValueError(f"{list(addend.shape)}, {addend.dtype}, to add to x is not like x")


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Kernels.rms_norm: x, residual [T, n] -> (normed, x + residual), n up to MAX_NORM_WIDTH."""
    _check_rows(x, weight)
    if residual is not None:
        _check_addend(x, residual)
    normed = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    if not x.shape[0]:
        return normed, total
    num_sms, use_pdl = describe(x.device)
    width, warps = _choose_norm(*x.shape, num_sms)
    _rms_norm_kernel[(x.shape[0],)](
        x,
        x if residual is None else residual,
        weight,
        normed,
        total,
        eps,
        n=x.shape[1],
        width=width,
        has_residual=residual is not None,
        use_pdl=use_pdl,
        num_warps=warps,
        launch_pdl=use_pdl,
    )
    return normed, total


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Kernels.layer_norm: [T, n] -> [T, n], n up to MAX_NORM_WIDTH."""
    _check_rows(x, weight, bias)
    return _layer_norm(x, None, None, weight, bias, eps)[0]


def add_layer_norm(
    x: Tensor, branch: Tensor, scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Kernels.add_layer_norm: x, branch [T, n], scale [n] or None -> (normed, x + branch * scale),
    n up to MAX_NORM_WIDTH."""
    _check_rows(x, weight, bias, *(() if scale is None else (scale,)))
    _check_addend(x, branch)
    return _layer_norm(x, branch, scale, weight, bias, eps)


def _layer_norm(
    x: Tensor,
    branch: Tensor | None,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    normed = torch.empty_like(x)
    total = x if branch is None else torch.empty_like(x)
    if not x.shape[0]:
        return normed, total
    num_sms, use_pdl = describe(x.device)
    width, warps = _choose_norm(*x.shape, num_sms)
    _layer_norm_kernel[(x.shape[0],)](
        x,
        x if branch is None else branch,
        weight if scale is None else scale,
        weight,
        bias,
        normed,
        total,
        eps,
        n=x.shape[1],
        width=width,
        has_branch=branch is not None,
        has_scale=scale is not None,
        use_pdl=use_pdl,
        num_warps=warps,
        launch_pdl=use_pdl,
    )
    return normed, total


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for gate_up [T, 2n], gate first -> [T, n]."""
    _check(gate_up)
    if gate_up.ndim != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up {list(gate_up.shape)} must be rows of two halves")
    num_rows, n = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(num_rows, n)
    if out.numel():
        use_pdl = describe(gate_up.device)[1]
        block = min(_BLOCK, triton.next_power_of_2(n))
        _silu_mul_kernel[(num_rows * triton.cdiv(n, block),)](
            gate_up,
            out,
            n=n,
            block=block,
            use_pdl=use_pdl,
            num_warps=_BLOCK_WARPS,
            launch_pdl=use_pdl,
        )
    return out


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), of any shape."""
    _check(x)
    out = torch.empty_like(x)
    if x.numel():
        use_pdl = describe(x.device)[1]
        _quick_gelu_kernel[(triton.cdiv(x.numel(), _BLOCK),)](
            x,
            out,
            x.numel(),
            block=_BLOCK,
            use_pdl=use_pdl,
            num_warps=_BLOCK_WARPS,
            launch_pdl=use_pdl,
        )
    return out


def rotary_angles(positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of positions [T] times inv_freq, [D/2] or [T, D/2]: [T, D/2] float32 each."""
    num_tokens, half = positions.shape[0], inv_freq.shape[-1]
    if positions.dtype not in (torch.int64, torch.float32) or positions.ndim != 1:
        raise ValueError(f"positions {list(positions.shape)}, {positions.dtype}, must be [T]")
    if inv_freq.dtype != torch.float32 or inv_freq.shape not in ((half,), (num_tokens, half)):
        raise ValueError(f"inv_freq {list(inv_freq.shape)}, {inv_freq.dtype}, for {num_tokens}")
    if not (positions.is_contiguous() and inv_freq.is_contiguous()):
        raise ValueError("positions and inv_freq must be contiguous")
    cos, sin = (inv_freq.new_empty(num_tokens, half) for _ in range(2))
    if not cos.numel():
        return cos, sin
    use_pdl = describe(inv_freq.device)[1]
    rows, width = _choose_angles(half)
    _rotary_angles_kernel[(triton.cdiv(num_tokens, rows),)](
        positions,
        inv_freq,
        cos,
        sin,
        num_tokens,
        half=half,
        rows=rows,
        width=width,
        has_shared_freq=inv_freq.ndim == 1,
        use_pdl=use_pdl,
        num_warps=4,
        launch_pdl=use_pdl,
    )
    return cos, sin


def embed(token_ids: Tensor, table: Tensor, last_ids: Tensor, source: Tensor) -> Tensor:
    """Rows of table [vocab, n] for token_ids [T] int64 -> [T, n].

    Where source [T] int32 is 0 or more, last_ids[source] of last_ids [S] int64 is the token
    instead: one that the step before has drawn and that the host has not seen. Ids and sources out
    of range are taken for the nearest that is in range.
    """
    _check(table)
    if table.ndim != 2 or not table.numel() or last_ids.ndim != 1 or not len(last_ids):
        raise ValueError(f"table {list(table.shape)}, last_ids {list(last_ids.shape)}")
    if token_ids.ndim != 1 or source.shape != token_ids.shape:
        raise ValueError(f"token_ids {list(token_ids.shape)}, source {list(source.shape)}")
    if (token_ids.dtype, last_ids.dtype, source.dtype) != (torch.int64, torch.int64, torch.int32):
        raise ValueError(f"ids {token_ids.dtype}, {last_ids.dtype}, source {source.dtype}")
    if any(
        not t.is_contiguous() or t.device != table.device for t in (token_ids, last_ids, source)
    ):
        raise ValueError("operands must be contiguous and on one device")
    (vocab, n), num_tokens = table.shape, len(token_ids)
    out = table.new_empty(num_tokens, n)
    if num_tokens:
        use_pdl = describe(table.device)[1]
        block = min(_BLOCK, triton.next_power_of_2(n))
        _embed_kernel[(num_tokens * triton.cdiv(n, block),)](
            token_ids,
            table,
            last_ids,
            source,
            out,
            len(last_ids),
            vocab=vocab,
            n=n,
            block=block,
            use_pdl=use_pdl,
            num_warps=_BLOCK_WARPS,
            launch_pdl=use_pdl,
        )
    return out
