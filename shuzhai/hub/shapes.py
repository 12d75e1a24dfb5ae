"""The numbers of the catalog's models, so that they can be planned and measured without a download.

Taken from the publishers' config.json. The file of a model that is here counts more than this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from shuzhai.config import DecoderConfig, LoraRanks, ModelConfig, RopeScaling, VisionConfig
from shuzhai.errors import ModelNotFoundError
from shuzhai.hub.catalog import find

_INTERNLM2_1_8B = DecoderConfig(
    layout="internlm2",
    vocab_size=92544,
    hidden_size=2048,
    intermediate_size=8192,
    num_layers=24,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    rms_norm_eps=1e-5,
    rope_theta=1e6,
    rope_scaling=RopeScaling("dynamic", 2.0),
    max_position_embeddings=32768,
    attention_bias=False,
    tie_word_embeddings=False,
    dtype="bfloat16",
    stop_ids=(2, 92542),
)

# As it is written from its GGUF.
_SMOLLM2_135M = DecoderConfig(
    layout="internlm2",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    rms_norm_eps=1e-5,
    rope_theta=1e5,
    rope_scaling=None,
    max_position_embeddings=8192,
    attention_bias=False,
    tie_word_embeddings=False,
    dtype="float16",
    stop_ids=(2,),
)

_INTERN_VIT_300M = VisionConfig(
    family="internvl",
    hidden_size=1024,
    intermediate_size=4096,
    num_layers=24,
    num_heads=16,
    image_size=448,
    patch_size=14,
    layer_norm_eps=1e-6,
    position_side=32,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    downsample=2,
    max_tiles=12,
    use_thumbnail=True,
)

# CLIP ViT-L/14, its positions stretched to 35 x 35.
_CLIP_LARGE = replace(
    _INTERN_VIT_300M,
    family="xcomposer2",
    image_size=490,
    layer_norm_eps=1e-5,
    position_side=35,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    downsample=1,
    max_tiles=1,
    use_thumbnail=False,
)

SHAPES: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "smollm2-135m": ModelConfig(_SMOLLM2_135M),
        "internlm2-chat-1.8b": ModelConfig(_INTERNLM2_1_8B),
        "internlm-xcomposer2-vl-1.8b": ModelConfig(
            replace(_INTERNLM2_1_8B, lora=LoraRanks(256, 256, 256, 256, 256)), _CLIP_LARGE
        ),
        "internvl2-2b": ModelConfig(
            replace(_INTERNLM2_1_8B, vocab_size=92553, stop_ids=(2, 92542, 92543)),
            _INTERN_VIT_300M,
        ),
    }
)


def shape_of(name: str) -> ModelConfig:
    """Of a catalog name, as people type it. ModelNotFoundError for an unknown name, and for a model
    whose numbers are known from its own folder only."""
    entry = find(name)
    if entry.name not in SHAPES:
        raise ModelNotFoundError(
            f"the numbers of {entry.name} are not known without its files; fetch it first, with: "
            f"shuzhai pull {entry.name}"
        )
    return SHAPES[entry.name]
