"""`shuzhai`: one command, a subcommand a task. Each subcommand is a module beside this one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from shuzhai.cli import bench, chat, list_models, plan, ps, pull, serve, stop
from shuzhai.cli.options import Parser
from shuzhai.errors import ShuzhaiError

COMMANDS = (serve, chat, ps, stop, pull, list_models, plan, bench)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. Each module of COMMANDS adds its own subparser, with `run` set."""
    parser = Parser(
        prog="shuzhai", description="Run the Shusheng / InternLM models on your own machine."
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when all went well, 1 on an error (one line on stderr), 130 on Ctrl+C."""
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except ShuzhaiError as error:
        message = Text.assemble(("error: ", "red"), str(error))
        Console(stderr=True).print(message, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
