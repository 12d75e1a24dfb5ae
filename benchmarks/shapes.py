"""Shapes of the real models, to measure speed on random weights."""

from __future__ import annotations

from dataclasses import replace

from shuzhai.config import DecoderConfig, LoraRanks, ModelConfig, RopeScaling, VisionConfig

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

_CLIP_LARGE = replace(
    _INTERN_VIT_300M,
    family="xcomposer2",
    image_size=490,
    layer_norm_eps=1e-5,
    position_side=35,
    downsample=1,
    max_tiles=1,
    use_thumbnail=False,
)

SHAPES = {
    "internlm2-chat-1.8b": ModelConfig(_INTERNLM2_1_8B),
    "internvl2-2b": ModelConfig(replace(_INTERNLM2_1_8B, vocab_size=92553), _INTERN_VIT_300M),
    "internlm-xcomposer2-vl-1.8b": ModelConfig(
        replace(_INTERNLM2_1_8B, lora=LoraRanks(256, 256, 256, 256, 256)), _CLIP_LARGE
    ),
}
