"""`shuzhai stop MODEL`: have a running server unload a model."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.text import Text

from shuzhai.cli.options import add_server_address
from shuzhai.cli.ps import ask


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "stop",
        description="Have a running server unload a model, or stop loading it. The next request "
        "for it loads it again. A model that is in use is not stopped.",
    )
    parser.add_argument("model", metavar="MODEL", help="a name that `shuzhai ps` shows")
    add_server_address(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    model = ask(args, "POST", "/v1/models/unload", {"model": args.model})
    Console(highlight=False).print(Text(f"{model.get('id', args.model)} is not loaded any more."))
    return 0
