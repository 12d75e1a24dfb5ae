"""One answer as it grows: step outputs in, pieces of text out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from shuzhai.engine.request import FinishReason, Request, StepOutput, TokenLogprob
from shuzhai.frontend.detokenizer import Detokenizer, StopFinder
from shuzhai.frontend.outputs import Completion, Delta, Logprob, Usage
from shuzhai.frontend.tokenizer import Tokenizer

_T = TypeVar("_T")


class Answer:
    """Turns the StepOutputs of one request into Deltas, and ends it at a stop string.

    After a Delta with a finish_reason the engine may still be working on the request: when
    `stopped_early` is set, the caller aborts it there.
    """

    def __init__(
        self, request: Request, index: int, tokenizer: Tokenizer, *, goes_on: bool = False
    ) -> None:
        """goes_on: its text follows that of the prompt."""
        self.stopped_early = False
        self._index = index
        self._params = request.params
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, at_start=not goes_on)
        self._stops = StopFinder(request.params.stop_strings)
        self._num_prompt_tokens = len(request.token_ids)
        self._num_tokens = 0

    def push(self, outputs: Sequence[StepOutput]) -> Delta:
        """The piece that step outputs bring together; its text may be empty.

        What comes after a stop string counts for nothing. An error comes alone: raises that with
        which the engine gave up on the request.
        """
        if outputs[0].error is not None:
            raise outputs[0].error
        text, reason, count = "", None, 0
        # A stop string may end the answer after any of them; else they are read at once.
        for step in [[o] for o in outputs] if self._params.stop_strings else [outputs]:
            piece, reason = self._read(step)
            text += piece
            count += len(step)
            if reason is not None:
                break
        read = outputs[:count]
        return Delta(
            index=self._index,
            text=text,
            token_ids=[i for o in read for i in o.token_ids],
            usage=Usage(self._num_prompt_tokens, self._num_tokens, read[-1].num_cached_tokens),
            logprobs=[self._logprob(entry) for o in read for entry in o.logprobs],
            prompt_logprobs=[self._logprob(entry) for o in read for entry in o.prompt_logprobs],
            finish_reason=None if reason is None else reason.value,
        )

    def _read(self, outputs: Sequence[StepOutput]) -> tuple[str, FinishReason | None]:
        """What they add to the text that is safe to show, and why the answer ends there."""
        reason = outputs[-1].finish_reason
        self._num_tokens += sum(len(o.token_ids) for o in outputs)
        text = self._detokenizer.push(*(i for o in outputs for i in o.token_ids if i != o.stop_id))
        if reason is not None:
            text += self._detokenizer.flush()
        if self._num_tokens >= self._params.min_tokens:
            text, found = self._stops.push(text)
            if found:
                self.stopped_early = reason is None
                reason = FinishReason.STOP
            elif reason is not None:
                text += self._stops.flush()
        return text, reason

    def _logprob(self, entry: TokenLogprob) -> Logprob:
        return self._describe(
            entry.token_id, entry.logprob, tuple(self._describe(i, v) for i, v in entry.top)
        )

    def _describe(self, token_id: int, logprob: float, top: tuple[Logprob, ...] = ()) -> Logprob:
        tokenizer = self._tokenizer
        return Logprob(
            token_id, tokenizer.token_text(token_id), tokenizer.token_bytes(token_id), logprob, top
        )


def collect(deltas: Sequence[Delta]) -> Completion:
    """The pieces of one finished answer, folded."""
    last = deltas[-1]
    assert last.finish_reason is not None, "the answer is finished"
    return Completion(
        text="".join(d.text for d in deltas),
        token_ids=_flat(d.token_ids for d in deltas),
        finish_reason=last.finish_reason,
        usage=last.usage,
        logprobs=_flat(d.logprobs for d in deltas) or None,
        prompt_logprobs=_flat(d.prompt_logprobs for d in deltas) or None,
    )


def _flat(lists: Iterable[list[_T]]) -> list[_T]:
    return [item for part in lists for item in part]
