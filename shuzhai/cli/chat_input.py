"""The line that people write in: keys, history, several lines, completion of commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app, run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from shuzhai.cli.chat_commands import COMMANDS
from shuzhai.cli.chat_words import Words

if sys.platform != "win32":
    import termios

_PICTURE_NAMES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


def make_session(
    history: History, words: Words, show_hint: Callable[[], None], *, sees: bool
) -> PromptSession[str]:
    """The prompt. show_hint tells how to leave: Ctrl+C on an empty line asks for it.

    sees  whether the model does: if not, no command for pictures is offered

    prompt() returns one message, which may have several lines; EOFError: the user leaves.
    """
    return PromptSession(
        [("ansigreen bold", "> ")],
        multiline=True,
        prompt_continuation="  ",
        placeholder=lambda: _placeholder(words),
        history=history,
        key_bindings=_key_bindings(show_hint),
        completer=_CommandCompleter(words, sees),
        complete_while_typing=True,
        reserve_space_for_menu=len(COMMANDS),
        enable_suspend=True,
    )


def open_history(folder: Path) -> History:
    """What was typed in earlier chats, kept in a file that only its owner reads.

    Where it cannot be kept, it lasts as long as this chat.
    """
    path = folder / "chat_history"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with path.open("ab"):
            return _History(path)
    except OSError:
        return InMemoryHistory()


def well_formed(text: str) -> str:
    """Without the lone surrogates that stand for bytes which were no UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


@contextmanager
def silent_keys() -> Iterator[None]:
    """What is typed while an answer comes is not shown in its midst: the next prompt gets it.

    Only where terminals echo by themselves, which those of Windows do not do here.
    """
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(fd, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)


def _placeholder(words: Words) -> StyleAndTextTuples:
    """Gone once the line is left: what stays on the screen is what was typed."""
    return [] if get_app().is_done else [("ansibrightblack", words.placeholder)]


def _key_bindings(show_hint: Callable[[], None]) -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.current_line_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        elif buffer.text.strip():
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c")
    @keys.add("<sigint>")
    def clear(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            # It stays within reach of the Up key.
            event.current_buffer.reset(append_to_history=True)
        else:
            run_in_terminal(show_hint)

    return keys


class _History(FileHistory):
    """A file history that loses a line rather than the chat: on a full disk, for instance."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(well_formed(string))


class _CommandCompleter(Completer):
    """Offers the commands while the first word is being typed, then pictures where one is meant."""

    def __init__(self, words: Words, sees: bool) -> None:
        self._help = dict(words.help)
        self._names = [name for name in COMMANDS if sees or name != "/image"]
        self._paths = PathCompleter(expanduser=True, file_filter=_may_be_picture)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        typed = document.text_before_cursor
        if typed.startswith("/image ") and "/image" in self._names:
            path = Document(typed.removeprefix("/image ").lstrip())
            yield from self._paths.get_completions(path, complete_event)
        elif typed.startswith("/"):
            for name in self._names:
                if name.startswith(typed) and name != typed:
                    yield Completion(name, -len(typed), display_meta=self._help[name])


def _may_be_picture(path: str) -> bool:
    return path.lower().endswith(_PICTURE_NAMES) or os.path.isdir(path)
