"""Both models as trainable modules. Their tensors bear the names of the original checkpoints.

A decoder like InternLM2's; in front of it InternViT with pixel shuffle (InternVL2), or CLIP's tower
and a partial LoRA that acts on the positions of pictures (XComposer2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model. The embedding is also the head."""

    family: str
    vocab_size: int
    hidden_size: int = 192
    intermediate_size: int = 576
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 2
    rope_theta: float = 10000.0
    lora_rank: int = 32
    vit_hidden: int = 192
    vit_layers: int = 8
    vit_heads: int = 3
    vit_intermediate: int = 768
    image_size: int = 224
    patch_size: int = 14

    @property
    def is_internvl(self) -> bool:
        return self.family == "internvl2"

    @property
    def vit_eps(self) -> float:
        return 1e-6 if self.is_internvl else 1e-5

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RMS_EPS = 1e-5


class RMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, RMS_EPS)


class PartialLinear(nn.Linear):
    """A linear layer without bias, and with a partial LoRA if it has a rank."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        if rank:
            self.Plora_A = nn.Linear(inputs, rank, bias=False)
            self.Plora_B = nn.Linear(rank, outputs, bias=False)
        self._has_lora = rank > 0

    def forward(self, x: Tensor, is_image: Tensor) -> Tensor:
        """x [b, L, in], is_image [b, L, 1] of 0 and 1 -> [b, L, out]"""
        out = super().forward(x)
        return out + self.Plora_B(self.Plora_A(x)) * is_image if self._has_lora else out


class Attention(nn.Module):
    """Causal, heads grouped: for each kv head wqkv holds its query heads, its key, its value."""

    def __init__(self, shape: Shape, rank: int) -> None:
        super().__init__()
        self._kv_heads = shape.num_kv_heads
        self._group = shape.num_heads // shape.num_kv_heads
        self._dim = shape.hidden_size // shape.num_heads
        rows = (shape.num_heads + 2 * shape.num_kv_heads) * self._dim
        self.wqkv = PartialLinear(shape.hidden_size, rows, rank)
        self.wo = PartialLinear(shape.hidden_size, shape.hidden_size, rank)

    def forward(self, x: Tensor, is_image: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, length, n = x.shape
        qkv = self.wqkv(x, is_image).view(b, length, self._kv_heads, self._group + 2, self._dim)
        q, k, v = qkv.split([self._group, 1, 1], 3)
        q, k, v = (part.flatten(2, 3).transpose(1, 2) for part in (q, k, v))  # [b, H, L, D]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (part.repeat_interleave(self._group, 1) for part in (k, v))
        out = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True)
        return self.wo(out.transpose(1, 2).reshape(b, length, n), is_image)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Halves a, b of each head become a cos - b sin, b cos + a sin."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class FeedForward(nn.Module):
    def __init__(self, shape: Shape, rank: int) -> None:
        super().__init__()
        n, wide = shape.hidden_size, shape.intermediate_size
        self.w1 = PartialLinear(n, wide, rank)
        self.w3 = PartialLinear(n, wide, rank)
        self.w2 = PartialLinear(wide, n, rank)

    def forward(self, x: Tensor, is_image: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x, is_image)) * self.w3(x, is_image), is_image)


class DecoderLayer(nn.Module):
    def __init__(self, shape: Shape, rank: int) -> None:
        super().__init__()
        self.attention = Attention(shape, rank)
        self.feed_forward = FeedForward(shape, rank)
        self.attention_norm = RMSNorm(shape.hidden_size)
        self.ffn_norm = RMSNorm(shape.hidden_size)

    def forward(self, x: Tensor, is_image: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), is_image, cos, sin)
        return x + self.feed_forward(self.ffn_norm(x), is_image)


class DecoderStack(nn.Module):
    def __init__(self, shape: Shape, rank: int) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(shape, rank) for _ in range(shape.num_layers))
        self.norm = RMSNorm(shape.hidden_size)


class Decoder(nn.Module):
    """InternLM2 for causal language."""

    def __init__(self, shape: Shape, rank: int = 0) -> None:
        super().__init__()
        self.model = DecoderStack(shape, rank)
        self._dim = shape.hidden_size // shape.num_heads
        self._theta = shape.rope_theta

    def embed(self, ids: Tensor, image_rows: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """ids [b, L], places of pictures [I] and what stands there [I, n] -> x [b, L, n] and
        is_image [b, L, 1]"""
        table = self.model.tok_embeddings
        x = table(ids.clamp(max=table.num_embeddings - 1)).float()
        flat = x.flatten(0, 1).index_copy(0, image_rows, rows.float())
        mask = torch.zeros(len(flat), 1, device=ids.device)
        mask[image_rows] = 1
        return flat.view_as(x), mask.view(*ids.shape, 1)

    def forward(self, x: Tensor, is_image: Tensor) -> Tensor:
        """[b, L, n] -> [b, L, n], normalised for the head."""
        exponents = torch.arange(0, self._dim, 2, device=x.device).float() / self._dim
        angles = torch.arange(x.shape[1], device=x.device)[:, None] / self._theta**exponents
        cos, sin = angles.cos(), angles.sin()
        for layer in self.model.layers:
            x = layer(x, is_image, cos, sin)
        return self.model.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.model.tok_embeddings.weight)


class PatchEmbeddings(nn.Module):
    """Patches, a class and positions. The two formats shape and name them differently."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        n, p, count = shape.vit_hidden, shape.patch_size, shape.num_patches + 1
        self._is_internvl = shape.is_internvl
        self.patch_embedding = nn.Conv2d(3, n, p, p, bias=shape.is_internvl)
        if shape.is_internvl:
            self.class_embedding = nn.Parameter(torch.randn(1, 1, n) * 0.02)
            self.position_embedding = nn.Parameter(torch.randn(1, count, n) * 0.02)
        else:
            self.class_embedding = nn.Parameter(torch.randn(n) * 0.02)
            self.position_embedding = nn.Embedding(count, n)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(x), 1, -1).to(x.dtype)
        positions = self.position_embedding
        table = positions if isinstance(positions, nn.Parameter) else positions.weight
        return torch.cat([first, x], 1) + table


