"""What the files of a checkpoint folder say of the model, read strictly.

A key or value that the code does not implement is an error that names it: never a guess.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shuzhai.config import MAX_TILES, DecoderConfig, RopeScaling, VisionConfig
from shuzhai.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class TowerHints:
    """What the config of an XComposer2 says of its tower. The rest, its tensors tell.

    num_heads   None: heads of 64
    """

    image_size: int
    num_heads: int | None
    layer_norm_eps: float


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """config.json and generation_config.json of a checkpoint folder, checked.

    vision     None for a model that reads text only
    template   name of the chat template, where config.json gives one
    sampling   temperature, top_p, top_k, repetition_penalty, as far as the checkpoint gives them
    """

    decoder: DecoderConfig
    vision: VisionConfig | TowerHints | None
    template: str | None
    sampling: Mapping[str, float]


# Keys that do not change what is computed here: notes, training, the publisher's own code.
_HARMLESS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _from_model_config
    _name_or_path add_cross_attention architectures attention_dropout attn_implementation auto_map
    bos_token_id chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id
    diversity_penalty do_sample drop_path_rate dropout dtype early_stopping finetuning_task
    generation_config hidden_dropout_prob id2label initializer_factor initializer_range is_decoder
    is_encoder_decoder label2id length_penalty max_length max_new_tokens min_length model_type
    num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix
    problem_type remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    sep_token_id task_specific_params temperature tf_legacy_loss tie_encoder_decoder
    tokenizer_class top_k top_p torch_dtype torchscript transformers_version unk_token_id
    use_bfloat16 use_cache use_flash_attn
    """.split()
)

