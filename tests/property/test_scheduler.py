"""Scheduler and block pool against a model of the device: whatever arrives, whatever is aborted,
however small the pool, a request that finishes says what it says alone, and no block is lost."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from shuzhai.engine.block_pool import BlockPool
from shuzhai.engine.request import FinishReason, ImageSpan, Request, SamplingParams
from shuzhai.engine.scheduler import Scheduled, Scheduler
from shuzhai.engine.sequence import Sequence, Status

EOS = 5


@dataclass(frozen=True)
class Plan:
    """A request, the step it arrives at, and the step it is aborted at, if it is."""

    request: Request
    arrives: int
    aborted: int | None


def content(request: Request, position: int, token: int) -> tuple:
    """What attention finds at a position: the token, or the image row that stands there."""
    for image in request.images:
        if image.start <= position < image.end:
            return position, image.digest, position - image.start
    return position, token


def toy_model(request: Request, seen: list[tuple]) -> int:
    """The next token: a pure function of all that the last position attends to."""
    return zlib.crc32(repr((request.cache_salt, seen)).encode()) % 6


def alone(request: Request) -> list[int]:
    tokens = list(request.token_ids)
    while True:
        seen = [content(request, p, t) for p, t in enumerate(tokens)]
        tokens.append(toy_model(request, seen))
        done = len(tokens) - len(request.token_ids)
        if tokens[-1] == EOS or done == request.params.max_tokens:
            return tokens


class ToyDevice:
    """KV slots that remember what was written; reading back anything else is a fault."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._slots: dict[tuple[int, int], tuple] = {}

    def run(self, entry: Scheduled) -> int | None:
        sequence, request = entry.sequence, entry.sequence.request
        for p in range(entry.start, entry.end):
            written = (request.cache_salt, content(request, p, sequence.token_ids[p]))
            self._slots[self._slot(sequence, p)] = written
        seen = [self._slots[self._slot(sequence, p)] for p in range(entry.end)]
        expected = [content(request, p, t) for p, t in enumerate(sequence.token_ids[: entry.end])]
        assert seen == [(request.cache_salt, c) for c in expected]
        return toy_model(request, expected) if entry.reaches_end else None

    def _slot(self, sequence: Sequence, position: int) -> tuple[int, int]:
        return sequence.block_table[position // self._block_size], position % self._block_size


@st.composite
def workloads(draw: st.DrawFn) -> tuple[int, int, int, int, bool, list[Plan]]:
    block_size = draw(st.sampled_from([1, 2, 4, 16]))
    num_blocks = draw(st.integers(4, 24))
    capacity = num_blocks * block_size
    plans = []
    for i in range(draw(st.integers(1, 12))):
        length = draw(st.integers(1, max(1, capacity // 2)))
        tokens = draw(st.lists(st.integers(0, 1), min_size=length, max_size=length))
        images = ()
        if length > 3 and draw(st.booleans()):
            start = draw(st.integers(0, length - 2))
            end = draw(st.integers(start + 1, length - 1))
            images = (ImageSpan(start, end, draw(st.sampled_from([b"A", b"BB"]))),)
            tokens[start:end] = [9] * (end - start)
        params = SamplingParams(max_tokens=draw(st.integers(1, max(1, min(20, capacity - length)))))
        salt = draw(st.sampled_from([b"", b"tenant"]))
        request = Request(str(i), tuple(tokens), params, frozenset({EOS}), salt, images)
        aborted = draw(st.one_of(st.none(), st.integers(0, 40)))
        plans.append(Plan(request, draw(st.integers(0, 15)), aborted))
    max_num_seqs, budget = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    return block_size, num_blocks, max_num_seqs, budget, draw(st.booleans()), plans


@settings(max_examples=200, deadline=None)
@given(workloads())
def test_batched_equals_alone_and_no_block_is_lost(workload) -> None:
    block_size, num_blocks, max_num_seqs, budget, caching, plans = workload
    pool = BlockPool(num_blocks, block_size)
    scheduler = Scheduler(
        pool,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=num_blocks * block_size,
        enable_prefix_caching=caching,
    )
    device = ToyDevice(block_size)
    sequences = {plan.request.id: Sequence(plan.request) for plan in plans}
    finished = set()
    for step in range(5000):
        for plan in plans:
            if plan.arrives == step:
                scheduler.add(sequences[plan.request.id])
            if plan.aborted == step and plan.arrives <= step:
                scheduler.abort(sequences[plan.request.id])
        batch = scheduler.schedule()
        assert batch or not (scheduler.waiting or scheduler.running), "nobody moves"
        assert sum(e.end - e.start for e in batch) <= budget
        assert len(scheduler.running) <= max_num_seqs
        assert len({e.sequence.request.id for e in batch}) == len(batch)
        reasons = scheduler.update(batch, [device.run(entry) for entry in batch])
        pool.check()
        for entry, reason in zip(batch, reasons, strict=True):
            if reason is not None:
                finished.add(entry.sequence.request.id)
                assert entry.sequence.token_ids == alone(entry.sequence.request)
        if not batch and step > 40:
            break
    assert pool.num_free == num_blocks
    for plan in plans:
        assert sequences[plan.request.id].status is Status.FINISHED
        assert plan.aborted is not None or plan.request.id in finished


def test_equal_prompts_in_one_step_are_computed_once() -> None:
    scheduler = Scheduler(
        BlockPool(16, 4), max_num_seqs=8, max_num_batched_tokens=64, max_model_len=64
    )
    first, second = (
        Sequence(Request(name, tuple(range(13)), SamplingParams(max_tokens=1)))
        for name in ("first", "second")
    )
    scheduler.add(first)
    scheduler.add(second)
    batch = scheduler.schedule()
    assert [e.sequence for e in batch] == [first]
    scheduler.update(batch, [7])
    batch = scheduler.schedule()
    assert [(e.sequence, e.start) for e in batch] == [(second, 12)]
    assert scheduler.update(batch, [7]) == [FinishReason.LENGTH]
    assert second.num_cached_tokens == 12


def test_a_running_sequence_takes_the_blocks_of_the_youngest() -> None:
    scheduler = Scheduler(
        BlockPool(4, 2), max_num_seqs=2, max_num_batched_tokens=8, max_model_len=8
    )
    old, young = (
        Sequence(Request(name, tokens, SamplingParams(max_tokens=4)))
        for name, tokens in (("old", (1, 2, 3, 4)), ("young", (5, 6)))
    )
    scheduler.add(old)
    scheduler.add(young)
    scheduler.update(scheduler.schedule(), [1, 1])
    scheduler.update(scheduler.schedule(), [1])
    assert young.status is Status.WAITING
    assert scheduler.num_preemptions == 1
    assert young.token_ids == [5, 6, 1]
