"""A tiny InternLM2 checkpoint with random weights, written in a second: what it says is noise."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file

CORPUS = [
    "Hello! Who are you? I am a small assistant that lives in a test.",
    "What is 1 + 2? The answer is 3, and 3 + 4 is 7; 10 - 6 is 4.",
    "The quick brown fox jumps over the lazy dog, and then it sleeps for a while.",
    "def add(a, b):\n    return a + b\n",
    "你好，我是一个小小的助手。今天天气怎么样？请再说一遍，谢谢。",
    "书生大模型可以回答问题，也可以看图说话。一二三四五六七八九十。",
]
CONTROL = ("<|im_end|>", "<|im_start|>")


@dataclass(frozen=True)
class TinyShape:
    """Sizes of a checkpoint; the vocabulary ends with the two chat markers."""

    hidden_size: int = 32
    intermediate_size: int = 48
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    max_position_embeddings: int = 2048
    bias: bool = False


def write_checkpoint(
    folder: Path, shape: TinyShape = TinyShape(), *, seed: int = 0, **config: Any
) -> Path:
    """Write a whole checkpoint folder; `config` is added to config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = write_tokenizer(folder)
    save_file(internlm2_tensors(shape, vocab_size, seed), folder / "model.safetensors")
    write_json(folder / "config.json", internlm2_config(shape, vocab_size) | config)
    write_json(
        folder / "generation_config.json",
        {"bos_token_id": 1, "eos_token_id": [2, vocab_size - 2], "pad_token_id": 2},
    )
    return folder


def write_tokenizer(folder: Path) -> int:
    """tokenizer.model and tokenizer_config.json; the size of the vocabulary."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        user_defined_symbols=["[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    size = sentencepiece.SentencePieceProcessor(
        model_file=str(folder / "tokenizer.model")
    ).vocab_size()
    added = {"0": "<unk>", "1": "<s>", "2": "</s>"}
    added |= {str(size + i): token for i, token in enumerate(CONTROL)}
    decoder = {i: {"content": token, "special": True} for i, token in added.items()}
    write_json(
        folder / "tokenizer_config.json", {"bos_token": "<s>", "added_tokens_decoder": decoder}
    )
    return size + len(CONTROL)


def internlm2_config(shape: TinyShape, vocab_size: int) -> dict[str, Any]:
    return {
        "architectures": ["InternLM2ForCausalLM"],
        "bias": shape.bias,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": vocab_size,
    }


def internlm2_tensors(shape: TinyShape, vocab_size: int, seed: int) -> dict[str, torch.Tensor]:
    """Random weights under InternLM2's names, spread so that greedy choices are clear."""
    generator = torch.Generator().manual_seed(seed)
    n, wide = shape.hidden_size, shape.intermediate_size
    qkv = n + 2 * n * shape.num_kv_heads // shape.num_heads

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * columns**-0.5

    tensors = {
        "model.tok_embeddings.weight": torch.randn(vocab_size, n, generator=generator),
        "model.norm.weight": torch.ones(n),
        "output.weight": 3 * matrix(vocab_size, n),
    }
    for i in range(shape.num_layers):
        layer = f"model.layers.{i}."
        tensors |= {
            layer + "attention_norm.weight": torch.ones(n),
            layer + "attention.wqkv.weight": matrix(qkv, n),
            layer + "attention.wo.weight": matrix(n, n),
            layer + "ffn_norm.weight": torch.ones(n),
            layer + "feed_forward.w1.weight": matrix(wide, n),
            layer + "feed_forward.w3.weight": matrix(wide, n),
            layer + "feed_forward.w2.weight": matrix(n, wide),
        }
        if shape.bias:
            tensors[layer + "attention.wqkv.bias"] = torch.randn(qkv, generator=generator)
            tensors[layer + "attention.wo.bias"] = torch.randn(n, generator=generator)
    return tensors


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")
