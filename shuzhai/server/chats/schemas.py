"""What the page keeps: conversations, their messages and settings, checked as they arrive.

The same data in TypeScript: web/src/api/types.ts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from shuzhai.engine.request import SamplingParams
from shuzhai.errors import InvalidRequestError

EXPORT_FORMAT = "shuzhai-conversation"
MAX_MESSAGES = 5000
MAX_MESSAGE_PICTURES = 64
MAX_TEXT_CHARS = 2**20
MAX_TITLE_CHARS = 300
MAX_NAME_CHARS = 255

MediaType = Literal["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"]
ConversationId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
MessageId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
PictureId = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Title = Annotated[str, Field(max_length=MAX_TITLE_CHARS)]
Name = Annotated[str, Field(max_length=MAX_NAME_CHARS)]
Moment = Annotated[float, Field(ge=0, le=1e11)]  # Unix seconds
Count = Annotated[int, Field(ge=0, le=2**53)]
Seconds = Annotated[float, Field(ge=0, le=1e11)]


class Checked(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """InvalidRequestError names the first key at fault."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(part)[:64] for part in first["loc"]) or "the request"
            code = {
                "missing": "missing_required_parameter",
                "extra_forbidden": "unsupported_parameter",
            }.get(first["type"])
            raise InvalidRequestError(f"{where}: {first['msg']}", where, code) from None


class Picture(Checked):
    id: PictureId
    media_type: MediaType
    name: Name


class Stats(Checked):
    """Of an answer."""

    prompt_tokens: Count
    cached_tokens: Count
    completion_tokens: Count
    first_token_seconds: Seconds
    total_seconds: Seconds


class Message(Checked):
    """A node of a conversation's tree. parent None: it begins one."""

    id: MessageId
    parent: MessageId | None
    role: Literal["user", "assistant"]
    text: Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
    pictures: Annotated[list[Picture], FailFast(), Field(max_length=MAX_MESSAGE_PICTURES)]
    created: Moment
    model: Name | None
    status: Literal["streaming", "done", "stopped", "length", "error"]
    error: Annotated[str, Field(max_length=4000)] | None
    stats: Stats | None


class Sampling(Checked):
    """None: as the model, or the server, has it."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None


class ChatSettings(Checked):
    """Of a conversation, or of new conversations. system None: the template's own; "": none"""

    model: Name | None = None
    system: Annotated[str, Field(max_length=2**18)] | None = None
    sampling: Sampling = Sampling()

    def check(self) -> None:
        """InvalidRequestError for a value that every request would be refused for."""
        SamplingParams(**self.sampling.model_dump(exclude_none=True))


Messages = Annotated[list[Message], FailFast(), Field(max_length=MAX_MESSAGES)]


class NewConversation(Checked):
    id: ConversationId
    title: Title
    settings: ChatSettings


class ConversationChange(Checked):
    """Only what is there is changed; a leaf may become None."""

    title: Title | None = None
    settings: ChatSettings | None = None
    leaf: MessageId | None = None


class SavedMessages(Checked):
    messages: Messages
    leaf: MessageId | None = None


class ConversationFile(Checked):
    """An export. Pictures as data URLs, by id; those that are not there are kept already."""

    format: Literal["shuzhai-conversation"]
    version: Literal[1]
    title: Title
    created: Moment
    updated: Moment
    settings: ChatSettings
    leaf: MessageId | None
    messages: Messages
    pictures: dict[PictureId, str]
