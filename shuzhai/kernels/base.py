"""Every operation the models use, in plain PyTorch: the specification, the fallback, the oracle.

A subclass overrides what its device does faster; tests hold each override against this class. A
kernel knows tensors only: no model, no request, no configuration.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from shuzhai.step import KVPages, StepInput


class Kernels:
    """The reference kernels. Reductions run in float32 whatever the type of the input."""

    def activation_dtype(self, weight_dtype: torch.dtype) -> torch.dtype:
        """The type in which activations flow between layers for weights of a type."""
        return weight_dtype

    def encoder_dtype(self, weight_dtype: torch.dtype) -> torch.dtype:
        """The same for a vision tower."""
        return self.activation_dtype(weight_dtype)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [T, in], weight [out, in], bias [out] -> [T, out] in the type of x."""
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Add the residual, then normalise: x, residual [T, n] -> (normed, sum), both [T, n]."""
        if residual is not None:
            x = x + residual
        x32 = x.float()
        scale = x32.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        return (x32 * scale).mul_(weight).to(x.dtype), x

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """[T, n] -> [T, n]"""
        normed = F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps)
        return normed.to(x.dtype)

    def gelu(self, x: Tensor) -> Tensor:
        """x times the normal distribution's mass below it, exactly (arXiv:1606.08415)."""
        return F.gelu(x)

    def quick_gelu(self, x: Tensor) -> Tensor:
        """CLIP's: x sigmoid(1.702 x)."""
        return x * torch.sigmoid(1.702 * x)

    def dense_attention(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of all to all in each of N pictures: [N, S, H, D] each, same out."""
        scores = torch.einsum("nthd,nshd->nhts", query.float(), key.float()) * scale
        return torch.einsum("nhts,nshd->nthd", scores.softmax(-1), value.float()).to(query.dtype)

    def add_partial_lora(
        self, out: Tensor, x: Tensor, rows: Tensor, down: Tensor, up: Tensor
    ) -> None:
        """Add x W_down^T W_up^T to these rows [I] of out [T, m], a view or not, in place.

        x [T, n], down [rank, n], up [m, rank].
        """
        out[rows] += self.linear(self.linear(x[rows], down), up)

    def rotary(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate the halves of each head: x [T, H, D]; cos and sin [T, 1, D] float32.

        Both halves of cos are alike, the first half of sin is negated: halves a, b become
        a cos - b sin, b cos + a sin.
        """
        x32 = x.float()
        return torch.addcmul(x32 * cos, x32.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up for gate_up [T, 2n], gate first -> [T, n]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def store_kv(self, keys: Tensor, values: Tensor, pages: KVPages, slots: Tensor) -> None:
        """Write keys and values [T, K, D] to their slots [T] of the pages."""
        for new, stored in ((keys, pages.keys), (values, pages.values)):
            stored.flatten(0, 1).index_copy_(0, slots, new.to(stored.dtype))

    def paged_attention(
        self, query: Tensor, pages: KVPages, step: StepInput, scale: float
    ) -> Tensor:
        """Causal attention of the step's tokens to their sequences' pages: [T, H, D], same out.

        The last query of a sequence sees all its keys, the one before it one less, and so on.
        """
        out = torch.empty_like(query)
        starts = step.cu_seqlens_q.tolist()
        for b, length in enumerate(step.seq_lens.tolist()):
            rows = slice(starts[b], starts[b + 1])
            q = query[rows].float()  # [t, H, D]
            k, v = (x.float() for x in self.gather(pages, step.block_tables[b], length))
            group = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)  # [S, H, D]
            scores = torch.einsum("thd,shd->hts", q, k) * scale
            scores.masked_fill_(~causal_mask(q.shape[0], length, q.device), float("-inf"))
            out[rows] = torch.einsum("hts,shd->thd", scores.softmax(-1), v).to(out.dtype)
        return out

    def gather(self, pages: KVPages, block_table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The first `length` keys and values of one sequence, [length, K, D] each."""
        page_size = pages.keys.shape[1]
        used = block_table[: -(-length // page_size)]
        keys, values = pages.keys[used], pages.values[used]
        return keys.flatten(0, 1)[:length], values.flatten(0, 1)[:length]


def causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """[num_queries, num_keys] bool, True where a query may look; the last query sees every key."""
    query = torch.arange(num_keys - num_queries, num_keys, device=device)
    return torch.arange(num_keys, device=device)[None, :] <= query[:, None]
