"""The pointwise kernels against the reference ones, which run in float32 or float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from shuzhai.kernels.base import Kernels
from shuzhai.kernels.cuda import CudaKernels
from shuzhai.kernels.triton import pointwise
from tests.gpu.conftest import is_interpreted

pytestmark = [
    pytest.mark.skipif(not (torch.cuda.is_available() or is_interpreted()), reason="needs CUDA"),
    # The interpreter computes with numpy, which warns where exp overflows.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

REFERENCE = Kernels()
TOKENS = [1, 7, 63] if is_interpreted() else [1, 7, 63, 130, 777]
WIDTHS = [1, 63, 192] if is_interpreted() else [1, 63, 192, 1024, 2048, 5000, 16384]
# The interpreter cuts bfloat16 off where a device rounds.
TYPES = [torch.float32, torch.float16, torch.bfloat16][: 2 if is_interpreted() else 3]


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def assert_near(
    actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, atol: float = 4e-6
) -> None:
    """Equal to float arithmetic that is rounded to dtype once: an error of half a unit of the last
    place, plus that of float32 sums and fast functions, a few parts in 10^6."""
    assert actual.dtype == dtype
    unit = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(
        actual.cpu().double(), expected.double(), rtol=unit * 1.02 + 4e-6, atol=atol
    )


@pytest.fixture(autouse=True)
def _poison(device: torch.device) -> None:
    """What torch.empty hands out next is most likely NaN."""
    torch.full((1 << 20,), float("nan"), device=device)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("with_residual", [False, True])
def test_rms_norm(
    device: torch.device, dtype: torch.dtype, tokens: int, width: int, with_residual: bool
) -> None:
    x, weight = noise(tokens, width, dtype=dtype) * 3, noise(width, dtype=dtype)
    residual = noise(width, tokens, dtype=dtype).t().contiguous() if with_residual else None
    normed, total = pointwise.rms_norm(
        x.to(device), weight.to(device), 1e-5, None if residual is None else residual.to(device)
    )
    # The sum is rounded to the type first, in the reference as in the kernel.
    expected_total = x if residual is None else x + residual
    expected, _ = REFERENCE.rms_norm(expected_total.double(), weight.double(), 1e-5)
    assert torch.equal(total.cpu(), expected_total)
    assert_near(normed, expected, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("width", WIDTHS)
def test_layer_norm(device: torch.device, dtype: torch.dtype, tokens: int, width: int) -> None:
    x = noise(tokens, width, dtype=dtype) + 5  # a width of 1 leaves nothing but the bias
    weight, bias = noise(width, dtype=dtype), noise(width + 1, dtype=dtype)[1:].clone()
    normed = pointwise.layer_norm(x.to(device), weight.to(device), bias.to(device), 1e-6)
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    # A mean of 5 has lost 6e-7 in float32, which the scale of up to 3 and the weights multiply.
    assert_near(normed, centred * scale * weight.double() + bias.double(), dtype, atol=3e-5)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("width", [*WIDTHS, 1000])
@pytest.mark.parametrize("with_scale", [False, True])
def test_add_layer_norm(
    device: torch.device, dtype: torch.dtype, tokens: int, width: int, with_scale: bool
) -> None:
    x, branch = noise(tokens, width, dtype=dtype) + 5, noise(width, tokens, dtype=dtype).t() * 3
    weight, bias = noise(width, dtype=dtype), noise(width + 1, dtype=dtype)[1:].clone()
    scale = noise(width + 2, dtype=dtype)[2:].clone() if with_scale else None
    normed, total = pointwise.add_layer_norm(
        x.to(device), branch.contiguous().to(device), None if scale is None else scale.to(device),
        weight.to(device), bias.to(device), 1e-6,
    )  # fmt: skip
    if scale is None:
        assert torch.equal(total.cpu(), x + branch)
    else:
        assert_near(total, x.double() + branch.double() * scale.double(), dtype)
    # What is normalised is the sum as it was stored.
    wide = total.cpu().double()
    centred = wide - wide.mean(-1, keepdim=True)
    inverse = (centred.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    # A mean of 5 has lost 6e-7 in float32, which a scale of up to 3 and the weights multiply.
    assert_near(normed, centred * inverse * weight.double() + bias.double(), dtype, atol=3e-5)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("tokens", [1, 2, 7, 63, 1025])
@pytest.mark.parametrize(("wide", "width"), [(1000, 192), (512, 1024), (7, 63)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_gelu(
    device: torch.device, dtype: torch.dtype, tokens: int, wide: int, width: int, with_bias: bool
) -> None:
    kernels = CudaKernels(device)
    x = noise(tokens, width, dtype=dtype) * 2
    weight = (noise(wide, width) / width**0.5).to(dtype)
    bias = noise(wide, dtype=dtype) if with_bias else None
    hidden = kernels.linear_gelu(
        x.to(device), weight.to(device), None if bias is None else bias.to(device)
    )
    expected = REFERENCE.linear_gelu(
        x.double(), weight.double(), None if bias is None else bias.double()
    )
    assert hidden.shape == (tokens, wide)
    assert hidden.dtype == dtype
    # Before the activation and after it a product may be rounded to its type: half a unit each,
    # the first one times x gelu'(x) / gelu(x), 1.3 at most for x > 0, and below that x gelu'(x),
    # 0.2 at most; twice that, for sums in parts. The approximation adds 4.8e-4, a fast tanh as
    # much again, and 1024 products in float32 lose 2e-5.
    unit = torch.finfo(dtype).eps
    atol = 0.2 * unit + 2e-5
    if with_bias and dtype != torch.float32:
        atol += 9.6e-4
        if wide % 8:  # the bias is added to a product that was rounded before: the library's habit
            atol += 0.6 * unit * float((x.double() @ weight.double().T).abs().max())
    torch.testing.assert_close(hidden.cpu().double(), expected, rtol=2.4 * unit, atol=atol)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("width", WIDTHS)
def test_silu_mul(device: torch.device, dtype: torch.dtype, tokens: int, width: int) -> None:
    gate_up = noise(tokens, 2 * width, dtype=dtype) * 4
    gate_up[0, 0] = 88.0 if dtype == torch.float16 else 1e4
    gate_up[-1, 0] = -1e4
    expected = REFERENCE.silu_mul(gate_up.double())
    assert_near(pointwise.silu_mul(gate_up.to(device)), expected, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1,), (7, 63), (2, 130, 48), (63, 4096)])
def test_quick_gelu(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = noise(*shape, dtype=dtype) * 4
    assert_near(pointwise.quick_gelu(x.to(device)), REFERENCE.quick_gelu(x.double()), dtype)


@pytest.mark.parametrize("tokens", [*TOKENS, 300])
@pytest.mark.parametrize("half", [8, 24, 64, 128])
@pytest.mark.parametrize("kind", ["shared", "each", "fraction"])
def test_rotary_angles(device: torch.device, tokens: int, half: int, kind: str) -> None:
    positions = torch.linspace(0, 300_000, tokens, dtype=torch.float64).long()
    inv_freq = 1.0 / 10000.0 ** (torch.arange(half) / half)
    if kind == "each":
        inv_freq = inv_freq[None] * (1 + torch.arange(tokens)[:, None] / 1000)
    if kind == "fraction":
        positions = positions / 3.0  # of linear scaling: float32
    cos, sin = pointwise.rotary_angles(positions.to(device), inv_freq.to(device))
    # The product in float32, as everywhere; of it the functions to float32: 2 units at 1.
    angles = (positions.float()[:, None] * inv_freq).double()
    torch.testing.assert_close(cos.cpu().double(), angles.cos(), atol=2.5e-7, rtol=0)
    torch.testing.assert_close(sin.cpu().double(), angles.sin(), atol=2.5e-7, rtol=0)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("width", WIDTHS)
def test_embed(device: torch.device, dtype: torch.dtype, tokens: int, width: int) -> None:
    vocab = 29
    table = noise(vocab, width, dtype=dtype)
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(-3, vocab + 5, (tokens,), generator=generator)
    ids[0] = 2**40
    last = torch.tensor([5, -(2**40), 28, 99])
    source = torch.randint(-1, 6, (tokens,), generator=generator, dtype=torch.int32)
    place = source.long().clamp(0, 3)
    expected = table[torch.where(source >= 0, last[place], ids).clamp(0, vocab - 1)]
    rows = pointwise.embed(*(t.to(device) for t in (ids, table, last, source)))
    assert torch.equal(rows.cpu(), expected)


def test_one_sick_row_harms_nobody(device: torch.device) -> None:
    x, weight = noise(5, 192), torch.ones(192, device=device)
    healthy = pointwise.rms_norm(x.to(device), weight, 1e-5)[0]
    x[2] = float("nan")
    normed, _ = pointwise.rms_norm(x.to(device), weight, 1e-5)
    others = [0, 1, 3, 4]
    assert torch.equal(normed[others], healthy[others])
    assert normed[2].isnan().all()


def test_wrong_operands_are_refused(device: torch.device) -> None:
    x, weight = torch.zeros(4, 16, device=device), torch.ones(16, device=device)
    calls = [
        lambda: pointwise.rms_norm(x.t(), weight[:4], 1e-5),
        lambda: pointwise.rms_norm(x, weight[:8], 1e-5),
        lambda: pointwise.rms_norm(x, weight, 1e-5, x.half()),
        lambda: pointwise.rms_norm(x.double(), weight, 1e-5),
        lambda: pointwise.layer_norm(x, weight, weight[:3], 1e-5),
        lambda: pointwise.add_layer_norm(x, x.half(), None, weight, weight, 1e-5),
        lambda: pointwise.add_layer_norm(x, x[:3], None, weight, weight, 1e-5),
        lambda: pointwise.add_layer_norm(x, x, weight[:4], weight, weight, 1e-5),
        lambda: pointwise.add_layer_norm(x, x, weight.long(), weight, weight, 1e-5),
        lambda: pointwise.add_layer_norm(x, x.t().contiguous().t(), None, weight, weight, 1e-5),
        lambda: pointwise.silu_mul(x[:, :15].contiguous()),
        lambda: pointwise.quick_gelu(x.long()),
        lambda: pointwise.rotary_angles(x, weight),
        lambda: pointwise.rotary_angles(weight, x),
        lambda: pointwise.embed(weight.long(), x, weight.int(), weight.int()),
        lambda: pointwise.embed(weight.long(), x, weight.long(), weight[:3].int()),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"."):
            call()
