"""Answers in the words of the OpenAI API: each piece as a choice of a chunk, and chunks folded.

An answer that is not streamed is the stream, folded: there is one way to say each thing.
"""

from __future__ import annotations

import codecs
import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from shuzhai.frontend.outputs import Delta, EncodedPrompt, Logprob, Usage

Json = dict[str, Any]

# JSON has no -Infinity; OpenAI writes this for "next to impossible".
_LEAST_LOGPROB = -9999.0


class ReplyFormat(Protocol):
    """How one kind of endpoint words its answers."""

    id_prefix: str
    chunk_object: str
    whole_object: str

    def choices(self, index: int, delta: Delta) -> list[Json]:
        """Choices of chunks for one piece of answer number `index`; may be none."""
        ...

    def fold(self, choices: Sequence[Json]) -> Json:
        """The choice of a whole answer, from its choices of chunks, in order."""
        ...


class ChatFormat:
    """`chat.completion` and its chunks."""

    id_prefix = "chatcmpl-"
    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def __init__(self, wants_logprobs: bool) -> None:
        self._wants_logprobs = wants_logprobs
        self._begun: set[int] = set()

    def choices(self, index: int, delta: Delta) -> list[Json]:
        result = []
        if index not in self._begun:
            self._begun.add(index)
            result.append(_choice(index, {"role": "assistant", "content": ""}))
        if not (delta.text or delta.logprobs or delta.finish_reason):
            return result
        choice = _choice(index, {"content": delta.text} if delta.text else {})
        choice["finish_reason"] = delta.finish_reason
        if self._wants_logprobs:
            choice["logprobs"] = {
                "content": [_chat_logprob(item) for item in delta.logprobs],
                "refusal": None,
            }
        result.append(choice)
        return result

    def fold(self, choices: Sequence[Json]) -> Json:
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        logprobs = None
        if self._wants_logprobs:
            items = [i for c in choices if c["logprobs"] for i in c["logprobs"]["content"]]
            logprobs = {"content": items, "refusal": None}
        return {
            "index": choices[0]["index"],
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": logprobs,
            "finish_reason": choices[-1]["finish_reason"],
        }


class CompletionFormat:
    """`text_completion`, with the prompt in front where `echo` asks for it.

    num_top  logprobs: None, none; k, each token's and those of the k best
    echoes   the prompts, where they are to be repeated; each has n answers
    """

    id_prefix = "cmpl-"
    chunk_object = "text_completion"
    whole_object = "text_completion"

    def __init__(self, num_top: int | None, echoes: Sequence[EncodedPrompt] | None, n: int) -> None:
        self._num_top = num_top
        self._echoes = echoes
        self._n = n
        self._begun: set[int] = set()
        self._places: defaultdict[int, _TextPlace] = defaultdict(_TextPlace)
        self._prompt_items: defaultdict[int, list[Logprob]] = defaultdict(list)
        self._held: defaultdict[int, list[tuple[int, Delta]]] = defaultdict(list)

    def choices(self, index: int, delta: Delta) -> list[Json]:
        """An echo with logprobs waits until those of the whole prompt are there.

        They come with answer 0 of a prompt, over several pieces if the prompt was run in chunks.
        """
        prompt = index // self._n
        self._held[prompt].append((index, delta))
        if self._echoes is not None and self._num_top is not None:
            items = self._prompt_items[prompt]
            if index % self._n == 0:
                items += delta.prompt_logprobs
            if len(items) < len(self._echoes[prompt].token_ids) - 1:
                return []
        words = [self._word(*piece) for piece in self._held.pop(prompt)]
        return [choice for choice in words if choice is not None]

    def _word(self, index: int, delta: Delta) -> Json | None:
        text, head = delta.text, None
        items = delta.logprobs
        if self._echoes is not None and index not in self._begun:
            self._begun.add(index)
            prompt = self._echoes[index // self._n].text
            prompt_items = self._prompt_items[index // self._n]
            head = _head(prompt, prompt_items)
            text = prompt + text
            items = prompt_items + items
        if not (text or items or delta.finish_reason):
            return None
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(self._places[index], head, items),
            "finish_reason": delta.finish_reason,
        }

    def _logprobs(self, place: _TextPlace, head: bytes | None, items: list[Logprob]) -> Json | None:
        if self._num_top is None:
            return None
        tokens, values, tops, offsets = [], [], [], []
        if head is not None:  # a prompt's first token follows nothing: it has no probability
            tokens.append(head.decode("utf-8", "replace"))
            values.append(None)
            tops.append(None)
            offsets.append(place.step(head))
        for item in items:
            tokens.append(item.text)
            values.append(_finite(item.logprob))
            offsets.append(place.step(item.bytes))
            best = {_token_key(other): _finite(other.logprob) for other in (*item.top, item)}
            tops.append(best if self._num_top else None)
        return {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def fold(self, choices: Sequence[Json]) -> Json:
        logprobs = None
        if self._num_top is not None:
            names = choices[0]["logprobs"]
            logprobs = {n: [v for c in choices for v in c["logprobs"][n]] for n in names}
        return {
            "index": choices[0]["index"],
            "text": "".join(choice["text"] for choice in choices),
            "logprobs": logprobs,
            "finish_reason": choices[-1]["finish_reason"],
        }


def without_answer(delta: Delta) -> Delta:
    """What is left of a piece where only the prompt was asked for (max_tokens 0)."""
    return dataclasses.replace(
        delta,
        text="",
        token_ids=[],
        logprobs=[],
        finish_reason="length" if delta.finish_reason else None,
        usage=dataclasses.replace(delta.usage, completion_tokens=0),
    )


def usage_json(usages: Mapping[int, Usage], answers_per_prompt: int) -> Json:
    """`usages`: the last of each answer. A prompt counts once, however many answers it has."""
    firsts = [usage for index, usage in usages.items() if index % answers_per_prompt == 0]
    prompt_tokens = sum(usage.prompt_tokens for usage in firsts)
    completion_tokens = sum(usage.completion_tokens for usage in usages.values())
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(u.cached_tokens for u in firsts)},
    }


class _TextPlace:
    """Where the next token begins in the text, in characters, while tokens hold bytes."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_chars = 0

    def step(self, token: bytes) -> int:
        start = self._num_chars
        self._num_chars += len(self._decoder.decode(token))
        return start


def _choice(index: int, delta: Json) -> Json:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _head(text: str, items: Sequence[Logprob]) -> bytes:
    """The bytes of the prompt's first token: what the others leave. Nothing, if it is a BOS."""
    prompt = text.encode("utf-8")
    return prompt[: max(0, len(prompt) - sum(len(item.bytes) for item in items))]


def _finite(logprob: float) -> float:
    return logprob if logprob > _LEAST_LOGPROB else _LEAST_LOGPROB


def _token_key(item: Logprob) -> str:
    """A token's text; its bytes where it is only a part of a character, so that keys differ."""
    if "\ufffd" not in item.text:
        return item.text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in item.bytes)


def _chat_logprob(item: Logprob) -> Json:
    return {**_token_json(item), "top_logprobs": [_token_json(other) for other in item.top]}


def _token_json(item: Logprob) -> Json:
    return {"token": item.text, "logprob": _finite(item.logprob), "bytes": list(item.bytes)}
