"""The one vision tower: InternViT and CLIP differ by numbers, scales, a norm and an activation.

Pixels in, one row for each patch out. What a projector makes of the rows is in the family's file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from shuzhai.config import VisionConfig
from shuzhai.kernels.base import Kernels, add_branch
from shuzhai.layers import LayerNorm, Linear


def vit_shapes(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a tower by its own name here, with its shape."""
    n, wide = config.hidden_size, config.intermediate_size
    is_internvl = config.family == "internvl"
    num_positions = config.patches_per_side**2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "class": (n,),
        "positions": (num_positions, n),
        "patch": (n, 3 * config.patch_size**2),
    }
    shapes |= {"patch_bias": (n,)} if is_internvl else {"pre_norm": (n,), "pre_norm_bias": (n,)}
    for i in range(config.num_layers):
        linears = {"qkv": (3 * n, n), "out": (n, n), "fc1": (wide, n), "fc2": (n, wide)}
        layer: dict[str, tuple[int, ...]] = dict(linears)
        layer |= {f"{name}_bias": shape[:1] for name, shape in linears.items()}
        for norm in ("norm1", "norm2"):
            layer |= {norm: (n,), f"{norm}_bias": (n,)}
        if is_internvl:
            layer |= {"scale1": (n,), "scale2": (n,)}
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def stretching(config: VisionConfig) -> Callable[[Tensor], Tensor]:
    """From the position embeddings of a checkpoint, [..., P + 1, n], to the tower's own.

    The first one, of the class, stays; the others are stretched as pictures are, by bicubic
    interpolation.
    """
    there, here = config.position_side, config.patches_per_side

    def stretch(positions: Tensor) -> Tensor:
        positions = positions.flatten(0, -2)
        if there == here:
            return positions
        grid = positions[1:].float().t().view(1, -1, there, there)
        grid = F.interpolate(grid, size=(here, here), mode="bicubic", align_corners=False)
        return torch.cat([positions[:1].float(), grid.flatten(2)[0].t()])

    return stretch


class _Layer:
    """One block: attention and a feed-forward, each behind its norm and, in InternViT, scaled.

    An addition happens in the norm behind it, so that a block hands on what the next one adds.
    """

    def __init__(
        self, config: VisionConfig, kernels: Kernels, weights: Mapping[str, Tensor], prefix: str
    ) -> None:
        def linear(name: str) -> Linear:
            return Linear(kernels, weights[prefix + name], weights[f"{prefix}{name}_bias"])

        def norm(name: str) -> LayerNorm:
            bias = weights[f"{prefix}{name}_bias"]
            return LayerNorm(kernels, weights[prefix + name], bias, config.layer_norm_eps)

        self._kernels = kernels
        self._is_internvl = config.family == "internvl"
        self._num_heads = config.num_heads
        self._norm1, self._norm2 = norm("norm1"), norm("norm2")
        self._qkv, self._out = linear("qkv"), linear("out")
        self._fc1, self._fc2 = linear("fc1"), linear("fc2")
        self._scale1, self._scale2 = weights.get(prefix + "scale1"), weights.get(prefix + "scale2")

    def __call__(
        self, x: Tensor, branch: Tensor | None, scale: Tensor | None, num_tiles: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of x + branch * scale, [N * S, n] of N tiles of S positions: such a sum in its parts.

        branch None: nothing to add; scale [n] None: as it is
        """
        normed, x = self._norm1.after_adding(x, branch, scale)
        attended = self._attention(normed, num_tiles)
        normed, x = self._norm2.after_adding(x, attended, self._scale1)
        return x, self._feed_forward(normed), self._scale2

    def _attention(self, x: Tensor, num_tiles: int) -> Tensor:
        qkv = self._qkv(x).view(num_tiles, -1, 3, self._num_heads, x.shape[1] // self._num_heads)
        q, k, v = qkv.unbind(2)  # [N, S, H, D] each
        attended = self._kernels.dense_attention(q, k, v, q.shape[-1] ** -0.5)
        return self._out(attended.reshape(x.shape))

    def _feed_forward(self, x: Tensor) -> Tensor:
        if self._is_internvl:
            return self._fc2(self._fc1.gelu(x))
        return self._fc2(self._kernels.quick_gelu(self._fc1(x)))


class Vit:
    """`weights` as vit_shapes names and shapes them."""

    def __init__(
        self, config: VisionConfig, kernels: Kernels, weights: Mapping[str, Tensor]
    ) -> None:
        self._config = config
        patch = weights["patch"]
        self._dtype = kernels.encoder_dtype(patch.dtype)
        self._patch = Linear(kernels, patch, weights.get("patch_bias"))
        self._class, self._positions = weights["class"], weights["positions"]
        self._pre_norm: LayerNorm | None = None
        if "pre_norm" in weights:
            self._pre_norm = LayerNorm(
                kernels, weights["pre_norm"], weights["pre_norm_bias"], config.layer_norm_eps
            )
        self._layers = [
            _Layer(config, kernels, weights, f"layers.{i}.") for i in range(config.num_layers)
        ]
        self._mean, self._std = (
            torch.tensor(v, device=patch.device) for v in (config.mean, config.std)
        )

    def __call__(self, pixels: Tensor) -> Tensor:
        """[N, size, size, 3] uint8 -> [N, P, n]: a row for each of P patches, row-major.

        The class position takes part, and is left out at the end.
        """
        patches = self._patch(self._patches(pixels))  # [N * P, n]
        num_tiles = pixels.shape[0]
        x = patches.view(num_tiles, -1, patches.shape[1])
        x = torch.cat([self._class.to(x.dtype).expand(num_tiles, 1, -1), x], 1)
        x = (x + self._positions.to(x.dtype)).flatten(0, 1)
        if self._pre_norm is not None:
            x = self._pre_norm(x)
        branch: Tensor | None = None
        scale: Tensor | None = None
        for layer in self._layers:
            x, branch, scale = layer(x, branch, scale, num_tiles)
        if branch is not None:
            x = add_branch(x, branch, scale)
        return x.view(num_tiles, -1, x.shape[1])[:, 1:]

    def _patches(self, pixels: Tensor) -> Tensor:
        """Normalised and cut: [N * P, 3 * p * p], the numbers of a patch as a convolution's weight
        has them, channel by channel."""
        side, p = self._config.patches_per_side, self._config.patch_size
        x = ((pixels.float() / 255 - self._mean) / self._std).to(self._dtype)
        x = x[:, : side * p, : side * p]
        x = x.view(-1, side, p, side, p, 3).permute(0, 1, 3, 5, 2, 4)
        return x.reshape(-1, 3 * p * p)
