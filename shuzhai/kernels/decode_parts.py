"""How the past of sequences is cut into parts, which programs attend to side by side. No torch.

All parts but the last of a sequence are of one length, such that they all run side by side, or in
so many turns that few multiprocessors are idle in the last: the sequences of a batch may differ in
length by a factor of ten or more. The host cuts, once for a step and all its layers.
"""

from __future__ import annotations

import numpy as np

# Of a sequence, which one program adds up.
MOST_PARTS = 64
# A part is not worth its adding up below so many tokens.
_LEAST = 32
# Columns of a part.
PART = 6


def choose_parts(batch: int, num_kv_heads: int, num_resident: int) -> tuple[int, int]:
    """(parts of equal length to aim at, places for parts) of each kv head; num_resident: programs
    that run side by side."""
    at_once = max(1, num_resident // num_kv_heads)
    turns = -(-3 * batch // (2 * at_once))
    # The last parts of sequences are half as long as the others, on average.
    aim = max(turns * at_once - batch // 2, 1)
    return aim, min(aim + batch, MOST_PARTS * batch)


def cut(seq_lens: np.ndarray, aim: int, places: int, multiple: int) -> np.ndarray:
    """Parts of the past of sequences of these lengths [B], new token included: [places, PART]
    int32, the longest first; so many tokens each, or a multiple of that, but for the last ones.

    Columns: the sequence, -1 where there is no part; the first token, and the one behind the last;
    which of the sequence's parts it is; how many these are; where the first of them leaves what it
    finds, the others behind it.
    """
    past = np.maximum(seq_lens.astype(np.int64) - 1, 0)
    span = max(-(-int(past.sum()) // aim), -(-int(past.max()) // MOST_PARTS))
    span = -(-max(span, _LEAST) // multiple) * multiple
    counts = np.maximum(-(-past // span), 1)
    own = np.repeat(np.arange(len(past)), counts)
    starts = (np.cumsum(counts) - counts)[own]
    which = np.arange(len(own)) - starts
    first = which * span
    last = np.minimum(first + span, past[own])
    parts = np.full((places, PART), -1, np.int32)
    order = np.argsort(first - last, kind="stable")
    columns = (own, first, last, which, counts[own], starts)
    parts[: len(own)] = np.stack(columns, 1)[order]
    return parts
