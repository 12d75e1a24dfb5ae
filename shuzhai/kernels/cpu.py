"""What a CPU does faster than the reference kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from shuzhai.kernels.base import Kernels, causal_mask
from shuzhai.step import KVPages, StepInput

# A slice of a weight that is widened to float32 at a time: 4 MiB, which stays in the cache.
_SLICE_ELEMENTS = 2**20


class CpuKernels(Kernels):
    """Kernels for the CPU.

    Where the CPU has no arithmetic for the type of the weights, they are read at their own size and
    widened slice by slice, inside the cache, and activations are float32. That halves the memory
    traffic of float32 weights at the speed of float32 arithmetic.
    """

    def __init__(self, native_bfloat16: bool | None = None) -> None:
        """native_bfloat16: the CPU multiplies bfloat16 in hardware; None asks the CPU."""
        if native_bfloat16 is None:
            native_bfloat16 = torch.cpu._is_avx512_bf16_supported()
        self._native_bfloat16 = native_bfloat16

    def activation_dtype(self, weight_dtype: torch.dtype) -> torch.dtype:
        native = self._native_bfloat16 and weight_dtype == torch.bfloat16
        return torch.bfloat16 if native else torch.float32

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if x.dtype == weight.dtype:
            return F.linear(x, weight, bias)
        num_rows, width = weight.shape
        step = max(1, _SLICE_ELEMENTS // width)
        out = x.new_empty(x.shape[0], num_rows)
        wide = x.new_empty(min(step, num_rows), width)
        for start in range(0, num_rows, step):
            part = weight[start : start + step]
            widened = wide[: part.shape[0]].copy_(part)
            torch.mm(x, widened.t(), out=out[:, start : start + step])
        return out if bias is None else out.add_(bias)

    def paged_attention(
        self, query: Tensor, pages: KVPages, step: StepInput, scale: float
    ) -> Tensor:
        out = torch.empty_like(query)
        starts = step.cu_seqlens_q.tolist()
        for b, length in enumerate(step.seq_lens.tolist()):
            rows = slice(starts[b], starts[b + 1])
            q = query[rows].transpose(0, 1)[None]  # [1, H, t, D]
            k, v = (
                x.to(query.dtype).transpose(0, 1)[None]  # [1, K, S, D]
                for x in self.gather(pages, step.block_tables[b], length)
            )
            t = q.shape[2]
            partial = 1 < t < length
            out[rows] = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=causal_mask(t, length, q.device) if partial else None,
                is_causal=t == length,
                scale=scale,
                enable_gqa=True,
            )[0].transpose(0, 1)
        return out
