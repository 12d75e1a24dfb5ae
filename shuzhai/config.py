"""What can be configured, and the numbers that describe a model.

An option that does not exist is an error that names it. No other file reads environment variables.
What a checkpoint's own files say is read in `checkpoint.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from shuzhai.errors import ConfigError

Language = Literal["en", "zh"]


@dataclass(frozen=True, slots=True)
class Environment:
    """The environment variables that shuzhai knows.

    home                 SHUZHAI_HOME: where models are kept; ~/.shuzhai by default
    api_key              SHUZHAI_API_KEY: clients of the server must send it
    hf_endpoint          HF_ENDPOINT: a mirror of huggingface.co
    modelscope_endpoint  MODELSCOPE_ENDPOINT: a mirror of modelscope.cn
    index_url            PIP_INDEX_URL, UV_DEFAULT_INDEX or UV_INDEX_URL: a mirror of PyPI
    ssh_connection       SSH_CONNECTION: the client's address and port, then this machine's
    user                 USER or LOGNAME
    language             of the terminal, by LC_ALL, LC_MESSAGES or LANG: Chinese or else English
    """

    home: Path
    api_key: str | None
    hf_endpoint: str | None
    modelscope_endpoint: str | None
    index_url: str | None
    ssh_connection: str = ""
    user: str = ""
    language: Language = "en"

    @property
    def in_ssh(self) -> bool:
        """The user's browser is on another machine."""
        return bool(self.ssh_connection)

    @classmethod
    def read(cls, env: Mapping[str, str] = os.environ) -> Environment:
        locale = env.get("LC_ALL") or env.get("LC_MESSAGES") or env.get("LANG") or ""
        return cls(
            home=Path(env.get("SHUZHAI_HOME") or "~/.shuzhai").expanduser(),
            api_key=env.get("SHUZHAI_API_KEY") or None,
            hf_endpoint=env.get("HF_ENDPOINT") or None,
            modelscope_endpoint=env.get("MODELSCOPE_ENDPOINT") or None,
            index_url=env.get("PIP_INDEX_URL")
            or env.get("UV_DEFAULT_INDEX")
            or env.get("UV_INDEX_URL"),
            ssh_connection=env.get("SSH_CONNECTION", ""),
            user=env.get("USER") or env.get("LOGNAME") or "",
            language="zh" if locale.lower().startswith("zh") else "en",
        )


_MOST_BYTES = 2**60
_UNITS = {
    "": 1, "k": 2**10, "m": 2**20, "g": 2**30, "kib": 2**10, "mib": 2**20, "gib": 2**30,
    "kb": 10**3, "mb": 10**6, "gb": 10**9,
}  # fmt: skip


