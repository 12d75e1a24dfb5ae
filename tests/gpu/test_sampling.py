"""The sampling kernels against the distribution itself, in float64, and torch's argmax."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton")

from shuzhai.kernels.base import Kernels
from shuzhai.kernels.triton import sampling
from shuzhai.step import DrawInput
from tests.gpu.conftest import is_interpreted

pytestmark = [
    pytest.mark.skipif(not (torch.cuda.is_available() or is_interpreted()), reason="needs CUDA"),
    # The interpreter computes with numpy, which warns of the logarithm of 0 and of inf - inf.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

# The interpreter takes seconds for a row.
VOCABS = [7, 2051] if is_interpreted() else [1, 7, 1000, 5003, 92544, 151936]
SHAPES = ["bulk", "peaked", "flat", "tied", "constant", "outlier"][:: 3 if is_interpreted() else 1]
# Of the cumulative distribution: sums of up to 151,936 float32 weights, each of which is right to
# a few parts in 10^7 of its score.
TOLERANCE = 2e-6

KINDS = [
    {},
    {"top_p": 0.8, "temperature": 0.8},
    {"top_p": 0.999, "temperature": 1.5},
    {"top_p": 1e-6},
    {"top_k": 1},
    {"top_k": 50, "temperature": 0.7},
    {"top_k": 900, "top_p": 0.6},
    {"top_k": 40, "top_p": 0.95, "min_p": 0.02},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"temperature": 1e-3, "top_p": 0.9},
    {"temperature": 50.0, "top_p": 0.7, "top_k": 3000},
]


def draw_input(
    kinds: list[dict], numbers: torch.Tensor, vocab: int, device: torch.device
) -> DrawInput:
    def column(name: str, default: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([kind.get(name, default) for kind in kinds], dtype=dtype, device=device)

    return DrawInput(
        temperature=column("temperature", 1.0, torch.float32),
        top_k=column("top_k", 0, torch.int32) % vocab,
        top_p=column("top_p", 1.0, torch.float32),
        min_p=column("min_p", 0.0, torch.float32),
        numbers=numbers.to(device, torch.float64),
        is_filtered=any(set(kind) - {"temperature"} for kind in kinds),
    )


def rows_of(shape: str, count: int, vocab: int) -> torch.Tensor:
    """Logits [count, vocab] of one shape of distribution."""
    generator = torch.Generator().manual_seed(vocab + len(shape))
    noise = torch.randn(count, vocab, generator=generator)
    match shape:
        case "bulk":  # as of a model with random weights: wide nuclei
            return noise * 0.9
        case "peaked":  # as of a model that knows: a few tokens far above the others
            few = torch.rand(count, vocab, generator=generator) < 5 / vocab
            return noise * 2 + few * 12.0
        case "flat":
            return noise * 1e-3 - 20.0
        case "tied":  # as rounded to 8 bits, with a forbidden half
            forbidden = torch.rand(count, vocab, generator=generator) < 0.5
            return noise.to(torch.bfloat16).float().masked_fill(forbidden, float("-inf"))
        case "constant":
            return torch.full((count, vocab), 3.25)
        case "outlier":
            noise[:, vocab // 2] += 1e4
            return noise
    raise ValueError(shape)


def shares_of_error(row: torch.Tensor, kind: dict, token: int, number: float) -> float:
    """How far `number` lies from the token's part of the cumulative distribution, in float64.

    The least over nuclei that differ by rounding of top_p's target.
    """
    scores = (row - row.max()).double() / torch.tensor(kind.get("temperature", 1.0)).double()
    probs = scores.softmax(-1)
    top_k, top_p = kind.get("top_k", 0) % len(row), kind.get("top_p", 1.0)
    if top_k:
        probs = probs * (scores >= scores.topk(top_k).values[-1])
    order = scores.argsort(descending=True)
    best = probs[order]
    before = best.cumsum(-1) - best
    errors = []
    for shift in (-TOLERANCE, 0.0, TOLERANCE):
        inside = int((before < (top_p + shift) * probs.sum()).sum()) if top_p < 1.0 else len(row)
        least = scores[order[max(inside, 1) - 1]]
        # What is equal up to the rounding of scores counts as equal.
        kept = probs * (scores >= least * (1 + 3e-7))
        kept = kept * (scores >= math.log(kind.get("min_p", 0.0) or 1e-30) - 1e-6)
        ends = (kept / kept.sum()).cumsum(-1)
        start = float(ends[token - 1]) if token else 0.0
        is_kept = bool(kept[token] > 0)
        errors.append(max(start - number, number - float(ends[token]), 0.0) if is_kept else 1.0)
    return min(errors)


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("shape", SHAPES)
def test_draw_is_the_inverse_transform(device: torch.device, vocab: int, shape: str) -> None:
    kinds = KINDS[1:10:2] if is_interpreted() else KINDS
    logits = rows_of(shape, len(kinds), vocab)
    if shape == "tied":
        logits[:, vocab - 1] = 0.0  # something is allowed
    numbers = torch.rand(
        len(kinds), generator=torch.Generator().manual_seed(vocab), dtype=torch.float64
    )
    numbers[0], numbers[2], numbers[4] = 0.0, 1 - 2**-53, 1 - 2**-53
    tokens = sampling.draw(logits.to(device), draw_input(kinds, numbers, vocab, device)).cpu()
    errors = [
        shares_of_error(row, kind, int(token), float(number))
        for row, kind, token, number in zip(logits, kinds, tokens, numbers, strict=True)
    ]
    assert max(errors) < TOLERANCE, list(zip(kinds, errors, strict=True))


@pytest.mark.parametrize("vocab", [1000] if is_interpreted() else [1000, 92544])
def test_draw_agrees_with_the_reference(device: torch.device, vocab: int) -> None:
    kinds = KINDS[1:10:2] if is_interpreted() else KINDS * 5
    logits = rows_of("bulk", len(kinds), vocab)
    numbers = torch.rand(
        len(kinds), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    expected = Kernels().draw(logits, draw_input(kinds, numbers, vocab, torch.device("cpu")))
    drawn = sampling.draw(logits.to(device), draw_input(kinds, numbers, vocab, device)).cpu()
    # Where a nucleus is wide, the float32 sums of the reference may end it a token away: a share of
    # 1e-5, which moves all that come after. Where they differ, the kernel has to be right.
    differing = (drawn != expected).nonzero()[:, 0].tolist()
    assert len(differing) <= len(kinds) // 4
    for i in differing:
        error = shares_of_error(logits[i], kinds[i], int(drawn[i]), float(numbers[i]))
        assert error < TOLERANCE


@pytest.mark.parametrize("shape", SHAPES[::4])
def test_a_row_is_the_same_in_any_company(device: torch.device, shape: str) -> None:
    vocab, kinds = (2051, KINDS[6:8]) if is_interpreted() else (92544, KINDS)
    logits = rows_of(shape, len(kinds), vocab).to(device)
    numbers = torch.rand(
        len(kinds), generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    together = sampling.draw(logits, draw_input(kinds, numbers, vocab, device)).tolist()
    for i, kind in enumerate(kinds):
        alone = draw_input([kind], numbers[i : i + 1], vocab, device)
        assert sampling.draw(logits[i : i + 1].clone(), alone).tolist() == [together[i]]


def test_a_sick_row_harms_nobody(device: torch.device) -> None:
    kinds = [{"top_p": 0.8}] * 5
    logits = rows_of("bulk", 5, 3001)
    numbers = torch.full((5,), 0.5)
    expected = sampling.draw(logits.to(device), draw_input(kinds, numbers, 3001, device)).tolist()
    logits[0], logits[2], logits[4] = float("nan"), float("-inf"), float("inf")
    drawn = sampling.draw(logits.to(device), draw_input(kinds, numbers, 3001, device)).tolist()
    assert [drawn[1], drawn[3]] == [expected[1], expected[3]]
    assert all(0 <= token < 3001 for token in drawn)


def test_more_in_the_bracket_than_there_is_room_for(device: torch.device) -> None:
    """Then the last kernel reads the row again; `rows_of("constant")` takes that way, too."""
    few = sampling.DrawConfig(2048, 2, 16, 16)
    logits = rows_of("bulk", 2, 3001).to(device)
    kinds = [{"top_p": 0.8}, {"top_k": 2000, "top_p": 0.5}]
    how = draw_input(kinds, torch.tensor([0.1, 0.999]), 3001, device)
    assert sampling.draw(logits, how, few).tolist() == sampling.draw(logits, how).tolist()


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("rows", [1, 3] if is_interpreted() else [1, 3, 256])
def test_argmax(device: torch.device, vocab: int, rows: int) -> None:
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(rows + vocab))
    coarse = (logits * 4).round()  # ties; also -0
    for values in (logits, coarse, -logits.abs() - 1e30, torch.full_like(logits, float("-inf"))):
        assert sampling.argmax(values.to(device)).tolist() == values.argmax(-1).tolist()


def test_argmax_of_odd_numbers(device: torch.device) -> None:
    nan, inf = float("nan"), float("inf")
    rows = torch.tensor([[0.0, inf, nan, nan], [-0.0, 0.0, -1.0, 0.0], [-inf, -inf, -3e38, -inf]])
    rows = torch.cat((rows, torch.tensor([[1.0, -nan, inf, inf]])))
    assert sampling.argmax(rows.to(device)).tolist() == [2, 0, 2, 1]


def test_wrong_operands_are_refused(device: torch.device) -> None:
    logits = torch.zeros(2, 10, device=device)
    how = draw_input([{}, {}], torch.zeros(2), 10, device)
    for wrong in (logits.half(), logits[0], logits.t(), logits[:1]):
        with pytest.raises(ValueError, match="must be"):
            sampling.draw(wrong, how)
