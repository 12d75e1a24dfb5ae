"""`shuzhai chat [MODEL]`: talk with a model in the terminal, or ask it one question."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import io
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from shuzhai.cli.chat_answer import answer, for_terminal
from shuzhai.cli.chat_commands import Conversation, Message
from shuzhai.cli.chat_input import open_history, well_formed
from shuzhai.cli.chat_pictures import read_picture
from shuzhai.cli.chat_screen import ChatScreen, cut_message
from shuzhai.cli.chat_words import Words, words_of
from shuzhai.cli.options import add_engine_options, add_model, engine_options, given
from shuzhai.cli.pull import ProgressBar
from shuzhai.config import Environment
from shuzhai.engine.request import SamplingParams
from shuzhai.errors import ConfigError, InvalidRequestError, ModelNotFoundError
from shuzhai.frontend.async_engine import AsyncEngine
from shuzhai.hub.catalog import DEFAULT_MODEL
from shuzhai.hub.pull import resolve
from shuzhai.hub.store import Store

_SAMPLING = ("temperature", "top_p", "max_tokens", "seed")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "chat",
        description="Talk with a model in the terminal. With a question, or with one that comes "
        "through a pipe, print the answer and exit.",
    )
    add_model(parser)
    parser.add_argument(
        "question", metavar="QUESTION", nargs="?", help="print the answer to it and exit"
    )
    parser.add_argument(
        "-p", "--prompt", metavar="TEXT", help="the question, where MODEL is left out"
    )
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="PATH",
        help="a picture for the question; may be given several times",
    )
    parser.add_argument("--system", metavar="TEXT", help='system prompt; "" for none at all')
    _add_sampling_options(parser.add_argument_group("answers (default: as the model recommends)"))
    add_engine_options(parser)
    parser.set_defaults(run=run)


def _add_sampling_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--temperature", type=float, metavar="T", help="0: always the likeliest")
    group.add_argument("--top-p", type=float, metavar="P", help="share of the likeliest tokens")
    group.add_argument("--max-tokens", type=int, metavar="N", help="longest answer")
    group.add_argument("--seed", type=int, metavar="N", help="same seed, same answers")


def run(args: argparse.Namespace) -> int:
    for stream in (sys.stdin, sys.stdout):
        # Characters that the locale cannot hold become question marks, not a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    environment = Environment.read()
    words = words_of(environment.language)
    sampling = given(args, _SAMPLING)
    SamplingParams(**sampling)  # a bad value is told before a model is fetched and loaded
    question = _question(args)
    pictures = [read_picture(Path(os.path.expanduser(path))) for path in args.image]
    engine = _load(args, environment, words)
    try:
        params = dataclasses.replace(engine.processor.default_sampling, **sampling)
        if pictures and engine.processor.image_spec is None:
            raise InvalidRequestError(words.blind.format(model=engine.name), "messages")
        conversation = Conversation(args.system, pictures=pictures)
        if question is not None:
            messages = conversation.messages(conversation.question(question))
            return _answer_once(engine, messages, params, words)
        console = Console(highlight=False)
        _greet(console, engine, words, is_default=args.model is None)
        history = open_history(environment.home)
        ChatScreen(engine, params, conversation, words, console, history).run()
    finally:
        asyncio.run(engine.shutdown())
    return 0


def _question(args: argparse.Namespace) -> str | None:
    """The one question, from the command line or a pipe; None: a person sits at the terminal."""
    if args.question is not None and args.prompt is not None:
        raise ConfigError("the question was given twice; leave out one of QUESTION and --prompt")
    question = args.question if args.question is not None else args.prompt
    if question is None:
        if sys.stdin.isatty() and sys.stdout.isatty():
            return None
        question = sys.stdin.read()
    if not question.strip():
        raise InvalidRequestError("the question is empty", "prompt")
    return well_formed(question).strip()


def _load(args: argparse.Namespace, environment: Environment, words: Words) -> AsyncEngine:
    """Fetch the model if it is not here, then load it; both are shown on standard error."""
    console = Console(stderr=True, highlight=False)
    model, store = args.model or DEFAULT_MODEL, Store.at_home(environment)
    try:
        with ProgressBar(console) as progress:
            folder = resolve(model, store, progress, environment=environment)
    except ModelNotFoundError as error:
        hint = "To ask the default model a question: shuzhai chat --prompt TEXT"
        raise ModelNotFoundError(f"{error} {hint}") from error
    loading = words.loading.format(model=folder.resolve().name)
    with console.status(Text(loading)) as status:
        engine = AsyncEngine.load(
            folder,
            load_progress=lambda share: status.update(Text(f"{loading} {share:.0%}")),
            max_num_seqs=1,
            **engine_options(args),
        )
    if engine.processor.template is None:
        asyncio.run(engine.shutdown())
        raise ConfigError(
            f"{engine.name} was not trained to chat: it has no chat template. If it follows one "
            "that is known, name that with --chat-template"
        )
    return engine


def _greet(console: Console, engine: AsyncEngine, words: Words, is_default: bool) -> None:
    context = words.context.format(limit=engine.processor.max_model_len)
    console.print(Text.assemble((engine.name, "bold"), f" · {context}"), soft_wrap=True)
    if is_default:
        console.print(Text(words.small_model, "dim"), soft_wrap=True)
    console.print(Text(words.hints, "dim"), soft_wrap=True)


def _answer_once(
    engine: AsyncEngine, messages: list[Message], params: SamplingParams, words: Words
) -> int:
    """Print the answer alone, as it comes. A terminal is kept safe; a pipe gets the exact text."""
    out = sys.stdout
    clean = for_terminal if out.isatty() else str

    def show(piece: str) -> None:
        out.write(clean(piece))
        out.flush()

    try:
        reply = answer(engine, messages, params, show)
        if not reply.text.endswith("\n"):
            show("\n")
    except BrokenPipeError:
        # The reader has had enough. Python would try again, and complain, when it flushes at exit.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), out.fileno())
        return 1
    if reply.finish_reason is None:
        raise KeyboardInterrupt
    if reply.finish_reason == "length" and reply.usage is not None:
        limit = engine.processor.max_model_len
        message = cut_message(words, reply.usage.total_tokens, limit, params)
        Console(stderr=True, highlight=False).print(Text(message, "yellow"), soft_wrap=True)
    return 0
