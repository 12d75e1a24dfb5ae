"""Between words and the engine: messages and texts to prompts, prompts to requests.

A Processor keeps no state of any request; threads may share it. It never runs the engine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from shuzhai.config import CheckpointConfig
from shuzhai.engine.request import Request, SamplingParams
from shuzhai.errors import CheckpointError, ContextLengthError, InvalidRequestError
from shuzhai.frontend.chat import ChatTemplate, choose_template, read_messages
from shuzhai.frontend.outputs import EncodedPrompt
from shuzhai.frontend.tokenizer import Tokenizer, load_tokenizer


class Processor:
    """Everything about one model that concerns text.

    template          None for a model that was not trained to chat
    default_sampling  what its checkpoint, else its template recommends
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        *,
        stop_ids: Sequence[int],
        default_sampling: SamplingParams,
        max_model_len: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.default_sampling = default_sampling
        self.max_model_len = max_model_len
        end = {template.marker_ids(tokenizer)[1]} if template else set()
        self._stop_ids = frozenset(stop_ids) | end

    @classmethod
    def load(
        cls,
        folder: Path,
        config: CheckpointConfig,
        max_model_len: int,
        chat_template: str | None = None,
    ) -> Processor:
        """For a checkpoint folder; chat_template overrides the one its config names."""
        tokenizer = load_tokenizer(folder)
        template = choose_template(
            chat_template or config.template, config.decoder.layout, tokenizer
        )
        vocab_size = config.decoder.vocab_size
        if template and max(template.marker_ids(tokenizer)) >= vocab_size:
            raise CheckpointError(
                f"{folder}: the tokenizer's chat markers are beyond the model's {vocab_size} tokens"
            )
        recommended = {**(template.sampling if template else {}), **config.sampling}
        try:
            default_sampling = SamplingParams(**recommended)
        except InvalidRequestError as error:
            raise CheckpointError(f"{folder / 'generation_config.json'}: {error}") from error
        return cls(
            tokenizer,
            template,
            stop_ids=config.decoder.stop_ids,
            default_sampling=default_sampling,
            max_model_len=max_model_len,
        )

    def encode_chat(self, messages: Any) -> EncodedPrompt:
        """The prompt for OpenAI-style messages; InvalidRequestError, ContextLengthError."""
        if self.template is None:
            raise InvalidRequestError(
                "this model has no chat template; use completions, or name a template",
                param="messages",
            )
        turns = read_messages(messages)
        self._check_size(sum(len(turn.content) for turn in turns), "messages")
        return self.template.encode(turns, self.tokenizer)

    def encode_text(self, text: str) -> EncodedPrompt:
        """A plain text to be continued. It is never parsed for special tokens."""
        self._check_size(len(text), "prompt")
        return EncodedPrompt(text, self.tokenizer.prefix_ids + self.tokenizer.encode_text(text))

    def encode_ids(self, ids: Sequence[int]) -> EncodedPrompt:
        """Ids as they are; nothing is added."""
        if len(ids) > self.max_model_len:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens, but the context holds {self.max_model_len}",
                param="prompt",
            )
        if not all(isinstance(i, Integral) and not isinstance(i, bool) for i in ids):
            raise InvalidRequestError("a prompt of token ids must hold whole numbers", "prompt")
        plain = [int(i) for i in ids]
        return EncodedPrompt(self.tokenizer.decode(plain, skip_special=False), plain)

    def requests(
        self,
        prompt: EncodedPrompt,
        params: SamplingParams,
        request_id: str,
        cache_salt: bytes = b"",
    ) -> list[Request]:
        """The n engine requests of one prompt; answer i of a seeded request has seed + i."""
        stop_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= self._stop_ids
        return [
            Request(
                id=f"{request_id}-{i}",
                token_ids=tuple(prompt.token_ids),
                params=_for_choice(params, i),
                stop_ids=stop_ids,
                cache_salt=cache_salt,
            )
            for i in range(params.n)
        ]

    def _check_size(self, num_chars: int, param: str) -> None:
        """Refuse what cannot fit before it is tokenised: no piece holds more than so many bytes."""
        limit = self.max_model_len * self.tokenizer.max_piece_bytes
        if num_chars > limit:
            raise ContextLengthError(
                f"the text has {num_chars} characters, which cannot fit a context of "
                f"{self.max_model_len} tokens; shorten it",
                param=param,
            )


def _for_choice(params: SamplingParams, index: int) -> SamplingParams:
    """Parameters of answer `index`: its own seed, and the prompt's log-probabilities only once."""
    if index == 0:
        return params
    seed = None if params.seed is None else (params.seed + index + 2**63) % 2**64 - 2**63
    return dataclasses.replace(params, seed=seed, prompt_logprobs=None)
