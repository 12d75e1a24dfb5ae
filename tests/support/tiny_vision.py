"""Tiny checkpoints of the two vision models with random weights, in the formats of the originals.

What they say is noise, but the picture matters to it: its rows are as large as those of the text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.tiny import (
    CONTROL,
    TinyShape,
    internlm2_config,
    internlm2_tensors,
    write_json,
    write_tokenizer,
)

PATCH = 14
CLIP_HEAD_DIM = 64
IMAGE_TOKENS = (
    "<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>",
)  # fmt: skip
PLORA_LINEARS = ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w3",
                 "feed_forward.w2")  # fmt: skip


@dataclass(frozen=True)
class TinyInternVL2:
    """Sizes of an InternVL2: tiles of 28 px are one token, of 56 px four."""

    text: TinyShape = field(default_factory=TinyShape)
    tile_size: int = 28
    hidden_size: int = 32
    intermediate_size: int = 48
    num_layers: int = 2
    num_heads: int = 4
    max_tiles: int = 12
    use_thumbnail: bool = True


@dataclass(frozen=True)
class TinyXComposer2:
    """Sizes of an XComposer2: a picture of 56 px is 16 tokens. Heads of the tower are 64 wide.

    ranks   of the partial LoRA on wqkv, wo, w1, w3 and w2
    unused  with tensors that some checkpoints hold and no model reads
    """

    text: TinyShape = field(default_factory=TinyShape)
    image_size: int = 56
    hidden_size: int = 64
    intermediate_size: int = 96
    num_layers: int = 2
    ranks: tuple[int, int, int, int, int] = (8, 8, 8, 8, 8)
    unused: bool = False


def write_internvl2(
    folder: Path,
    shape: TinyInternVL2 = TinyInternVL2(),
    *,
    seed: int = 0,
    shards: int = 1,
    as_bin: bool = False,
    **config: Any,
) -> Path:
    """Write a whole InternVL2 folder; `config` is added to config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = _add_image_tokens(folder, write_tokenizer(folder))
    noise = _Noise(seed)
    text = noise.spread_norms(internlm2_tensors(shape.text, vocab_size, seed))
    tensors = {"language_model." + name: tensor for name, tensor in text.items()}
    tensors |= _intern_vit(shape, noise) | _internvl2_projector(shape, noise)
    write_weights(folder, tensors, shards=shards, as_bin=as_bin)
    write_json(folder / "config.json", _internvl2_config(shape, vocab_size) | config)
    im_end = vocab_size - len(IMAGE_TOKENS) - len(CONTROL)
    write_json(folder / "generation_config.json", {"eos_token_id": [im_end, im_end + 1]})
    write_json(
        folder / "preprocessor_config.json",
        {
            "crop_size": shape.tile_size,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "resample": 3,
            "size": shape.tile_size,
        },
    )
    return folder


