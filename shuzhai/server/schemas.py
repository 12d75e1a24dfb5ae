"""What a client may ask for, and how it becomes SamplingParams.

Every parameter of the OpenAI API is implemented, or accepted with the value that asks for nothing,
or refused by name. Here only types are checked: ranges by SamplingParams, messages by Processor.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from shuzhai.engine.request import SamplingParams
from shuzhai.errors import InvalidRequestError

COMPLETION_MAX_TOKENS = 16
MAX_ANSWERS = 128
MAX_ITEMS = 4096  # of a list or object; a list of faults, one for each, would take seconds
_LONG = ("messages", "prompt")

# Not implemented: only these values, which ask for nothing, are let through. So is null, anywhere.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# What clients send back of an earlier answer's message, saying nothing.
_NEUTRAL_IN_MESSAGE = ("annotations", "audio", "function_call", "name", "refusal", "tool_calls")

_SAMPLING_FIELDS = tuple(
    """temperature top_p top_k min_p repetition_penalty presence_penalty frequency_penalty seed n
    max_tokens min_tokens stop stop_token_ids ignore_eos""".split()
)


class ModelRequest(BaseModel):
    """POST /v1/models/load and /v1/models/unload"""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str | None = None

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise _invalid(error) from None


class PullRequest(ModelRequest):
    """POST /api/models/pull"""

    model: str = Field(max_length=256)


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class GenerationRequest(BaseModel, ABC):
    """What chat and text completions have in common. Absent and null are the same."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str = ""
    safety_identifier: str = ""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] = Field(default_factory=dict)
    seed: int | None = None
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    cache_salt: str = Field(default="", max_length=256)

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """Check a JSON object; InvalidRequestError names the first parameter at fault."""
        given = {k: v for k, v in data.items() if v is not None and not _is_neutral(k, v)}
        for name, value in given.items():
            if name not in cls.model_fields:
                raise _unsupported(name)
            if name not in _LONG and isinstance(value, (list, dict)) and len(value) > MAX_ITEMS:
                raise InvalidRequestError(
                    f"{name} has {len(value)} items, and {MAX_ITEMS} is the most", param=name
                )
        try:
            request = cls.model_validate(given)
        except ValidationError as error:
            raise _invalid(error) from None
        if request.stream_options is not None and not request.stream:
            raise InvalidRequestError("stream_options needs stream: true", param="stream_options")
        return request

    @abstractmethod
    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        """The model's defaults, overridden by what was asked for."""

    def _sampling(
        self, defaults: SamplingParams, max_tokens: int | None, **more: int | None
    ) -> SamplingParams:
        """Made at once: each making checks all. `more` is in the words of one kind of request."""
        asked = {name: getattr(self, name) for name in _SAMPLING_FIELDS}
        asked["max_tokens"] = max_tokens
        given = {name: value for name, value in asked.items() if value is not None}
        bias = {_token_id(key): value for key, value in self.logit_bias.items()}
        return dataclasses.replace(defaults, logit_bias=bias, **given, **more)


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions"""

    messages: Annotated[list[dict[str, Any]], FailFast()]
    continue_final_message: bool = False
    add_generation_prompt: bool | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None

    @property
    def goes_on(self) -> bool:
        """More of the last message is wanted. As in vLLM, who says both says the same."""
        if self.add_generation_prompt is self.continue_final_message:
            raise InvalidRequestError(
                "add_generation_prompt is true for a new answer, and false where "
                "continue_final_message is true; leave it out",
                param="add_generation_prompt",
            )
        return self.continue_final_message

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise InvalidRequestError(
                "max_tokens and max_completion_tokens differ: give one", param="max_tokens"
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError("top_logprobs needs logprobs: true", param="top_logprobs")
        max_tokens = next(iter(limits), None)
        if self.logprobs:
            return self._sampling(defaults, max_tokens, logprobs=self.top_logprobs or 0)
        return self._sampling(defaults, max_tokens)

    def plain_messages(self) -> list[dict[str, Any]]:
        """The messages without keys that say nothing."""
        messages = []
        for message in self.messages:
            plain = {
                key: value
                for key, value in message.items()
                if key not in _NEUTRAL_IN_MESSAGE or value not in (None, [])
            }
            messages.append(plain)
        return messages


class CompletionRequest(GenerationRequest):
    """POST /v1/completions"""

    prompt: str | list[Any]
    echo: bool = False
    best_of: int | None = None
    logprobs: int | None = None

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        if self.best_of not in (None, self.n):
            raise InvalidRequestError(
                "best_of is not implemented, but for the value of n",
                param="best_of",
                code="unsupported_parameter",
            )
        max_tokens = COMPLETION_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        # The engine always makes a token; the one that was not asked for is dropped.
        return self._sampling(
            defaults,
            1 if self.is_echo_only else max_tokens,
            logprobs=self.logprobs,
            prompt_logprobs=self.logprobs if self.echo else None,
        )

    @property
    def is_echo_only(self) -> bool:
        return self.echo and self.max_tokens == 0

    def prompts(self) -> list[str | list[int]]:
        """One or many prompts, each as text or as token ids."""
        if isinstance(self.prompt, str) or _are_ids(self.prompt):
            prompts: list[str | list[int]] = [self.prompt]
        elif all(isinstance(p, str) or (isinstance(p, list) and _are_ids(p)) for p in self.prompt):
            prompts = self.prompt
        else:
            prompts = []
        if not prompts:
            raise InvalidRequestError(
                "prompt must be a string, a list of token ids, or a list of either, and not empty",
                param="prompt",
            )
        if len(prompts) * self.n > MAX_ANSWERS:
            raise InvalidRequestError(
                f"prompts times n must be at most {MAX_ANSWERS}, not {len(prompts) * self.n}",
                param="prompt",
            )
        return prompts


def _are_ids(value: list[Any]) -> bool:
    return set(map(type, value)) == {int}


def _is_neutral(name: str, value: object) -> bool:
    """Whether a parameter that is not implemented asks for nothing; if it does, it is refused."""
    if name not in _NEUTRAL:
        return False
    if any(type(value) is type(neutral) and value == neutral for neutral in _NEUTRAL[name]):
        return True
    raise _unsupported(name)


def _unsupported(name: str) -> InvalidRequestError:
    name = name[:64]
    return InvalidRequestError(
        f"{name} is not implemented by this server; leave it out",
        param=name,
        code="unsupported_parameter",
    )


def _invalid(error: ValidationError) -> InvalidRequestError:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    names = [str(part)[:64] for part in first["loc"]]
    if first["type"] in ("extra_forbidden", "literal_error"):
        return _unsupported(".".join(names))
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_type"
    return InvalidRequestError(f"{names[0]}: {first['msg']}", param=names[0], code=code)


def _token_id(key: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", key):
        raise InvalidRequestError("logit_bias maps token ids to numbers", param="logit_bias")
    return int(key)
