"""Drawing tokens, as the reference kernels do: which tokens are left out, and how often the others
come."""

from __future__ import annotations

import pytest
import torch

from shuzhai.kernels.base import Kernels
from shuzhai.step import DrawInput

REFERENCE = Kernels()
PROBS = [0.4, 0.3, 0.15, 0.1, 0.05]


def uniform(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, dtype=torch.float64, generator=generator)


def draw_input(kinds: list[dict], numbers: torch.Tensor) -> DrawInput:
    def column(name: str, default: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([kind.get(name, default) for kind in kinds], dtype=dtype)

    return DrawInput(
        temperature=column("temperature", 1.0, torch.float32),
        top_k=column("top_k", 0, torch.int32),
        top_p=column("top_p", 1.0, torch.float32),
        min_p=column("min_p", 0.0, torch.float32),
        numbers=numbers,
        is_filtered=any(set(kind) - {"temperature"} for kind in kinds),
    )


def drawn(probs: list[float], numbers: torch.Tensor, **kind: float) -> list[int]:
    """The tokens that these numbers draw from one row."""
    logits = torch.tensor(probs).log().expand(len(numbers), -1)
    return REFERENCE.draw(logits, draw_input([kind] * len(numbers), numbers)).tolist()


def every(probs: list[float], **kind: float) -> set[int]:
    """All tokens that can be drawn: those that 2,001 numbers, both ends among them, hit."""
    numbers = torch.linspace(0, 1 - 2**-53, 2001, dtype=torch.float64)
    return set(drawn(probs, numbers, **kind))


def test_inverse_transform_in_the_order_of_the_vocabulary() -> None:
    numbers = torch.tensor([0.0, 0.39, 0.41, 0.69, 0.71, 0.84, 0.86, 0.94, 0.96, 1 - 2**-53])
    assert drawn(PROBS, numbers.double()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    # Of what is left, 0.3 to 0.15, in this order although it is the reverse one of their chances.
    assert drawn([0.1, 0.15, 0.3, 0.45], torch.tensor([0.39, 0.41]).double(), top_k=2) == [2, 3]


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 1}, {0}),
        ({"top_k": 5}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.69}, {0, 1}),
        ({"top_p": 0.71}, {0, 1, 2}),
        ({"top_p": 1e-9}, {0}),
        ({"min_p": 0.3}, {0, 1, 2}),
        ({"min_p": 1.0}, {0}),
        ({"temperature": 0.5, "top_p": 0.9}, {0, 1, 2}),  # 16 : 9 : 2.25 : 1 : 0.25
        ({"temperature": 0.001}, {0}),
        # After top_k the rest counts as the whole: 0.4 of 0.7 is less than 0.6.
        ({"top_k": 2, "top_p": 0.6}, {0, 1}),
        ({"top_k": 2, "top_p": 0.5}, {0}),
        ({"top_k": 4, "top_p": 0.9, "min_p": 0.5}, {0, 1}),
    ],
)
def test_what_is_kept(kind: dict, kept: set[int]) -> None:
    assert every(PROBS, **kind) == kept


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        ({"top_k": 2}, {0, 1, 3}),  # the second and third best are alike
        ({"top_k": 1}, {1}),
        ({"top_p": 0.5}, {0, 1, 3}),
        ({"top_p": 0.35}, {1}),
        ({"min_p": 0.625}, {0, 1, 3}),
    ],
)
def test_ties_with_the_last_one_stay(kind: dict, kept: set[int]) -> None:
    assert every([0.25, 0.4, 0.1, 0.25], **kind) == kept


@pytest.mark.parametrize("top_k", [1, 7, 63])
def test_top_k_keeps_exactly_so_many(top_k: int) -> None:
    probs = torch.rand(300, generator=torch.Generator().manual_seed(0)) + 1
    probs /= probs.sum()
    kept = every(probs.tolist(), top_k=top_k)
    assert kept == set(probs.topk(top_k).indices.tolist())


def test_top_k_of_all_alike_keeps_all() -> None:
    assert len(every([1 / 300] * 300, top_k=7)) == 300


def test_a_nucleus_wider_than_the_first_candidates() -> None:
    logits = torch.zeros(1, 4000).expand(4000, -1)
    numbers = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    tokens = REFERENCE.draw(logits, draw_input([{"top_p": 0.5}] * 4000, numbers))
    assert tokens.unique().numel() == 4000  # all are tied
    slope = (torch.arange(4000.0) / 4000)[None].expand(4000, -1)
    tokens = REFERENCE.draw(slope, draw_input([{"top_p": 0.5}] * 4000, numbers))
    share = slope[0].softmax(-1)[int(tokens.min()) :].sum()
    assert float(share) == pytest.approx(0.5, abs=1e-3)


def test_no_number_draws_a_token_that_has_no_chance() -> None:
    """Rounding may put the target past the end; the last tokens here are forbidden."""
    logits = torch.randn(64, 999, generator=torch.Generator().manual_seed(3))
    logits[:, 900:] = float("-inf")
    for number in (0.0, 1 - 2**-53):
        numbers = torch.full((64,), number, dtype=torch.float64)
        tokens = REFERENCE.draw(logits, draw_input([{"top_p": 0.9}] * 64, numbers))
        chances = logits.gather(1, tokens[:, None])
        assert chances.isfinite().all()
    logits[:, :5] = float("-inf")
    assert (REFERENCE.draw(logits, draw_input([{}] * 64, numbers * 0)) == 5).all()


@pytest.mark.parametrize(
    ("kind", "shares"),
    [
        ({}, PROBS),
        ({"temperature": 0.5}, [p**2 / 0.285 for p in PROBS]),
        ({"top_p": 0.8}, [0.4 / 0.85, 0.3 / 0.85, 0.15 / 0.85, 0, 0]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0, 0]),
        ({"min_p": 0.2}, [0.4 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.1 / 0.95, 0]),
    ],
)
def test_draws_follow_the_distribution(kind: dict, shares: list[float]) -> None:
    """Pearson's chi-square of 20,000 draws; 20 with 4 degrees of freedom has a chance of 1/2000,
    and the seed is fixed."""
    count = 20_000
    tokens = torch.tensor(drawn(PROBS, uniform(count), **kind))
    counts = torch.bincount(tokens, minlength=len(PROBS)).tolist()
    expected = [share * count for share in shares]
    assert all(not n for n, share in zip(counts, shares, strict=True) if not share)
    assert sum((n - e) ** 2 / e for n, e in zip(counts, expected, strict=True) if e) < 20


def test_a_row_is_the_same_in_any_company() -> None:
    logits = torch.randn(60, 1500, generator=torch.Generator().manual_seed(1)) * 2
    kinds = [{}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.05}, {"temperature": 3.0},
             {"top_k": 1200, "top_p": 0.99}]  # fmt: skip
    kinds = [kinds[i % len(kinds)] for i in range(60)]
    numbers = uniform(60, seed=2)
    together = REFERENCE.draw(logits, draw_input(kinds, numbers)).tolist()
    apart = [
        int(REFERENCE.draw(logits[i : i + 1], draw_input([kind], numbers[i : i + 1])))
        for i, kind in enumerate(kinds)
    ]
    assert together == apart


def test_logits_are_left_alone() -> None:
    logits = torch.randn(3, 50)
    before = logits.clone()
    REFERENCE.draw(logits, draw_input([{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}], uniform(3)))
    assert torch.equal(logits, before)
