"""Words to token ids and back: SentencePiece's tokenizer.model and Hugging Face's tokenizer.json.

Special tokens never come out of text: `encode_text` keeps even the spelling of one as plain text,
and only templates ask for them by name (`token_id`).
"""

from __future__ import annotations

import json
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers

from shuzhai.checkpoint import read_json
from shuzhai.errors import CheckpointError, InvalidRequestError

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
# InternLM2's vocabulary ends with these; its chat markers lie on top of some of them.
_UNUSED_PIECE = re.compile(r"\[UNUSED_TOKEN_\d+\]")
_WORD_START = "▁"


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token beside the model's vocabulary. A special one is left out of decoded text."""

    id: int
    text: str
    special: bool


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """What tokenizer_config.json and added_tokens.json say."""

    added: tuple[AddedToken, ...]
    bos_token: str | None
    add_bos: bool | None


class Tokenizer(ABC):
    """Both kinds of tokenizer. Instances do not change; threads may share them.

    vocab_size  ids are below it
    bos_id      the id that begins a text, None where the model has none
    add_bos     the model expects bos_id in front of its prompts
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        reserved: Mapping[str, int],
        settings: TokenizerSettings,
        add_bos: bool,
        strip_first_space: bool,
    ) -> None:
        """pieces: bytes of each id; reserved: ids of the vocabulary that text must not become."""
        added = {token.text: token.id for token in settings.added}
        self._pieces = dict(enumerate(pieces))
        self._pieces |= {t.id: b"" if t.special else t.text.encode() for t in settings.added}
        self._spelling = {t.id: t.text for t in settings.added}
        self._added = added
        # An id may have two spellings: InternLM2's markers lie on top of pieces of its vocabulary.
        self._reserved: dict[int, set[str]] = {}
        for text, i in (*reserved.items(), *added.items()):
            self._reserved.setdefault(i, set()).add(text)
        self._added_pattern = _any_of(added)
        self._strip_first_space = strip_first_space
        self.vocab_size = max(self._pieces) + 1
        self.bos_id = None if settings.bos_token is None else self.token_id(settings.bos_token)
        self.add_bos = add_bos and self.bos_id is not None
        self.max_piece_bytes = max(map(len, self._pieces.values()))

    @property
    def prefix_ids(self) -> list[int]:
        """What the model expects in front of every prompt: its BOS, or nothing."""
        return [self.bos_id] if self.add_bos and self.bos_id is not None else []

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Ids of text by the vocabulary alone; added tokens are not looked for."""

    @abstractmethod
    def _vocabulary_id(self, piece: str) -> int | None:
        """The id of a piece of the vocabulary."""

    def encode(self, text: str, *, add_bos: bool = False, parse_special: bool = False) -> list[int]:
        """Ids of trusted text. parse_special: spelled added tokens become their ids."""
        _check_unicode(text)
        ids = [self.bos_id] if add_bos and self.bos_id is not None else []
        if not parse_special or self._added_pattern is None:
            return ids + self._encode(text)
        for part in self._added_pattern.split(text):
            ids += [self._added[part]] if part in self._added else self._encode(part)
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Ids of text from outside: no special and no reserved token comes out, however spelled.

        InvalidRequestError if it is no valid Unicode.
        """
        _check_unicode(text)
        ids = self._encode(text)
        spelled: set[str] = set()
        while found := self._reserved.keys() & ids:
            more = set().union(*(self._reserved[i] for i in found)) - spelled
            if not more:  # a normaliser made it of something else, which is not worth keeping
                return [i for i in ids if i not in self._reserved]
            # Cut every spelling after its first character, so that it falls apart.
            spelled |= more
            cuts = sorted({at + 1 for each in spelled for at in _places(text, each)})
            bounds = [0, *cuts, len(text)]
            ids = [i for low, high in pairwise(bounds) for i in self._encode(text[low:high])]
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        parts = [
            self._spelling[i].encode()
            if not skip_special and i in self._spelling
            else self.token_bytes(i)
            for i in map(operator.index, ids)
        ]
        return self.strip_start(b"".join(parts)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """What an id adds to the text: nothing for special tokens and ids without a piece."""
        return self._pieces.get(token_id, b"")

    def token_text(self, token_id: int) -> str:
        """One id for people: special tokens spelled out, broken characters as U+FFFD."""
        spelled = self._spelling.get(token_id)
        return spelled or self.token_bytes(token_id).decode("utf-8", "replace")

    def strip_start(self, text: bytes) -> bytes:
        """Take away the space that the vocabulary puts before a first word."""
        return text.removeprefix(b" ") if self._strip_first_space else text

    def token_id(self, piece: str) -> int | None:
        """The id of an added token or a piece, by its exact spelling."""
        found = self._added.get(piece)
        return self._vocabulary_id(piece) if found is None else found


class SentencePieceTokenizer(Tokenizer):
    """tokenizer.model: BPE or unigram with byte fallback."""

    def __init__(self, file: Path, settings: TokenizerSettings) -> None:
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(file))
        except (RuntimeError, OSError) as error:
            raise CheckpointError(f"{file} is no SentencePiece model: {error}") from error
        size = self._model.vocab_size()
        spelled = self._model.id_to_piece(list(range(size)))
        special = {i for i in range(size) if self._model.is_control(i) or self._model.is_unknown(i)}
        reserved = {
            piece: i
            for i, piece in enumerate(spelled)
            if i in special or _UNUSED_PIECE.fullmatch(piece)
        }
        first = self._model.encode("a", out_type=str)
        super().__init__(
            [b"" if i in special else _piece_bytes(piece) for i, piece in enumerate(spelled)],
            reserved,
            _with_model_bos(settings, self._model),
            add_bos=settings.add_bos is not False,
            strip_first_space=bool(first) and first[0].startswith(_WORD_START),
        )

    def _encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def _vocabulary_id(self, piece: str) -> int | None:
        found = self._model.piece_to_id(piece)
        return found if self._model.id_to_piece(found) == piece else None


class HuggingFaceTokenizer(Tokenizer):
    """tokenizer.json, through the `tokenizers` library."""

    def __init__(self, file: Path, settings: TokenizerSettings) -> None:
        data = read_json(file)
        added = data.pop("added_tokens", None) or []
        try:
            listed = tuple(AddedToken(t["id"], t["content"], t["special"]) for t in added)
            # Without the added tokens the library cannot find them in text.
            data["added_tokens"] = []
            self._model = tokenizers.Tokenizer.from_str(json.dumps(data))
        # The library raises bare Exception for whatever it cannot read.
        except Exception as error:
            raise CheckpointError(f"{file} cannot be used: {error}") from error
        self._model.no_truncation()
        self._model.no_padding()
        settings = TokenizerSettings(
            _merge_added(settings.added, listed, file), settings.bos_token, settings.add_bos
        )
        to_bytes, strip = _piece_reader(data.get("decoder"), file)
        vocabulary = self._model.get_vocab(with_added_tokens=False)
        pieces = [b""] * (max(vocabulary.values(), default=0) + 1)
        for piece, i in vocabulary.items():
            pieces[i] = to_bytes(piece)
        adds_bos = bool(self._model.encode("", add_special_tokens=True).ids)
        add_bos = adds_bos if settings.add_bos is None else settings.add_bos
        super().__init__(pieces, {}, settings, add_bos, strip)

    def _encode(self, text: str) -> list[int]:
        # encode_batch, unlike encode, lets other threads run.
        return self._model.encode_batch([text], add_special_tokens=False)[0].ids

    def _vocabulary_id(self, piece: str) -> int | None:
        return self._model.token_to_id(piece)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder.

    tokenizer.model comes first: InternLM2's conversion to tokenizer.json differs on some strings.
    """
    settings = _read_settings(folder)
    if (folder / "tokenizer.model").exists():
        return SentencePieceTokenizer(folder / "tokenizer.model", settings)
    if (folder / "tokenizer.json").exists():
        return HuggingFaceTokenizer(folder / "tokenizer.json", settings)
    raise CheckpointError(f"{folder} has neither tokenizer.model nor tokenizer.json")


