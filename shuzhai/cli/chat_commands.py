"""What a typed line means, and the conversation that it acts on. No terminal and no engine here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shuzhai.cli.chat_pictures import Picture

COMMANDS = ("/help", "/clear", "/system", "/image", "/exit")

# The content of a message: text, or a list of parts where it has pictures.
Content = str | list[dict[str, Any]]
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Command:
    """A line that begins with a slash: one of COMMANDS or not, and the text after it."""

    name: str
    text: str


def parse(line: str) -> Command | str:
    """A command, or the message to send. Two slashes at the start are one slash of a message."""
    line = line.strip()
    if line.startswith("//"):
        return line[1:]
    if not line.startswith("/"):
        return line
    name, *rest = line.split(maxsplit=1)
    return Command(name, rest[0] if rest else "")


@dataclass(slots=True)
class Conversation:
    """The turns so far, and the system prompt: None is the model's own, "" is none at all.

    pictures  those that wait for the next question
    """

    system: str | None = None
    turns: list[tuple[Content, str]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)

    def question(self, text: str) -> Content:
        """A question with the pictures that wait, before its text."""
        if not self.pictures:
            return text
        parts = [{"type": "image", "image": picture.data} for picture in self.pictures]
        return [*parts, {"type": "text", "text": text}]

    def messages(self, question: Content) -> list[Message]:
        """OpenAI-style messages that end with the question."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        earlier = [
            {"role": role, "content": content}
            for turn in self.turns
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]
        return [*system, *earlier, {"role": "user", "content": question}]
