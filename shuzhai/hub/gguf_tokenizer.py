"""The byte-level BPE tokenizer of a GGUF file, written as Hugging Face's tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

from shuzhai.errors import CheckpointError


class TokenType(IntEnum):
    """tokenizer.ggml.token_type, as far as it is implemented."""

    NORMAL = 1
    CONTROL = 3


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """tokens[i] is token i in byte-level spelling; control tokens are never made from text."""

    tokens: tuple[str, ...]
    control_ids: tuple[int, ...]
    merges: tuple[tuple[str, str], ...]
    bos_id: int
    eos_id: int
    unk_id: int
    pad_id: int
    stop_ids: tuple[int, ...]


def read_vocabulary(fields: Mapping[str, Any], source: str) -> Vocabulary:
    """From a GGUF's metadata; CheckpointError when it is not a byte-level BPE like SmolLM2's."""
    prefix = "tokenizer.ggml"
    for key, only in ((f"{prefix}.model", "gpt2"), (f"{prefix}.pre", "smollm")):
        if fields.get(key) != only:
            raise CheckpointError(f"{source}: {key} {fields.get(key)!r} is not implemented")
    tokens = _texts(fields, f"{prefix}.tokens", source)
    merges = [merge.split(" ") for merge in _texts(fields, f"{prefix}.merges", source)]
    types = fields.get(f"{prefix}.token_type")
    if not isinstance(types, list) or len(types) != len(tokens):
        raise CheckpointError(f"{source}: {prefix}.token_type must have one number for each token")
    if unknown := set(types) - set(TokenType):
        raise CheckpointError(f"{source}: token type {min(unknown)} is not implemented")
    ids = {}
    for name in ("bos", "eos", "unknown", "padding"):
        value = fields.get(f"{prefix}.{name}_token_id")
        if type(value) is not int or not 0 <= value < len(tokens):
            raise CheckpointError(f"{source}: {prefix}.{name}_token_id must be a token id")
        ids[name] = value
    known = set(tokens)
    if len(known) != len(tokens) or not known.issuperset(
        piece for pair in merges for piece in (*pair, "".join(pair))
    ):
        raise CheckpointError(f"{source}: its tokens and merges do not fit together")
    if any(len(pair) != 2 for pair in merges):
        raise CheckpointError(f"{source}: a merge must be of two tokens")
    # The end of a turn and the end of a document both end an answer.
    ends = [i for i, t in enumerate(tokens) if t in ("<|im_end|>", "<|endoftext|>")]
    return Vocabulary(
        tokens=tokens,
        control_ids=tuple(i for i, kind in enumerate(types) if kind == TokenType.CONTROL),
        merges=tuple((first, second) for first, second in merges),
        bos_id=ids["bos"],
        eos_id=ids["eos"],
        unk_id=ids["unknown"],
        pad_id=ids["padding"],
        stop_ids=tuple(dict.fromkeys((ids["eos"], *ends))),
    )


def write_tokenizer(vocabulary: Vocabulary, max_length: int, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json."""
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(BPE(vocab=ids, merges=list(vocabulary.merges)))
    tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = ByteLevelDecoder()
    control = [vocabulary.tokens[i] for i in vocabulary.control_ids]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_bos_token": False,
        "added_tokens_decoder": {
            str(i): {
                "content": vocabulary.tokens[i],
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for i in vocabulary.control_ids
        },
        "additional_special_tokens": control,
        "bos_token": vocabulary.tokens[vocabulary.bos_id],
        "clean_up_tokenization_spaces": False,
        "eos_token": vocabulary.tokens[vocabulary.eos_id],
        "model_max_length": max_length,
        "pad_token": vocabulary.tokens[vocabulary.pad_id],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": vocabulary.tokens[vocabulary.unk_id],
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _texts(fields: Mapping[str, Any], key: str, source: str) -> tuple[str, ...]:
    values = fields.get(key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise CheckpointError(f"{source}: {key} must be a list of texts")
    return tuple(values)