def _read_settings(folder: Path) -> TokenizerSettings:
    config: dict[str, Any] = {}
    if (folder / "tokenizer_config.json").exists():
        config = read_json(folder / "tokenizer_config.json")
    beside: dict[str, Any] = {}
    if (folder / "added_tokens.json").exists():
        beside = read_json(folder / "added_tokens.json")
    try:
        decoder = config.get("added_tokens_decoder") or {}
        added = tuple(
            AddedToken(int(i), token["content"], bool(token.get("special", False)))
            for i, token in decoder.items()
        )
        known = {token.text for token in added}
        more = tuple(
            AddedToken(int(i), text, True) for text, i in beside.items() if text not in known
        )
        bos = config.get("bos_token")
        bos = bos["content"] if isinstance(bos, dict) else bos
        if not all(isinstance(text, str) for text in (bos or "", *(t.text for t in added + more))):
            raise TypeError("a token is no text")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: tokenizer_config.json cannot be understood") from error
    return TokenizerSettings(_merge_added(added, more, folder), bos, config.get("add_bos_token"))


def _merge_added(
    first: Sequence[AddedToken], second: Sequence[AddedToken], source: Path
) -> tuple[AddedToken, ...]:
    """Both lists; two files that give one spelling two ids are an error."""
    merged = {token.text: token for token in second}
    for token in first:
        other = merged.setdefault(token.text, token)
        if other.id != token.id:
            raise CheckpointError(
                f"{source}: token {token.text!r} has ids {other.id} and {token.id}"
            )
        merged[token.text] = token
    return tuple(merged.values())


