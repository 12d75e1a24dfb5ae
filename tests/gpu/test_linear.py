"""The products of one row against float64.

Tolerances. A result is rounded once, by at most eps |y|. Before, float32 sums err by some 1e-6 of
the root mean square size of a sum's terms times sqrt(n): `scale` below, of which eps is allowed
too. Where a norm comes first, its row is not rounded; the sum that it normalises is.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from shuzhai.kernels.base import Kernels
from tests.gpu.conftest import is_interpreted

pytest.importorskip("triton")

from shuzhai.kernels.triton import linear as ours

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() or is_interpreted()), reason="needs a GPU or the interpreter"
)

REFERENCE = Kernels()
EPS = 1e-5
HALF = torch.bfloat16
if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False):
    HALF = torch.float16
# (dtype, m, n): odd and tiny, and, on a GPU, real ones and the widest.
CASES = [(d, m, n) for d in (HALF, torch.float16) for m, n in ((1, 2), (7, 62), (33, 192))]
CASES += [(torch.float32, 7, 63), (torch.float32, 33, 192)]
if not is_interpreted():
    CASES += [(torch.float32, 130, 1001), (torch.float16, 1001, 514), (HALF, 130, 1000)]
    CASES += [(HALF, 4096, 2048), (HALF, 2048, 8192), (HALF, 9001, 2050), (HALF, 70, 16384)]


def noise(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, device=device).to(dtype)


def weight_of(m: int, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return (noise(m, n, dtype=torch.float32, device=device, seed=1) / n**0.5).to(dtype)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x W^T + b in float64, and the size of the terms of each sum."""
    x64, weight64 = x.double(), weight.double()
    exact = x64 @ weight64.T
    scale = (x64.square() @ weight64.square().T).sqrt()
    return exact if bias is None else exact + bias.double(), scale


def unit(dtype: torch.dtype) -> float:
    # float32: the order of its sums, of which eps is too strict a measure.
    return 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps


def check(got: Tensor, exact: Tensor, scale: Tensor, eps: float) -> None:
    assert bool(torch.isfinite(got).all())
    excess = (got.double() - exact).abs() - eps * (exact.abs() + scale)
    assert float(excess.max()) <= 0.0


