"""`shuzhai`: one command, a subcommand a task. Each subcommand is a module beside this one.

Only the module of the subcommand that is run is imported: most bring PyTorch, which takes seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from rich.console import Console
from rich.text import Text

from shuzhai.cli.options import Parser
from shuzhai.errors import ShuzhaiError

COMMANDS = {
    "serve": "start the web page and the OpenAI-compatible API",
    "chat": "talk with a model in the terminal",
    "ps": "show the models of a running server",
    "stop": "unload a model of a running server",
    "pull": "fetch a model into the local store",
    "list": "show the models that are known, and which are here",
    "plan": "show where the memory of a model would go, without loading it",
    "bench": "measure how fast a model runs here",
}
_MODULES = {"list": "list_models"}


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """The command line: all names of COMMANDS, and all of the chosen one, whose module adds its own
    subparser, with `run` set."""
    parser = Parser(
        prog="shuzhai", description="Run the Shusheng / InternLM models on your own machine."
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        if name == chosen:
            import_module(f"shuzhai.cli.{_MODULES.get(name, name)}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when all went well, 1 on an error (one line on stderr), 130 on Ctrl+C."""
    words = sys.argv[1:] if argv is None else argv
    try:
        chosen = next((word for word in words if word in COMMANDS), None)
        args = build_parser(chosen).parse_args(words)
        return args.run(args)
    except ShuzhaiError as error:
        message = Text.assemble(("error: ", "red"), str(error))
        Console(stderr=True).print(message, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
