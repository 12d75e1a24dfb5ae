"""The SQLite file in which conversations are kept, and the threads that work on it.

It knows no table but that there are some: each change of their layout is a migration, counted in
the file's `user_version`. Several servers may share one file.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from filelock import FileLock, Timeout

from shuzhai.errors import ConfigError
from shuzhai.server.chats.layout import APPLICATION_ID, MIGRATIONS
from shuzhai.server.errors import RETRY_AFTER_SECONDS, Problem, RefusedError

T = TypeVar("T")

FILE_NAME = "conversations.sqlite3"
# Until another server has written what it is writing.
_BUSY_SECONDS = 10.0
_NUM_READERS = 2
# A larger file is not read through at each start; damage in it shows when it is met.
_MAX_CHECKED_BYTES = 64 * 2**20
# Pages that nothing uses stay for what comes next; more go back to the disk, some at a time.
_MAX_UNUSED_PAGES = 1024
_MAX_FREED_PAGES = 8192
# Of the log of changes, after something large went through it.
_MAX_JOURNAL_BYTES = 16 * 2**20


class Database:
    """Runs work on the file in threads of its own: one writes, and a few read meanwhile.

    Each piece of work is a transaction. What it raises undoes it; a fault of SQLite becomes a
    RefusedError.
    """

    def __init__(self, file: Path) -> None:
        self._writer = _connect(file)
        self._readers: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        for _ in range(_NUM_READERS):
            self._readers.put(_connect(file))
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="shuzhai-write")
        self._read_threads = ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="shuzhai-read")

    @classmethod
    def open(cls, folder: Path) -> Database:
        """The conversations of a data folder; made if they are not there. ConfigError says what to
        do about a file that is damaged, of a newer shuzhai, or none of ours: it is left alone."""
        file = folder / FILE_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f".{FILE_NAME}.lock", timeout=3 * _BUSY_SECONDS):
                if not file.exists():
                    os.close(os.open(file, os.O_CREAT | os.O_EXCL, 0o600))  # nobody else's to read
                with closing(_connect(file)) as connection:
                    _prepare(connection, file)
                return cls(file)
        except Timeout:
            raise ConfigError(
                f"another program has held {file} for {3 * _BUSY_SECONDS:.0f} seconds; end it, or "
                "set SHUZHAI_HOME to another folder"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"conversations cannot be kept in {folder}: {error.strerror or error}. Set "
                "SHUZHAI_HOME to a folder that can be written."
            ) from None
        except sqlite3.Error as error:
            raise _unusable(file, error) from None

    def close(self) -> None:
        """When what is under way is done."""
        self._write_thread.shutdown()
        self._read_threads.shutdown()
        self._writer.close()
        while not self._readers.empty():
            self._readers.get().close()

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The result of work(connection), which sees the file as it was at one moment."""

        def run() -> T:
            connection = self._readers.get()
            try:
                with _transaction(connection, "DEFERRED"):
                    return work(connection)
            finally:
                self._readers.put(connection)

        return await self._in_thread(self._read_threads, run)

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The result of work(connection), once its changes are in the file."""

        def run() -> T:
            with _transaction(self._writer, "IMMEDIATE"):
                result = work(self._writer)
            with suppress(sqlite3.OperationalError):  # it can wait, and the work is done
                self._give_back()
            return result

        return await self._in_thread(self._write_thread, run)

    def _give_back(self) -> None:
        if _pragma(self._writer, "freelist_count") > _MAX_UNUSED_PAGES:
            # As a script: it has steps without a row, and execute would end at the first.
            self._writer.executescript(f"PRAGMA incremental_vacuum({_MAX_FREED_PAGES})")

    async def _in_thread(self, pool: ThreadPoolExecutor, run: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, run)
        except sqlite3.Error as error:
            raise RefusedError(_problem(error)) from error


def _connect(file: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        file, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA journal_size_limit = {_MAX_JOURNAL_BYTES}")
    return connection


@contextmanager
def _transaction(connection: sqlite3.Connection, kind: str) -> Iterator[None]:
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _prepare(connection: sqlite3.Connection, file: Path) -> None:
    """Bring the file to today's layout. Nothing is written before it is known to be ours."""
    version = _pragma(connection, "user_version")
    is_new = not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if not is_new and _pragma(connection, "application_id") != APPLICATION_ID:
        raise ConfigError(
            f"{file} is a database of another program; move it away, or set SHUZHAI_HOME to "
            "another folder. It was not changed."
        )
    if version > len(MIGRATIONS):
        raise ConfigError(
            f"{file} was written by a newer shuzhai (its layout is {version}, and this one knows "
            f"{len(MIGRATIONS)}): update shuzhai, or set SHUZHAI_HOME to another folder. It was "
            "not changed."
        )
    if file.stat().st_size <= _MAX_CHECKED_BYTES:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found.partition("\n")[0])
    if is_new:  # only an empty file can be told
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    if version < len(MIGRATIONS):
        with _transaction(connection, "IMMEDIATE"):
            for statement in (s for migration in MIGRATIONS[version:] for s in migration):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _unusable(file: Path, error: sqlite3.Error) -> ConfigError:
    return ConfigError(
        f"the conversations in {file} cannot be read: {error}. The file was not changed. Move it "
        f"and the files {file.name}-wal and {file.name}-shm beside it away to begin anew, or put "
        "a copy of yours in its place; `sqlite3 FILE .recover` saves what can be saved."
    )


def _problem(error: sqlite3.Error) -> Problem:
    """How to answer a request that met a fault of SQLite."""
    code = (error.sqlite_errorcode & 0xFF) if isinstance(error, sqlite3.OperationalError) else None
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Problem(
            503,
            "server_error",
            "storage_busy",
            "Another server is writing the conversations; try again in a moment.",
            headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
        )
    logging.getLogger(__name__).error("the conversations cannot be used: %s", error)
    if code == sqlite3.SQLITE_FULL:
        return Problem(
            507, "server_error", "disk_full", "The server's disk is full: nothing was saved."
        )
    return Problem(
        500,
        "server_error",
        "storage_failed",
        "The server cannot read or write its conversations; see its log.",
    )
