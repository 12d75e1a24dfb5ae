"""Pictures whose rows are, or will be, in the device's memory. Bookkeeping only: no torch here.

A picture is encoded tile by tile; its rows are kept until nobody holds it and the room is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shuzhai.engine.request import ImageSpan

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


# Salt of the tenant, digest and shape of the tiles.
Key = tuple[bytes, bytes, tuple[int, ...]]


class Picture:
    """One picture in the pool.

    pixels            [num_tiles, size, size, 3], until all tiles are encoded
    rows              [num_rows, n] of the decoder, None before the first tile is encoded
    num_ready_tiles   how many tiles, in order, have their rows
    """

    __slots__ = ("key", "num_ready_tiles", "num_rows", "num_tiles", "pixels", "rows")

    def __init__(self, key: Key, image: ImageSpan) -> None:
        self.key = key
        self.pixels: np.ndarray | None = image.pixels
        self.num_tiles: int = image.pixels.shape[0]
        self.num_rows = image.end - image.start
        self.rows: Tensor | None = None
        self.num_ready_tiles = 0

    @property
    def num_ready_rows(self) -> int:
        return self.num_rows * self.num_ready_tiles // self.num_tiles

    def advance(self, num_ready_tiles: int) -> None:
        """So many tiles have their rows now."""
        self.num_ready_tiles = num_ready_tiles
        if num_ready_tiles == self.num_tiles:
            self.pixels = None


class PicturePool:
    """A fixed number of rows, shared by pictures that are found again by their content."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._free_rows = num_rows
        self._has_refused = False
        self._holders: dict[Key, int] = {}
        # In the order in which they were taken hold of last: what is to be encoded, or dropped,
        # stands first.
        self._pictures: dict[Key, Picture] = {}

    @property
    def num_free_rows(self) -> int:
        """Rows that a new picture could have: unused ones, and those of pictures nobody holds."""
        held = sum(p.num_rows for key, p in self._pictures.items() if self._holders[key])
        return self.num_rows - held

    def begin_round(self) -> None:
        """Sequences ask in their order, in rounds: nobody gets new room after one that got none,
        or small pictures would overtake a large one for ever."""
        self._has_refused = False

    def hold(self, salt: bytes, image: ImageSpan) -> Picture | None:
        """Take hold of a picture, new or known to this salt; None if there is no room for it now.

        Equal digests of unequal sizes, which an unlucky hash would give, are two pictures.
        """
        if not self.has_room(salt, image):
            return None
        key = salt, image.digest, image.pixels.shape
        picture = self._pictures.get(key)
        if picture is None:
            picture = Picture(key, image)
            self._make_room(picture.num_rows)
            self._free_rows -= picture.num_rows
            self._holders[key] = 0
        elif not self._holders[key]:
            del self._pictures[key]  # to the end of the line
        self._pictures[key] = picture
        self._holders[key] += 1
        return picture

    def has_room(self, salt: bytes, image: ImageSpan) -> bool:
        """Whether hold would succeed now. A refusal counts for the rest of the round."""
        key = salt, image.digest, image.pixels.shape
        needed = image.end - image.start
        if self._holders.get(key) or (not self._has_refused and needed <= self.num_free_rows):
            return True
        self._has_refused = True
        return False

    def release(self, picture: Picture) -> None:
        """Give up one hold. What is encoded so far stays until its room is needed."""
        self._holders[picture.key] -= 1

    def next_tiles(self, limit: int) -> list[tuple[Picture, int, int]]:
        """The tiles to encode next, at most `limit`: (picture, first, end), the oldest first."""
        found = []
        for key, picture in self._pictures.items():
            if not self._holders[key]:
                continue
            first = picture.num_ready_tiles
            end = min(picture.num_tiles, first + limit)
            if first < end:
                found.append((picture, first, end))
                limit -= end - first
        return found

    def _make_room(self, num_rows: int) -> None:
        for key in [key for key in self._pictures if not self._holders[key]]:
            if num_rows <= self._free_rows:
                return
            self._drop(key)

    def _drop(self, key: Key) -> None:
        self._free_rows += self._pictures.pop(key).num_rows
        del self._holders[key]

    def check(self) -> None:
        """Assert the invariants; for tests."""
        assert self._free_rows == self.num_rows - sum(p.num_rows for p in self._pictures.values())
        assert self._free_rows >= 0
        assert self._holders.keys() == self._pictures.keys()