def write_xcomposer2(
    folder: Path,
    shape: TinyXComposer2 = TinyXComposer2(),
    *,
    seed: int = 0,
    shards: int = 1,
    as_bin: bool = False,
    **config: Any,
) -> Path:
    """Write a whole XComposer2 folder; `config` is added to config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    # Its turns are marked by pieces of the vocabulary: it adds no tokens.
    vocab_size = write_tokenizer(folder) - len(CONTROL)
    write_json(
        folder / "tokenizer_config.json",
        {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "</s>",
            "tokenizer_class": "InternLMXComposer2Tokenizer",
            "unk_token": "<unk>",
        },
    )
    noise = _Noise(seed)
    tensors = noise.spread_norms(internlm2_tensors(shape.text, vocab_size, seed))
    tensors |= _plora(shape, tensors, noise) | _clip(shape, noise)
    for i, columns in ((0, shape.hidden_size), (2, shape.text.hidden_size)):
        tensors |= noise.linear(f"vision_proj.{i}", shape.text.hidden_size, columns)
    write_weights(folder, tensors, shards=shards, as_bin=as_bin)
    write_json(folder / "config.json", _xcomposer2_config(shape, vocab_size) | config)
    write_json(
        folder / "generation_config.json",
        {"bos_token_id": 1, "eos_token_id": 2, "max_length": 4096, "pad_token_id": 2},
    )
    return folder


def write_weights(
    folder: Path, tensors: dict[str, Tensor], *, shards: int = 1, as_bin: bool = False
) -> None:
    """One file, or several with an index, as safetensors or as pickles."""
    stem, kind = ("pytorch_model", "bin") if as_bin else ("model", "safetensors")
    weight_map = {}
    for i in range(shards):
        part = {name: t for k, (name, t) in enumerate(tensors.items()) if k % shards == i}
        file = f"{stem}.{kind}" if shards == 1 else f"{stem}-{i + 1:05}-of-{shards:05}.{kind}"
        weight_map |= dict.fromkeys(part, file)
        if as_bin:
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file)
    if shards > 1:
        write_json(folder / f"{stem}.{kind}.index.json", {"metadata": {}, "weight_map": weight_map})


class _Noise:
    """Random tensors, scaled so that what goes through them keeps its size."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed + 1000)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=self._generator)

    def matrix(self, rows: int, columns: int) -> Tensor:
        return self.normal(rows, columns, scale=columns**-0.5)

    def linear(self, name: str, rows: int, columns: int) -> dict[str, Tensor]:
        return {
            f"{name}.weight": self.matrix(rows, columns),
            f"{name}.bias": self.normal(rows, scale=0.3),
        }

    def norm(self, name: str, size: int) -> dict[str, Tensor]:
        return {
            f"{name}.weight": 1 + self.normal(size, scale=0.3),
            f"{name}.bias": self.normal(size, scale=0.3),
        }

    def spread_norms(self, text: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors with norms that differ, so that none can stand in for another."""
        return {
            name: t * (1 + self.normal(*t.shape, scale=0.3)) if name.endswith("norm.weight") else t
            for name, t in text.items()
        }


def _add_image_tokens(folder: Path, size: int) -> int:
    """added_tokens.json and the same in tokenizer_config.json; the new size of the vocabulary."""
    added = {token: size + i for i, token in enumerate(IMAGE_TOKENS)}
    write_json(folder / "added_tokens.json", added)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["added_tokens_decoder"] |= {
        str(i): {"content": token, "special": True} for token, i in added.items()
    }
    config["additional_special_tokens"] = [*CONTROL[::-1], *IMAGE_TOKENS]
    write_json(path, config)
    return size + len(IMAGE_TOKENS)


def _intern_vit(shape: TinyInternVL2, noise: _Noise) -> dict[str, Tensor]:
    n, wide = shape.hidden_size, shape.intermediate_size
    positions = (shape.tile_size // PATCH) ** 2 + 1
    embeddings = "vision_model.embeddings."
    tensors = {
        embeddings + "class_embedding": noise.normal(1, 1, n),
        embeddings + "position_embedding": noise.normal(1, positions, n, scale=0.5),
        embeddings + "patch_embedding.weight": _patch_embedding(n, noise),
        embeddings + "patch_embedding.bias": noise.normal(n, scale=0.3),
    }
    for i in range(shape.num_layers):
        layer = f"vision_model.encoder.layers.{i}."
        tensors |= noise.norm(layer + "norm1", n) | noise.norm(layer + "norm2", n)
        tensors |= noise.linear(layer + "attn.qkv", 3 * n, n)
        tensors |= noise.linear(layer + "attn.proj", n, n)
        tensors |= noise.linear(layer + "mlp.fc1", wide, n)
        tensors |= noise.linear(layer + "mlp.fc2", n, wide)
        tensors[layer + "ls1"] = 1 + noise.normal(n, scale=0.3)
        tensors[layer + "ls2"] = 1 + noise.normal(n, scale=0.3)
    return tensors


def _internvl2_projector(shape: TinyInternVL2, noise: _Noise) -> dict[str, Tensor]:
    hidden, n = shape.text.hidden_size, 4 * shape.hidden_size
    return (
        noise.norm("mlp1.0", n)
        | noise.linear("mlp1.1", hidden, n)
        | noise.linear("mlp1.3", hidden, hidden)
    )


def _clip(shape: TinyXComposer2, noise: _Noise) -> dict[str, Tensor]:
    n, wide = shape.hidden_size, shape.intermediate_size
    positions = (shape.image_size // PATCH) ** 2 + 1
    tower = "vit.vision_tower.vision_model."
    tensors = {
        tower + "embeddings.class_embedding": noise.normal(n),
        tower + "embeddings.position_embedding.weight": noise.normal(positions, n, scale=0.5),
        tower + "embeddings.patch_embedding.weight": _patch_embedding(n, noise),
    }
    tensors |= noise.norm(tower + "pre_layrnorm", n)
    for i in range(shape.num_layers):
        layer = f"{tower}encoder.layers.{i}."
        tensors |= noise.norm(layer + "layer_norm1", n) | noise.norm(layer + "layer_norm2", n)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors |= noise.linear(f"{layer}self_attn.{name}", n, n)
        tensors |= noise.linear(layer + "mlp.fc1", wide, n)
        tensors |= noise.linear(layer + "mlp.fc2", n, wide)
    if shape.unused:
        tensors |= noise.norm(tower + "post_layernorm", n)
        tensors[tower + "embeddings.position_ids"] = torch.arange(positions)[None]
    return tensors


def _patch_embedding(rows: int, noise: _Noise) -> Tensor:
    return noise.matrix(rows, 3 * PATCH * PATCH).view(rows, 3, PATCH, PATCH)


def _plora(shape: TinyXComposer2, text: dict[str, Tensor], noise: _Noise) -> dict[str, Tensor]:
    tensors = {}
    for i in range(shape.text.num_layers):
        for linear, rank in zip(PLORA_LINEARS, shape.ranks, strict=True):
            name = f"model.layers.{i}.{linear}"
            rows, columns = text[name + ".weight"].shape
            tensors[name + ".Plora_A.weight"] = noise.matrix(rank, columns)
            tensors[name + ".Plora_B.weight"] = noise.matrix(rows, rank)
    return tensors


def _internvl2_config(shape: TinyInternVL2, vocab_size: int) -> dict[str, Any]:
    return {
        "architectures": ["InternVLChatModel"],
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": shape.tile_size,
        "llm_config": internlm2_config(shape.text, vocab_size)
        | {
            "attn_implementation": "flash_attention_2",
            "model_type": "internlm2",
            "rope_scaling": {"factor": 2.0, "type": "dynamic"},
            "rope_theta": 1000000,
        },
        "max_dynamic_patch": shape.max_tiles,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internlm2-chat",
        "torch_dtype": "float32",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": shape.use_thumbnail,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "attention_dropout": 0.0,
            "drop_path_rate": 0.0,
            "dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_size": shape.hidden_size,
            "image_size": shape.tile_size,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "intermediate_size": shape.intermediate_size,
            "layer_norm_eps": 1e-6,
            "model_type": "intern_vit_6b",
            "norm_type": "layer_norm",
            "num_attention_heads": shape.num_heads,
            "num_channels": 3,
            "num_hidden_layers": shape.num_layers,
            "patch_size": PATCH,
            "qk_normalization": False,
            "qkv_bias": True,
            "use_flash_attn": True,
        },
    }


def _xcomposer2_config(shape: TinyXComposer2, vocab_size: int) -> dict[str, Any]:
    return internlm2_config(shape.text, vocab_size) | {
        "architectures": ["InternLMXComposer2ForCausalLM"],
        "img_size": shape.image_size,
        "max_length": 4096,
        "model_type": "internlmxcomposer2",
        "rope_scaling": {"factor": 2.0, "type": "dynamic"},
        "rope_theta": 1000000,
    }