_OF_EXPERTS = frozenset(
    """
    capacity_factor eval_capacity_factor laux_allreduce moe_coeff_ratio moe_intermediate_size
    moe_output_scale noisy_gate_policy num_experts num_routed_experts num_shared_experts
    shared_expert_intermediate_size use_residual use_rts use_weighted_residual
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
    "ps_version": ("v2",),
    "select_layer": (-1,),
    "norm_type": ("layer_norm",),
    "qkv_bias": (True,),
    "qk_normalization": (False,),
    "num_channels": (3,),
    "use_backbone_lora": (0,),
    "use_llm_lora": (0,),
    "pad2square": (False,),
    "use_moe": (False,),
}

# How the tensors of each architecture are named.
_LAYOUTS = {"InternLM2ForCausalLM": "internlm2", "LlamaForCausalLM": "llama"}
_INTERNVL = "InternVLChatModel"
_XCOMPOSER2 = "InternLMXComposer2ForCausalLM"
_ARCHITECTURES = (*_LAYOUTS, _XCOMPOSER2, _INTERNVL)

# What both towers were trained on; their configs do not say it.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


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

    def section(self, name: str, *, optional: bool = False) -> _Reader:
        """The object under a name, to be read, and finished, by itself."""
        return _Reader(self.take(name, dict, {} if optional else ...), self._source)

    def only(self, name: str, value: str) -> None:
        if self.take(name, str, value) != value:
            raise self.fail(f"{name} is not implemented but for {value!r}")

    def finish(self) -> None:
        # These say how experts would be mixed, if there were any.
        unused = _OF_EXPERTS if self._data.get("use_moe") is False else frozenset()
        for name, value in self._data.items():
            if name in unused:
                continue
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
    reader = _Reader(read_json(path), path)
    architecture = _architecture(reader, _ARCHITECTURES)
    stop_ids, sampling = _read_generation(folder / "generation_config.json")
    template = reader.take("template", str, None)
    vision: VisionConfig | TowerHints | None = None
    if architecture == _INTERNVL:
        language = reader.section("llm_config")
        decoder = _read_decoder(language, _architecture(language, tuple(_LAYOUTS)), stop_ids)
        language.finish()
        if reader.take("hidden_size", int, decoder.hidden_size) != decoder.hidden_size:
            raise reader.fail("hidden_size differs from that of llm_config")
        vision = _read_internvl(reader)
    else:
        if architecture == _XCOMPOSER2:
            vision = _read_tower_hints(reader)
        decoder = _read_decoder(reader, architecture, stop_ids)
    reader.finish()
    return CheckpointConfig(decoder, vision, template, sampling)


def _architecture(reader: _Reader, implemented: tuple[str, ...]) -> str:
    listed = reader.take("architectures", list, [])
    for name in implemented:
        if name in listed:
            return name
    raise reader.fail(
        f"architectures {listed} are not implemented; known are {', '.join(implemented)}"
    )


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


def _read_decoder(reader: _Reader, architecture: str, stop_ids: tuple[int, ...]) -> DecoderConfig:
    layout = _LAYOUTS.get(architecture, "internlm2")
    heads = reader.positive("num_attention_heads")
    hidden = reader.positive("hidden_size")
    kv_heads = reader.positive("num_key_value_heads", default=heads)
    own_dim = reader.take("head_dim", int, None)
    head_dim = hidden // heads if own_dim is None else own_dim
    if heads % kv_heads:
        raise reader.fail(f"num_attention_heads {heads} is no multiple of {kv_heads} kv heads")
    if head_dim < 2 or head_dim % 2 or (own_dim is None and hidden % heads):
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
        dtype=reader.take("torch_dtype", str, None) or reader.take("dtype", str, "bfloat16"),
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


def _read_internvl(reader: _Reader) -> VisionConfig:
    tower = reader.section("vision_config")
    tower.only("hidden_act", "gelu")
    mean, std = _IMAGENET
    ratio = reader.positive("downsample_ratio", float, 0.5)
    tiles = reader.take("dynamic_image_size", bool, False)
    min_tiles = reader.positive("min_dynamic_patch", default=1)
    max_tiles = reader.positive("max_dynamic_patch", default=12)
    image_size, patch_size = tower.positive("image_size"), tower.positive("patch_size")
    forced = reader.positive("force_image_size", default=image_size)
    config = VisionConfig(
        family="internvl",
        hidden_size=tower.positive("hidden_size"),
        intermediate_size=tower.positive("intermediate_size"),
        num_layers=tower.positive("num_hidden_layers"),
        num_heads=tower.positive("num_attention_heads"),
        image_size=forced,
        patch_size=patch_size,
        position_side=image_size // patch_size,
        layer_norm_eps=tower.positive("layer_norm_eps", float, 1e-6),
        mean=mean,
        std=std,
        downsample=round(1 / ratio),
        min_tiles=min_tiles if tiles else 1,
        max_tiles=max_tiles if tiles else 1,
        use_thumbnail=reader.take("use_thumbnail", bool, False),
    )
    tower.finish()
    if abs(1 / ratio - config.downsample) > 1e-6 or config.patches_per_side % config.downsample:
        raise reader.fail(f"downsample_ratio {ratio} does not divide the tower's patches")
    if config.hidden_size % config.num_heads or image_size % patch_size or forced % patch_size:
        raise tower.fail("hidden_size or image_size does not divide into heads or patches")
    if not config.min_tiles <= config.max_tiles <= MAX_TILES:
        raise reader.fail(
            f"min_dynamic_patch {min_tiles} and max_dynamic_patch {max_tiles} must be in order and "
            f"at most {MAX_TILES}"
        )
    return config


def _read_tower_hints(reader: _Reader) -> TowerHints:
    tower = reader.section("vision_config", optional=True)
    tower.only("hidden_act", "quick_gelu")
    hints = TowerHints(
        image_size=reader.positive("img_size", default=490),
        num_heads=tower.take("num_attention_heads", int, None),
        layer_norm_eps=tower.positive("layer_norm_eps", float, 1e-5),
    )
    # The tensors have the last word on these.
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "patch_size"):
        tower.take(name, int, None)
    if tower.take("image_size", int, hints.image_size) != hints.image_size:
        raise tower.fail(f"image_size differs from img_size {hints.image_size}")
    tower.finish()
    return hints
