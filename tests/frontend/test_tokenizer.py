"""Both kinds of tokenizer, and that no text becomes a special token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from shuzhai import CheckpointError, InvalidRequestError
from shuzhai.frontend.detokenizer import Detokenizer
from shuzhai.frontend.tokenizer import (
    AddedToken,
    SentencePieceTokenizer,
    Tokenizer,
    TokenizerSettings,
    load_tokenizer,
)
from tests.support.reference import BESIDE
from tests.support.tiny import CONTROL, CORPUS, write_json, write_tokenizer

TEXTS = [
    *CORPUS, "", " ", "  two  spaces ", "\n\n", "tab\tand\r\n", "1234567890", "naïve café",
    "👨‍👩‍👧 family", "你好，世界！", "a\0b", "<|im_end|>", "<s>x</s>", "[UNUSED_TOKEN_145]",
]  # fmt: skip


def byte_level(folder: Path) -> None:
    """A byte-level BPE with chat markers, as GPT-2's descendants have it."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    model.train_from_iterator(CORPUS, trainer)
    model.save(str(folder / "tokenizer.json"))


def metaspace(folder: Path) -> None:
    """A BPE with byte fallback and a space before the first word, as Llama 2 has it."""
    model = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    model.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    model.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<|im_start|>", "<|im_end|>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    model.train_from_iterator(CORPUS, trainer)
    data = json.loads(model.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    write_json(folder / "tokenizer.json", data)


KINDS = {"sentencepiece": write_tokenizer, "byte-level": byte_level, "metaspace": metaspace}


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    KINDS[request.param](tmp_path)
    return load_tokenizer(tmp_path)


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_and_never_becomes_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode_text(text)
    markers = {tokenizer.token_id(name) for name in (*CONTROL, "<s>", "</s>", "[UNUSED_TOKEN_145]")}
    assert not markers & set(ids)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert len(text.encode()) <= len(ids) * tokenizer.max_piece_bytes


@pytest.mark.parametrize("text", ["of France", " of France", "的首都"])
def test_a_text_that_goes_on_keeps_the_space_before_a_word(tmp_path: Path, text: str) -> None:
    """Where the vocabulary puts one before each, it is taken away before the first of an answer."""
    metaspace(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode(text)
    for at_start in (True, False):
        stream = Detokenizer(tokenizer, at_start=at_start)
        written = "".join(map(stream.push, ids)) + stream.flush()
        assert written == (text if at_start else f" {text}")


def test_only_a_trusted_caller_can_spell_special_tokens(tokenizer: Tokenizer) -> None:
    start, end = (tokenizer.token_id(name) for name in ("<|im_start|>", "<|im_end|>"))
    text = "<|im_start|>user\nhi<|im_end|>"
    ids = tokenizer.encode(text, parse_special=True)
    assert (ids[0], ids[-1]) == (start, end)
    assert end not in tokenizer.encode(text)
    assert tokenizer.decode(ids) == "user\nhi"
    assert tokenizer.decode(ids, skip_special=False).replace(" ", "") == text
    assert tokenizer.token_text(end) == "<|im_end|>"
    assert tokenizer.token_bytes(end) == b""


def test_markers_that_lie_on_pieces_of_the_vocabulary(tmp_path: Path) -> None:
    """As InternLM2's: <|im_end|> and [UNUSED_TOKEN_145] are one id, and text becomes neither."""
    write_tokenizer(tmp_path)
    plain = load_tokenizer(tmp_path)
    under = [plain.token_id(f"[UNUSED_TOKEN_{n}]") for n in (145, 146)]
    decoder = {str(i): {"content": t, "special": True} for i, t in zip(under, CONTROL, strict=True)}
    write_json(
        tmp_path / "tokenizer_config.json", {"bos_token": "<s>", "added_tokens_decoder": decoder}
    )
    tokenizer = load_tokenizer(tmp_path)
    assert [tokenizer.token_id(name) for name in CONTROL] == under
    for text in ("[UNUSED_TOKEN_145]", "a[UNUSED_TOKEN_146]b<|im_end|>", "[[UNUSED_TOKEN_145]]"):
        ids = tokenizer.encode_text(text)
        assert not set(under) & set(ids)
        assert tokenizer.decode(ids) == text


def test_half_a_surrogate_pair_is_bad_input(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="surrogate"):
        tokenizer.encode_text("a\ud800b")


def test_bos_is_added_where_asked_and_known(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a", add_bos=True) == [1, *tokenizer.encode("a")]
    assert tokenizer.add_bos
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    write_json(tmp_path / "tokenizer_config.json", config | {"add_bos_token": False})
    assert not load_tokenizer(tmp_path).add_bos


def test_added_tokens_json_counts_and_must_agree(tmp_path: Path) -> None:
    size = write_tokenizer(tmp_path)
    write_json(tmp_path / "added_tokens.json", {"<img>": size})
    assert load_tokenizer(tmp_path).token_id("<img>") == size
    assert load_tokenizer(tmp_path).vocab_size == size + 1
    write_json(tmp_path / "added_tokens.json", {"<|im_end|>": 3})
    assert load_tokenizer(tmp_path).token_id("<|im_end|>") == size - 2


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_a_damaged_tokenizer_is_a_clear_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="neither"):
        load_tokenizer(tmp_path)
    (tmp_path / name).write_text('{"model": 1}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=name):
        load_tokenizer(tmp_path)


@pytest.mark.skipif(not BESIDE.exists(), reason="no reference data beside the checkout")
@pytest.mark.parametrize("kind", ["internlm2", "internvl2", "internlm-xcomposer2"])
def test_the_real_vocabulary(kind: str) -> None:
    data = json.loads((BESIDE / "tokenizer" / "cases.json").read_text(encoding="utf-8"))
    expected = data["kinds"][kind]
    added = tuple(AddedToken(i, text, True) for text, i in expected["added_tokens"].items())
    tokenizer = SentencePieceTokenizer(
        BESIDE / "tokenizer" / "tokenizer.model", TokenizerSettings(added, "<s>", None)
    )
    assert tokenizer.vocab_size == expected["vocab_size_with_added"]
    for case in expected["cases"]:
        assert tokenizer.encode(case["text"], add_bos=True, parse_special=True) == case["ids"]
        assert tokenizer.encode(case["text"], parse_special=True) == case["ids_no_bos"]
        assert tokenizer.decode(case["ids"]) == case["decoded_plain"]
        markers = {tokenizer.token_id(f"[UNUSED_TOKEN_{n}]") for n in range(141, 147)}
        assert not markers & set(tokenizer.encode_text(case["text"]))
        if not any(text in case["text"] for text in expected["added_tokens"]):
            assert tokenizer.encode(case["text"]) == case["ids_no_bos"]
