"""Make an InternLM2 checkpoint folder of a Llama-style GGUF file.

What the two formats share is the mathematics; names, row order and packing differ:

- llama.cpp stores the rows of q and k so that rotary pairs lie side by side; InternLM2, like
  Hugging Face's Llama, rotates halves. The rows are put back.
- InternLM2 keeps q, k and v in one matrix: for each kv head its query heads, then k, then v.
- Weights are dequantised to float16. A tied embedding is written twice.

Strict: a tensor or a number in the file that this code does not use is an error that names it.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file

from shuzhai.errors import CheckpointError
from shuzhai.hub.gguf_tokenizer import read_vocabulary, write_tokenizer
from shuzhai.hub.progress import Progress

T = TypeVar("T", int, float, str)

# The template that SmolLM2 was trained with.
TEMPLATE = "smollm2-chat"

_USED = (
    "llama.block_count", "llama.context_length", "llama.embedding_length",
    "llama.feed_forward_length", "llama.attention.head_count", "llama.attention.head_count_kv",
    "llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base",
    "llama.rope.dimension_count", "llama.vocab_size",
)  # fmt: skip

# What a damaged file makes the reader, or numpy below it, raise.
_DAMAGE = (ValueError, IndexError, KeyError, OverflowError, TypeError, struct.error, MemoryError)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The sizes of a Llama-style decoder, as its GGUF gives them."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float


class _Gguf:
    """Typed access to a GGUF file: names what is missing or has the wrong type or shape."""

    def __init__(self, path: Path) -> None:
        try:
            self._reader = GGUFReader(path)
            self.fields = {name: field.contents() for name, field in self._reader.fields.items()}
        except (*_DAMAGE, OSError) as error:
            raise CheckpointError(f"{path.name} is damaged or no GGUF file: {error}") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._path = path

    def value(self, key: str, kind: type[T], default: T | None = None) -> T:
        value = self.fields.get(key, default)
        if type(value) is not kind:
            raise CheckpointError(f"{self._path.name}: {key} must be a {kind.__name__}")
        return value

    def has(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str, *shape: int) -> npt.NDArray[np.float32]:
        """A tensor in float32, [out, in]. Each can be taken once; see `finish`."""
        tensor = self._tensors.pop(name, None)
        if tensor is None:
            raise CheckpointError(f"{self._path.name}: the tensor {name} is missing")
        found = tuple(int(n) for n in reversed(tensor.shape))
        if found != shape:
            raise CheckpointError(f"{self._path.name}: {name} is {found}, not {shape}")
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
            return np.ascontiguousarray(values, dtype=np.float32).reshape(shape)
        except (*_DAMAGE, NotImplementedError) as error:
            raise CheckpointError(f"{self._path.name}: {name} cannot be read: {error}") from error

    def finish(self) -> None:
        """Every tensor was used, or it is an error."""
        if self._tensors:
            raise CheckpointError(
                f"{self._path.name}: the tensor {min(self._tensors)} is not implemented"
            )


def convert(path: Path, folder: Path, name: str, progress: Progress) -> None:
    """Write the checkpoint into `folder`, which exists.

    CheckpointError when the file is damaged or holds what is not implemented. Memory: the
    float16 weights about twice, and one layer in float32.
    """
    progress.begin(f"Reading {name}", None)
    gguf = _Gguf(path)
    numbers = _read_numbers(gguf)
    vocabulary = read_vocabulary(gguf.fields, path.name)
    vocab_size = len(vocabulary.tokens)
    if gguf.value("llama.vocab_size", int, vocab_size) != vocab_size:
        raise CheckpointError(f"{path.name}: vocab_size and the list of tokens differ")
    weights = _read_weights(gguf, numbers, vocab_size, name, progress)
    gguf.finish()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # the library makes it the owner's alone
    write_tokenizer(vocabulary, numbers.max_position_embeddings, folder)
    _write_json(
        folder / "config.json",
        {
            "architectures": ["InternLM2ForCausalLM"],
            "bias": False,
            "bos_token_id": vocabulary.bos_id,
            "eos_token_id": vocabulary.eos_id,
            "hidden_act": "silu",
            "hidden_size": numbers.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": numbers.intermediate_size,
            "max_position_embeddings": numbers.max_position_embeddings,
            "model_type": "internlm2",
            "num_attention_heads": numbers.num_heads,
            "num_hidden_layers": numbers.num_layers,
            "num_key_value_heads": numbers.num_kv_heads,
            "pad_token_id": vocabulary.pad_id,
            "rms_norm_eps": numbers.rms_norm_eps,
            "rope_scaling": None,
            "rope_theta": numbers.rope_theta,
            "template": TEMPLATE,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "use_cache": True,
            "vocab_size": vocab_size,
        },
    )
    _write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": vocabulary.bos_id,
            "eos_token_id": vocabulary.stop_ids,
            "pad_token_id": vocabulary.pad_id,
        },
    )


def unpermute(weight: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    """Rows of q or k [heads * D, in] from llama.cpp's order (pairs) to halves."""
    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _read_numbers(gguf: _Gguf) -> _Numbers:
    architecture = gguf.value("general.architecture", str)
    if architecture != "llama":
        raise CheckpointError(f"GGUF architecture {architecture!r} is not implemented (only llama)")
    for key in gguf.fields:
        if key.startswith("llama.") and key not in _USED:
            raise CheckpointError(f"GGUF key {key} is not implemented")
    numbers = _Numbers(
        num_layers=gguf.value("llama.block_count", int),
        hidden_size=gguf.value("llama.embedding_length", int),
        intermediate_size=gguf.value("llama.feed_forward_length", int),
        num_heads=(heads := gguf.value("llama.attention.head_count", int)),
        num_kv_heads=gguf.value("llama.attention.head_count_kv", int, heads),
        head_dim=gguf.value("llama.embedding_length", int) // max(heads, 1),
        max_position_embeddings=gguf.value("llama.context_length", int),
        rms_norm_eps=_shortest(gguf.value("llama.attention.layer_norm_rms_epsilon", float)),
        rope_theta=_shortest(gguf.value("llama.rope.freq_base", float, 10000.0)),
    )
    sound = (
        min(numbers.num_layers, numbers.hidden_size, numbers.intermediate_size) > 0
        and min(heads, numbers.num_kv_heads, numbers.max_position_embeddings) > 0
        and heads % numbers.num_kv_heads == 0
        and numbers.head_dim % 2 == 0
        and numbers.head_dim * heads == numbers.hidden_size
        and gguf.value("llama.rope.dimension_count", int, numbers.head_dim) == numbers.head_dim
        and 0 < numbers.rms_norm_eps < 1
        and 0 < numbers.rope_theta < np.inf
    )
    if not sound:
        raise CheckpointError(f"the sizes in the GGUF do not fit together: {numbers}")
    return numbers


