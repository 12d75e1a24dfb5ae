"""Sampling: each parameter does what it says, and neighbours do not matter."""

from __future__ import annotations

import math

import pytest
import torch

from shuzhai import InvalidRequestError, SamplingParams
from shuzhai.engine import sampler
from shuzhai.engine.request import Request
from shuzhai.engine.sampler import uniform
from shuzhai.engine.sequence import Sequence
from shuzhai.kernels.base import Kernels

PROBS = [0.4, 0.3, 0.15, 0.1, 0.05]


def sequence(seed: int = 0, prompt: tuple[int, ...] = (0,), output: tuple[int, ...] = (), **params):
    request = Request("x", prompt, SamplingParams(seed=seed, **params), frozenset({4}))
    made = Sequence(request)
    for token in output:
        made.append_pending(0)
        made.resolve(token)
    return made


def sample(logits: torch.Tensor, sequences: list[Sequence]) -> tuple[list[int], list]:
    return sampler.sample(Kernels(), logits, sequences).read()


def logits(rows: int, probs: list[float] = PROBS) -> torch.Tensor:
    return torch.tensor([probs] * rows).log()


def drawn(**params) -> set[int]:
    """Tokens that come up in 400 draws."""
    sequences = [sequence(seed, **params) for seed in range(400)]
    return set(sample(logits(400), sequences)[0])


def shares(count: int = 20_000, **params) -> list[float]:
    tokens = sample(logits(count), [sequence(seed, **params) for seed in range(count)])[0]
    return [tokens.count(i) / count for i in range(len(PROBS))]


def test_draws_follow_the_distribution() -> None:
    assert shares() == pytest.approx(PROBS, abs=0.015)


def test_temperature_sharpens() -> None:
    squared = [p**2 for p in PROBS]
    expected = [p / sum(squared) for p in squared]
    assert shares(temperature=0.5) == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("temperature", [0, 1e-9])
def test_no_temperature_is_greedy(temperature: float) -> None:
    assert drawn(temperature=temperature) == {0}


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 1}, {0}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.69}, {0, 1}),
        ({"top_p": 0.71}, {0, 1, 2}),
        ({"top_p": 1e-9}, {0}),
        ({"min_p": 0.3}, {0, 1, 2}),
        ({"min_p": 1.0}, {0}),
        # After top_k the rest counts as the whole: 0.4 of 0.7 is less than 0.6.
        ({"top_k": 2, "top_p": 0.6}, {0, 1}),
        ({"top_k": 2, "top_p": 0.5}, {0}),
    ],
)
def test_truncation_keeps_exactly(params: dict, kept: set[int]) -> None:
    assert drawn(**params) == kept


def test_a_nucleus_wider_than_the_first_candidates() -> None:
    flat = torch.zeros(3000, 4000)
    tokens = sample(flat, [sequence(seed, top_p=0.5) for seed in range(3000)])[0]
    assert len(set(tokens)) > 1100


def test_a_seed_gives_the_same_token_in_any_company() -> None:
    rows = torch.randn(64, 1000, generator=torch.Generator().manual_seed(1)) * 3
    kinds = [{}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.05}, {"temperature": 0}]
    sequences = [sequence(seed, **kinds[seed % len(kinds)]) for seed in range(64)]
    together = sample(rows.clone(), sequences)[0]
    apart = [sample(rows[i : i + 1].clone(), [s])[0][0] for i, s in enumerate(sequences)]
    assert together == apart


def test_uniform_numbers_are_uniform_and_repeatable() -> None:
    numbers = [uniform(7, i) for i in range(10_000)]
    assert numbers == [uniform(7, i) for i in range(10_000)]
    assert all(0 <= x < 1 for x in numbers)
    assert sum(numbers) / len(numbers) == pytest.approx(0.5, abs=0.01)
    assert uniform(-(2**63), 0) != uniform(2**63 - 1, 0)


def test_penalties() -> None:
    # log-probabilities are negative, so the repetition penalty multiplies.
    seen = sequence(prompt=(0,), temperature=0, repetition_penalty=3.0)
    assert sample(logits(1), [seen])[0] == [1]
    once = sequence(output=(0,), temperature=0, presence_penalty=0.5)
    assert sample(logits(1), [once])[0] == [1]
    in_prompt = sequence(prompt=(0,), temperature=0, presence_penalty=2.0, frequency_penalty=2.0)
    assert sample(logits(1), [in_prompt])[0] == [0]
    thrice = sequence(output=(0, 0, 0, 1), temperature=0, frequency_penalty=0.8)
    assert sample(logits(1), [thrice])[0] == [2]


def test_logit_bias_forces_and_forbids() -> None:
    assert sample(logits(1), [sequence(temperature=0, logit_bias={3: 100})])[0] == [3]
    assert drawn(logit_bias={0: -100, 1: -100}) == {2, 3, 4}


def test_min_tokens_forbids_the_stop_ids_until_then() -> None:
    likely_stop = [0.05, 0.05, 0.05, 0.05, 0.8]
    early = sequence(temperature=0, min_tokens=2, output=(1,))
    late = sequence(temperature=0, min_tokens=2, output=(1, 1))
    tokens = sample(logits(2, likely_stop), [early, late])[0]
    assert tokens[0] != 4
    assert tokens[1] == 4


def test_logprobs_are_those_of_the_model_itself() -> None:
    asked = sequence(temperature=0.1, logit_bias={1: 100}, top_k=1, logprobs=2)
    tokens, reports = sample(logits(2), [asked, sequence(temperature=0)])
    assert tokens == [1, 0]
    assert 1 not in reports
    assert reports[0].logprob == pytest.approx(math.log(0.3), abs=1e-5)
    assert [i for i, _ in reports[0].top] == [0, 1]
    assert reports[0].top[0][1] == pytest.approx(math.log(0.4), abs=1e-5)


@pytest.mark.parametrize(
    "params",
    [
        {"n": 0}, {"n": 10**9}, {"temperature": -1}, {"temperature": math.nan},
        {"temperature": math.inf}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}, {"top_k": 1.5},
        {"min_p": 2}, {"seed": 2**64}, {"seed": "1"}, {"max_tokens": 0}, {"max_tokens": True},
        {"min_tokens": 5, "max_tokens": 4}, {"stop": [""]}, {"stop": ["x"] * 65}, {"stop": [1]},
        {"logprobs": 21}, {"presence_penalty": 3}, {"repetition_penalty": 0},
        {"logit_bias": {-1: 1}}, {"logit_bias": {1: math.nan}}, {"logit_bias": {1: 101}},
        {"stop_token_ids": [-1]}, {"stop": None},
        {"stop": ["x" * 20_000]}, {"temperature": 10**400},
        {"stop_token_ids": None}, {"logit_bias": None},
    ],
)  # fmt: skip
def test_bad_parameters_are_refused_by_name(params: dict) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**params)
    assert caught.value.param == next(iter(params))
