"""From the files of a checkpoint to the tensors of a model; every name is accounted for.

Nothing in a checkpoint is executed: safetensors hold numbers only, and `.bin` files go through
`torch.load(weights_only=True)`. Peak host memory: the model's own tensors and one of the file's,
beside pages of the file that the system may take back. A `.bin` from before PyTorch 1.6 is read as
a whole, and goes as the model's own tensors come.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shuzhai.checkpoint import CheckpointConfig, TowerHints, read_json
from shuzhai.config import ModelConfig
from shuzhai.errors import CheckpointError
from shuzhai.models.decoder import decoder_shapes
from shuzhai.models.internvl import internvl_names, internvl_shapes
from shuzhai.models.names import Placement, decoder_names
from shuzhai.models.xcomposer2 import (
    XCOMPOSER2_UNUSED,
    xcomposer2_config,
    xcomposer2_names,
    xcomposer2_shapes,
)

# Index and files of the two ways in which checkpoints hold tensors.
_SAFETENSORS = ("model.safetensors.index.json", "model*.safetensors")
_BIN = ("pytorch_model.bin.index.json", "pytorch_model*.bin")


# The tensors of a model, by part: "decoder" and, where it has one, "vision".
Weights = dict[str, dict[str, Tensor]]


def read_model_config(folder: Path, checkpoint: CheckpointConfig) -> ModelConfig:
    """What the engine runs; where the config leaves it open, the tensors are looked at."""
    if not isinstance(checkpoint.vision, TowerHints):
        return ModelConfig(checkpoint.decoder, checkpoint.vision)
    try:
        return xcomposer2_config(checkpoint.decoder, checkpoint.vision, read_shapes(folder))
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def model_shapes(model: ModelConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shape of every tensor, by part."""
    shapes = {"decoder": decoder_shapes(model.decoder)}
    if model.vision is not None:
        build = internvl_shapes if model.vision.family == "internvl" else xcomposer2_shapes
        shapes["vision"] = build(model.vision, model.decoder.hidden_size)
    return shapes


def num_parameters(model: ModelConfig) -> int:
    """How many numbers the weights of a model are."""
    return sum(math.prod(s) for part in model_shapes(model).values() for s in part.values())


def _names(model: ModelConfig) -> dict[str, tuple[str, Placement]]:
    """Part and place of each tensor, by its name in the checkpoint."""
    prefix = _decoder_prefix(model)
    names = {prefix + n: ("decoder", place) for n, place in decoder_names(model.decoder).items()}
    if model.vision is not None:
        build = internvl_names if model.vision.family == "internvl" else xcomposer2_names
        names |= {name: ("vision", place) for name, place in build(model.vision).items()}
    return names


def _decoder_prefix(model: ModelConfig) -> str:
    return "language_model." if model.vision and model.vision.family == "internvl" else ""


def load_weights(
    folder: Path,
    model: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> Weights:
    """The model's tensors from a checkpoint folder, in `dtype` on `device`.

    progress is called with the bytes placed so far. CheckpointError names the tensor that is
    missing, left over, of a wrong shape or of a type that is not implemented.
    """
    names = _names(model)
    weights = {
        part: {n: torch.empty(s, dtype=dtype, device=device) for n, s in shapes.items()}
        for part, shapes in model_shapes(model).items()
    }
    prefix = _decoder_prefix(model)
    tied = model.decoder.tie_word_embeddings
    tied_names = {prefix + "output.weight", prefix + "lm_head.weight"} if tied else set()
    waiting = dict(names)
    placed_bytes = 0
    heads: list[Tensor] = []
    for name, tensor in read_tensors(folder):
        # `.bin` files name a tied embedding twice.
        if name in tied_names:
            heads.append(tensor)
            continue
        # Old Llama checkpoints carry this buffer; it is computed from the config.
        if name.endswith("rotary_emb.inv_freq") or name in XCOMPOSER2_UNUSED:
            continue
        if name not in waiting:
            known = "comes twice" if name in names else "is not part of this architecture"
            raise CheckpointError(f"{folder}: tensor {name} {known}")
        part, place = waiting.pop(name)
        placed_bytes += _place(folder, name, tensor, place, weights[part])
        if progress is not None:
            progress(placed_bytes)
    if waiting:
        missing = sorted(waiting)
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(f"{folder}: missing tensors {', '.join(missing[:3])}{more}")
    embedding = weights["decoder"]["embedding"]
    if any(not torch.equal(head.to(embedding), embedding) for head in heads):
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
    expected = rows.shape if placement.shape is None else placement.shape
    if tensor.shape != expected:
        raise CheckpointError(
            f"{folder}: tensor {name} has shape {list(tensor.shape)}, "
            f"but config.json asks for {list(expected)}"
        )
    if placement.reorder is not None:
        tensor = placement.reorder(tensor)
    rows.copy_(tensor.reshape(rows.shape))
    return rows.numel() * rows.element_size()


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) of a checkpoint folder, one by one: safetensors, else `.bin` files."""
    if files := _shards(folder, *_SAFETENSORS):
        for file in files:
            with _open_safetensors(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    yield name, tensors.get_tensor(name)
        return
    if files := _shards(folder, *_BIN):
        for file in files:
            yield from _read_bin(file)
        return
    raise CheckpointError(f"{folder} has neither model*.safetensors nor pytorch_model*.bin")


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a checkpoint folder; the numbers themselves are not read."""
    files = _shards(folder, *_SAFETENSORS)
    if not files:
        return {name: tuple(tensor.shape) for name, tensor in read_tensors(folder)}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with _open_safetensors(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                shapes[name] = tuple(tensors.get_slice(name).get_shape())
    return shapes


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


@contextmanager
def _open_safetensors(file: Path) -> Iterator[safe_open]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
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
    for name in list(tensors):
        tensor = tensors.pop(name)  # what was in memory as a whole goes as the model's own come
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{file}: {name!r} is not a tensor")
        yield name, tensor


def random_weights(model: ModelConfig, dtype: torch.dtype, device: torch.device) -> Weights:
    """Weights of the right shapes for measuring speed: one block of noise, repeated."""
    generator = torch.Generator().manual_seed(0)
    noise = (torch.randn(2**22, generator=generator) * 0.02).to(dtype).to(device)
    weights: Weights = {}
    for part, shapes in model_shapes(model).items():
        weights[part] = {}
        for name, shape in shapes.items():
            tensor = torch.empty(shape, dtype=dtype, device=device)
            if name.endswith(("norm", "norm1", "norm2")):
                tensor.fill_(1.0)
            else:
                for piece in tensor.flatten().split(noise.numel()):
                    piece.copy_(noise[: piece.numel()])
            weights[part][name] = tensor
    return weights
