"""The conversation in a terminal: prompt, streaming answers, commands."""

from __future__ import annotations

from prompt_toolkit import PromptSession
from prompt_toolkit.history import History
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from shuzhai.cli.chat_answer import Reply, answer, for_terminal
from shuzhai.cli.chat_commands import COMMANDS, Command, Content, Conversation, parse
from shuzhai.cli.chat_input import make_session, silent_keys, well_formed
from shuzhai.cli.chat_pictures import find_files, read_picture
from shuzhai.cli.chat_words import Words
from shuzhai.engine.request import SamplingParams
from shuzhai.errors import ContextLengthError, InvalidRequestError
from shuzhai.frontend.async_engine import AsyncEngine


class ChatScreen:
    """An interactive chat with a loaded model. It owns the conversation, not the engine."""

    def __init__(
        self,
        engine: AsyncEngine,
        params: SamplingParams,
        conversation: Conversation,
        words: Words,
        console: Console,
        history: History,
    ) -> None:
        self._engine = engine
        self._params = params
        self._conversation = conversation
        self._words = words
        self._console = console
        self._limit = engine.processor.max_model_len
        self._sees = engine.processor.image_spec is not None
        self._session: PromptSession[str] = make_session(
            history, words, lambda: self._note(words.how_to_leave), sees=self._sees
        )
        # What stands in the line when the next prompt comes, and when the next new chat begins.
        self._draft = ""
        self._kept = ""

    def run(self) -> None:
        """Talk until the user leaves."""
        if self._conversation.pictures:
            self._show_pictures()
        leave = False
        while not leave:
            draft, self._draft = self._draft, ""
            try:
                self._console.print()
                line = self._session.prompt(default=draft)
                leave = self._obey(parse(well_formed(line)))
            except EOFError:
                leave = True
            except KeyboardInterrupt:
                # Ctrl+C between an answer and the prompt.
                continue
        self._note(self._words.bye)

    def _obey(self, said: Command | str) -> bool:
        """Carry out a command or answer a message; whether the user leaves."""
        kept, self._kept = self._kept, ""
        if isinstance(said, str):
            self._answer(said)
        elif said.name not in COMMANDS:
            self._error(self._words.unknown_command.format(name=said.name[:40]))
        elif said.name == "/system":
            self._system(said.text)
        elif said.name == "/image":
            self._image(said.text)
        elif said.text:
            self._error(self._words.takes_no_text.format(name=said.name))
        elif said.name == "/help":
            self._help()
        elif said.name == "/clear":
            self._conversation.turns.clear()
            if not kept:
                self._conversation.pictures.clear()
            self._draft = kept
            self._note(self._words.new_chat)
        return said == Command("/exit", "")

    def _system(self, text: str) -> None:
        if text:
            self._conversation.system = text
            self._note(self._words.system_set)
            return
        template = self._engine.processor.template
        own = template.default_system if template else ""
        text = own if self._conversation.system is None else self._conversation.system
        words = self._words
        self._note(words.system_is.format(text=text) if text else words.system_none)

    def _image(self, text: str) -> None:
        """Add what stands at a path to the next message; without a path, tell what waits there."""
        if not self._sees:
            self._error(self._words.blind.format(model=self._engine.name))
            return
        files = find_files(text) if text else []
        if text and not files:
            self._error(self._words.no_file.format(path=text))
            return
        try:
            self._conversation.pictures += [read_picture(file) for file in files]
        except InvalidRequestError as error:
            self._error(str(error))
            return
        self._show_pictures()

    def _show_pictures(self) -> None:
        pictures = ", ".join(map(str, self._conversation.pictures))
        words = self._words
        self._note(words.pictures_wait.format(pictures=pictures) if pictures else words.no_pictures)

    def _help(self) -> None:
        table = Table.grid(padding=(0, 3, 0, 0))
        for what, meaning in self._words.help:
            if self._sees or not what.startswith("/image"):
                table.add_row(Text(what, "bold"), Text(meaning))
        self._console.print(table)

    def _answer(self, text: str) -> None:
        question = self._conversation.question(text)
        try:
            reply = self._show_answer(question)
        except ContextLengthError:
            self._refuse_long(text)
            return
        except InvalidRequestError as error:
            self._draft = text
            self._error(str(error))
            return
        if reply.finish_reason is None and not reply.text:
            self._draft = text
            self._note(self._words.nothing_said)
            return
        self._conversation.turns.append((question, reply.text))
        self._conversation.pictures.clear()
        self._sum_up(reply)

    def _show_answer(self, question: Content) -> Reply:
        """Stream the answer to the console; a line that turns stands there until it begins."""
        out = self._console.file
        with (
            silent_keys(),
            self._console.status(Text(self._words.thinking, "dim")) as status,
        ):
            reply = answer(
                self._engine,
                self._conversation.messages(question),
                self._params,
                lambda piece: self._write(piece, status),
            )
        if reply.text and not reply.text.endswith("\n"):
            out.write("\n")
        return reply

    def _write(self, piece: str, status: Status) -> None:
        """As it is, without rich: lines break where the terminal breaks them, and copy whole."""
        status.stop()
        self._console.file.write(for_terminal(piece))
        self._console.file.flush()

    def _refuse_long(self, question: str) -> None:
        if self._conversation.turns:
            self._kept = question
            self._error(self._words.context_full.format(limit=self._limit))
        else:
            self._draft = question
            self._error(self._words.too_long.format(limit=self._limit))

    def _sum_up(self, reply: Reply) -> None:
        """The dim line under an answer, and why the answer was cut, if it was."""
        words, usage = self._words, reply.usage
        assert usage is not None, "an answer that ended or has text has tokens"
        if not reply.text:
            self._note(words.empty_answer)
        parts = [words.tokens.format(count=usage.completion_tokens)]
        if reply.tokens_per_second is not None:
            parts.append(words.rate.format(rate=reply.tokens_per_second))
        parts.append(words.first.format(seconds=reply.seconds_to_first))
        parts.append(words.used.format(used=usage.total_tokens, limit=self._limit))
        if reply.finish_reason is None:
            parts.insert(0, words.stopped)
        self._note(" · ".join(parts))
        if reply.finish_reason == "length":
            self._error(cut_message(words, usage.total_tokens, self._limit, self._params))

    def _note(self, text: str) -> None:
        self._console.print(Text(for_terminal(text), "dim"), soft_wrap=True)

    def _error(self, text: str) -> None:
        self._console.print(Text(for_terminal(text), "yellow"), soft_wrap=True)


def cut_message(words: Words, used: int, limit: int, params: SamplingParams) -> str:
    """Why an answer ended with finish_reason "length"."""
    if used < limit and params.max_tokens is not None:
        return words.cut_max_tokens.format(limit=params.max_tokens)
    return words.cut_context.format(limit=limit)
