"""From the files of a checkpoint to the tensors of a decoder; every name is accounted for.

Nothing in a checkpoint is executed: safetensors hold numbers only, and `.bin` files go through
`torch.load(weights_only=True)`. Peak host memory: the decoder's own tensors and one of the file's.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shuzhai.config import DecoderConfig, read_json
from shuzhai.errors import CheckpointError
from shuzhai.models.decoder import decoder_shapes


@dataclass(frozen=True, slots=True)
class Placement:
    """A checkpoint tensor is `rows` rows of `target` from `start` on (None: all of it)."""

    target: str
    start: int = 0
    rows: int | None = None
    reorder: Callable[[Tensor], Tensor] | None = None


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
    return _existing(config, names)


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
    return _existing(config, names)


def _existing(config: DecoderConfig, names: Mapping[str, Placement]) -> dict[str, Placement]:
    """Without the tensors that this decoder does not have: biases, the head of a tied embedding."""
    shapes = decoder_shapes(config)
    return {name: place for name, place in names.items() if place.target in shapes}


def load_decoder(
    folder: Path,
    config: DecoderConfig,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """The decoder's tensors from a checkpoint folder, in `dtype` on `device`.

    progress is called with the bytes placed so far. CheckpointError names the tensor that is
    missing, left over, of a wrong shape or of a type that is not implemented.
    """
    build = _internlm2_names if config.layout == "internlm2" else _llama_names
    names = build(config)  # where each tensor goes, by its name in the checkpoint
    weights = {
        name: torch.empty(shape, dtype=dtype, device=device)
        for name, shape in decoder_shapes(config).items()
    }
    waiting = dict(names)
    placed_bytes = 0
    heads: list[Tensor] = []
    for name, tensor in read_tensors(folder):
        # `.bin` files name a tied embedding twice.
        if config.tie_word_embeddings and name in ("output.weight", "lm_head.weight"):
            heads.append(tensor)
            continue
        # Old Llama checkpoints carry this buffer; it is computed from the config.
        if name.endswith("rotary_emb.inv_freq"):
            continue
        if name not in waiting:
            known = "comes twice" if name in names else "is not part of this architecture"
            raise CheckpointError(f"{folder}: tensor {name} {known}")
        placed_bytes += _place(folder, name, tensor, waiting.pop(name), weights)
        if progress is not None:
            progress(placed_bytes)
    if waiting:
        missing = sorted(waiting)
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(f"{folder}: missing tensors {', '.join(missing[:3])}{more}")
    if any(not torch.equal(head.to(weights["embedding"]), weights["embedding"]) for head in heads):
        raise CheckpointError(
            f"{folder}: tie_word_embeddings is set, but the head is not the embedding"
        )
    return weights


def _place(
    folder: Path, name: str, tensor: Tensor, placement: Placement, weights: Mapping[str, Tensor]
) -> int:
    """Copy one tensor to its rows; the number of bytes written."""
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise CheckpointError(f"{folder}: tensor {name} is of type {tensor.dtype}, not a float")
    rows = weights[placement.target]
    if placement.rows is not None:
        rows = rows[placement.start : placement.start + placement.rows]
    if rows.shape != tensor.shape:
        raise CheckpointError(
            f"{folder}: tensor {name} has shape {list(tensor.shape)}, "
            f"but config.json asks for {list(rows.shape)}"
        )
    rows.copy_(tensor if placement.reorder is None else placement.reorder(tensor))
    return rows.numel() * rows.element_size()


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) of a checkpoint folder, one by one: safetensors, else `.bin` files."""
    if files := _shards(folder, "model.safetensors.index.json", "model*.safetensors"):
        for file in files:
            yield from _read_safetensors(file)
        return
    if files := _shards(folder, "pytorch_model.bin.index.json", "pytorch_model*.bin"):
        for file in files:
            yield from _read_bin(file)
        return
    raise CheckpointError(f"{folder} has neither model*.safetensors nor pytorch_model*.bin")


def _shards(folder: Path, index: str, pattern: str) -> list[Path]:
    if not (folder / index).exists():
        return sorted(folder.glob(pattern))
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{folder / index}: weight_map must map tensors to files")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(f"{folder / index}: shard {name!r} is not in the folder")
    return [folder / name for name in names]


def _read_safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                yield name, tensors.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged: {error}; fetch it again") from error


def _read_bin(file: Path) -> Iterator[tuple[str, Tensor]]:
    is_zip = zipfile.is_zipfile(file)  # what torch has written since 1.6; only that can be mapped
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n", 1)[0]
        raise CheckpointError(
            f"{file} is damaged or holds more than tensors, and was not loaded: {reason}"
        ) from error
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{file} must hold a dictionary of tensors")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{file}: {name!r} is not a tensor")
        yield name, tensor


def random_decoder(
    config: DecoderConfig, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Weights of the right shapes for measuring speed: one block of noise, repeated."""
    generator = torch.Generator().manual_seed(0)
    noise = (torch.randn(2**22, generator=generator) * 0.02).to(dtype).to(device)
    weights = {}
    for name, shape in decoder_shapes(config).items():
        tensor = torch.empty(shape, dtype=dtype, device=device)
        if name.endswith("norm"):
            tensor.fill_(1.0)
        else:
            for part in tensor.flatten().split(noise.numel()):
                part.copy_(noise[: part.numel()])
        weights[name] = tensor
    return weights