def _with_model_bos(
    settings: TokenizerSettings, model: sentencepiece.SentencePieceProcessor
) -> TokenizerSettings:
    """With the model's own control tokens, and its BOS where tokenizer_config.json names none."""
    controls = tuple(
        AddedToken(i, model.id_to_piece(i), True)
        for i in range(model.vocab_size())
        if model.is_control(i) or model.is_unknown(i)
    )
    bos = settings.bos_token
    if bos is None and model.bos_id() >= 0:
        bos = model.id_to_piece(model.bos_id())
    taken = {token.id for token in settings.added}
    added = settings.added + tuple(t for t in controls if t.id not in taken)
    return TokenizerSettings(added, bos, settings.add_bos)


def _piece_bytes(piece: str) -> bytes:
    """The bytes of a SentencePiece piece."""
    if match := _BYTE_PIECE.fullmatch(piece):
        return bytes.fromhex(match[1])
    return piece.replace(_WORD_START, " ").encode()


def _piece_reader(decoder: Any, file: Path) -> tuple[Any, bool]:
    """How this tokenizer.json turns pieces to bytes, and whether a first space is stripped."""
    steps = decoder.get("decoders", [decoder]) if isinstance(decoder, dict) else []
    kinds = {step.get("type") for step in steps}
    if kinds == {"ByteLevel"}:
        table = _byte_level_table()
        return (lambda piece: _byte_level_bytes(piece, table)), False
    if kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        return _piece_bytes, bool(kinds & {"Strip", "Metaspace"})
    raise CheckpointError(f"{file}: decoder {sorted(map(str, kinds))} is not implemented")


def _byte_level_table() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _byte_level_bytes(piece: str, table: Mapping[str, int]) -> bytes:
    if all(char in table for char in piece):
        return bytes(table[char] for char in piece)
    return piece.encode()


def _places(text: str, part: str) -> Iterator[int]:
    """Where a part begins in a text, overlapping ones too."""
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)


def _any_of(spellings: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern, as one group, that finds the longest of these at each place."""
    ordered = sorted(spellings, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, ordered)) + ")") if ordered else None


def _check_unicode(text: str) -> None:
    """Both libraries fail in their own ways on a text that is no valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"the text has half of a surrogate pair at place {error.start}; send valid Unicode"
        ) from error
