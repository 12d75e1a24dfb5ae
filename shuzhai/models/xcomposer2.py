"""InternLM-XComposer2: CLIP, a projector, a partial LoRA; what its tensors are called and tell."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from torch import Tensor

from shuzhai.checkpoint import TowerHints
from shuzhai.config import DecoderConfig, LoraRanks, ModelConfig, VisionConfig
from shuzhai.errors import CheckpointError
from shuzhai.kernels.base import Kernels
from shuzhai.layers import Linear
from shuzhai.models.names import Placement
from shuzhai.models.vit import Vit, stretching, vit_shapes

_TOWER = "vit.vision_tower.vision_model."
_HEAD_SIZE = 64
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)

# In the checkpoint of the tower, but not used by the model.
XCOMPOSER2_UNUSED = (
    _TOWER + "embeddings.position_ids",
    _TOWER + "post_layernorm.weight",
    _TOWER + "post_layernorm.bias",
)


def xcomposer2_config(
    decoder: DecoderConfig, hints: TowerHints, shapes: Mapping[str, tuple[int, ...]]
) -> ModelConfig:
    """Complete the config by the shapes of the checkpoint's tensors; CheckpointError if one that
    must be there is not, or if they contradict the config."""

    def dims(name: str, count: int) -> tuple[int, ...]:
        shape = shapes.get(name)
        if shape is None or len(shape) != count:
            raise CheckpointError(
                f"tensor {name} must be there with {count} dimensions, not {shape}"
            )
        return shape

    def rank(linear: str) -> int:
        return dims(f"model.layers.0.{linear}.Plora_A.weight", 2)[0]

    ranks = LoraRanks(
        qkv=rank("attention.wqkv"),
        out=rank("attention.wo"),
        gate=rank("feed_forward.w1"),
        up=rank("feed_forward.w3"),
        down=rank("feed_forward.w2"),
    )
    hidden_size, _, patch_size, _ = dims(_TOWER + "embeddings.patch_embedding.weight", 4)
    positions, _ = dims(_TOWER + "embeddings.position_embedding.weight", 2)
    side = math.isqrt(positions - 1)
    heads = hints.num_heads or hidden_size // _HEAD_SIZE
    if side == 0 or side * side != positions - 1 or hints.image_size < patch_size:
        raise CheckpointError(
            f"{positions} position embeddings are not those of a square and one more, or a picture "
            f"of {hints.image_size} pixels is smaller than a patch of {patch_size}"
        )
    if heads == 0 or hidden_size % heads:
        raise CheckpointError(f"a tower {hidden_size} wide does not divide into {heads} heads")
    marker = ".layer_norm1.weight"
    vision = VisionConfig(
        family="xcomposer2",
        hidden_size=hidden_size,
        intermediate_size=dims(_TOWER + "encoder.layers.0.mlp.fc1.weight", 2)[0],
        num_layers=sum(name.startswith(_TOWER) and name.endswith(marker) for name in shapes),
        num_heads=heads,
        image_size=hints.image_size,
        patch_size=patch_size,
        position_side=side,
        layer_norm_eps=hints.layer_norm_eps,
        mean=_MEAN,
        std=_STD,
    )
    return ModelConfig(dataclasses.replace(decoder, lora=ranks), vision)


def xcomposer2_shapes(config: VisionConfig, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """The tensors of tower and projector by their own names here; hidden_size is the decoder's."""
    projector: dict[str, tuple[int, ...]] = {
        "project1": (hidden_size, config.hidden_size),
        "project1_bias": (hidden_size,),
        "project2": (hidden_size, hidden_size),
        "project2_bias": (hidden_size,),
    }
    return vit_shapes(config) | projector


def xcomposer2_names(config: VisionConfig) -> dict[str, Placement]:
    """Where the tensors of tower and projector go."""
    n, p = config.hidden_size, config.patch_size
    embeddings = _TOWER + "embeddings."
    names = {
        embeddings + "class_embedding": Placement("class"),
        embeddings + "position_embedding.weight": Placement(
            "positions", shape=(config.position_side**2 + 1, n), reorder=stretching(config)
        ),
        embeddings + "patch_embedding.weight": Placement("patch", shape=(n, 3, p, p)),
        _TOWER + "pre_layrnorm.weight": Placement("pre_norm"),
        _TOWER + "pre_layrnorm.bias": Placement("pre_norm_bias"),
    }
    linears = {
        "self_attn.out_proj": "out", "mlp.fc1": "fc1", "mlp.fc2": "fc2",
        "layer_norm1": "norm1", "layer_norm2": "norm2",
    }  # fmt: skip
    for i in range(config.num_layers):
        there, here = f"{_TOWER}encoder.layers.{i}.", f"layers.{i}."
        for theirs, ours in linears.items():
            names[f"{there}{theirs}.weight"] = Placement(here + ours)
            names[f"{there}{theirs}.bias"] = Placement(f"{here}{ours}_bias")
        for at, theirs in enumerate(("q_proj", "k_proj", "v_proj")):
            attention = f"{there}self_attn.{theirs}"
            names[attention + ".weight"] = Placement(here + "qkv", at * n, n)
            names[attention + ".bias"] = Placement(here + "qkv_bias", at * n, n)
    for theirs, ours in {"vision_proj.0": "project1", "vision_proj.2": "project2"}.items():
        names[theirs + ".weight"] = Placement(ours)
        names[theirs + ".bias"] = Placement(ours + "_bias")
    return names


class XComposer2Encoder:
    """Tiles to rows of the decoder; `weights` as xcomposer2_shapes names and shapes them."""

    def __init__(
        self, config: VisionConfig, kernels: Kernels, weights: Mapping[str, Tensor]
    ) -> None:
        self._vit = Vit(config, kernels, weights)
        self._project1 = Linear(kernels, weights["project1"], weights["project1_bias"])
        self._project2 = Linear(kernels, weights["project2"], weights["project2_bias"])

    def __call__(self, pixels: Tensor) -> Tensor:
        """[N, size, size, 3] uint8 -> [N * tokens_per_tile, hidden_size of the decoder]"""
        x = self._vit(pixels).flatten(0, 1)
        return self._project2(self._project1.gelu(x))