def _read_weights(
    gguf: _Gguf, numbers: _Numbers, vocab_size: int, name: str, progress: Progress
) -> dict[str, npt.NDArray[np.float16]]:
    """All weights under InternLM2's names, in float16."""
    hidden, inter = numbers.hidden_size, numbers.intermediate_size
    weights: dict[str, npt.NDArray[np.float16]] = {}
    layer_size = hidden * (2 * hidden + 2 * numbers.num_kv_heads * numbers.head_dim + 3 * inter)
    total = 2 * (numbers.num_layers * layer_size + 2 * vocab_size * hidden)
    progress.begin(f"Converting {name}", total)

    def put(target: str, values: npt.NDArray[np.float32]) -> None:
        with np.errstate(over="ignore"):
            weights[target] = values.astype(np.float16)
        if not np.isfinite(weights[target]).all():
            raise CheckpointError(f"{target} has values that float16 cannot hold")
        if values.ndim == 2:
            progress.advance(weights[target].nbytes)

    embedding = gguf.take("token_embd.weight", vocab_size, hidden)
    put("model.tok_embeddings.weight", embedding)
    if gguf.has("output.weight"):
        embedding = gguf.take("output.weight", vocab_size, hidden)
    put("output.weight", embedding)
    put("model.norm.weight", gguf.take("output_norm.weight", hidden))
    for i in range(numbers.num_layers):
        source, target = f"blk.{i}", f"model.layers.{i}"
        put(f"{target}.attention.wqkv.weight", _read_wqkv(gguf, numbers, source))
        for theirs, ours, *shape in (
            ("attn_output", "attention.wo", hidden, hidden),
            ("ffn_gate", "feed_forward.w1", inter, hidden),
            ("ffn_up", "feed_forward.w3", inter, hidden),
            ("ffn_down", "feed_forward.w2", hidden, inter),
            ("attn_norm", "attention_norm", hidden),
            ("ffn_norm", "ffn_norm", hidden),
        ):
            put(f"{target}.{ours}.weight", gguf.take(f"{source}.{theirs}.weight", *shape))
    return weights


def _read_wqkv(gguf: _Gguf, numbers: _Numbers, source: str) -> npt.NDArray[np.float32]:
    """q, k and v of a layer as InternLM2's one matrix [(H + 2 K) * D, in]."""
    heads, kv_heads, hidden = numbers.num_heads, numbers.num_kv_heads, numbers.hidden_size
    kv_rows = kv_heads * numbers.head_dim
    q = unpermute(gguf.take(f"{source}.attn_q.weight", hidden, hidden), heads)
    k = unpermute(gguf.take(f"{source}.attn_k.weight", kv_rows, hidden), kv_heads)
    v = gguf.take(f"{source}.attn_v.weight", kv_rows, hidden)
    per_kv_head = [part.reshape(kv_heads, -1, numbers.head_dim, hidden) for part in (q, k, v)]
    return np.concatenate(per_kv_head, axis=1).reshape(-1, hidden)


def _shortest(value: float) -> float:
    """The short decimal that was meant: GGUF's float32 1e-5 reads as 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
