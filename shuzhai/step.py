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
    slots         [T] int64, where its keys and values go: page * page_size + offset; -1: nowhere
    cu_seqlens_q  [B+1] int32
    seq_lens      [B] int32, length after this step: cached tokens and new ones; 0: an empty place,
                  whose one token's results nobody reads
    block_tables  [B, P] int32, pages of each sequence in order; padded with 0
    logit_rows    [R] int64, indices into T in their order, none twice: all of them where R is T
    num_decodes   so many sequences, the first ones, bring one token each
    max_seqlen_q  the most tokens that a sequence brings
    sources       [T] int32, or None: where it is not -1, the token is last_ids[source] instead
    last_ids      [S] int64 what the step before sampled, which the host need not know yet
    rope_lengths  [T] int64 sequence length that sets each token's rotary base (dynamic NTK beyond
                  the training length), or None when every base is the plain one
    image_rows    [I] int64, indices into T of the positions of pictures, or None where there are
                  none: known on the host, so that no step asks the device
    image_states  [I, n] what stands there instead of embedded tokens
    parts         of the past of those num_decodes sequences, which kernels attend to side by side:
                  what Kernels.decode_parts makes of their lengths
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    cu_seqlens_q: Tensor
    seq_lens: Tensor
    block_tables: Tensor
    logit_rows: Tensor
    num_decodes: int
    max_seqlen_q: int
    sources: Tensor | None = None
    last_ids: Tensor | None = None
    rope_lengths: Tensor | None = None
    image_rows: Tensor | None = None
    image_states: Tensor | None = None
    parts: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        named = {
            "token_ids": self.token_ids,
            "positions": self.positions,
            "slots": self.slots,
            "cu_seqlens_q": self.cu_seqlens_q,
            "seq_lens": self.seq_lens,
            "block_tables": self.block_tables,
            "logit_rows": self.logit_rows,
            "sources": self.sources,
            "last_ids": self.last_ids,
            "rope_lengths": self.rope_lengths,
            "image_rows": self.image_rows,
            "image_states": self.image_states,
            "parts": self.parts,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass(frozen=True, slots=True)
class KVPages:
    """The keys and values of one layer.

    keys, values  [pages, page_size, K, D] of a float type, or codes of formats/kv.py:
                  [pages, page_size, K, D * bits / 8] uint8
    key_params, value_params   [pages, page_size, K, 2] float16, scale and zero of codes
    bits          of a number; 16 and 32 for float types
    """

    keys: Tensor
    values: Tensor
    key_params: Tensor | None = None
    value_params: Tensor | None = None
    bits: int = 16


@dataclass(frozen=True, slots=True)
class DrawInput:
    """How to draw one token from each of B rows of logits.

    temperature  [B] float32 > 0       top_k    [B] int32, 0 keeps all
    top_p, min_p [B] float32           numbers  [B] float64 in [0, 1): the chance of each row
    is_filtered  some row has a top_k, top_p or min_p that leaves tokens out
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    numbers: Tensor
    is_filtered: bool
