"""Offline use: a model as a Python object, without a server and without asyncio."""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypeGuard, overload

import torch
from PIL import Image
from torch import Tensor

from shuzhai.config import EngineConfig
from shuzhai.engine.engine import Engine
from shuzhai.engine.request import Request, SamplingParams, StepOutput
from shuzhai.errors import InvalidRequestError, ShuzhaiError
from shuzhai.frontend.answer import Answer, collect
from shuzhai.frontend.loader import load_model
from shuzhai.frontend.outputs import Delta, EncodedPrompt, GenerationOutput
from shuzhai.frontend.processor import Processor
from shuzhai.frontend.tokenizer import Tokenizer

Prompt = str | Sequence[int] | EncodedPrompt
Messages = Sequence[Mapping[str, Any]]


class LLM:
    """A loaded model.

        with LLM("smollm2-135m") as llm:
            print(llm.chat([{"role": "user", "content": "Hello!"}]).text)

    model          a name of the catalog (fetched if it is not here yet) or a checkpoint folder
    chat_template  overrides the template that the checkpoint names
    max_tiles      of a picture, instead of the model's own number; fewer are faster, and read less
    options        the fields of EngineConfig: device, dtype, memory, max_model_len, ...

    Threads may share one; their requests run in one batch. Without parameters, answers are sampled
    as the model's authors recommend (`default_sampling`).
    """

    def __init__(
        self,
        model: str | Path,
        *,
        chat_template: str | None = None,
        max_tiles: int | None = None,
        **options: Any,
    ) -> None:
        config = EngineConfig.from_options(options)
        loaded = load_model(model, config, chat_template=chat_template, max_tiles=max_tiles)
        self.name = loaded.name
        self.processor: Processor = loaded.processor
        self._engine: Engine | None = loaded.engine
        self._ids = itertools.count()
        self._lock = threading.Lock()
        # Requests that run, with the outputs that nobody has taken yet.
        self._outputs: dict[str, deque[StepOutput]] = {}
        # Requests to be aborted. A stream that nobody holds any more may be collected, and closed,
        # in the middle of a step: then they wait here until it is over.
        self._abandoned: deque[str] = deque()

    @property
    def tokenizer(self) -> Tokenizer:
        return self.processor.tokenizer

    @property
    def default_sampling(self) -> SamplingParams:
        return self.processor.default_sampling

    @property
    def max_model_len(self) -> int:
        return self.processor.max_model_len

    @overload
    def generate(
        self, prompts: str | EncodedPrompt | Sequence[int], params: SamplingParams | None = None
    ) -> GenerationOutput: ...

    @overload
    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | None = None
    ) -> list[GenerationOutput]: ...

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None
    ) -> GenerationOutput | list[GenerationOutput]:
        """Continue prompts: a string, a list of ids, an EncodedPrompt, or a list of these.

        A list of prompts gives a list, one prompt one GenerationOutput. Strings are plain text.
        """
        params = params or self.default_sampling
        if _is_single(prompts):
            return self._generate([self._encode(prompts)], params)[0]
        return self._generate([self._encode(prompt) for prompt in prompts], params)

    @overload
    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        stream: Literal[False] = False,
    ) -> GenerationOutput: ...

    @overload
    def chat(
        self, messages: Messages, params: SamplingParams | None = None, *, stream: Literal[True]
    ) -> Iterator[str]: ...

    def chat(
        self, messages: Messages, params: SamplingParams | None = None, *, stream: bool = False
    ) -> GenerationOutput | Iterator[str]:
        """Answer OpenAI-style messages; stream=True yields the text in pieces as it comes."""
        params = params or self.default_sampling
        prompt = self.encode_chat(messages)
        if not stream:
            return self._generate([prompt], params)[0]
        if params.n != 1:
            raise InvalidRequestError("a stream gives one answer; leave n at 1", param="n")
        return (delta.text for _, delta in self._deltas([prompt], params) if delta.text)

    def encode_chat(self, messages: Messages, *, max_tiles: int | None = None) -> EncodedPrompt:
        """The prompt of a chat, exactly as the model sees it, pictures included."""
        return self.processor.encode_chat(messages, max_tiles=max_tiles, allow_files=True)

    def vision_features(
        self, image: Image.Image | bytes | str | Path, max_tiles: int | None = None
    ) -> Tensor:
        """What the decoder gets of a picture: [tiles, tokens_per_tile, n] float32 on the CPU."""
        source = Path(image) if isinstance(image, str) else image
        encoded = self.processor.encode_image(source, max_tiles)
        count, parts = self._open_engine().plan.tiles_per_batch, []
        for at in range(0, len(encoded.pixels), count):
            with self._lock:  # other threads' answers go on between the batches
                self._abort_abandoned()
                parts.append(self._open_engine().vision_features(encoded.pixels[at : at + count]))
        return torch.cat(parts).unflatten(0, (len(encoded.pixels), -1))

    def logits(self, prompt: Prompt) -> Tensor:
        """Next-token logits at every position of a prompt, [T, vocab] float32 on the CPU."""
        encoded = self._encode(prompt)
        request = Request(
            id=f"logits-{next(self._ids)}",
            token_ids=tuple(encoded.token_ids),
            params=SamplingParams(temperature=0, max_tokens=1),
            images=self.processor.image_spans(encoded),
            want_prompt_logits=True,
        )
        outputs = list(self._run([request]))
        for output in outputs:
            if output.error is not None:
                raise output.error
        return torch.cat([o.prompt_logits for o in outputs if o.prompt_logits is not None])

    def perplexity(self, text: Prompt) -> float:
        """exp of the mean negative log-probability of each token after the first."""
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
        encoded = self._encode(text)
        if len(encoded.token_ids) < 2:
            raise InvalidRequestError("perplexity needs a text of two tokens or more", "prompt")
        logprobs = self._generate([encoded], params)[0].prompt_logprobs or []
        return math.exp(-sum(entry.logprob for entry in logprobs) / len(logprobs))

    def close(self) -> None:
        """Free the model's memory. The object cannot be used any more."""
        with self._lock:
            self._engine = None

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _encode(self, prompt: Prompt) -> EncodedPrompt:
        if isinstance(prompt, EncodedPrompt):
            return prompt
        if isinstance(prompt, str):
            return self.processor.encode_text(prompt)
        if not isinstance(prompt, Iterable):
            raise InvalidRequestError(
                f"a prompt is a string, a list of token ids or an EncodedPrompt, not {prompt!r}",
                param="prompt",
            )
        return self.processor.encode_ids(list(prompt))

    def _generate(
        self, prompts: Sequence[EncodedPrompt], params: SamplingParams
    ) -> list[GenerationOutput]:
        pieces: list[list[list[Delta]]] = [[[] for _ in range(params.n)] for _ in prompts]
        for which, delta in self._deltas(prompts, params):
            pieces[which][delta.index].append(delta)
        return [GenerationOutput([collect(deltas) for deltas in answers]) for answers in pieces]

    def _deltas(
        self, prompts: Sequence[EncodedPrompt], params: SamplingParams
    ) -> Iterator[tuple[int, Delta]]:
        """(index of the prompt, piece of one of its answers), as they come."""
        requests: list[Request] = []
        answers: dict[str, tuple[int, Answer]] = {}
        for which, prompt in enumerate(prompts):
            for index, request in enumerate(
                self.processor.requests(prompt, params, f"generate-{next(self._ids)}")
            ):
                requests.append(request)
                answers[request.id] = which, Answer(request, index, self.tokenizer)
        for output in self._run(requests):
            if output.request_id not in answers:
                continue
            which, answer = answers[output.request_id]
            delta = answer.push([output])
            if delta.finish_reason is not None:
                del answers[output.request_id]
            if answer.stopped_early:
                self._abandon([output.request_id])
            yield which, delta

    def _run(self, requests: Sequence[Request]) -> Iterator[StepOutput]:
        """Step the engine until these requests are done or aborted; their outputs as they come.

        Whichever thread steps hands the others' outputs to their queues.
        """
        ids = [request.id for request in requests]
        with self._lock:
            self._abort_abandoned()
            for request in requests:
                self._open_engine().check(request)
            for request in requests:
                self._open_engine().add(request)
                self._outputs[request.id] = deque()
        try:
            while outputs := self._next_outputs(ids):
                yield from outputs
        finally:
            self._abandon(ids)

    def _next_outputs(self, ids: Sequence[str]) -> list[StepOutput]:
        """Outputs for these requests, made by a step if there are none yet; empty: all are done."""
        with self._lock:
            self._abort_abandoned()
            while any(i in self._outputs for i in ids):
                ready = [o for i in ids for o in self._outputs.get(i, ())]
                for output in ready:
                    self._outputs[output.request_id].clear()
                    if output.finish_reason is not None:
                        del self._outputs[output.request_id]
                if ready:
                    return ready
                for output in self._open_engine().step():
                    if output.request_id in self._outputs:
                        self._outputs[output.request_id].append(output)
        return []

    def _abandon(self, request_ids: Sequence[str]) -> None:
        """Abort requests, now or before the next step if one is under way."""
        self._abandoned.extend(request_ids)
        if self._lock.acquire(blocking=False):
            try:
                self._abort_abandoned()
            finally:
                self._lock.release()

    def _abort_abandoned(self) -> None:
        while self._abandoned:
            request_id = self._abandoned.popleft()
            self._outputs.pop(request_id, None)
            if self._engine is not None:
                self._engine.abort(request_id)

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise ShuzhaiError("this LLM is closed; make a new one")
        return self._engine


def _is_single(prompts: Prompt | Sequence[Prompt]) -> TypeGuard[Prompt]:
    """A list whose first item is an id is one prompt of ids."""
    if isinstance(prompts, (str, EncodedPrompt)) or not isinstance(prompts, Iterable):
        return True
    return len(prompts) > 0 and isinstance(prompts[0], Integral)
