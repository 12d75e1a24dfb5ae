"""What can be configured, and what a checkpoint's config.json says, both read strictly.

A key or value that the code does not implement is an error that names it: never a guess. No other
file reads environment variables.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from shuzhai.errors import CheckpointError, ConfigError

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


_UNITS = {"": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def parse_bytes(text: str | int) -> int:
    """`8GiB`, `500MB` or a plain number of bytes, as an int; ConfigError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?b)?", str(text).strip().lower())
    if match is None:
        raise ConfigError(f"memory must be a size such as 8GiB, 500MB or bytes, not {text!r}")
    return int(float(match[1]) * _UNITS[match[2] or ""])


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How an engine runs. Everything that can be computed is not asked for.

    device                  "auto" or "cpu"
    dtype                   "float32", "bfloat16" or "float16", of weights and KV cache; "auto":
                            float32 on a CPU where it takes at most 1 GiB, else bfloat16
    memory                  "auto", or bytes ("8GiB") for weights, KV cache and workspace together
    max_model_len           longest sequence in tokens; None: the model's own limit
    max_num_seqs            sequences that run at a time
    max_num_batched_tokens  token budget of one step: longer prompts are run in chunks, so that
                            others' answers go on meanwhile
    max_num_waiting         requests that may queue; one more is refused
    block_size              tokens in a KV block
    num_blocks              KV blocks; None: what the memory holds
    enable_prefix_caching   keep and share the KV blocks of equal prefixes
    """

    device: str = "auto"
    dtype: str = "auto"
    memory: str | int = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 256
    max_num_waiting: int = 1024
    block_size: int = 16
    num_blocks: int | None = None
    enable_prefix_caching: bool = True

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu"):
            raise ConfigError(f"device {self.device!r} is not supported; use auto or cpu")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ConfigError(
                f"dtype {self.dtype!r} is unknown; use auto, float32, bfloat16 or float16"
            )
        if self.memory != "auto":
            parse_bytes(self.memory)
        for name in (
            "max_num_seqs", "max_num_batched_tokens", "max_num_waiting", "block_size",
            "max_model_len", "num_blocks",
        ):  # fmt: skip
            value = getattr(self, name)
            optional = name in ("max_model_len", "num_blocks")
            if not (value is None and optional) and not (type(value) is int and value >= 1):
                raise ConfigError(f"{name} must be a whole number of 1 or more, not {value!r}")

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
class DecoderConfig:
    """The numbers of a text decoder, whatever family it is of.

    layout            how the checkpoint names its tensors: "internlm2" or "llama"
    attention_bias    biases on the attention's linear layers
    stop_ids          the ids that end a text (generation_config.json, else config.json)
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


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """config.json and generation_config.json of a checkpoint folder, checked.

    template   name of the chat template, where config.json gives one
    sampling   temperature, top_p, top_k, repetition_penalty, as far as the checkpoint gives them
    """

    decoder: DecoderConfig
    template: str | None
    sampling: Mapping[str, float]


