"""The products of few rows against float64; tolerances as in test_linear.py, but for sums that are
not rounded: tensor cores cut off at every step of 16 summands, always towards zero, so that the
error grows with their number.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.gpu.conftest import is_interpreted

pytest.importorskip("triton")

from shuzhai.kernels.cuda import CudaKernels
from shuzhai.kernels.head_rows import head_rows
from shuzhai.kernels.triton import few_rows as ours
from shuzhai.kernels.triton import pointwise
from tests.gpu.test_linear import HALF, check, noise, product, unit, weight_of

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() or is_interpreted()), reason="needs a GPU or the interpreter"
)
EPS = 1e-5
# The interpreter multiplies no bfloat16.
OTHER = torch.float16 if is_interpreted() else HALF
SPLITS = (1, 2, 4, 8)
SHAPES = [(1, 16), (37, 80), (66, 656)]
COUNTS = [2, 13, 20, 33]
if not is_interpreted():
    SHAPES += [(4096, 2048), (1001, 528), (2048, 8192)]
    COUNTS += [8, 16, 17, 32, 64]


@pytest.fixture
def workspace(device: torch.device) -> ours.FewRowsWorkspace:
    if not is_interpreted() and torch.cuda.get_device_capability(device) < (8, 0):
        pytest.skip("needs compute capability 8.0")
    return ours.FewRowsWorkspace(device)


def multiply(
    x: Tensor, weight: Tensor, splits: int, workspace: ours.FewRowsWorkspace,
    bias: Tensor | None = None, dtype: torch.dtype | None = None, *, is_gated: bool = False,
) -> Tensor:  # fmt: skip
    m = weight.shape[0] // 2 if is_gated else weight.shape[0]
    out = torch.full((x.shape[0], m), float("nan"), dtype=dtype or x.dtype, device=x.device)
    ours.run(x, weight, out, splits, workspace, bias, is_gated)
    return out


def check_gated(got: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    gate, up = (product(x, part) for part in weight.chunk(2))
    exact = torch.nn.functional.silu(gate[0]) * up[0]
    # silu's slope is at most 1.1.
    scale = 1.1 * (gate[0].abs() + gate[1]) * up[0].abs() + gate[0].abs() * (up[0].abs() + up[1])
    check(got, exact, scale, eps)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_linear(
    device: torch.device, workspace: ours.FewRowsWorkspace, m: int, n: int, count: int
) -> None:
    for i, splits in enumerate(SPLITS):
        dtype = OTHER if i % 2 else torch.float16
        x, weight = noise(count, n, dtype=dtype, device=device), weight_of(m, n, dtype, device)
        bias = noise(m, dtype=dtype, device=device) if i != 1 else None
        got = multiply(x, weight, splits, workspace, bias)
        check(got, *product(x, weight, bias), unit(dtype))
        assert not workspace.counters.any()
        logits = multiply(x, weight, splits, workspace, dtype=torch.float32)
        check(logits, *product(x, weight), 1e-5 * max(1.0, n / 2048))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_gated(
    device: torch.device, workspace: ours.FewRowsWorkspace, m: int, n: int, count: int
) -> None:
    for i, splits in enumerate(SPLITS):
        dtype = OTHER if i % 2 else torch.float16
        x, weight = noise(count, n, dtype=dtype, device=device), weight_of(2 * m, n, dtype, device)
        got = multiply(x, weight, splits, workspace, is_gated=True)
        check_gated(got, x, weight, unit(dtype))
        assert not workspace.counters.any()


@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("is_gated", [False, True])
def test_each_output_is_written_and_nothing_else_read_or_written(
    device: torch.device, workspace: ours.FewRowsWorkspace, splits: int, is_gated: bool
) -> None:
    m, n, count, dtype = 37, 144, 5, torch.float16
    m_in = 2 * m if is_gated else m
    sizes = (count * n, m_in * n, count * m)
    around = torch.full((sum(sizes) + 256,), float("nan"), dtype=dtype, device=device)
    parts, start = [], 64
    for size in sizes:
        parts.append(around[start : start + size])
        start += size + 64
    x, weight, out = parts[0].view(count, n), parts[1].view(m_in, n), parts[2].view(count, m)
    x.copy_(noise(count, n, dtype=dtype, device=device))
    weight.copy_(weight_of(m_in, n, dtype, device))
    ours.run(x, weight, out, splits, workspace, None, is_gated)
    if is_gated:
        check_gated(out, x, weight, unit(dtype))
    else:
        check(out, *product(x, weight), unit(dtype))
    assert int(around.isnan().sum()) == 256


def test_a_row_does_not_depend_on_the_others(
    device: torch.device, workspace: ours.FewRowsWorkspace
) -> None:
    x = noise(5, 256, dtype=torch.float16, device=device)
    weight = weight_of(66, 256, torch.float16, device)
    for splits in SPLITS:
        whole = multiply(x, weight, splits, workspace)
        spoilt = x.clone()
        spoilt[3:] = float("nan")
        part = multiply(spoilt, weight, splits, workspace)
        assert torch.equal(part[:3], whole[:3])
        assert bool(part[3:].isnan().all())


def test_the_kernels_of_an_engine_multiply_few_rows_so(
    device: torch.device, workspace: ours.FewRowsWorkspace
) -> None:
    count, m, n, dtype = 5, 64, 64, torch.float16
    kernels, other = CudaKernels(device), CudaKernels(device)
    assert kernels._few_rows.counters.data_ptr() != other._few_rows.counters.data_ptr()
    x, norm = noise(count, n, dtype=dtype, device=device), noise(n, dtype=dtype, device=device)
    weight, bias = weight_of(m, n, dtype, device), noise(m, dtype=dtype, device=device)
    check(kernels.linear(x, weight, bias), *product(x, weight, bias), unit(dtype))
    # Few, and many, which are filled up.
    for num_rows in [count] if is_interpreted() else [count, 97, 128]:
        rows = noise(num_rows, n, dtype=dtype, device=device)
        logits = kernels.head(rows, weight)
        assert logits.dtype == torch.float32
        check(logits, *product(rows, weight), 1e-5)
    got, total = kernels.norm_gated_linear(x, x, norm, EPS, weight)
    normed, want = kernels.rms_norm(x, norm, EPS, x)
    assert torch.equal(total, want)
    check_gated(got, normed, weight, unit(dtype))


def test_rows_of_logits_are_filled_up_where_these_kernels_end() -> None:
    assert [head_rows(n) for n in (1, ours.MAX_ROWS)] == [1, ours.MAX_ROWS]
    assert head_rows(ours.MAX_ROWS + 1) > ours.MAX_ROWS + 1


def test_wrong_operands_are_refused(device: torch.device, workspace: ours.FewRowsWorkspace) -> None:
    def zeros(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device=device)

    weight = zeros(8, 32)
    for bad_x, bad_weight in (
        (zeros(32), weight),
        (zeros(1, 32), weight),
        (zeros(65, 32), weight),
        (zeros(4, 32, dtype=torch.float32), zeros(8, 32, dtype=torch.float32)),
        (zeros(4, 32), zeros(8, 32, dtype=torch.bfloat16)),
        (zeros(4, 24), zeros(8, 24)),
    ):
        assert not ours.supports(bad_x, bad_weight)
        with pytest.raises(ValueError, match="few rows"):
            ours.linear(bad_x, bad_weight, workspace)
    x = zeros(4, 32)
    with pytest.raises(ValueError, match="match"):
        ours.linear(x, zeros(8, 48), workspace)
    with pytest.raises(ValueError, match="halves"):
        ours.linear(x, zeros(7, 32), workspace, is_gated=True)
    with pytest.raises(ValueError, match="weight must be contiguous"):
        ours.linear(x, zeros(32, 8).T, workspace)
    with pytest.raises(ValueError, match="x must be contiguous"):
        ours.linear(zeros(4, 64)[:, ::2], weight, workspace)
    with pytest.raises(ValueError, match="bias"):
        ours.linear(x, weight, workspace, zeros(7))


@pytest.mark.skipif(is_interpreted(), reason="needs a GPU")
@pytest.mark.parametrize("count", [3, 16, 40])
def test_a_chain_in_a_graph_equals_its_kernels_one_by_one(
    device: torch.device, workspace: ours.FewRowsWorkspace, count: int
) -> None:
    """Kernels that start before the one in front has ended read nothing too early: bit for bit."""
    width, layers, dtype = 1024, 12, torch.float16
    sizes = ((2 * width, width), (width, 2 * width), (12 * width, width), (width, 6 * width))
    weights = [
        [weight_of(m, n, dtype, device) * (1 + layer / 100) for m, n in sizes]
        for layer in range(layers)
    ]
    norm = noise(width, dtype=dtype, device=device)
    x = torch.empty(count, width, dtype=dtype, device=device)

    def run(pause: Callable[[], None] = lambda: None) -> Tensor:
        h, residual = x, None
        for qkv, out, gate_up, down in weights:
            h, residual = pointwise.rms_norm(h, norm, EPS, residual)
            pause()
            wide = multiply(h, qkv, 1, workspace)
            pause()
            h = multiply(wide, out, 4, workspace)
            pause()
            h, residual = pointwise.rms_norm(h, norm, EPS, residual)
            pause()
            wide = multiply(h, gate_up, 1, workspace, is_gated=True)
            pause()
            h = multiply(wide, down, 4, workspace)
            pause()
        return h

    x.copy_(noise(count, width, dtype=dtype, device=device))
    run(torch.cuda.synchronize)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = run()
    for seed in range(10):
        x.copy_(noise(count, width, dtype=dtype, device=device, seed=seed))
        want = run(torch.cuda.synchronize).clone()
        assert bool(torch.isfinite(want).all())
        for _ in range(3):
            replayed.fill_(float("nan"))
            graph.replay()
        assert torch.equal(replayed, want)
        assert torch.equal(run(), want)
    assert not workspace.counters.any()


def test_programs_for_all_multiprocessors_and_no_more() -> None:
    shapes = {(4096, 2048): 2, (2048, 2048): 4, (16384, 2048): 1, (2048, 8192): 4, (92544, 2048): 1}
    assert {shape: ours.choose_splits(*shape, 64, 132) for shape in shapes} == shapes
    two_each = {**shapes, (2048, 8192): 8}
    assert {shape: ours.choose_splits(*shape, 16, 132) for shape in shapes} == two_each
    assert ours.choose_splits(64, 64, 2, 132) == 1
