"""Who runs how many tokens in the next step. Pure: no torch, no clock, no I/O.

There is no prefill and no decode phase: each sequence's num_computed_tokens moves towards its
number of tokens under one token budget (the formulation of vLLM V1). A new prompt, a chunk of one,
a prefix found in the cache, a decode step and a resumed sequence are all the same rule. A sequence
goes no further than the rows of its pictures are ready.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Seq

from shuzhai.engine.block_pool import BlockPool
from shuzhai.engine.picture_pool import PicturePool
from shuzhai.engine.request import FinishReason
from shuzhai.engine.sequence import Sequence, Status

# (sequence, start, end): run tokens [start, end) of a sequence in this step. If they are its last,
# one is sampled. A plain tuple: making hundreds of named ones takes a tenth of the host's step.
Scheduled = tuple[Sequence, int, int]


class Scheduler:
    """Queues sequences and shares out token budget and KV blocks, first come first served."""

    def __init__(
        self,
        pool: BlockPool,
        pictures: PicturePool,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        enable_prefix_caching: bool = True,
        decode_places: Seq[int] = (),
    ) -> None:
        """decode_places: that full steps can have for sequences of one token, in order; those that
        stay empty are of max_num_batched_tokens, too."""
        self.pool = pool
        self.pictures = pictures
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        # Steps that were started and whose results are not known yet.
        self._started: deque[Seq[Scheduled]] = deque()
        # Left out of the step that is being scheduled, so that it can be preempted in the next.
        self._resting: Sequence | None = None
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._enable_prefix_caching = enable_prefix_caching
        self._decode_places = decode_places

    def add(self, sequence: Sequence) -> None:
        room = self.pool.num_blocks * self.pool.block_size
        assert sequence.max_length <= room, "any one sequence must fit"
        self.waiting.append(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Forget a sequence at whatever stage it is; its blocks are free at once."""
        if sequence.status is Status.RUNNING:
            self._retire(sequence)
        elif sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        sequence.status = Status.FINISHED

    def schedule(self) -> list[Scheduled] | None:
        """Decide the next step; those that bring one token come first. Empty if nothing waits or
        runs, or all wait for their pictures; None if the steps that were started must be read
        first."""
        self.pictures.begin_round()
        budget = self._max_num_batched_tokens - self._num_empty_places()
        ran = self._schedule_running(budget)
        if ran is None:
            return None
        batch, left = ran
        left = self._admit(batch, left)
        if budget - left > len(batch):
            batch.sort(key=lambda entry: entry[2] - entry[1] > 1)
        return batch

    def begin(self, batch: Seq[Scheduled]) -> None:
        """The step is started: its tokens count as computed, and those it samples as pending."""
        num_sampled = 0
        for entry in batch:
            sequence, start, end = entry
            if end - start > 1:
                self._hashes_in_flight(entry)  # while the device works: `update` will want them
            sequence.num_computed_tokens = end
            if sequence.pictures:
                self._let_go(sequence)
            if end == len(sequence.token_ids):
                sequence.append_pending(num_sampled)
                num_sampled += 1
        self._started.append(batch)

    def update(self, batch: Seq[Scheduled], sampled: Seq[int | None]) -> list[FinishReason | None]:
        """Take in the results of a step, in the order in which they were started; sampled[i] is the
        new token of batch[i] if it reached its end.

        Returns why each entry is finished, or None. Entries aborted meanwhile are passed over.
        """
        assert self._started[0] is batch, "steps are read in the order of their start"
        self._started.popleft()
        reasons: list[FinishReason | None] = []
        block_size, running = self.pool.block_size, Status.RUNNING
        for entry, token in zip(batch, sampled, strict=True):
            sequence, start, end = entry
            reason = None
            if sequence.status is running:
                if end // block_size > start // block_size:
                    self._publish(entry)
                if token is not None:
                    reason = sequence.resolve(token)
            if reason is not None:
                self._retire(sequence)
                sequence.status = Status.FINISHED
            reasons.append(reason)
        return reasons

    def _schedule_running(self, budget: int) -> tuple[list[Scheduled], int] | None:
        """The next step of those that run, and what it leaves of the budget."""
        batch: list[Scheduled] = []
        block_size = self.pool.block_size
        self._resting = None
        for sequence in self.running:  # from whose end _make_room may take some
            if budget <= 0 or sequence is self._resting:  # which is the last
                break
            start, end = sequence.num_computed_tokens, len(sequence.token_ids)
            if sequence.num_pending:
                if sequence.needs_history:
                    return None
                if end >= sequence.max_length:
                    continue  # the last token that it may have is pending
            if end > start + budget:
                end = start + budget
            if start < sequence.images_end:
                end = self._reach(sequence, end)
            if end > len(sequence.block_table) * block_size:
                if not self._make_room(sequence, end):
                    continue  # it rests, too
                self._grow(sequence, end)
            if start < end:
                batch.append((sequence, start, end))
                budget -= end - start
        return batch, budget

    def _num_empty_places(self) -> int:
        """Of those for sequences of one token, were the next step a full one, as it may be where
        somebody waits or the last that runs reads its prompt."""
        if not (self._decode_places and (self.waiting or self.running)):
            return 0
        if not self.waiting:
            last = self.running[-1]
            if len(last.token_ids) - last.num_computed_tokens <= 1:
                return 0
        count = sum(
            len(s.token_ids) - s.num_computed_tokens == 1
            and not (s.num_pending and len(s.token_ids) >= s.max_length)
            for s in self.running
        )
        return next((n - count for n in self._decode_places if n >= count), 0)

    def _make_room(self, sequence: Sequence, end: int) -> bool:
        """Preempt the last that run until there are blocks up to `end`; whether there are now.

        A started step still writes to its sequences' blocks and samples their tokens: the last one
        rests until that is read. The others go on meanwhile.
        """
        while self._missing_blocks(sequence, end) > self.pool.num_free:
            victim = self.running[-1]
            if any(entry[0] is victim for step in self._started for entry in step):
                self._resting = victim
                return False
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _admit(self, batch: list[Scheduled], budget: int) -> int:
        """Start waiting sequences while budget, places and blocks for the whole of each last; what
        is left of the budget.

        One block for each that runs is left free: else they would preempt who has just come.
        """
        is_full = len(self.running) >= self._max_num_seqs
        if is_full or not self.waiting or self._resting is not None:
            return budget
        steps = (batch, *self._started)
        in_flight = {h for step in steps for e in step for h in self._hashes_in_flight(e)}
        prompts = [s for s in self.running if s.num_computed_tokens < s.num_prompt_tokens]
        in_flight |= {h for sequence in prompts for h in self._next_hash(sequence)}
        promised = sum(map(self._promised_blocks, prompts))
        i = 0
        while i < len(self.waiting) and budget > 0 and len(self.running) < self._max_num_seqs:
            sequence = self.waiting[i]
            hits, next_hash = self._find_prefix(sequence)
            if next_hash in in_flight:
                # Another sequence computes this very block now: a step later it is a hit.
                i += 1
                continue
            if not self._has_picture_room(sequence, len(hits) * self.pool.block_size):
                i += 1
                continue
            needed = self._missing_blocks(sequence, len(sequence.token_ids)) - len(hits)
            kept = promised + len(self.running)
            if needed > self.pool.num_free - self.pool.count_free(hits) - kept:
                break
            del self.waiting[i]
            self.pool.acquire(hits)
            sequence.block_table.extend(hits)
            start = len(hits) * self.pool.block_size
            sequence.num_computed_tokens = start
            end = self._reach(sequence, min(len(sequence.token_ids), start + budget))
            if sequence.num_cached_tokens is None:
                sequence.num_cached_tokens = start
            sequence.status = Status.RUNNING
            self.running.append(sequence)
            self._grow(sequence, end)
            promised += self._promised_blocks(sequence)
            entry = sequence, start, end
            if start < end:
                batch.append(entry)
                budget -= end - start
            if i < len(self.waiting):
                in_flight.update(self._next_hash(sequence), self._hashes_in_flight(entry))
        return budget

    def _find_prefix(self, sequence: Sequence) -> tuple[list[int], bytes | None]:
        """Cached blocks of the sequence's beginning, and the hash of the first that is missing.

        The last token is never taken from the cache: its logits are needed.
        """
        if not self._enable_prefix_caching or sequence.wants_prompt_rows:
            return [], None
        useful = (len(sequence.token_ids) - 1) // self.pool.block_size
        size = self.pool.block_size
        # One by one, up to the first that is missing: the device may be idle now.
        hits = self.pool.lookup(sequence.hashes(size, i + 1)[i] for i in range(useful))
        return hits, sequence.block_hashes[len(hits)] if len(hits) < useful else None

    def _hashes_in_flight(self, entry: Scheduled) -> list[bytes]:
        """Hashes of the blocks that will be full after this step."""
        sequence, start, end = entry
        size = self.pool.block_size
        first, last = start // size, end // size
        if first == last or not self._enable_prefix_caching:
            return []
        last = min(last, (len(sequence.token_ids) - sequence.num_pending) // size)
        return sequence.hashes(size, last)[first:last]

    def _promised_blocks(self, sequence: Sequence) -> int:
        """What the prompt of a sequence that runs does not have yet, but will need."""
        return max(0, self._missing_blocks(sequence, sequence.num_prompt_tokens))

    def _has_picture_room(self, sequence: Sequence, start: int) -> bool:
        """Whether the first picture from `start` on can be held: else a place would be wasted."""
        for image in sequence.request.images:
            if image.end > start:
                return self.pictures.has_room(sequence.request.cache_salt, image)
        return True

    def _next_hash(self, sequence: Sequence) -> list[bytes]:
        """The hash of the block that a sequence is at, if it is one of its prompt's full ones."""
        at = sequence.num_computed_tokens // self.pool.block_size
        if (
            not self._enable_prefix_caching
            or at >= sequence.num_prompt_tokens // self.pool.block_size
        ):
            return []
        return [sequence.hashes(self.pool.block_size, at + 1)[at]]

    def _reach(self, sequence: Sequence, end: int) -> int:
        """How far towards `end` a sequence can go now: up to the rows of pictures that are ready.

        It takes hold of the pictures on the way, so that they are encoded.
        """
        start = sequence.num_computed_tokens
        if start >= sequence.images_end:
            return end
        for i, image in enumerate(sequence.request.images):
            if image.end <= start:
                continue
            if image.start >= end:
                break
            picture = sequence.pictures.get(i)
            if picture is None:
                picture = self.pictures.hold(sequence.request.cache_salt, image)
                if picture is None:
                    return max(start, image.start)
                sequence.pictures[i] = picture
            ready = image.start + picture.num_ready_rows
            if ready < min(end, image.end):
                return max(start, ready)
        return end

    def _let_go(self, sequence: Sequence) -> None:
        """Give up the pictures that this sequence is through with."""
        images = sequence.request.images
        for i in [i for i in sequence.pictures if images[i].end <= sequence.num_computed_tokens]:
            self.pictures.release(sequence.pictures.pop(i))

    def _missing_blocks(self, sequence: Sequence, end: int) -> int:
        return -(-end // self.pool.block_size) - len(sequence.block_table)

    def _grow(self, sequence: Sequence, end: int) -> None:
        count = self._missing_blocks(sequence, end)
        if count > 0:
            sequence.block_table.extend(self.pool.allocate(count))

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's blocks; it queues first and will recompute what the cache lost."""
        self._retire(sequence)
        sequence.status = Status.WAITING
        sequence.num_computed_tokens = 0
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _retire(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.block_table)
        del sequence.block_table[:]
        for picture in sequence.pictures.values():
            self.pictures.release(picture)
        sequence.pictures = {}

    def _publish(self, entry: Scheduled) -> None:
        """Make the blocks findable that are full since this entry was run."""
        sequence, start, _ = entry
        first = start // self.pool.block_size
        for i, block_hash in enumerate(self._hashes_in_flight(entry), first):
            self.pool.publish(sequence.block_table[i], block_hash)
