"""Chat templates: messages to text and special tokens. No template of a checkpoint is ever run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shuzhai.errors import CheckpointError, ConfigError, InvalidRequestError
from shuzhai.frontend.outputs import EncodedPrompt
from shuzhai.frontend.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")

_INTERNLM2_SYSTEM = (
    "You are an AI assistant whose name is InternLM (书生·浦语).\n"
    "- InternLM (书生·浦语) is a conversational language model that is developed by Shanghai AI "
    "Laboratory (上海人工智能实验室). It is designed to be helpful, honest, and harmless.\n"
    "- InternLM (书生·浦语) can understand and communicate fluently in the language chosen by the "
    "user such as English and 中文."
)
_SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn, its content as plain text."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """ChatML with its variations: `{start}{role}\\n{content}{end}{after_end}` for each turn.

    default_system  stands first unless the messages begin with a system turn of their own; an empty
                    one there means none at all
    sampling        what the model's authors sample chats with, where its checkpoint does not say
    """

    name: str
    start: str = "<|im_start|>"
    end: str = "<|im_end|>"
    after_end: str = "\n"
    default_system: str = ""
    sampling: Mapping[str, float] = field(default_factory=dict)

    def marker_ids(self, tokenizer: Tokenizer) -> tuple[int, int]:
        """The ids that begin and end a turn; CheckpointError if the tokenizer lacks them."""
        start, end = tokenizer.token_id(self.start), tokenizer.token_id(self.end)
        if start is None or end is None:
            raise CheckpointError(
                f"chat template {self.name} needs the tokens {self.start} and {self.end}, "
                "which the tokenizer lacks"
            )
        return start, end

    def encode(self, messages: Sequence[Message], tokenizer: Tokenizer) -> EncodedPrompt:
        """The prompt that asks for the next assistant turn."""
        start, end = self.marker_ids(tokenizer)
        ids = tokenizer.prefix_ids
        text = ""
        for message in self._with_system(messages):
            body = f"{message.role}\n{message.content}"
            text += f"{self.start}{body}{self.end}{self.after_end}"
            ids += [start, *tokenizer.encode_text(body), end]
            ids += tokenizer.encode_text(self.after_end)
        text += f"{self.start}assistant\n"
        ids += [start, *tokenizer.encode_text("assistant\n")]
        return EncodedPrompt(text, ids)

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        if messages[0].role != "system":
            messages = [Message("system", self.default_system), *messages]
        first = [messages[0]] if messages[0].content else []
        return [*first, *messages[1:]]


TEMPLATES: Mapping[str, ChatTemplate] = {
    template.name: template
    for template in (
        ChatTemplate(
            "internlm2-chat",
            default_system=_INTERNLM2_SYSTEM,
            sampling={"temperature": 0.8, "top_p": 0.8},
        ),
        ChatTemplate(
            "smollm2-chat",
            default_system=_SMOLLM2_SYSTEM,
            sampling={"temperature": 0.2, "top_p": 0.9},
        ),
        ChatTemplate("chatml"),
    )
}


def choose_template(name: str | None, layout: str, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template of that name, else the usual one of the family, None where there is none."""
    if name is not None:
        if name not in TEMPLATES:
            raise ConfigError(
                f"chat template {name!r} is unknown; known are {', '.join(TEMPLATES)}"
            )
        return TEMPLATES[name]
    usual = TEMPLATES["internlm2-chat" if layout == "internlm2" else "chatml"]
    return usual if tokenizer.token_id(usual.start) is not None else None


def read_messages(messages: Any) -> list[Message]:
    """Check OpenAI-style messages; InvalidRequestError says which one is wrong and how."""
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise _bad("messages must be a list of at least one message")
    return [_read_message(i, message) for i, message in enumerate(messages)]


def _read_message(index: int, message: Any) -> Message:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise _bad(f"{where} must be an object with role and content")
    if unknown := set(message) - {"role", "content"}:
        raise _bad(f"{where}: {sorted(map(str, unknown))[0]!r} is not supported")
    role = "system" if message.get("role") == "developer" else message.get("role")
    if role not in ROLES:
        raise _bad(f"{where}.role must be one of {', '.join(ROLES)}, not {role!r}")
    return Message(role, _read_content(where, message.get("content")))


def _read_content(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise _bad(f"{where}.content must be text or a list of parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("image_url", "image"):
            raise _bad(f"{where}: this model reads text only; choose a vision model for pictures")
        text = part.get("text") if kind == "text" else None
        if not isinstance(text, str):
            raise _bad(f'{where}.content: each part must be {{"type": "text", "text": ...}}')
        texts.append(text)
    return "".join(texts)


def _bad(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param="messages")