# Keys that do not change what is computed here: notes, training, the publisher's own code.
_HARMLESS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _from_model_config
    _name_or_path add_cross_attention architectures attention_dropout attn_implementation
    auto_map bos_token_id chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping finetuning_task
    generation_config hidden_dropout_prob id2label initializer_range is_decoder
    is_encoder_decoder label2id length_penalty max_length max_new_tokens min_length model_type
    num_return_sequences output_attentions output_hidden_states output_scores pad_token_id
    prefix problem_type remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers_version
    unk_token_id use_bfloat16 use_cache
    """.split()
)

# Keys that would change the result; this code implements exactly these values of them.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "pretraining_tp": (1,),
    "mlp_bias": (False,),
    "sliding_window": (None,),
    "use_sliding_window": (False,),
    "pruned_heads": ({},),
    "quantization_config": (None,),
    "partial_rotary_factor": (1.0,),
    "is_llama_config": (True,),
    "rope_interleaved": (False,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "typical_p": (1.0,),
}

_ARCHITECTURES = {"InternLM2ForCausalLM": "internlm2", "LlamaForCausalLM": "llama"}


class _Reader:
    """Takes values out of one JSON object by name and type; what is left at the end is unknown."""

    def __init__(self, data: Mapping[str, Any], source: Path) -> None:
        self._data = dict(data)
        self._source = source

    def fail(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self._source}: {message}")

    def take(self, name: str, kind: type, default: Any = ...) -> Any:
        value = self._data.pop(name, None)
        if value is None:
            if default is ...:
                raise self.fail(f"{name} is missing")
            return default
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self.fail(f"{name} must be a {kind.__name__}, not {value!r}")
        return value

    def positive(self, name: str, kind: type = int, default: Any = ...) -> Any:
        value = self.take(name, kind, default)
        if not 0 < value < math.inf:
            raise self.fail(f"{name} must be above 0, not {value!r}")
        return value

    def ids(self, name: str) -> tuple[int, ...]:
        """One id, a list of them, or none."""
        value = self._data.pop(name, None)
        values = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(v) is int and v >= 0 for v in values):
            raise self.fail(f"{name} must be token ids, not {value!r}")
        return tuple(values)

    def finish(self) -> None:
        for name, value in self._data.items():
            if name in _ONLY:
                if value not in _ONLY[name]:
                    raise self.fail(
                        f"{name} = {value!r} is not implemented (only {_ONLY[name][0]!r})"
                    )
            elif name not in _HARMLESS and value not in (None, False, [], {}, ""):
                raise self.fail(f"{name} = {value!r} is not known to this version")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint folder; CheckpointError if it is not there or not one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return data


def read_checkpoint_config(folder: Path) -> CheckpointConfig:
    """Read and check the configs of a checkpoint folder; CheckpointError names what is wrong."""
    path = folder / "config.json"
    data = read_json(path)
    reader = _Reader(data, path)
    listed = reader.take("architectures", list, [])
    known = [name for name in listed if isinstance(name, str) and name in _ARCHITECTURES]
    if not known:
        raise reader.fail(
            f"architectures {listed} are not implemented; known are {', '.join(_ARCHITECTURES)}"
        )
    stop_ids, sampling = _read_generation(folder / "generation_config.json")
    template = reader.take("template", str, None)
    decoder = _read_decoder(reader, data, _ARCHITECTURES[known[0]], stop_ids)
    reader.finish()
    return CheckpointConfig(decoder, template, sampling)


def _read_generation(path: Path) -> tuple[tuple[int, ...], dict[str, float]]:
    """Stop ids and recommended sampling; nothing where there is no such file."""
    reader = _Reader(read_json(path) if path.exists() else {}, path)
    stop_ids = reader.ids("eos_token_id")
    sampling: dict[str, float] = {}
    for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
        if (value := reader.take(name, float, None)) is not None:
            sampling[name] = value
    if (top_k := reader.take("top_k", int, None)) is not None:
        sampling["top_k"] = top_k
    if reader.take("do_sample", bool, None) is False:
        sampling["temperature"] = 0.0
    reader.finish()
    return stop_ids, sampling


def _read_decoder(
    reader: _Reader, data: Mapping[str, Any], layout: str, stop_ids: tuple[int, ...]
) -> DecoderConfig:
    heads = reader.positive("num_attention_heads")
    hidden = reader.positive("hidden_size")
    kv_heads = reader.positive("num_key_value_heads", default=heads)
    head_dim = reader.positive("head_dim", default=hidden // heads)
    if heads % kv_heads:
        raise reader.fail(f"num_attention_heads {heads} is no multiple of {kv_heads} kv heads")
    if head_dim % 2 or ("head_dim" not in data and hidden % heads):
        raise reader.fail(f"hidden_size {hidden} does not divide into {heads} even heads")
    own_stop_ids = reader.ids("eos_token_id")
    stop_ids = stop_ids or own_stop_ids
    vocab_size = reader.positive("vocab_size")
    if any(i >= vocab_size for i in stop_ids):
        raise reader.fail(f"eos_token_id {stop_ids} is outside of the vocabulary of {vocab_size}")
    bias_key = "bias" if layout == "internlm2" else "attention_bias"
    theta = reader.positive("rope_theta", float, 10000.0)
    return DecoderConfig(
        layout=layout,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=reader.positive("intermediate_size"),
        num_layers=reader.positive("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=reader.positive("rms_norm_eps", float),
        rope_theta=theta,
        rope_scaling=_read_rope_scaling(reader),
        max_position_embeddings=reader.positive("max_position_embeddings"),
        attention_bias=reader.take(bias_key, bool, False),
        tie_word_embeddings=reader.take("tie_word_embeddings", bool, False),
        dtype=data.get("torch_dtype") or data.get("dtype") or "bfloat16",
        stop_ids=stop_ids,
    )


def _read_rope_scaling(reader: _Reader) -> RopeScaling | None:
    scaling = reader.take("rope_scaling", dict, None)
    if scaling is None:
        return None
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "default":
        return None
    factor = scaling.get("factor")
    known = set(scaling) <= {"type", "rope_type", "factor"}
    if kind not in ("linear", "dynamic") or not known:
        raise reader.fail(f"rope_scaling {scaling!r} is not implemented (only linear and dynamic)")
    if type(factor) not in (int, float) or not 1 <= factor < math.inf:
        raise reader.fail(f"rope_scaling factor must be 1 or more, not {factor!r}")
    return RopeScaling(kind, float(factor))
