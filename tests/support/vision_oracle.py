"""The two vision models once more, slowly and in float64, straight from a checkpoint's files.

It shares no code with the package: what both compute is right, or both are wrong in the same way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
NO_TOKEN = -1  # the id at positions of pictures where the model has no token for them


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, in float64."""
    weights: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        if file.name != "tensors.safetensors":
            weights |= load_file(file)
    for file in folder.glob("*.bin"):
        weights |= torch.load(file, weights_only=True)
    return {name: tensor.double() for name, tensor in weights.items()}


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


class Oracle:
    """What a model of either kind answers."""

    def __init__(self, folder: Path) -> None:
        self.weights = read_weights(folder)
        config = read_json(folder / "config.json")
        self.is_internvl = config["architectures"] == ["InternVLChatModel"]
        self.image_token = NO_TOKEN
        if self.is_internvl:
            self.image_token = read_json(folder / "added_tokens.json")["<IMG_CONTEXT>"]
        self.vision_config = config.get("vision_config", {})
        self.text_config = config.get("llm_config", config)
        self._prefix = "language_model." if self.is_internvl else ""

    def vision_rows(self, tiles: np.ndarray) -> Tensor:
        """uint8 [tiles, S, S, 3] -> [tiles, tokens, n]: a picture as rows of the decoder."""
        mean, std = IMAGENET if self.is_internvl else CLIP
        values = torch.from_numpy(np.array(tiles)).double() / 255
        pixels = (values - torch.tensor(mean).double()) / torch.tensor(std).double()
        pixels = pixels.permute(0, 3, 1, 2)
        return self._internvl_rows(pixels) if self.is_internvl else self._xcomposer_rows(pixels)

    def _internvl_rows(self, pixels: Tensor) -> Tensor:
        w = self.weights
        x = self._intern_vit(pixels)[:, 1:]
        side = math.isqrt(x.shape[1])
        x = x.view(x.shape[0], side, side, -1)
        corners = [x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        x = torch.cat(corners, dim=-1).flatten(1, 2)
        x = F.layer_norm(x, x.shape[-1:], w["mlp1.0.weight"], w["mlp1.0.bias"], 1e-5)
        x = F.gelu(F.linear(x, w["mlp1.1.weight"], w["mlp1.1.bias"]))
        return F.linear(x, w["mlp1.3.weight"], w["mlp1.3.bias"])

    def _intern_vit(self, pixels: Tensor) -> Tensor:
        w, config = self.weights, self.vision_config
        heads, eps = config["num_attention_heads"], config["layer_norm_eps"]
        name = "vision_model.embeddings."
        x = F.conv2d(
            pixels,
            w[name + "patch_embedding.weight"],
            w[name + "patch_embedding.bias"],
            stride=config["patch_size"],
        )
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([w[name + "class_embedding"].expand(len(x), 1, -1), x], dim=1)
        x = x + w[name + "position_embedding"]
        for i in range(config["num_hidden_layers"]):
            layer = f"vision_model.encoder.layers.{i}."
            y = self._layer_norm(layer + "norm1", x, eps)
            q, k, v = self._linear(layer + "attn.qkv", y).chunk(3, dim=-1)
            y = self._linear(layer + "attn.proj", attend_to_all(q, k, v, heads))
            x = x + w[layer + "ls1"] * y
            y = F.gelu(self._linear(layer + "mlp.fc1", self._layer_norm(layer + "norm2", x, eps)))
            x = x + w[layer + "ls2"] * self._linear(layer + "mlp.fc2", y)
        return x

    def _xcomposer_rows(self, pixels: Tensor) -> Tensor:
        x = self._clip(pixels)[:, 1:]
        return self._linear("vision_proj.2", F.gelu(self._linear("vision_proj.0", x)))

    def _clip(self, pixels: Tensor) -> Tensor:
        w, tower = self.weights, "vit.vision_tower.vision_model."
        name = tower + "embeddings."
        patches = w[name + "patch_embedding.weight"]
        x = F.conv2d(pixels, patches, stride=patches.shape[-1]).flatten(2).transpose(1, 2)
        x = torch.cat([w[name + "class_embedding"].expand(len(x), 1, -1), x], dim=1)
        x = self._layer_norm(tower + "pre_layrnorm", x + w[name + "position_embedding.weight"])
        i = 0
        while f"{tower}encoder.layers.{i}.layer_norm1.weight" in w:
            layer = f"{tower}encoder.layers.{i}."
            y = self._layer_norm(layer + "layer_norm1", x)
            q, k, v = (self._linear(f"{layer}self_attn.{c}_proj", y) for c in "qkv")
            y = attend_to_all(q, k, v, heads=x.shape[-1] // 64)
            x = x + self._linear(layer + "self_attn.out_proj", y)
            y = self._linear(layer + "mlp.fc1", self._layer_norm(layer + "layer_norm2", x))
            x = x + self._linear(layer + "mlp.fc2", y * torch.sigmoid(1.702 * y))
            i += 1
        return x

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])

    def _layer_norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        weight, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def logits(self, token_ids: Sequence[int], rows: Tensor | None = None) -> Tensor:
        """[T, vocab] for T ids; `rows` [I, n] stand at the first I ids of pictures.

        Where a model has a token for them, its answer may hold that token as a word.
        """
        w, config, prefix = self.weights, self.text_config, self._prefix
        ids = torch.tensor(token_ids)
        is_image = torch.zeros(len(ids), dtype=torch.bool)
        if rows is not None:
            is_image[(ids == self.image_token).nonzero()[: len(rows), 0]] = True
        x = w[prefix + "model.tok_embeddings.weight"][ids.masked_fill(is_image, 0)]
        if rows is not None:
            x[is_image] = rows.double()
        assert len(ids) <= config["max_position_embeddings"], "positions are stretched beyond it"
        cos, sin = rotations(len(ids), head_dim(config), config["rope_theta"])
        for i in range(config["num_hidden_layers"]):
            layer = f"{prefix}model.layers.{i}."
            y = self._rms_norm(layer + "attention_norm", x)
            x = x + self._attention(layer + "attention.", y, is_image, cos, sin)
            y = self._rms_norm(layer + "ffn_norm", x)
            gate = self._plora(layer + "feed_forward.w1", y, is_image)
            up = self._plora(layer + "feed_forward.w3", y, is_image)
            x = x + self._plora(layer + "feed_forward.w2", F.silu(gate) * up, is_image)
        return self._rms_norm(prefix + "model.norm", x) @ w[prefix + "output.weight"].T

    def _attention(
        self, name: str, x: Tensor, is_image: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """Causal. The rows of wqkv are groups: some query heads, then their key, then its value."""
        heads, kv_heads = (
            self.text_config[f"num_{kind}_heads"] for kind in ("attention", "key_value")
        )
        per_group, dim = heads // kv_heads, head_dim(self.text_config)
        groups = self._plora(name + "wqkv", x, is_image).view(len(x), kv_heads, per_group + 2, dim)
        outputs = []
        for head in range(heads):
            group = groups[:, head // per_group]
            q = rotate(group[:, head % per_group], cos, sin)
            k, v = rotate(group[:, -2], cos, sin), group[:, -1]
            scores = q @ k.T / math.sqrt(dim)
            future = torch.ones_like(scores, dtype=torch.bool).triu(1)
            outputs.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v)
        return self._plora(name + "wo", torch.cat(outputs, dim=-1), is_image)

    def _plora(self, name: str, x: Tensor, is_image: Tensor) -> Tensor:
        """A linear layer, with its low-rank addition on the rows of pictures if it has one."""
        w = self.weights
        y = F.linear(x, w[name + ".weight"], w.get(name + ".bias"))
        if name + ".Plora_A.weight" in w:
            addition = x @ w[name + ".Plora_A.weight"].T @ w[name + ".Plora_B.weight"].T
            y = y + is_image[:, None] * addition
        return y

    def _rms_norm(self, name: str, x: Tensor) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + self.text_config["rms_norm_eps"]).rsqrt()
        return x * scale * self.weights[name + ".weight"]


def attend_to_all(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of every row of a tile to all of its rows: [tiles, rows, n] each."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def head_dim(config: dict) -> int:
    return config["hidden_size"] // config["num_attention_heads"]


def rotations(length: int, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [length, dim], the two halves of dim alike."""
    frequencies = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.cos()] * 2, dim=-1), torch.cat([angles.sin()] * 2, dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + dim / 2) of each row by its angles."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
