"""`shuzhai list`: the models that are known, and which of them are here."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shuzhai.cli.pull import show_path
from shuzhai.config import Environment
from shuzhai.hub.catalog import CATALOG
from shuzhai.hub.progress import format_bytes
from shuzhai.hub.store import Store


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "list",
        description="Show the models that are known, and which of them are in the local store or "
        "shipped with shuzhai.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    store = Store.at_home(Environment.read())
    Console(highlight=False).print(
        _table(store),
        Text(
            f"\nWhat is pulled is kept in {show_path(store.root)}. To fetch one: shuzhai pull MODEL"
        ),
        soft_wrap=True,
    )
    return 0


def _table(store: Store) -> Table:
    on_disk = {model.name: model.size_bytes for model in store.installed()}
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("MODEL", no_wrap=True)
    table.add_column("READS", no_wrap=True)
    table.add_column("DOWNLOAD", justify="right", no_wrap=True)
    table.add_column("HERE", justify="right", no_wrap=True)
    for entry in CATALOG.values():
        here = entry.name in on_disk
        table.add_row(
            Text(entry.name, style="bold" if here else ""),
            "text" if entry.kind == "text" else "text, pictures",
            "shipped" if entry.shipped else format_bytes(entry.download_bytes),
            Text(format_bytes(on_disk[entry.name]), "green") if here else Text("no", "dim"),
        )
    return table
