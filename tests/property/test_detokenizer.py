"""However a stream is cut: the pieces add up, no piece has half a character, stops are exact."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuzhai.frontend.detokenizer import Detokenizer, StopFinder
from shuzhai.frontend.tokenizer import Tokenizer, load_tokenizer
from tests.support.tiny import write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_pieces_of_any_ids_add_up_to_decode(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    stream = Detokenizer(tokenizer)
    pieces = [stream.push(i) for i in ids] + [stream.flush()]
    assert "".join(pieces) == tokenizer.decode(ids)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_piece_of_valid_text_has_half_a_character(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    text = data.draw(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁�\0")))
    stream = Detokenizer(tokenizer)
    pieces = [stream.push(i) for i in tokenizer.encode(text)]
    assert "�" not in "".join(pieces)
    assert "".join(pieces) == text
    assert stream.flush() == ""


def cut(text: str, places: list[int]) -> list[str]:
    bounds = sorted({0, len(text), *(p % (len(text) + 1) for p in places)})
    return [text[a:b] for a, b in pairwise(bounds)]


def first_end(text: str, stops: list[str]) -> tuple[str, bool]:
    """What is before the stop string that is complete first; of several there, the longest."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[: end - max(map(len, ended))], True
    return text, False


@settings(max_examples=500, deadline=None)
@given(
    text=st.text("ab你", max_size=40),
    stops=st.lists(st.text("ab你", min_size=1, max_size=6), min_size=1, max_size=4),
    places=st.lists(st.integers(0, 100), max_size=10),
)
def test_stop_strings_are_found_wherever_the_stream_is_cut(text, stops, places) -> None:
    finder, shown, stopped = StopFinder(stops), "", False
    for piece in cut(text, places):
        part, stopped = finder.push(piece)
        shown += part
        assert first_end(text, stops)[0].startswith(shown), "a stop string leaked"
        if stopped:
            break
    else:
        shown += finder.flush()
    assert (shown, stopped) == first_end(text, stops)


def test_a_very_long_stop_string_costs_linear_time() -> None:
    finder = StopFinder(["a" * 50_000 + "b"])
    assert finder.push("a" * 100_000) == ("a" * 50_000, False)
    assert finder.push("b") == ("", True)