def parse_bytes(text: str | int) -> int:
    """`8GiB` or `8G`, `500MB`, or a plain number of bytes, as an int; else ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg](?:i?b)?)?", str(text).strip().lower())
    if match is None:
        raise ConfigError(f"memory must be a size such as 8GiB, 500MB or bytes, not {text!r}")
    size = float(match[1]) * _UNITS[match[2] or ""]
    if size > _MOST_BYTES:
        raise ConfigError(f"memory is more than any machine has: {str(text)[:64]}")
    return int(size)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How an engine runs. Everything that can be computed is not asked for.

    device                  "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:1"
    dtype                   "float32", "bfloat16" or "float16", of weights and KV cache; "auto":
                            float32 on a CPU where it takes at most 1 GiB, else bfloat16, and
                            float16 on a GPU that has no bfloat16
    kv_dtype                of the KV cache: "auto" (that of the weights), "int8" or "int4"
    memory                  "auto", or bytes ("8GiB") for all that the process takes of the device
    max_model_len           longest sequence in tokens; None: the model's own limit
    max_num_seqs            sequences that run at a time; None: 64 on a CPU, 256 on a GPU
    max_num_batched_tokens  token budget of one step: longer prompts are run in chunks, so that
                            others' answers go on meanwhile; None: 256 on a CPU, 4096 on a GPU
    max_num_waiting         requests that may queue; one more is refused
    block_size              tokens in a KV block
    num_blocks              KV blocks; None: what the memory holds
    enable_prefix_caching   keep and share the KV blocks of equal prefixes
    """

    device: str = "auto"
    dtype: str = "auto"
    kv_dtype: str = "auto"
    memory: str | int = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_waiting: int = 1024
    block_size: int = 16
    num_blocks: int | None = None
    enable_prefix_caching: bool = True

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(self.device)):
            raise ConfigError(
                f"device {self.device!r} is not supported; use auto, cpu, cuda or cuda:N"
            )
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ConfigError(
                f"dtype {self.dtype!r} is unknown; use auto, float32, bfloat16 or float16"
            )
        if self.kv_dtype not in ("auto", "int8", "int4"):
            raise ConfigError(f"kv_dtype {self.kv_dtype!r} is unknown; use auto, int8 or int4")
        if self.memory != "auto":
            parse_bytes(self.memory)
        optional = ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "num_blocks")
        for name in (*optional, "max_num_waiting", "block_size"):
            value = getattr(self, name)
            if not (value is None and name in optional) and not (type(value) is int and value >= 1):
                raise ConfigError(f"{name} must be a whole number of 1 or more, not {value!r}")

    @property
    def kv_bits(self) -> int | None:
        """Of a number in the KV cache; None for that of the weights' type."""
        return {"int8": 8, "int4": 4}.get(self.kv_dtype)

    def resolved(self, device_type: str) -> EngineConfig:
        """With what is left to the device, "cpu" or "cuda", filled in."""
        seqs, tokens = (256, 4096) if device_type == "cuda" else (64, 256)
        return replace(
            self,
            max_num_seqs=self.max_num_seqs or seqs,
            max_num_batched_tokens=self.max_num_batched_tokens or tokens,
        )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> EngineConfig:
        """From keyword arguments; an unknown one is an error that lists the known ones."""
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(options) - set(known)):
            raise ConfigError(f"unknown option {unknown[0]!r}; known are {', '.join(known)}")
        return cls(**options)


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary positions stretch beyond the training length: "linear" or "dynamic" (NTK)."""

    kind: str
    factor: float


@dataclass(frozen=True, slots=True)
class LoraRanks:
    """Ranks of a partial LoRA, for each linear layer of a block."""

    qkv: int
    out: int
    gate: int
    up: int
    down: int


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The numbers of a text decoder, whatever family it is of.

    layout            how the checkpoint names its tensors: "internlm2" or "llama"
    attention_bias    biases on the attention's linear layers
    stop_ids          the ids that end a text (generation_config.json, else config.json)
    lora              ranks of the partial LoRA that acts on the rows of pictures, None without one
    """

    layout: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_position_embeddings: int
    attention_bias: bool
    tie_word_embeddings: bool
    dtype: str
    stop_ids: tuple[int, ...]
    lora: LoraRanks | None = None


# Of one picture: twice what the models' own evaluations go up to.
MAX_TILES = 64


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """How pictures become tiles for one model.

    tile_size        side of a tile in pixels
    max_tiles        1: every picture is resized to one square, its aspect not kept
    use_thumbnail    after more than one tile, the whole picture as one more
    has_video        the model was trained on frames, too
    """

    tile_size: int
    tokens_per_tile: int
    max_tiles: int
    min_tiles: int = 1
    use_thumbnail: bool = False
    has_video: bool = False


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The numbers of a vision tower and of the projector behind it.

    family         "internvl" (InternViT, pixel shuffle) or "xcomposer2" (CLIP)
    downsample     so many patches a side become one row of the decoder
    position_side  patches a side that the checkpoint has position embeddings for: stretched where
                   pictures have another number
    mean, std      of the channels, for pixel values from 0 to 1
    """

    family: Literal["internvl", "xcomposer2"]
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    layer_norm_eps: float
    position_side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    downsample: int = 1
    min_tiles: int = 1
    max_tiles: int = 1
    use_thumbnail: bool = False

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def tokens_per_tile(self) -> int:
        return (self.patches_per_side // self.downsample) ** 2

    @property
    def image_spec(self) -> ImageSpec:
        return ImageSpec(
            tile_size=self.image_size,
            tokens_per_tile=self.tokens_per_tile,
            max_tiles=self.max_tiles,
            min_tiles=self.min_tiles,
            use_thumbnail=self.use_thumbnail,
            has_video=self.family == "internvl",
        )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What an engine runs: a decoder, and a vision tower where the model has one."""

    decoder: DecoderConfig
    vision: VisionConfig | None = None
