"""What a CPU does faster than the reference kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from shuzhai.kernels.base import Kernels, causal_mask
from shuzhai.step import KVPages, StepInput

# A slice of a weight that is widened to float32 at a time: 8 MiB, which stays in the cache.
_SLICE_ELEMENTS = 2**21
# Up to so many rows, torch's own product of float32 and of bfloat16 is the fastest.
_FEW_ROWS = 3
_FEW_BFLOAT16_ROWS = 8
# From so many rows on, it pays that the library repacks the weight; below, the weight comes first
# in the product, which spares the repacking.
_MANY_ROWS = 64


class CpuKernels(Kernels):
    """Kernels for the CPU.

    Where it has no bfloat16 arithmetic, larger products and attention run in float32: weights and
    cache are read at their own size and widened inside the cache. Inputs and outputs stay bfloat16,
    so that results differ between batches only by the order of float32 sums.
    """

    def __init__(self, native_bfloat16: bool | None = None) -> None:
        """native_bfloat16: the CPU multiplies bfloat16 in hardware; None asks the CPU."""
        if native_bfloat16 is None:
            native_bfloat16 = torch.cpu._is_avx512_bf16_supported()
        self._native_bfloat16 = native_bfloat16

    def activation_dtype(self, weight_dtype: torch.dtype) -> torch.dtype:
        """float32 for float16 weights: CPUs are slow at float16, and activations overflow it."""
        return torch.float32 if weight_dtype == torch.float16 else weight_dtype

    def encoder_dtype(self, weight_dtype: torch.dtype) -> torch.dtype:
        """A tower has many rows at a time, whose products run in float32: nothing to convert."""
        return self.activation_dtype(weight_dtype) if self._native_bfloat16 else torch.float32

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if x.dtype == weight.dtype and self._is_direct(x):
            if x.shape[0] == 1 and bias is None and x.dtype != torch.float32:
                return torch.mv(weight, x[0])[None]
            return F.linear(x, weight, bias)
        num_rows, width = weight.shape
        is_wide = weight.dtype == torch.float32
        step = num_rows if is_wide else max(1, _SLICE_ELEMENTS // width)
        # One buffer for all slices: fresh memory costs more than the conversion.
        buffer = torch.empty(0 if is_wide else min(step, num_rows), width)
        wide, out = x.float(), torch.empty(x.shape[0], num_rows)
        for start in range(0, num_rows, step):
            part = weight[start : start + step]
            part = part if is_wide else buffer[: part.shape[0]].copy_(part)
            place = out[:, start : start + step]
            if x.shape[0] >= _MANY_ROWS:
                torch.mm(wide, part.t(), out=place)
            else:
                place.copy_((part @ wide.t()).t())
        return (out if bias is None else out.add_(bias)).to(x.dtype)

    def _is_direct(self, x: Tensor) -> bool:
        """torch's own product of x and a weight of its type is the fastest."""
        if x.dtype == torch.float32:
            return not _FEW_ROWS < x.shape[0] < _MANY_ROWS
        return self._native_bfloat16 or x.shape[0] <= _FEW_BFLOAT16_ROWS

    def paged_attention(
        self, query: Tensor, pages: KVPages, step: StepInput, scale: float
    ) -> Tensor:
        dtype = query.dtype if self._native_bfloat16 else torch.float32
        starts = step.cu_seqlens_q.tolist()
        parts = []
        for b, length in enumerate(step.seq_lens.tolist()):
            q = query[starts[b] : starts[b + 1]].to(dtype).transpose(0, 1)  # [H, t, D]
            keys, values = self.gather(pages, step.block_tables[b], length)
            k, v = keys.to(dtype).transpose(0, 1), values.to(dtype).transpose(0, 1)  # [K, S, D]
            partial = 1 < q.shape[1] < length
            attended = F.scaled_dot_product_attention(
                q[None],  # only four dimensions take the fast path
                k[None],
                v[None],
                attn_mask=causal_mask(q.shape[1], length, q.device) if partial else None,
                is_causal=q.shape[1] == length,
                scale=scale,
                enable_gqa=True,
            )
            parts.append(attended[0].transpose(0, 1).to(query.dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def dense_attention(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        dtype = query.dtype if self._native_bfloat16 else torch.float32
        q, k, v = (x.to(dtype).transpose(1, 2) for x in (query, key, value))
        attended = F.scaled_dot_product_attention(q, k, v, scale=scale)
        return attended.transpose(1, 2).to(query.dtype)

    def gather(self, pages: KVPages, block_table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """No copy where the pages lie one after the other, as those of a single chat mostly do."""
        used = block_table[: -(-length // pages.keys.shape[1])].tolist()
        first, end = used[0], used[0] + len(used)
        if used != list(range(first, end)) or pages.key_params is not None:
            return super().gather(pages, block_table, length)
        keys, values = pages.keys[first:end], pages.values[first:end]
        return keys.flatten(0, 1)[:length], values.flatten(0, 1)[:length]
