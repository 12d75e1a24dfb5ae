"""Parts of the past: each token of it in one of them, and enough to do for all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuzhai.kernels.decode_parts import MOST_PARTS, choose_parts, cut


@given(
    st.lists(st.integers(0, 40000), min_size=1, max_size=70),
    st.integers(1, 40),
    st.integers(1, 3000),
    st.sampled_from([32, 64]),
)
def test_every_token_is_in_one_part(lengths, kv_heads, resident, multiple) -> None:
    aim, places = choose_parts(len(lengths), kv_heads, resident)
    parts = cut(np.array(lengths, np.int32), aim, places, multiple)
    assert parts.shape == (places, 6)
    used = [tuple(row) for row in parts.tolist() if row[0] >= 0]
    # What is nothing stands behind all else.
    assert [row[0] >= 0 for row in parts.tolist()] == sorted(
        (row[0] >= 0 for row in parts.tolist()), reverse=True
    )
    spans = [last - first for _, first, last, *_ in used]
    assert spans == sorted(spans, reverse=True)
    for b, length in enumerate(lengths):
        own = sorted(row[1:] for row in used if row[0] == b)
        ends = [0] + [last for _, last, *_ in own]
        assert [first for first, *_ in own] == ends[:-1], "one behind the other"
        assert ends[-1] == max(length - 1, 0)
        assert [which for _, _, which, *_ in own] == list(range(len(own)))
        assert {row[3] for row in own} == {len(own)}
        assert len({row[4] for row in own}) == 1
        assert len(own) <= MOST_PARTS
        assert all((last - first) % multiple == 0 for first, last, *_ in own[:-1])
    where = [row[5] + row[3] for row in used]
    assert sorted(where) == list(range(len(used))), "each leaves what it finds in its own place"


def test_few_sequences_are_cut_for_all_multiprocessors() -> None:
    assert choose_parts(1, 8, 1584) == (198, 64)
    assert choose_parts(100, 8, 1584) == (148, 248)  # one turn: 198 parts, the last ones short
    assert choose_parts(512, 8, 1584) == (536, 1048)  # four
    assert choose_parts(3, 64, 8) == (4, 7)


@pytest.mark.parametrize("length", [2, 33, 65])
def test_short_sequences_are_not_cut(length) -> None:
    parts = cut(np.array([length] * 3, np.int32), 500, 503, 32)
    assert (parts[:, 0] >= 0).sum() == 3 * max(1, -(-(length - 1) // 32))
