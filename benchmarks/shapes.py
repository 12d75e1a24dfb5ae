"""Shapes of the real models, to measure speed on random weights."""

from __future__ import annotations

from shuzhai.config import DecoderConfig, RopeScaling

SHAPES = {
    "internlm2-chat-1.8b": DecoderConfig(
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
    ),
}
