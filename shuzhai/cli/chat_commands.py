"""What a typed line means, and the conversation that it acts on. No terminal and no engine here."""

from __future__ import annotations

from dataclasses import dataclass, field

COMMANDS = ("/help", "/clear", "/system", "/exit")


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
    """The turns so far, and the system prompt: None is the model's own, "" is none at all."""

    system: str | None = None
    turns: list[tuple[str, str]] = field(default_factory=list)

    def messages(self, question: str) -> list[dict[str, str]]:
        """OpenAI-style messages that end with the question."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        earlier = [
            {"role": role, "content": text}
            for turn in self.turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        return [*system, *earlier, {"role": "user", "content": question}]
