"""KV blocks as numbers: who holds them, and which can be found again by content. No torch here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """A fixed number of blocks, reference-counted, with an index of full blocks by hash.

    A block is free (no holder; the longest unused first in line to be overwritten) or held. A free
    block with a hash still serves whoever asks for its content, until it is overwritten.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._holders = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        # An ordered set: O(1) removal from the middle when a cached block is taken up again. (A
        # plain dict would look for its first key behind all that were taken before.)
        self._free = OrderedDict[int, None].fromkeys(range(num_blocks))
        self._by_hash: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def lookup(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known beginning of this chain of hashes."""
        blocks = []
        for h in hashes:
            block = self._by_hash.get(h)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def count_free(self, blocks: Iterable[int]) -> int:
        """How many of these blocks have no holder, and would leave the free ones if acquired."""
        return sum(self._holders[block] == 0 for block in blocks)

    def acquire(self, blocks: Iterable[int]) -> None:
        """Become a holder of blocks that lookup found."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._free[block]
            self._holders[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks to write to; what they cached is forgotten."""
        assert count <= len(self._free), "the scheduler asks only for what is free"
        blocks = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            if (h := self._hash_of[block]) is not None:
                del self._by_hash[h]
                self._hash_of[block] = None
            self._holders[block] = 1
            blocks.append(block)
        return blocks

    def publish(self, block: int, block_hash: bytes) -> None:
        """Make a full block findable. Of two with one hash, the one that is held lives longer."""
        known = self._by_hash.get(block_hash)
        if known is not None:
            if known == block or self._holders[known] > 0:
                return
            self._hash_of[known] = None
        self._by_hash[block_hash] = block
        self._hash_of[block] = block_hash

    def release(self, blocks: Sequence[int]) -> None:
        """Stop holding a sequence's blocks. Its tail goes first, so that roots live longest."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free[block] = None

    def check(self) -> None:
        """Assert the invariants; for tests."""
        assert all((n == 0) == (b in self._free) for b, n in enumerate(self._holders))
        assert all(n >= 0 for n in self._holders)
        assert all(self._hash_of[block] == h for h, block in self._by_hash.items())
        assert sum(h is not None for h in self._hash_of) == len(self._by_hash)
