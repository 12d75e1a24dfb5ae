"""What the tensors of a decoder are called in checkpoints, and where they go here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shuzhai.config import DecoderConfig
from shuzhai.models.decoder import decoder_shapes

# The linear layers of InternLM2 by their names here; XComposer2 has a partial LoRA next to each.
_LORA_NAMES = {
    "attention.wqkv": "qkv",
    "attention.wo": "out",
    "feed_forward.w1": "gate",
    "feed_forward.w3": "up",
    "feed_forward.w2": "down",
}


@dataclass(frozen=True, slots=True)
class Placement:
    """A checkpoint tensor is `rows` rows of `target` from `start` on (None: all of it).

    shape   its own, where it is another than that of the rows
    """

    target: str
    start: int = 0
    rows: int | None = None
    shape: tuple[int, ...] | None = None
    reorder: Callable[[Tensor], Tensor] | None = None


def decoder_names(config: DecoderConfig) -> dict[str, Placement]:
    """Where each tensor of the decoder goes, by its name in the checkpoint."""
    names = _internlm2_names(config) if config.layout == "internlm2" else _llama_names(config)
    # Without what this decoder does not have: biases, LoRA, the head of a tied embedding.
    shapes = decoder_shapes(config)
    return {name: place for name, place in names.items() if place.target in shapes}


def _internlm2_names(config: DecoderConfig) -> dict[str, Placement]:
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    wide = config.intermediate_size

    def ungroup(wqkv: Tensor) -> Tensor:
        """Rows per kv head [its query heads, key, value] -> all queries, all keys, all values."""
        groups = wqkv.view(kv_heads, heads // kv_heads + 2, dim, *wqkv.shape[1:])
        parts = groups[:, :-2], groups[:, -2], groups[:, -1]
        return torch.cat([part.reshape(-1, *wqkv.shape[1:]) for part in parts])

    names = {
        "model.tok_embeddings.weight": Placement("embedding"),
        "model.norm.weight": Placement("norm"),
        "output.weight": Placement("head"),
    }
    for i in range(config.num_layers):
        there, here = f"model.layers.{i}.", f"layers.{i}."
        names |= {
            there + "attention_norm.weight": Placement(here + "attention_norm"),
            there + "attention.wqkv.weight": Placement(here + "qkv", reorder=ungroup),
            there + "attention.wqkv.bias": Placement(here + "qkv_bias", reorder=ungroup),
            there + "attention.wo.weight": Placement(here + "out"),
            there + "attention.wo.bias": Placement(here + "out_bias"),
            there + "ffn_norm.weight": Placement(here + "ffn_norm"),
            there + "feed_forward.w1.weight": Placement(here + "gate_up", 0, wide),
            there + "feed_forward.w3.weight": Placement(here + "gate_up", wide, wide),
            there + "feed_forward.w2.weight": Placement(here + "down"),
        }
        for theirs, ours in _LORA_NAMES.items():
            reorder = ungroup if ours == "qkv" else None
            lora = f"{there}{theirs}.Plora_"
            names[lora + "A.weight"] = Placement(f"{here}{ours}_lora_down")
            names[lora + "B.weight"] = Placement(f"{here}{ours}_lora_up", reorder=reorder)
    return names


def _llama_names(config: DecoderConfig) -> dict[str, Placement]:
    wide = config.intermediate_size
    q_rows, kv_rows = (h * config.head_dim for h in (config.num_heads, config.num_kv_heads))
    names = {
        "model.embed_tokens.weight": Placement("embedding"),
        "model.norm.weight": Placement("norm"),
        "lm_head.weight": Placement("head"),
    }
    for i in range(config.num_layers):
        there, here = f"model.layers.{i}.", f"layers.{i}."
        attention = there + "self_attn."
        for kind in ("weight", "bias"):
            suffix = "_bias" if kind == "bias" else ""
            names |= {
                f"{attention}q_proj.{kind}": Placement(f"{here}qkv{suffix}", 0, q_rows),
                f"{attention}k_proj.{kind}": Placement(f"{here}qkv{suffix}", q_rows, kv_rows),
                f"{attention}v_proj.{kind}": Placement(
                    f"{here}qkv{suffix}", q_rows + kv_rows, kv_rows
                ),
                f"{attention}o_proj.{kind}": Placement(f"{here}out{suffix}"),
            }
        names |= {
            there + "input_layernorm.weight": Placement(here + "attention_norm"),
            there + "post_attention_layernorm.weight": Placement(here + "ffn_norm"),
            there + "mlp.gate_proj.weight": Placement(here + "gate_up", 0, wide),
            there + "mlp.up_proj.weight": Placement(here + "gate_up", wide, wide),
            there + "mlp.down_proj.weight": Placement(here + "down"),
        }
    return names