class FusedAttention(nn.Module):
    """InternViT's."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._heads = shape.vit_heads
        self.qkv = nn.Linear(shape.vit_hidden, 3 * shape.vit_hidden)
        self.proj = nn.Linear(shape.vit_hidden, shape.vit_hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(attend(*self.qkv(x).chunk(3, -1), self._heads))


class SeparateAttention(nn.Module):
    """CLIP's."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._heads = shape.vit_heads
        n = shape.vit_hidden
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(n, n) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.out_proj(attend(q, k, v, self._heads))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """All to all: [N, S, n] each, same out."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class VitMlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._is_internvl = shape.is_internvl
        self.fc1 = nn.Linear(shape.vit_hidden, shape.vit_intermediate)
        self.fc2 = nn.Linear(shape.vit_intermediate, shape.vit_hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(F.gelu(x) if self._is_internvl else x * torch.sigmoid(1.702 * x))


class InternVitLayer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        n = shape.vit_hidden
        self.norm1, self.norm2 = (nn.LayerNorm(n, eps=shape.vit_eps) for _ in range(2))
        self.attn, self.mlp = FusedAttention(shape), VitMlp(shape)
        self.ls1, self.ls2 = (nn.Parameter(torch.full((n,), 0.5)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x)) * self.ls1
        return x + self.mlp(self.norm2(x)) * self.ls2


class ClipLayer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        n = shape.vit_hidden
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(n, eps=shape.vit_eps) for _ in range(2))
        self.self_attn, self.mlp = SeparateAttention(shape), VitMlp(shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VitStack(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        layer = InternVitLayer if shape.is_internvl else ClipLayer
        self.layers = nn.ModuleList(layer(shape) for _ in range(shape.vit_layers))


class Vit(nn.Module):
    """Tiles [N, 3, size, size] from 0 to 1 -> patches [N, P, n]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embeddings = PatchEmbeddings(shape)
        if not shape.is_internvl:
            self.pre_layrnorm = nn.LayerNorm(shape.vit_hidden, eps=shape.vit_eps)
        self.encoder = VitStack(shape)
        self._is_internvl = shape.is_internvl
        mean, std = IMAGENET if shape.is_internvl else CLIP
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, tiles: Tensor, keep: Tensor | None = None) -> Tensor:
        """keep: [N, K] the only patches to be looked at, which spares time; out [N, K, n]"""
        x = self.embeddings((tiles.float() - self.mean) / self.std)
        if keep is not None:
            kept = x[:, 1:].gather(1, keep[:, :, None].expand(-1, -1, x.shape[2]))
            x = torch.cat([x[:, :1], kept], 1)
        if not self._is_internvl:
            x = self.pre_layrnorm(x)
        for layer in self.encoder.layers:
            x = layer(x)
        return x[:, 1:]


