"""What an NVIDIA GPU does faster than the reference kernels: Triton, cuBLAS, PyTorch's attention.

It needs Triton, so that `kernels/choose.py` imports it only where there are a GPU and Triton.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from shuzhai.config import DecoderConfig
from shuzhai.kernels.base import Kernels
from shuzhai.kernels.head_rows import head_rows
from shuzhai.kernels.triton import few_rows, kv_store, linear, pointwise, sampling
from shuzhai.kernels.triton.attention import supports
from shuzhai.kernels.triton.decode_attention import decode_attend
from shuzhai.kernels.triton.decode_tiles import DecodeWorkspace, decode_parts
from shuzhai.kernels.triton.prefill_attention import prefill_attention
from shuzhai.step import DrawInput, KVPages, StepInput


class CudaKernels(Kernels):
    """Kernels for a GPU of compute capability 7.5 or later. Each engine has its own: they own
    workspace for one stream."""

    def __init__(self, device: torch.device) -> None:
        self._workspace = DecodeWorkspace(device)
        self._few_rows = few_rows.FewRowsWorkspace(device)

    def can_record(self, config: DecoderConfig, pages: KVPages, dtype: torch.dtype) -> bool:
        group = config.num_heads // config.num_kv_heads
        return supports(config.head_dim, dtype, pages.bits, group)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if linear.supports(x, weight):
            return linear.linear(x.contiguous(), weight, bias)
        if few_rows.supports(x, weight):
            return few_rows.linear(x.contiguous(), weight, self._few_rows, bias)
        return super().linear(x, weight, bias)

    def linear_gelu(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """In 16 bits GELU's tanh approximation, in the epilogue of cuBLASLt's product.

        It is off by 4.8e-4 at most: less than half a step of bfloat16 for inputs above -2, of
        float16 above -0.7; below, where results near 0 have finer steps, it is several. Unlike the
        reference's, it takes the sum before that is rounded.
        """
        # PyTorch fuses where the bias [out] is contiguous and T, in and out are all more than 1;
        # elsewhere a kernel of its own does the same.
        if bias is None or x.dtype not in (torch.float16, torch.bfloat16):
            return super().linear_gelu(x, weight, bias)
        return torch._addmm_activation(bias.to(x.dtype), x, weight.to(x.dtype).t(), use_gelu=True)

    def head(self, x: Tensor, weight: Tensor) -> Tensor:
        if linear.supports(x, weight):
            return linear.linear(x.contiguous(), weight, out_dtype=torch.float32)
        if few_rows.supports(x, weight):
            return few_rows.linear(x.contiguous(), weight, self._few_rows, out_dtype=torch.float32)
        count = len(x)
        if more := head_rows(count) - count:
            x = F.pad(x, (0, 0, 0, more))
        if x.dtype == torch.float32:
            return F.linear(x, weight.float())[:count]
        return torch.mm(x, weight.t(), out_dtype=torch.float32)[:count]

    def norm_linear(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm: Tensor,
        eps: float,
        weight: Tensor,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if linear.supports(x, weight):
            return linear.norm_linear(x, residual, norm, eps, weight, bias)
        return super().norm_linear(x, residual, norm, eps, weight, bias)

    def norm_gated_linear(
        self, x: Tensor, residual: Tensor | None, norm: Tensor, eps: float, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        if linear.supports(x, weight):
            return linear.norm_gated_linear(x, residual, norm, eps, weight)
        if few_rows.supports(x, weight):
            normed, total = self.rms_norm(x, norm, eps, residual)
            return few_rows.linear(normed, weight, self._few_rows, is_gated=True), total
        return super().norm_gated_linear(x, residual, norm, eps, weight)

    def embed(
        self, token_ids: Tensor, table: Tensor, last_ids: Tensor | None, sources: Tensor | None
    ) -> Tensor:
        if last_ids is None or sources is None:
            return F.embedding(token_ids, table)
        return pointwise.embed(token_ids, table, last_ids, sources)

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return pointwise.rms_norm(x, weight, eps, residual)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return pointwise.layer_norm(x, weight, bias, eps)

    def add_layer_norm(
        self,
        x: Tensor,
        branch: Tensor,
        scale: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        return pointwise.add_layer_norm(x, branch, scale, weight, bias, eps)

    def quick_gelu(self, x: Tensor) -> Tensor:
        return pointwise.quick_gelu(x)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return pointwise.silu_mul(gate_up)

    def rotary_angles(self, positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
        return pointwise.rotary_angles(positions, inv_freq)

    def dense_attention(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)

    def decode_parts(
        self, seq_lens: Tensor, config: DecoderConfig, pages: KVPages, dtype: torch.dtype
    ) -> Tensor | None:
        if not len(seq_lens) or not self.can_record(config, pages, dtype):
            return None
        return decode_parts(
            seq_lens, config.num_heads, config.num_kv_heads, config.head_dim, dtype, pages.bits,
            self._workspace,
        )  # fmt: skip

    def attend(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        pages: KVPages,
        step: StepInput,
        scale: float,
    ) -> Tensor:
        """One kernel for the sequences that bring one token, two for the chunks of the others."""
        num_tokens, num_heads, head_dim = qkv.shape
        num_kv_heads = pages.keys.shape[2]
        num_heads -= 2 * num_kv_heads
        if not supports(head_dim, qkv.dtype, pages.bits, num_heads // num_kv_heads):
            return super().attend(qkv, cos, sin, pages, step, scale)
        count = step.num_decodes
        out = qkv.new_empty(num_tokens, num_heads, head_dim)
        if count:
            assert step.parts is not None, "decode_parts was asked"
            decode_attend(
                qkv[:count], cos[:count], sin[:count], pages, step.slots[:count],
                step.seq_lens[:count], step.block_tables[:count], step.parts, scale,
                self._workspace, out[:count],
            )  # fmt: skip
        if count < num_tokens:
            query, _ = kv_store.rotate_and_store(
                qkv[count:], cos[count:], sin[count:], pages, step.slots[count:]
            )
            prefill_attention(
                query, pages, step.cu_seqlens_q[count:], step.seq_lens[count:],
                step.block_tables[count:], step.max_seqlen_q, scale, count, out[count:],
            )  # fmt: skip
        return out

    def paged_attention(
        self, query: Tensor, pages: KVPages, step: StepInput, scale: float
    ) -> Tensor:
        group = query.shape[1] // pages.keys.shape[2]
        if not supports(query.shape[2], query.dtype, pages.bits, group):
            return super().paged_attention(query, pages, step, scale)
        return prefill_attention(
            query, pages, step.cu_seqlens_q, step.seq_lens, step.block_tables, step.max_seqlen_q,
            scale,
        )  # fmt: skip

    def argmax(self, logits: Tensor) -> Tensor:
        return sampling.argmax(logits)

    def draw(self, logits: Tensor, how: DrawInput) -> Tensor:
        return sampling.draw(logits, how)
