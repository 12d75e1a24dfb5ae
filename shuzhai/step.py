"""All that one forward pass is told: an argument of everything, a global of nothing.

Letters in shape comments, here and everywhere: T tokens of this step, B sequences, P pages of the
longest sequence, R rows whose logits are wanted, I rows of pictures, H heads, K kv heads, D head
size.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepInput:
    """One step of B sequences laid end to end. Sequence b owns tokens cu_seqlens_q[b]:[b+1].

    token_ids     [T] int64
    positions     [T] int64, place of each token in its sequence
    slots         [T] int64, where its keys and values go: page * page_size + offset
    cu_seqlens_q  [B+1] int32
    seq_lens      [B] int32, length after this step: cached tokens and new ones
    block_tables  [B, P] int32, pages of each sequence in order; padded with 0
    logit_rows    [R] int64, indices into T
    rope_lengths  [T] int64 sequence length that sets each token's rotary base (dynamic NTK beyond
                  the training length), or None when every base is the plain one
    image_rows    [I] int64, indices into T of the positions of pictures, or None where there are
                  none: known on the host, so that no step asks the device
    image_states  [I, n] what stands there instead of embedded tokens
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    cu_seqlens_q: Tensor
    seq_lens: Tensor
    block_tables: Tensor
    logit_rows: Tensor
    rope_lengths: Tensor | None = None
    image_rows: Tensor | None = None
    image_states: Tensor | None = None


@dataclass(frozen=True, slots=True)
class KVPages:
    """The keys and values of one layer: two tensors [pages, page_size, K, D]."""

    keys: Tensor
    values: Tensor
