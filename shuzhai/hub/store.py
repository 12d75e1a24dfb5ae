"""The folder where models lie, one folder a model. A model is either there whole or not at all.

root/<name>/            a checkpoint, complete
root/.partial/<name>/   a pull under way, or what a dead one left: the next pull of it goes on
root/.locks/<name>      held by the one process that pulls it; the system frees it if that dies

The models that are shipped lie in the package instead, and are here without any of this.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from shuzhai.config import Environment
from shuzhai.hub import shipped
from shuzhai.hub.catalog import CATALOG, find


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A complete model in the store."""

    name: str
    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Store:
    """Models under `root`, which need not exist yet. Only names of the catalog become paths."""

    root: Path

    @classmethod
    def at_home(cls, environment: Environment) -> Store:
        """The user's store: `models` in SHUZHAI_HOME."""
        return cls(environment.home / "models")

    def path_of(self, name: str) -> Path:
        """Where the model lies or would lie; ModelNotFoundError for a name not in the catalog."""
        entry = find(name)
        return shipped.folder_of(entry.name) if entry.shipped else self.root / entry.name

    def has(self, name: str) -> bool:
        return (self.path_of(name) / "config.json").is_file()

    def installed(self) -> list[InstalledModel]:
        """The models of the catalog that are here, in its order."""
        return [
            InstalledModel(name, self.path_of(name), folder_bytes(self.path_of(name)))
            for name in CATALOG
            if self.has(name)
        ]

    def staging_of(self, name: str) -> Path:
        """Where a pull may work; it belongs to the holder of the model's lock."""
        return self.root / ".partial" / find(name).name

    @contextmanager
    def lock(self, name: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Be the only process that pulls this model; `on_wait` is called if another one does."""
        folder = self.root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / find(name).name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def publish(self, folder: Path, name: str) -> Path:
        """Move a complete checkpoint from the staging folder into place, in one step.

        Its bytes are on the disk before its name is: not even a power cut leaves a half model.
        """
        for file in folder.iterdir():
            _sync(file)
        _sync(folder)
        target = self.path_of(name)
        staging = self.staging_of(name)
        if target.exists():
            # Damaged by hand (`has` said no): out of the way, as a folder cannot be replaced.
            os.replace(target, staging / "damaged")
        os.replace(folder, target)
        _sync(self.root)
        shutil.rmtree(staging, ignore_errors=True)
        return target


def folder_bytes(folder: Path) -> int:
    """Size of the files directly in a folder."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    flags = os.O_RDONLY if os.name != "nt" else os.O_RDWR
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
