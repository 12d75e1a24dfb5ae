"""Keys and values in 8 and 4 bits: error bounds, layout, attention over pages that hold them."""

from __future__ import annotations

import math

import pytest
import torch

from shuzhai.formats.kv import dequantise, head_bytes, quantise
from shuzhai.kernels.base import Kernels
from shuzhai.kernels.cpu import CpuKernels
from shuzhai.step import KVPages, StepInput

REFERENCE = Kernels()
BITS = [8, 4]
HALF = torch.finfo(torch.float16)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def restored(x: torch.Tensor, bits: int) -> torch.Tensor:
    return dequantise(*quantise(x, bits), bits)


def half_error(x: torch.Tensor) -> torch.Tensor:
    """The most that rounding to float16 changes these numbers."""
    return x.abs() * (HALF.eps / 2) + HALF.smallest_normal * HALF.eps / 2


def error_bound(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Half a scale, and what float16 loses of zero and, up to the last level, of scale: [..., 1]"""
    x, levels = x.float().clamp(HALF.min, HALF.max), 2**bits - 1
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scale = (high - low) / levels
    lost = half_error(low) + levels * half_error(scale)
    return (scale + half_error(scale)) / 2 + lost + x.abs().amax(-1, keepdim=True) * 1e-6


def heads(kind: str) -> torch.Tensor:
    """[7, 3, 48] of one kind"""
    x = noise(7, 3, 48)
    match kind:
        case "normal":
            return x
        case "zeros":
            return x * 0
        case "constant":
            return x * 0 + 1 / 3
        case "outlier":
            x[..., 5] = 3e4
            return x
        case "shifted":
            return x * 0.01 + 20
        case "tiny":
            return x * 1e-8
        case "subnormal":  # the scale has a few bits left in float16
            return x * 1e-5
        case "wide":
            return x * 1e4
        case "bfloat16":
            return x.to(torch.bfloat16)
    raise ValueError(kind)


KINDS = ["normal", "zeros", "constant", "outlier", "shifted", "tiny", "subnormal", "wide",
         "bfloat16"]  # fmt: skip


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_within_its_bound(bits: int, kind: str) -> None:
    x = heads(kind)
    codes, params = quantise(x, bits)
    assert codes.dtype == torch.uint8
    assert params.dtype == torch.float16
    assert params.isfinite().all()
    error = (dequantise(codes, params, bits) - x.float()).abs()
    assert (error <= error_bound(x, bits)).all()


@pytest.mark.parametrize("bits", BITS)
def test_zeros_stay_zeros_and_the_ends_stay_ends(bits: int) -> None:
    assert torch.equal(restored(torch.zeros(2, 16), bits), torch.zeros(2, 16))
    ends = torch.tensor([[-8.0, 7.0] * 8])  # 15 and 255 levels end there exactly or nearly so
    torch.testing.assert_close(restored(ends, bits), ends, rtol=0, atol=15 * HALF.eps / 2)


@pytest.mark.parametrize("bits", BITS)
def test_numbers_beyond_float16_are_taken_for_its_largest(bits: int) -> None:
    x = noise(4, 16)
    x[0, 3], x[1, 3], x[2, 3], x[2, 4] = 1e30, -math.inf, math.inf, -math.inf
    back = restored(x, bits)
    assert back.isfinite().all()
    bound = error_bound(x, bits)
    assert ((back - x.clamp(HALF.min, HALF.max)).abs() <= bound).all()


@pytest.mark.parametrize("bits", BITS)
def test_a_sick_head_stays_alone(bits: int) -> None:
    x = noise(4, 3, 16)
    healthy = restored(x, bits)
    x[1, 2, 7] = math.nan
    back = restored(x, bits)
    assert back[1, 2].isnan().all()
    is_sick = torch.zeros(4, 3, dtype=torch.bool)
    is_sick[1, 2] = True
    assert torch.equal(back[~is_sick], healthy[~is_sick])


def test_layout_of_codes() -> None:
    """4 bits: byte j holds element j below and element j + D/2 above."""
    x = torch.arange(16.0).roll(3)[None]
    codes, params = quantise(x, 4)
    assert params.tolist() == [[1.0, 0.0]]
    wanted = x[0].to(torch.uint8)
    assert torch.equal(codes[0], wanted[:8] + 16 * wanted[8:])
    x = torch.arange(256.0).roll(3)[None] - 100
    codes, params = quantise(x, 8)
    assert params.tolist() == [[1.0, -100.0]]
    assert torch.equal(codes[0], (x[0] + 100).to(torch.uint8))


@pytest.mark.parametrize("dim", [16, 48, 128])
def test_bytes_of_a_head(dim: int) -> None:
    for bits in BITS:
        codes, params = quantise(noise(dim), bits)
        assert head_bytes(bits, dim) == codes.nbytes + params.nbytes
    assert head_bytes(16, dim) == 2 * dim
    assert head_bytes(32, dim) == 4 * dim


def empty_pages(count: int, page_size: int, kv_heads: int, dim: int, bits: int) -> KVPages:
    """Pages full of NaN; codes of 255 with scales of NaN."""
    if bits == 32:
        shape = (count, page_size, kv_heads, dim)
        return KVPages(torch.full(shape, math.nan), torch.full(shape, math.nan), bits=32)
    shape = (count, page_size, kv_heads, dim * bits // 8)
    codes = [torch.full(shape, 255, dtype=torch.uint8) for _ in range(2)]
    params = [torch.full((*shape[:3], 2), math.nan, dtype=torch.float16) for _ in range(2)]
    return KVPages(*codes, *params, bits=bits)


def filled(
    chunks: list[tuple[int, int]],
    heads_: tuple[int, int, int],
    page_size: int,
    bits: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, KVPages, StepInput, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Sequences of (new tokens, length) on shuffled pages -> (queries, pages, step, the keys and
    values of each sequence as they were)."""
    num_heads, kv_heads, dim = heads_
    counts = [-(-length // page_size) for _, length in chunks]
    total = sum(counts) + 2
    pages = empty_pages(total, page_size, kv_heads, dim, bits)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(1)).tolist()
    tables = torch.zeros(len(chunks), max(counts), dtype=torch.int32)
    starts, kept = [0], []
    for b, (new, length) in enumerate(chunks):
        own, order = order[: counts[b]], order[counts[b] :]
        tables[b, : len(own)] = torch.tensor(own)
        places = [own[p // page_size] * page_size + p % page_size for p in range(length)]
        keys, values = (noise(length, kv_heads, dim, seed=b + s).to(dtype) for s in (0, 99))
        # Padding, which goes nowhere, stands between.
        slots = torch.tensor([*places, -1])
        REFERENCE.store_kv(
            torch.cat((keys, keys[:1])), torch.cat((values, values[:1])), pages, slots
        )
        kept.append((keys, values))
        starts.append(starts[-1] + new)
    nothing = torch.zeros(starts[-1], dtype=torch.int64)
    step = StepInput(
        token_ids=nothing,
        positions=nothing,
        slots=nothing,
        cu_seqlens_q=torch.tensor(starts, dtype=torch.int32),
        seq_lens=torch.tensor([length for _, length in chunks], dtype=torch.int32),
        block_tables=tables,
        logit_rows=nothing[:1],
        num_decodes=0,
        max_seqlen_q=max(new for new, _ in chunks),
    )
    return noise(starts[-1], num_heads, dim).to(dtype), pages, step, kept


CHUNKS = [(1, 1), (7, 7), (1, 63), (63, 130), (130, 130)]
HEADS = [(4, 2, 16), (3, 3, 10), (7, 1, 48)]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("kernels", [REFERENCE, CpuKernels()], ids=["base", "cpu"])
def test_pages_give_back_what_the_format_keeps(
    bits: int, dtype: torch.dtype, page_size: int, kernels: Kernels
) -> None:
    _, pages, step, kept = filled(CHUNKS, (4, 2, 16), page_size, bits, dtype)
    for b, (keys, values) in enumerate(kept):
        k, v = kernels.gather(pages, step.block_tables[b], len(keys))
        assert torch.equal(k, restored(keys, bits))
        assert torch.equal(v, restored(values, bits))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("heads_", HEADS)
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("native", [False, True], ids=["widening", "native-bf16"])
def test_cpu_attention_is_the_reference_one(
    bits: int, heads_: tuple[int, int, int], page_size: int, native: bool
) -> None:
    query, pages, step, _ = filled(CHUNKS, heads_, page_size, bits)
    expected = REFERENCE.paged_attention(query, pages, step, heads_[2] ** -0.5)
    actual = CpuKernels(native).paged_attention(query, pages, step, heads_[2] ** -0.5)
    assert expected.isfinite().all()
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


# Root mean square of the error over that of the result, for normal numbers: a level of 8 bits is
# about 1/50 of their standard deviation, one of 4 bits 1/3; an error is up to half of it, and
# attention averages those of values out, together with the values themselves.
@pytest.mark.parametrize(("bits", "most"), [(8, 0.012), (4, 0.2)])
@pytest.mark.parametrize("heads_", [(4, 2, 16), (7, 1, 64), (16, 8, 128)])
def test_attention_is_near_that_over_floats(
    bits: int, most: float, heads_: tuple[int, int, int]
) -> None:
    scale = heads_[2] ** -0.5
    query, pages, step, _ = filled(CHUNKS, heads_, 16, bits)
    _, float_pages, _, _ = filled(CHUNKS, heads_, 16, 32)
    expected = REFERENCE.paged_attention(query, float_pages, step, scale)
    actual = REFERENCE.paged_attention(query, pages, step, scale)
    error = (actual - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < most


@pytest.mark.parametrize("bits", BITS)
def test_a_sick_key_stays_in_its_head(bits: int) -> None:
    query, pages, step, _ = filled([(1, 20), (1, 20)], (4, 2, 16), 16, bits)
    healthy = REFERENCE.paged_attention(query, pages, step, 0.25)
    sick_page = int(step.block_tables[0, 0])
    pages.key_params[sick_page, 3, 1] = math.nan
    attended = REFERENCE.paged_attention(query, pages, step, 0.25)
    assert attended[0, 2:].isnan().all()  # of the sick head's queries
    assert torch.equal(attended[0, :2], healthy[0, :2])
    assert torch.equal(attended[1], healthy[1])
