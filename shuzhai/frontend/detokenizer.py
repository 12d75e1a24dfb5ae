"""From a stream of token ids to a stream of text: whole characters only, and stop strings found.

Pure: values in, values out.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from shuzhai.frontend.tokenizer import Tokenizer


class Detokenizer:
    """Text of one answer, piece by piece. The pieces add up to `tokenizer.decode` of all ids.

    at_start  False where a text goes on: the space before its first word is kept
    """

    def __init__(self, tokenizer: Tokenizer, *, at_start: bool = True) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = at_start

    def push(self, *token_ids: int) -> str:
        """The characters that these tokens complete, perhaps none."""
        data = b"".join(map(self._tokenizer.token_bytes, token_ids))
        if self._at_start and data:
            data = self._tokenizer.strip_start(data)
            self._at_start = False
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left at the end: U+FFFD if the last character never became whole."""
        return self._decoder.decode(b"", final=True)


class StopFinder:
    """Finds the first of several stop strings in a stream, wherever the pieces are cut.

    Text that may be the beginning of a stop string is held back (Knuth-Morris-Pratt, so the work a
    character is constant however long the stop strings are).
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, _failure_table(stop)) for stop in stops]
        self._matched = [0] * len(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that is safe to show, whether a stop string was completed before the rest)."""
        if not self._stops:
            return text, False
        for i, char in enumerate(text):
            ended = [len(stop) for k, (stop, _) in enumerate(self._stops) if self._step(k, char)]
            if ended:
                seen = self._held + text[: i + 1]
                self._held = ""
                return seen[: len(seen) - max(ended)], True
        seen = self._held + text
        keep = max(self._matched)
        self._held = seen[len(seen) - keep :]
        return seen[: len(seen) - keep], False

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _step(self, k: int, char: str) -> bool:
        """Advance stop string k by one character; whether it is complete."""
        stop, failure = self._stops[k]
        matched = self._matched[k]
        while matched and stop[matched] != char:
            matched = failure[matched - 1]
        matched += stop[matched] == char
        self._matched[k] = matched
        return matched == len(stop)


def _failure_table(stop: str) -> list[int]:
    """table[i]: length of the longest proper beginning of stop[:i + 1] that also ends it."""
    table = [0] * len(stop)
    matched = 0
    for i in range(1, len(stop)):
        while matched and stop[matched] != stop[i]:
            matched = table[matched - 1]
        matched += stop[matched] == stop[i]
        table[i] = matched
    return table
