"""The layers that models are made of: they hold weights and call kernels, and know no request."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shuzhai.config import DecoderConfig
from shuzhai.kernels.base import Kernels
from shuzhai.step import KVPages, StepInput


class Linear:
    """y = x W^T + b, with weight [out, in], and a partial LoRA where the model has one."""

    def __init__(
        self,
        kernels: Kernels,
        weight: Tensor,
        bias: Tensor | None = None,
        lora: PartialLora | None = None,
    ) -> None:
        self._kernels = kernels
        self.weight = weight
        self.bias = bias
        self._lora = lora

    def __call__(self, x: Tensor, image_rows: Tensor | None = None) -> Tensor:
        """[T, in] -> [T, out]; image_rows [I]: the rows on which a partial LoRA acts."""
        out = self._kernels.linear(x, self.weight, self.bias)
        return out if self._lora is None else self._lora(out, x, image_rows)


class PartialLora:
    """A low-rank addition to a linear layer that acts on the rows of pictures only.

    (XComposer2, arXiv:2401.16420.) Several parts where the layer's outputs are a concatenation,
    each with its place among them.
    """

    def __init__(self, kernels: Kernels, parts: Sequence[tuple[Tensor, Tensor, int]]) -> None:
        """parts: (down [rank, in], up [m, rank], first output)"""
        self._kernels = kernels
        self._parts = parts

    def __call__(self, out: Tensor, x: Tensor, rows: Tensor | None) -> Tensor:
        """Add to out [T, m], in place, for these rows of x [T, in]; None: no picture, no work."""
        if rows is not None:
            for down, up, first in self._parts:
                part = out[:, first : first + up.shape[0]]
                self._kernels.add_partial_lora(part, x, rows, down, up)
        return out


class LayerNorm:
    """Layer normalisation (arXiv:1607.06450)."""

    def __init__(self, kernels: Kernels, weight: Tensor, bias: Tensor, eps: float) -> None:
        self._kernels = kernels
        self.weight = weight
        self.bias = bias
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernels.layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm:
    """Root mean square normalisation (arXiv:1910.07467), fused with the residual addition."""

    def __init__(self, kernels: Kernels, weight: Tensor, eps: float) -> None:
        self._kernels = kernels
        self.weight = weight
        self.eps = eps

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[T, n] -> (normalised, x + residual)."""
        return self._kernels.rms_norm(x, self.weight, self.eps, residual)


class Rotary:
    """Rotary position embedding (arXiv:2104.09864), halves rotated, as Llama and InternLM2 do.

    Linear scaling divides positions. Dynamic NTK raises the base with the length L of the sequence
    once L exceeds the training length: base * (f * L / max - (f - 1)) ** (d / (d - 2)).
    """

    def __init__(self, config: DecoderConfig, device: torch.device) -> None:
        self._dim = config.head_dim
        self._base = config.rope_theta
        self._max_position = config.max_position_embeddings
        self._exponents = torch.arange(0, self._dim, 2, dtype=torch.int64, device=device).float()
        scaling = config.rope_scaling
        self._dynamic_factor = scaling.factor if scaling and scaling.kind == "dynamic" else None
        self._divisor = scaling.factor if scaling and scaling.kind == "linear" else 1.0
        self._inv_freq = 1.0 / self._base ** (self._exponents / self._dim)  # [D/2]

    def __call__(self, step: StepInput) -> tuple[Tensor, Tensor]:
        """cos and sin of the step's tokens, [T, 1, D] float32, in the form of Kernels.rotary."""
        inv_freq = self._inv_freq[None]
        if step.rope_lengths is not None:
            inv_freq = self._stretched(step.rope_lengths)
        angles = (step.positions.float() / self._divisor)[:, None] * inv_freq
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None]

    def _stretched(self, lengths: Tensor) -> Tensor:
        """Inverse frequencies [T, D/2] for sequences of these lengths [T]."""
        assert self._dynamic_factor is not None, "rope_lengths are for dynamic scaling only"
        f = self._dynamic_factor
        # In float64: the reference computes the base in Python's own arithmetic.
        stretch = (f * lengths.double() / self._max_position - (f - 1)).clamp(min=1.0)
        base = self._base * stretch ** (self._dim / (self._dim - 2))
        return 1.0 / base.float()[:, None] ** (self._exponents / self._dim)[None]


class PagedAttention:
    """Attention with grouped heads over paged keys and values, rotary positions included."""

    def __init__(self, kernels: Kernels, config: DecoderConfig, qkv: Linear, out: Linear) -> None:
        self._kernels = kernels
        self._num_heads, self._num_kv_heads = config.num_heads, config.num_kv_heads
        self._head_dim = config.head_dim
        self._qkv = qkv
        self._out = out

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, pages: KVPages, step: StepInput
    ) -> Tensor:
        """[T, n] -> [T, n]; writes the step's keys and values into the pages."""
        heads = self._qkv(x, step.image_rows).view(x.shape[0], -1, self._head_dim)  # [T, H + 2K, D]
        turning, v = heads.split([self._num_heads + self._num_kv_heads, self._num_kv_heads], 1)
        turned = self._kernels.rotary(turning, cos, sin)
        q, k = turned.split([self._num_heads, self._num_kv_heads], 1)
        self._kernels.store_kv(k, v, pages, step.slots)
        attended = self._kernels.paged_attention(q, pages, step, self._head_dim**-0.5)
        return self._out(attended.flatten(1), step.image_rows)
