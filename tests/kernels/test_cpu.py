"""The CPU kernels against the reference kernels, on odd shapes and random data."""

from __future__ import annotations

import pytest
import torch

from shuzhai.kernels.base import Kernels
from shuzhai.kernels.cpu import CpuKernels
from shuzhai.step import KVPages, StepInput

REFERENCE = Kernels()
SIZES = [1, 7, 63, 130]


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.fixture(params=[False, True], ids=["widening", "native-bf16"])
def kernels(request: pytest.FixtureRequest) -> CpuKernels:
    return CpuKernels(native_bfloat16=request.param)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize(("rows", "width"), [(7, 63), (3001, 513)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(
    kernels: CpuKernels,
    weight_dtype: torch.dtype,
    tokens: int,
    rows: int,
    width: int,
    with_bias: bool,
) -> None:
    dtype = kernels.activation_dtype(weight_dtype)
    assert dtype in (weight_dtype, torch.float32)
    x, weight = noise(tokens, width, dtype=dtype), noise(rows, width, dtype=weight_dtype)
    bias = noise(rows, dtype=weight_dtype) if with_bias else None
    expected = REFERENCE.linear(x.float(), weight, bias)
    # bfloat16 activations have 8 bits; sums of `width` products of standard deviation 1.
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(
        kernels.linear(x, weight, bias).float(), expected, atol=tolerance * width**0.5, rtol=0.02
    )


def paged(
    chunks: list[tuple[int, int]],
    heads: int,
    kv_heads: int,
    dim: int,
    page_size: int,
    in_order: bool,
) -> tuple[torch.Tensor, KVPages, StepInput]:
    """Sequences of (new tokens, length) over pages, shuffled or not; unused slots are NaN."""
    num_pages = [-(-length // page_size) for _, length in chunks]
    total = sum(num_pages) + 3
    shape = (total, page_size, kv_heads, dim)
    pages = KVPages(torch.full(shape, float("nan")), torch.full(shape, float("nan")), bits=32)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0)).tolist()
    if in_order:
        order.sort()
    tables = torch.zeros(len(chunks), max(num_pages), dtype=torch.int32)
    starts = [0]
    for b, (new, length) in enumerate(chunks):
        own, order = order[: num_pages[b]], order[num_pages[b] :]
        tables[b, : len(own)] = torch.tensor(own)
        slots = torch.tensor(
            [own[p // page_size] * page_size + p % page_size for p in range(length)]
        )
        REFERENCE.store_kv(
            noise(length, kv_heads, dim), noise(length, kv_heads, dim) * (b + 1), pages, slots
        )
        starts.append(starts[-1] + new)
    step = StepInput(
        token_ids=torch.zeros(starts[-1], dtype=torch.int64),
        positions=torch.zeros(starts[-1], dtype=torch.int64),
        slots=torch.zeros(starts[-1], dtype=torch.int64),
        cu_seqlens_q=torch.tensor(starts, dtype=torch.int32),
        seq_lens=torch.tensor([length for _, length in chunks], dtype=torch.int32),
        block_tables=tables,
        logit_rows=torch.zeros(1, dtype=torch.int64),
        num_decodes=0,
        max_seqlen_q=max(new for new, _ in chunks),
    )
    return noise(starts[-1], heads, dim), pages, step


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 16), (3, 3, 10), (7, 1, 64)])
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("in_order", [False, True])
def test_paged_attention(
    kernels: CpuKernels, heads: int, kv_heads: int, dim: int, page_size: int, in_order: bool
) -> None:
    chunks = [(n, n) for n in SIZES] + [(1, n) for n in SIZES] + [(7, 130), (63, 64)]
    query, pages, step = paged(chunks, heads, kv_heads, dim, page_size, in_order)
    expected = REFERENCE.paged_attention(query, pages, step, dim**-0.5)
    actual = kernels.paged_attention(query, pages, step, dim**-0.5)
    assert expected.isfinite().all()
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("tokens", SIZES)
def test_the_reference_rotates_as_complex_numbers_do(tokens: int) -> None:
    x, angles = noise(tokens, 3, 10), noise(tokens, 5)
    turned = REFERENCE.rotary(x, angles.cos(), angles.sin())
    expected = torch.complex(x[..., :5], x[..., 5:]) * torch.polar(torch.ones(()), angles)[:, None]
    torch.testing.assert_close(turned, torch.cat((expected.real, expected.imag), -1))


def test_the_reference_norm_has_unit_root_mean_square() -> None:
    x, residual = noise(7, 63) * 5, noise(7, 63)
    normed, total = REFERENCE.rms_norm(x, torch.full((63,), 2.0), 0.0, residual)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(normed, 2 * total / total.square().mean(-1, keepdim=True).sqrt())


@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize("with_scale", [False, True])
def test_layer_norm_of_a_sum(kernels: CpuKernels, tokens: int, with_scale: bool) -> None:
    x, branch, weight, bias = noise(tokens, 63) + 5, noise(tokens, 63), noise(63), noise(63)
    scale = noise(63) if with_scale else None
    normed, total = kernels.add_layer_norm(x, branch, scale, weight, bias, 1e-6)
    expected = x + (branch if scale is None else branch * scale)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(normed, kernels.layer_norm(total, weight, bias, 1e-6))
    centred = expected - expected.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(normed, centred / deviation * weight + bias, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", SIZES)
def test_linear_gelu(kernels: CpuKernels, tokens: int) -> None:
    x, weight, bias = noise(tokens, 63), noise(130, 63) / 8, noise(130)
    before = x.double() @ weight.double().t() + bias.double()
    expected = before * (1 + torch.erf(before / 2**0.5)) / 2
    torch.testing.assert_close(kernels.linear_gelu(x, weight, bias), expected.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tiles", "positions", "heads", "dim"), [(1, 1, 1, 64), (3, 65, 4, 16)])
def test_dense_attention(
    kernels: CpuKernels, dtype: torch.dtype, tiles: int, positions: int, heads: int, dim: int
) -> None:
    q, k, v = (noise(tiles, positions + i, heads, dim, dtype=dtype)[:, i:] for i in range(3))
    expected = REFERENCE.dense_attention(q.float(), k.float(), v.float(), 0.3)
    attended = kernels.dense_attention(q, k, v, 0.3)
    assert attended.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(attended.float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("rows", [[0], [5, 2, 3], list(range(66))])
def test_partial_lora_changes_its_rows_alone(kernels: CpuKernels, rows: list[int]) -> None:
    x, down, up = noise(66, 33), noise(8, 33), noise(20, 8)
    whole = noise(66, 50)
    expected = whole.clone()
    expected[rows, 10:30] += x[rows] @ down.t() @ up.t()
    kernels.add_partial_lora(whole[:, 10:30], x, torch.tensor(rows), down, up)
    torch.testing.assert_close(whole, expected, atol=1e-4, rtol=1e-4)


def test_no_tower_runs_in_float16(kernels: CpuKernels) -> None:
    assert kernels.encoder_dtype(torch.float16) == torch.float32
    assert kernels.encoder_dtype(torch.float32) == torch.float32
