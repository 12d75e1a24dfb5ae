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

    def gelu(self, x: Tensor) -> Tensor:
        """[T, in] -> gelu(y) [T, out], of a layer without LoRA."""
        assert self._lora is None, "a partial LoRA is added before the activation"
        return self._kernels.linear_gelu(x, self.weight, self.bias)

    def is_plain(self, image_rows: Tensor | None) -> bool:
        """y = x W^T for these rows of pictures, with nothing to add."""
        return self.bias is None and (self._lora is None or image_rows is None)

    def after(
        self, norm: RMSNorm, x: Tensor, residual: Tensor | None, image_rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Of the normalised x + residual [T, in]: (y [T, out], x + residual)."""
        if self._lora is None or image_rows is None:
            return self._kernels.norm_linear(
                x, residual, norm.weight, norm.eps, self.weight, self.bias
            )
        normed, total = norm(x, residual)
        return self(normed, image_rows), total


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
        """[T, n] -> [T, n]"""
        return self._kernels.layer_norm(x, self.weight, self.bias, self.eps)

    def after_adding(
        self, x: Tensor, branch: Tensor | None, scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Of x + branch * scale, [T, n] and scale [n], where there are: (normalised, sum)."""
        if branch is None:
            return self(x), x
        return self._kernels.add_layer_norm(x, branch, scale, self.weight, self.bias, self.eps)


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

    def __init__(self, config: DecoderConfig, kernels: Kernels, device: torch.device) -> None:
        self._kernels = kernels
        self._dim = config.head_dim
        self._base = config.rope_theta
        self._max_position = config.max_position_embeddings
        self._exponents = torch.arange(0, self._dim, 2, dtype=torch.int64, device=device).float()
        scaling = config.rope_scaling
        self._dynamic_factor = scaling.factor if scaling and scaling.kind == "dynamic" else None
        self._divisor = scaling.factor if scaling and scaling.kind == "linear" else 1.0
        self._inv_freq = 1.0 / self._base ** (self._exponents / self._dim)  # [D/2]

    def __call__(self, step: StepInput) -> tuple[Tensor, Tensor]:
        """cos and sin of the step's tokens, [T, D/2] float32 each."""
        inv_freq = self._inv_freq
        if step.rope_lengths is not None:
            inv_freq = self._stretched(step.rope_lengths)
        positions = step.positions
        if self._divisor != 1.0:
            positions = positions.float() / self._divisor
        return self._kernels.rotary_angles(positions, inv_freq)

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

    def __init__(
        self, kernels: Kernels, config: DecoderConfig, norm: RMSNorm, qkv: Linear, out: Linear
    ) -> None:
        self._kernels = kernels
        self._head_dim = config.head_dim
        self._norm = norm
        self._qkv = qkv
        self._out = out

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        pages: KVPages,
        step: StepInput,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """[T, n] -> [T, n] and x + residual; writes the step's keys and values into the pages.

        rows [R]: those to go on with, none of them a picture's; None: all
        """
        qkv, residual = self._qkv.after(self._norm, x, residual, step.image_rows)
        heads = qkv.view(x.shape[0], -1, self._head_dim)  # [T, H + 2K, D]
        attended = self._kernels.attend(heads, cos, sin, pages, step, self._head_dim**-0.5)
        attended = attended.flatten(1)
        if rows is not None:
            return self._out(attended[rows]), residual[rows]
        return self._out(attended, step.image_rows), residual


class GatedFeedForward:
    """silu(gate) * up, then down, behind a norm (arXiv:2002.05202)."""

    def __init__(self, kernels: Kernels, norm: RMSNorm, gate_up: Linear, down: Linear) -> None:
        self._kernels = kernels
        self._norm = norm
        self._gate_up = gate_up
        self._down = down

    def __call__(
        self, x: Tensor, residual: Tensor, image_rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """[T, n] -> [T, n] and x + residual."""
        norm, gate_up = self._norm, self._gate_up
        if gate_up.is_plain(image_rows):
            hidden, residual = self._kernels.norm_gated_linear(
                x, residual, norm.weight, norm.eps, gate_up.weight
            )
        else:
            wide, residual = gate_up.after(norm, x, residual, image_rows)
            hidden = self._kernels.silu_mul(wide)
        return self._down(hidden, image_rows), residual
