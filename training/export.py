"""A trained model as a checkpoint folder in its original format:
python -m training.export internvl2 WEIGHTS.safetensors TOKENIZER.model FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from training.model import Shape
from training.prompts import BOS, CONTROL, IMAGE_TOKENS, MARKERS, Encoder

MAX_TILES = 6
EOS = 2


def export(family: str, weights: Path, tokenizer: Path, folder: Path) -> None:
    """Everything that a checkpoint folder holds; the weights are renamed nowhere."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder = Encoder(family, tokenizer)
    shape = Shape(family, encoder.vocab_size)
    save_file(load_file(weights), folder / "model.safetensors", {"format": "pt"})
    (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    config = internvl2_config(shape) if shape.is_internvl else xcomposer2_config(shape)
    _write(folder / "config.json", config)
    if shape.is_internvl:
        _write_internvl2(folder, encoder)
    else:
        _write_xcomposer2(folder, encoder)


def _write_internvl2(folder: Path, encoder: Encoder) -> None:
    size = encoder.start + 1
    image = {token: size + i for i, token in enumerate(IMAGE_TOKENS)}
    ids = {"<unk>": 0, "<s>": BOS, "</s>": EOS}
    ids |= dict(zip(CONTROL, (encoder.end, encoder.start), strict=True)) | image
    _write(folder / "added_tokens.json", image)
    _write(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {
                str(i): {"content": token, "special": True} for token, i in ids.items()
            },
            "additional_special_tokens": [*CONTROL[::-1], *IMAGE_TOKENS],
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "</s>",
            "tokenizer_class": "InternLM2Tokenizer",
            "unk_token": "<unk>",
        },
    )
    _write(folder / "generation_config.json", _generation([encoder.end, encoder.start]))
    _write(
        folder / "preprocessor_config.json",
        {
            "crop_size": 224,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "resample": 3,
            "size": 224,
        },
    )


def _write_xcomposer2(folder: Path, encoder: Encoder) -> None:
    assert encoder.model.id_to_piece(encoder.end) == MARKERS[0]
    _write(
        folder / "tokenizer_config.json",
        {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "</s>",
            "tokenizer_class": "InternLMXComposer2Tokenizer",
            "unk_token": "<unk>",
        },
    )
    _write(folder / "generation_config.json", _generation([EOS, encoder.end]))


def _generation(stop_ids: list[int]) -> dict[str, Any]:
    """Greedy: a tiny model has no taste to be sampled."""
    return {
        "bos_token_id": BOS,
        "do_sample": False,
        "eos_token_id": stop_ids,
        "pad_token_id": EOS,
        "repetition_penalty": 1.0,
    }


def _decoder_config(shape: Shape) -> dict[str, Any]:
    return {
        "bias": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": 4096,
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "pad_token_id": EOS,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {"factor": 2.0, "type": "dynamic"},
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": shape.vocab_size,
    }


def internvl2_config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["InternVLChatModel"],
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": shape.image_size,
        "llm_config": {
            "architectures": ["InternLM2ForCausalLM"],
            "model_type": "internlm2",
            **_decoder_config(shape),
        },
        "max_dynamic_patch": MAX_TILES,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internlm2-chat",
        "torch_dtype": "bfloat16",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "attention_dropout": 0.0,
            "drop_path_rate": 0.0,
            "dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_size": shape.vit_hidden,
            "image_size": shape.image_size,
            "intermediate_size": shape.vit_intermediate,
            "layer_norm_eps": shape.vit_eps,
            "model_type": "intern_vit_6b",
            "norm_type": "layer_norm",
            "num_attention_heads": shape.vit_heads,
            "num_channels": 3,
            "num_hidden_layers": shape.vit_layers,
            "patch_size": shape.patch_size,
            "qk_normalization": False,
            "qkv_bias": True,
        },
    }


def xcomposer2_config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["InternLMXComposer2ForCausalLM"],
        "img_size": shape.image_size,
        "max_length": 4096,
        "model_type": "internlmxcomposer2",
        **_decoder_config(shape),
        "vision_config": {
            "hidden_act": "quick_gelu",
            "hidden_size": shape.vit_hidden,
            "image_size": shape.image_size,
            "intermediate_size": shape.vit_intermediate,
            "layer_norm_eps": shape.vit_eps,
            "num_attention_heads": shape.vit_heads,
            "num_hidden_layers": shape.vit_layers,
            "patch_size": shape.patch_size,
        },
    }


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    export(sys.argv[1], *map(Path, sys.argv[2:5]))