class InternVL2(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.vision_model = Vit(shape)
        wide, n = 4 * shape.vit_hidden, shape.hidden_size
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(wide), nn.Linear(wide, n), nn.GELU(), nn.Linear(n, n)
        )
        self.language_model = Decoder(shape)

    @property
    def tower(self) -> Vit:
        return self.vision_model

    @property
    def decoder(self) -> Decoder:
        return self.language_model

    def project(self, patches: Tensor) -> Tensor:
        """[N, P, n] -> [N, P / 4, hidden]: the four patches of a square become one row."""
        count, num_patches, n = patches.shape
        side = math.isqrt(num_patches) // 2
        x = patches.view(count, side, 2, side, 2, n).permute(0, 1, 3, 2, 4, 5)
        return self.mlp1(x.reshape(count, side * side, 4 * n))


class XComposer2(Decoder):
    """The decoder's tensors stand at the root."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape, shape.lora_rank)
        self.vit = nn.ModuleDict({"vision_tower": nn.ModuleDict({"vision_model": Vit(shape)})})
        n = shape.hidden_size
        self.vision_proj = nn.Sequential(nn.Linear(shape.vit_hidden, n), nn.GELU(), nn.Linear(n, n))

    @property
    def tower(self) -> Vit:
        return self.vit["vision_tower"]["vision_model"]

    @property
    def decoder(self) -> Decoder:
        return self

    def project(self, patches: Tensor) -> Tensor:
        return self.vision_proj(patches)


VisionLanguageModel = InternVL2 | XComposer2


def build(shape: Shape) -> VisionLanguageModel:
    """A model with fresh weights."""
    model = InternVL2(shape) if shape.is_internvl else XComposer2(shape)
    depth = 2 * max(shape.num_layers, shape.vit_layers)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            std = 0.02 if "embedding" in name else parameter.shape[1] ** -0.5
            if name.split(".")[-2] in ("wo", "w2", "proj", "out_proj", "fc2"):
                std /= depth**0.5
            nn.init.normal_(parameter, std=std)
        if "Plora_B" in name or name.endswith("bias"):
            nn.init.zeros_(parameter)
        if "position_embedding" in name:
            parameter.data.copy_(waves(shape).view_as(parameter))
    return model


def waves(shape: Shape) -> Tensor:
    """[1 + P, n]: sines and cosines of row and column, at half the size of what a patch shows: from
    random positions the tower learns slowly where things are."""
    side, quarter = math.isqrt(shape.num_patches), shape.vit_hidden // 4
    rates = 1 / 100 ** (torch.arange(quarter) / quarter)
    angles = torch.arange(side)[:, None] * rates
    wave = torch.cat([angles.sin(), angles.cos()], 1)  # [side, n / 2]
    rows = wave[:, None].expand(side, side, -1)
    columns = wave[None].expand(side, side, -1)
    grid = 0.5 * torch.cat([rows, columns], 2).flatten(0, 1)
    return torch.cat([torch.zeros(1, shape.vit_hidden), grid])