def check_gated(got: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    gate, up = (product(x, part) for part in weight.chunk(2))
    exact = torch.nn.functional.silu(gate[0]) * up[0]
    # silu's slope is at most 1.1.
    scale = 1.1 * (gate[0].abs() + gate[1]) * up[0].abs() + gate[0].abs() * (up[0].abs() + up[1])
    check(got, exact, scale, eps)


@pytest.mark.parametrize(("dtype", "m", "n"), CASES)
def test_linear(device: torch.device, dtype: torch.dtype, m: int, n: int) -> None:
    x, weight = noise(1, n, dtype=dtype, device=device), weight_of(m, n, dtype, device)
    bias = noise(m, dtype=dtype, device=device) if m % 2 else None
    got = ours.linear(x, weight, bias)
    assert got.dtype == dtype
    assert got.shape == (1, m)
    check(got, *product(x, weight, bias), unit(dtype))


def test_logits_are_not_rounded(device: torch.device) -> None:
    x = noise(1, 256, dtype=torch.float16, device=device)
    weight = weight_of(301, 256, torch.float16, device)
    logits = ours.linear(x, weight, out_dtype=torch.float32)
    assert logits.dtype == torch.float32
    check(logits, *product(x, weight), 1e-5)


@pytest.mark.parametrize(("dtype", "m", "n"), CASES)
@pytest.mark.parametrize("has_residual", [False, True])
def test_norm_products(
    device: torch.device, dtype: torch.dtype, m: int, n: int, has_residual: bool
) -> None:
    x, weight = noise(1, n, dtype=dtype, device=device), weight_of(2 * m, n, dtype, device)
    residual = noise(1, n, dtype=dtype, device=device, seed=5) if has_residual else None
    norm = noise(n, dtype=dtype, device=device, seed=9)
    bias = noise(2 * m, dtype=dtype, device=device)
    got, total = ours.norm_linear(x, residual, norm, EPS, weight, bias)
    gated, gated_total = ours.norm_gated_linear(x, residual, norm, EPS, weight)
    exact = x if residual is None else x + residual
    if is_interpreted() and dtype == torch.bfloat16:
        # The interpreter cuts off where it should round.
        torch.testing.assert_close(total, exact, rtol=unit(dtype), atol=unit(dtype))
    else:
        assert torch.equal(total, exact)
    assert torch.equal(total, gated_total)
    normed, _ = REFERENCE.rms_norm(total.double(), norm.double(), EPS)
    eps = unit(dtype) * (2 if is_interpreted() and dtype == torch.bfloat16 else 1)
    check(got, *product(normed, weight, bias), eps)
    check_gated(gated, normed, weight, eps)


def test_a_large_row_overflows_only_where_its_result_does(device: torch.device) -> None:
    x = torch.full((1, 64), 40000.0, dtype=torch.float16, device=device)
    norm = torch.ones(64, dtype=torch.float16, device=device)
    weight = weight_of(34, 64, torch.float16, device)
    got, total = ours.norm_linear(x, -x / 2, norm, EPS, weight)
    check(got, *product(total / total.abs(), weight), unit(torch.float16))


@pytest.mark.parametrize(("rows", "tiles"), [(1, 1), (4, 1), (16, 1), (1, 5), (4, 2), (16, 2)])
@pytest.mark.parametrize("is_gated", [False, True])
def test_each_output_is_written_and_nothing_else(
    device: torch.device, rows: int, tiles: int, is_gated: bool
) -> None:
    m, n = 37, 96
    x = noise(1, n, dtype=torch.float16, device=device)
    residual, norm = noise(1, n, dtype=torch.float16, device=device, seed=3), x[0].clone()
    weight = weight_of(2 * m if is_gated else m, n, torch.float16, device)
    around = torch.full((m + n + 192,), float("nan"), dtype=torch.float16, device=device)
    out, total = around[64 : 64 + m].view(1, m), around[128 + m + 1 : 129 + m + n].view(1, n)
    config = ours.RowConfig(rows, 4, tiles)
    ours.run(x, weight, out, config, None, norm, residual, total, EPS, is_gated)
    normed, _ = REFERENCE.rms_norm(total.double(), norm.double(), EPS)
    if is_gated:
        check_gated(out, normed, weight, unit(torch.float16))
    else:
        check(out, *product(normed, weight), unit(torch.float16))
    assert torch.equal(total, x + residual)
    assert int(around.isnan().sum()) == 192


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_lies_beyond_the_row_and_the_weight_is_not_read(device: torch.device) -> None:
    m, n = 37, 94
    around = torch.full((m * n + n + 192,), float("nan"), dtype=torch.float16, device=device)
    x, weight = around[64 : 64 + n].view(1, n), around[128 + n : 128 + n + m * n].view(m, n)
    x.copy_(noise(1, n, dtype=torch.float16, device=device))
    weight.copy_(weight_of(m, n, torch.float16, device))
    check(ours.linear(x, weight), *product(x, weight), unit(torch.float16))


def test_wrong_operands_are_refused(device: torch.device) -> None:
    x, weight = torch.zeros(1, 32, device=device), torch.zeros(8, 32, device=device)
    norm, half = torch.ones(32, device=device), torch.zeros(1, 33, device=device).half()
    wide = ours.MAX_WIDTH + 2
    for bad_x, bad_weight in (
        (x[0], weight),
        (x.expand(2, 32), weight),
        (x, weight.half()),
        (x.int(), weight.int()),
        (half, half),
        (torch.zeros(1, wide, device=device), torch.zeros(1, wide, device=device)),
    ):
        assert not ours.supports(bad_x, bad_weight)
        with pytest.raises(ValueError, match="one row"):
            ours.linear(bad_x, bad_weight)
    with pytest.raises(ValueError, match="match"):
        ours.linear(x, torch.zeros(8, 33, device=device))
    with pytest.raises(ValueError, match="weight must be contiguous"):
        ours.linear(x, torch.zeros(32, 8, device=device).T)
    with pytest.raises(ValueError, match="x must be contiguous"):
        ours.linear(torch.zeros(1, 64, device=device)[:, ::2], weight)
    with pytest.raises(ValueError, match="bias"):
        ours.linear(x, weight, torch.zeros(7, device=device))
    with pytest.raises(ValueError, match="residual"):
        ours.norm_linear(x, torch.zeros(2, 32, device=device), norm, EPS, weight)
    with pytest.raises(ValueError, match="norm"):
        ours.norm_linear(x, None, norm.half(), EPS, weight)


@pytest.mark.skipif(is_interpreted(), reason="needs a GPU")
def test_a_chain_in_a_graph_equals_its_kernels_one_by_one(device: torch.device) -> None:
    """Kernels that start before the one in front has ended read nothing too early: bit for bit."""
    width, layers = 1024, 12
    sizes = ((2 * width, width), (width, 2 * width), (12 * width, width), (width, 6 * width))
    weights = [
        [weight_of(m, n, torch.float16, device) * (1 + layer / 100) for m, n in sizes]
        for layer in range(layers)
    ]
    norm = noise(width, dtype=torch.float16, device=device)
    x = torch.empty(1, width, dtype=torch.float16, device=device)

    def run(pause: Callable[[], None] = lambda: None) -> Tensor:
        h, residual = x, None
        for qkv, out, gate_up, down in weights:
            wide, residual = ours.norm_linear(h, residual, norm, EPS, qkv)
            pause()
            h = ours.linear(wide, out)
            pause()
            wide, residual = ours.norm_gated_linear(h, residual, norm, EPS, gate_up)
            pause()
            h = ours.linear(wide, down)
            pause()
        return h

    x.copy_(noise(1, width, dtype=torch.float16, device=device))
    run(torch.cuda.synchronize)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = run()
    for seed in range(10):
        x.copy_(noise(1, width, dtype=torch.float16, device=device, seed=seed))
        want = run(torch.cuda.synchronize).clone()
        assert bool(torch.isfinite(want).all())
        for _ in range(3):
            replayed.fill_(float("nan"))
            graph.replay()
        assert torch.equal(replayed, want)
        assert torch.equal(run(), want)


@pytest.mark.skipif(is_interpreted(), reason="needs a GPU")
def test_weights_beyond_two_to_the_31_elements(device: torch.device) -> None:
    m, n = 2**31 // 8192 + 64, 8192
    if torch.cuda.mem_get_info(device)[0] < 3 * m * n:
        pytest.skip("too little memory")
    weight = torch.zeros(m, n, dtype=torch.float16, device=device)
    weight[-32:] = weight_of(32, n, torch.float16, device)
    x = noise(1, n, dtype=torch.float16, device=device)
    got = ours.linear(x, weight)
    assert bool((got[:, :-32] == 0).all())
    check(got[:, -32:], *product(x, weight[-32:]), unit(torch.float16))
