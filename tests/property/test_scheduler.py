"""Scheduler and block pool against a model of the device: whatever arrives, whatever is aborted,
however small the pool, a request that finishes says what it says alone, and no block is lost."""

from __future__ import annotations

import zlib
from collections import deque
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuzhai.engine.block_pool import BlockPool
from shuzhai.engine.picture_pool import PicturePool
from shuzhai.engine.request import FinishReason, ImageSpan, Request, SamplingParams
from shuzhai.engine.scheduler import Scheduled, Scheduler
from shuzhai.engine.sequence import Sequence, Status

EOS = 5
PICTURE_ROWS = 6  # one picture of three tiles, or three of one


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
            return position, row_of(request, image.digest, position - image.start)
    return position, token


def row_of(request: Request, digest: bytes, row: int) -> str:
    return f"row {row} of {digest} for {request.cache_salt}"


def toy_model(request: Request, seen: list[tuple]) -> int:
    """The next token: a pure function of all that the last position attends to, and of a seed."""
    return zlib.crc32(repr((request.id, request.cache_salt, seen)).encode()) % 6


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
        self._sampled: dict[Sequence, list[int]] = {}

    def run(self, entry: Scheduled) -> int | None:
        sequence, start, end = entry
        request = sequence.request
        for p in range(start, end):
            written = (request.cache_salt, self._input(sequence, p))
            self._slots[self._slot(sequence, p)] = written
        seen = [self._slots[self._slot(sequence, p)] for p in range(end)]
        known = self._tokens(sequence)[:end]
        expected = [content(request, p, t) for p, t in enumerate(known)]
        assert seen == [(request.cache_salt, c) for c in expected]
        if end < len(sequence.token_ids):
            return None
        token = toy_model(request, expected)
        self._sampled.setdefault(sequence, []).append(token)
        return token

    def _tokens(self, sequence: Sequence) -> list[int]:
        """Those that the host does not know yet included."""
        return [*sequence.request.token_ids, *self._sampled.get(sequence, [])]

    def encode(self, pictures: PicturePool, limit: int) -> None:
        """A batch of tiles: their rows, as the encoder makes them."""
        tiles = pictures.next_tiles(limit)
        assert sum(end - first for _, first, end in tiles) <= limit
        for picture, first, end in tiles:
            assert first == picture.num_ready_tiles < end
            assert picture.pixels is not None
            salt, digest, _ = picture.key
            request = Request("", (), SamplingParams(), cache_salt=salt)
            picture.rows = picture.rows or []
            ready = picture.num_ready_rows
            picture.advance(end)
            picture.rows += [
                row_of(request, digest, r) for r in range(ready, picture.num_ready_rows)
            ]

    def _input(self, sequence: Sequence, position: int) -> tuple:
        for i, image in enumerate(sequence.request.images):
            if image.start <= position < image.end:
                return position, sequence.pictures[i].rows[position - image.start]
        return position, self._tokens(sequence)[position]

    def _slot(self, sequence: Sequence, position: int) -> tuple[int, int]:
        return sequence.block_table[position // self._block_size], position % self._block_size


@st.composite
def images(draw: st.DrawFn, length: int) -> tuple[ImageSpan, ...]:
    """Pictures of one to three tiles somewhere in a prompt; equal digests mean equal tiles."""
    spans, at = [], draw(st.integers(0, 4))
    while draw(st.booleans()):
        tiles, rows = draw(st.integers(1, 3)), 2
        end = at + tiles * rows
        if end > length - 1 or tiles * rows > PICTURE_ROWS:
            break
        digest = bytes([tiles, draw(st.integers(0, 1))])
        spans.append(ImageSpan(at, end, digest, np.zeros((tiles, 1, 1, 3), np.uint8)))
        at = end + draw(st.integers(0, 3))
    return tuple(spans)


@st.composite
def workloads(draw: st.DrawFn) -> tuple[int, int, int, int, bool, list[Plan]]:
    block_size = draw(st.sampled_from([1, 2, 4, 16]))
    num_blocks = draw(st.integers(4, 24))
    capacity = num_blocks * block_size
    plans = []
    for i in range(draw(st.integers(1, 12))):
        length = draw(st.integers(1, max(1, capacity // 2)))
        tokens = draw(st.lists(st.integers(0, 1), min_size=length, max_size=length))
        spans = draw(images(length))
        for span in spans:
            tokens[span.start : span.end] = [-1] * (span.end - span.start)
        params = SamplingParams(max_tokens=draw(st.integers(1, max(1, min(20, capacity - length)))))
        salt = draw(st.sampled_from([b"", b"tenant"]))
        request = Request(str(i), tuple(tokens), params, frozenset({EOS}), salt, spans)
        aborted = draw(st.one_of(st.none(), st.integers(0, 40)))
        plans.append(Plan(request, draw(st.integers(0, 15)), aborted))
    max_num_seqs, budget = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    return block_size, num_blocks, max_num_seqs, budget, draw(st.booleans()), plans


@settings(max_examples=200, deadline=None)
@given(workloads(), st.booleans(), st.sampled_from([(), (1, 3, 6)]))
def test_batched_equals_alone_and_no_block_is_lost(workload, ahead, places) -> None:
    """ahead: each step is started before the one before it has been read."""
    block_size, num_blocks, max_num_seqs, budget, caching, plans = workload
    pool, pictures = BlockPool(num_blocks, block_size), PicturePool(PICTURE_ROWS)
    scheduler = Scheduler(
        pool,
        pictures,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        enable_prefix_caching=caching,
        decode_places=[n for n in places if 2 * n <= budget],
    )
    device = ToyDevice(block_size)
    sequences = {plan.request.id: Sequence(plan.request) for plan in plans}
    finished = set()
    started: deque[tuple[list[Scheduled], list[int | None]]] = deque()

    def read(batch: list[Scheduled], tokens: list[int | None]) -> None:
        reasons = scheduler.update(batch, tokens)
        for (sequence, _, _), reason in zip(batch, reasons, strict=True):
            if reason is not None:
                finished.add(sequence.request.id)
                known = len(sequence.token_ids) - sequence.num_pending
                assert sequence.token_ids[:known] == alone(sequence.request)

    for step in range(5000):
        for plan in plans:
            if plan.arrives == step:
                scheduler.add(sequences[plan.request.id])
            if plan.aborted == step and plan.arrives <= step:
                scheduler.abort(sequences[plan.request.id])
        if started and not ahead:
            read(*started.popleft())
        batch = scheduler.schedule()
        if batch is None:
            read(*started.popleft())
            batch = scheduler.schedule()
        assert batch is not None
        waits = scheduler.waiting or scheduler.running
        assert batch or pictures.next_tiles(1) or started or not waits, "nobody moves"
        assert sum(end - start for _, start, end in batch) <= budget
        assert len(scheduler.running) <= max_num_seqs
        assert len({s.request.id for s, _, _ in batch}) == len(batch)
        device.encode(pictures, 2)
        tokens = [device.run(entry) for entry in batch]
        if batch:
            scheduler.begin(batch)
        if started:
            read(*started.popleft())
        if batch:
            started.append((batch, tokens))
        pool.check()
        pictures.check()
        if step > 40 and not (scheduler.waiting or scheduler.running or started):
            break
    assert pool.num_free == num_blocks
    assert pictures.num_free_rows == PICTURE_ROWS
    for plan in plans:
        assert sequences[plan.request.id].status is Status.FINISHED
        assert plan.aborted is not None or plan.request.id in finished


def test_equal_prompts_in_one_step_are_computed_once() -> None:
    scheduler = Scheduler(
        BlockPool(16, 4),
        PicturePool(0),
        max_num_seqs=8,
        max_num_batched_tokens=64,
    )
    first, second = (
        Sequence(Request(name, tuple(range(13)), SamplingParams(max_tokens=1)))
        for name in ("first", "second")
    )
    scheduler.add(first)
    scheduler.add(second)
    batch = scheduler.schedule()
    assert [s for s, _, _ in batch] == [first]
    scheduler.begin(batch)
    assert scheduler.schedule() == [], "the second waits until the first one's blocks can be found"
    scheduler.update(batch, [7])
    batch = scheduler.schedule()
    assert batch == [(second, 12, 13)]
    scheduler.begin(batch)
    assert scheduler.update(batch, [7]) == [FinishReason.LENGTH]
    assert second.num_cached_tokens == 12


@pytest.mark.parametrize(("num_chats", "chunk"), [(0, 92), (3, 92), (8, 92), (9, 80), (33, 67)])
def test_a_full_step_leaves_room_for_empty_places(num_chats: int, chunk: int) -> None:
    scheduler = Scheduler(
        BlockPool(200, 4),
        PicturePool(0),
        max_num_seqs=64,
        max_num_batched_tokens=100,
        decode_places=[8, 20],
    )
    for i in range(num_chats):
        scheduler.add(Sequence(Request(f"{i}", (i,), SamplingParams(max_tokens=9))))
    run(scheduler, [1] * num_chats)
    long = Sequence(Request("long", tuple(range(300)), SamplingParams(max_tokens=1)))
    scheduler.add(long)
    for first in (0, chunk):
        batch = scheduler.schedule()
        assert (long, first, first + chunk) in batch
        assert len(batch) == num_chats + 1
        scheduler.begin(batch)
        scheduler.update(batch, [1 if s is not long else None for s, _, _ in batch])


def run(scheduler: Scheduler, tokens: list[int]) -> None:
    batch = scheduler.schedule()
    scheduler.begin(batch)
    scheduler.update(batch, tokens)


def test_a_running_sequence_takes_the_blocks_of_the_youngest() -> None:
    scheduler = Scheduler(BlockPool(4, 2), PicturePool(0), max_num_seqs=2, max_num_batched_tokens=8)
    old, young = (
        Sequence(Request(name, tokens, SamplingParams(max_tokens=4)))
        for name, tokens in (("old", (1, 2, 3, 4)), ("young", (5, 6)))
    )
    scheduler.add(old)
    scheduler.add(young)
    run(scheduler, [1, 1])
    run(scheduler, [1])
    assert young.status is Status.WAITING
    assert scheduler.num_preemptions == 1
    assert young.token_ids == [5, 6, 1]


def test_a_copy_that_is_held_outlives_one_that_is_free() -> None:
    pool = BlockPool(2, 4)
    old = pool.allocate(1)
    pool.publish(old[0], b"x")
    pool.release(old)
    [new] = pool.allocate(1) if next(iter(pool._free)) != old[0] else [None]
    assert new is not None
    pool.publish(new, b"x")
    assert pool.lookup([b"x"]) == [new]
    pool.check()


def test_the_next_turn_finds_the_answer_while_others_wait() -> None:
    """Steps ahead: the token that fills a block is not known yet when its step is chosen."""
    scheduler = Scheduler(
        BlockPool(200, 4),
        PicturePool(0),
        max_num_seqs=2,
        max_num_batched_tokens=64,
    )
    chat, other, waiting = (
        Sequence(Request(name, (i,) * 8, SamplingParams(max_tokens=count)))
        for i, (name, count) in enumerate((("chat", 40), ("other", 60), ("waiting", 1)))
    )
    for sequence in (chat, other, waiting):
        scheduler.add(sequence)
    started: deque[list[Scheduled]] = deque()

    def step() -> None:
        batch = scheduler.schedule()
        scheduler.begin(batch)
        if started:
            before = started.popleft()
            scheduler.update(before, [7] * len(before))
        started.append(batch)

    while chat.status is not Status.FINISHED:
        assert waiting.status is Status.WAITING
        step()
    turn = Sequence(Request("turn", (*chat.token_ids, 5), SamplingParams(max_tokens=1)))
    scheduler.add(turn)
    while turn.num_cached_tokens is None:
        step()
    assert turn.num_cached_tokens >= 44
