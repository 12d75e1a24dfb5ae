"""InternVL: InternViT, pixel shuffle and a projector; and how its tensors are named."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from shuzhai.config import VisionConfig
from shuzhai.kernels.base import Kernels
from shuzhai.layers import LayerNorm, Linear
from shuzhai.models.names import Placement
from shuzhai.models.vit import Vit, stretching, vit_shapes

# The projector's norm is PyTorch's default one, whatever the tower's.
_PROJECTOR_EPS = 1e-5


def internvl_shapes(config: VisionConfig, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """The tensors of tower and projector by their own names here; hidden_size is the decoder's."""
    wide = config.hidden_size * config.downsample**2
    projector: dict[str, tuple[int, ...]] = {
        "project_norm": (wide,),
        "project_norm_bias": (wide,),
        "project1": (hidden_size, wide),
        "project1_bias": (hidden_size,),
        "project2": (hidden_size, hidden_size),
        "project2_bias": (hidden_size,),
    }
    return vit_shapes(config) | projector


def internvl_names(config: VisionConfig) -> dict[str, Placement]:
    """Where the tensors of a checkpoint go."""
    n, p, tower = config.hidden_size, config.patch_size, "vision_model.embeddings."
    positions = (1, config.position_side**2 + 1, n)
    names = {
        tower + "class_embedding": Placement("class", shape=(1, 1, n)),
        tower + "position_embedding": Placement(
            "positions", shape=positions, reorder=stretching(config)
        ),
        tower + "patch_embedding.weight": Placement("patch", shape=(n, 3, p, p)),
        tower + "patch_embedding.bias": Placement("patch_bias"),
    }
    linears = {"attn.qkv": "qkv", "attn.proj": "out", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}
    for i in range(config.num_layers):
        there, here = f"vision_model.encoder.layers.{i}.", f"layers.{i}."
        for theirs, ours in {**linears, "norm1": "norm1", "norm2": "norm2"}.items():
            names[f"{there}{theirs}.weight"] = Placement(here + ours)
            names[f"{there}{theirs}.bias"] = Placement(f"{here}{ours}_bias")
        for scale in "12":
            names[f"{there}ls{scale}"] = Placement(f"{here}scale{scale}")
    for theirs, ours in {
        "mlp1.0": "project_norm",
        "mlp1.1": "project1",
        "mlp1.3": "project2",
    }.items():
        names[theirs + ".weight"] = Placement(ours)
        names[theirs + ".bias"] = Placement(ours + "_bias")
    return names


class InternVLEncoder:
    """Tiles to rows of the decoder; `weights` as internvl_shapes names and shapes them."""

    def __init__(
        self, config: VisionConfig, kernels: Kernels, weights: Mapping[str, Tensor]
    ) -> None:
        self._config = config
        self._vit = Vit(config, kernels, weights)
        self._norm = LayerNorm(
            kernels, weights["project_norm"], weights["project_norm_bias"], _PROJECTOR_EPS
        )
        self._project1 = Linear(kernels, weights["project1"], weights["project1_bias"])
        self._project2 = Linear(kernels, weights["project2"], weights["project2_bias"])

    def __call__(self, pixels: Tensor) -> Tensor:
        """[N, size, size, 3] uint8 -> [N * tokens_per_tile, hidden_size of the decoder]"""
        x = pixel_shuffle(self._vit(pixels), self._config.downsample).flatten(0, 1)
        return self._project2(self._project1.gelu(self._norm(x)))


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """Each square of f x f patches becomes a row: [N, P, n] -> [N, P / f², n f²].

    Its channels are those of the patches one after the other, row by row (version 2).
    """
    num_tiles, num_patches, n = x.shape
    side = round(num_patches**0.5) // factor
    x = x.view(num_tiles, side, factor, side, factor, n).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(num_tiles, side * side, factor * factor * n)
