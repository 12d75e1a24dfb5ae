"""The file of the conversations: made, shared, and never overwritten when it is not understood."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shuzhai.errors import ConfigError
from shuzhai.server.chats import database as module
from shuzhai.server.chats import layout, store
from shuzhai.server.chats.database import FILE_NAME, Database
from shuzhai.server.chats.schemas import Message, NewConversation
from shuzhai.server.errors import RefusedError
from tests.server.fakes import FakeEngine
from tests.server.live import live_server
from tests.server.talk import SETTINGS, Chats, error, message

ID = "00000000-0000-0000-0000-000000000001"


def run(folder: Path, *work: Callable[[sqlite3.Connection], Any]) -> list[Any]:
    async def scenario() -> list[Any]:
        return [await database.write(each) for each in work]

    with closing(Database.open(folder)) as database:
        return asyncio.run(scenario())


def begin(id: str = ID) -> Callable[[sqlite3.Connection], bool]:
    new = NewConversation.parse({"id": id, "title": "A chat", "settings": SETTINGS})
    return partial(store.create, tenant=b"", new=new)


def save(id: str = ID, *ids: str) -> Callable[[sqlite3.Connection], Any]:
    messages = [Message.parse(message(each)) for each in ids]
    return partial(store.save, tenant=b"", id=id, messages=messages, leaf=None)


def test_it_is_made_and_opened_again(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    assert run(folder, begin()) == [True]
    assert run(folder, begin()) == [False]
    if os.name != "nt":
        assert (folder / FILE_NAME).stat().st_mode & 0o077 == 0
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        facts = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in
                 ("journal_mode", "auto_vacuum", "user_version", "application_id")]  # fmt: skip
        assert facts == ["wal", 2, len(layout.MIGRATIONS), layout.APPLICATION_ID]


def test_an_older_one_is_brought_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, begin())
    more = ("ALTER TABLE conversations ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'",)
    monkeypatch.setattr(module, "MIGRATIONS", (*layout.MIGRATIONS, more))
    [rows] = run(
        tmp_path, lambda c: c.execute("SELECT title, colour FROM conversations").fetchall()
    )
    assert rows == [("A chat", "red")]


def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, begin())
    bad = ("DROP TABLE settings", "SELECT nonsense")
    with monkeypatch.context() as patch:
        patch.setattr(module, "MIGRATIONS", (*layout.MIGRATIONS, bad))
        with pytest.raises(ConfigError, match="nonsense"):
            Database.open(tmp_path)
    assert run(tmp_path, begin(), partial(store.read_settings, tenant=b""))[0] is False


def refused(folder: Path, match: str) -> None:
    """The file is told to be unusable, and stays as it is."""
    before = (folder / FILE_NAME).read_bytes()
    with pytest.raises(ConfigError, match=match) as caught:
        Database.open(folder)
    assert str(folder / FILE_NAME) in str(caught.value)
    assert (folder / FILE_NAME).read_bytes() == before


def test_a_newer_one(tmp_path: Path) -> None:
    run(tmp_path, begin())
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        connection.execute("PRAGMA user_version = 99")
    refused(tmp_path, "newer shuzhai .its layout is 99.*update shuzhai.*not changed")


def test_one_of_another_program(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    refused(tmp_path, "database of another program.*not changed")


@pytest.mark.parametrize("what", ["text", "cut", "overwritten"])
def test_a_damaged_one(tmp_path: Path, what: str) -> None:
    run(tmp_path, begin(), save(ID, *(f"m{i}" for i in range(500))))
    file = tmp_path / FILE_NAME
    content = file.read_bytes()
    damaged = {
        "text": b"this is no database at all" * 100,
        "cut": content[: len(content) // 2 // 4096 * 4096],
        "overwritten": content[:8192] + b"\xff" * 4096 + content[12288:],
    }[what]
    file.write_bytes(damaged)
    refused(tmp_path, "cannot be read.*not changed.*Move it.*recover")


def test_an_empty_file_is_a_new_one(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch()
    assert run(tmp_path, begin()) == [True]


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("SELECT count(*), total(num_bytes) FROM pictures WHERE tenant = x''", "pictures_by_size"),
        ("SELECT number FROM pictures WHERE touched < 1", "pictures_by_touch"),
    ],
)
def test_pictures_are_counted_without_reading_them(tmp_path: Path, query: str, index: str) -> None:
    [plan] = run(tmp_path, lambda c: c.execute(f"EXPLAIN QUERY PLAN {query}").fetchall())
    assert f"COVERING INDEX {index}" in plan[0][-1]


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid"), reason="POSIX")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        with pytest.raises(ConfigError, match="Set SHUZHAI_HOME to a folder that can be written"):
            Database.open(folder)


def test_damage_that_is_met_later(tmp_path: Path) -> None:
    """Not at the start, as the file is too large to be read through: the request is told."""
    run(tmp_path, begin(), save(ID, *(f"m{i}" for i in range(2000))))
    with (
        closing(Database.open(tmp_path)) as database,
        live_server([FakeEngine()], database=database) as live,
    ):
        file = tmp_path / FILE_NAME
        content = file.read_bytes()
        file.write_bytes(content[:40960] + b"\xff" * (len(content) - 40960))
        status, body = Chats(live).get("conversations", search="nothing has it")
        assert error((status, body)) == (500, "storage_failed", None)
        assert str(tmp_path) not in body["error"]["message"]
        assert live.ask("GET", "/health")[0] == 200


def test_a_full_disk(tmp_path: Path) -> None:
    """As SQLite tells it; what was there before still is."""
    with (
        closing(Database.open(tmp_path)) as database,
        live_server([FakeEngine()], database=database) as live,
    ):
        chats = Chats(live)
        id = chats.begin("Kept", message("q"))

        async def fill() -> None:
            await database.write(lambda c: c.execute("PRAGMA max_page_count = 1").fetchall())

        asyncio.run(fill())
        assert error(chats.save(id, message("b", text="x" * 2**20)))[:2] == (507, "disk_full")
        assert [each["id"] for each in chats.show(id)["messages"]] == ["q"]
        assert chats.save(id, message("q", text="short"))[0] == 200


def test_another_that_writes_for_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUSY_SECONDS", 0.2)
    run(tmp_path, begin())
    with (
        closing(Database.open(tmp_path)) as database,
        closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RefusedError) as caught:
            asyncio.run(database.write(begin()))
        problem = caught.value.problem
        assert (problem.status, problem.code) == (503, "storage_busy")
        assert "Retry-After" in problem.headers
        asyncio.run(database.read(partial(store.head, tenant=b"", id=ID)))  # goes on meanwhile
        other.execute("ROLLBACK")
        assert asyncio.run(database.write(begin())) is False


def test_the_event_loop_goes_on_meanwhile(tmp_path: Path) -> None:
    async def scenario() -> float:
        slow = asyncio.ensure_future(database.write(lambda _: time.sleep(0.5)))
        longest = 0.0
        while not slow.done():
            began = time.monotonic()
            await database.read(partial(store.read_settings, tenant=b""))
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - began)
        return longest

    with closing(Database.open(tmp_path)) as database:
        assert asyncio.run(scenario()) < 0.4


def test_work_that_fails_is_undone(tmp_path: Path) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        begin()(connection)
        raise ValueError("no")

    with closing(Database.open(tmp_path)) as database:
        with pytest.raises(ValueError, match="no"):
            asyncio.run(database.write(fail))
        assert asyncio.run(database.write(begin())) is True


def test_opened_by_several_at_the_same_moment(tmp_path: Path) -> None:
    """When it is not there yet."""
    opened: list[Database] = []
    threads = [
        threading.Thread(target=lambda: opened.append(Database.open(tmp_path))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 6
    for number, database in enumerate(opened):
        asyncio.run(database.write(begin(f"{ID[:-1]}{number}")))
        database.close()


WRITER = """
import asyncio, sys, uuid
from contextlib import closing
from pathlib import Path
from tests.server.test_database import Database, begin, save

async def main(database):
    while True:
        id = str(uuid.uuid4())
        await database.write(begin(id))
        await database.write(save(id, "q"))
        print(id, flush=True)

with closing(Database.open(Path(sys.argv[1]))) as database:
    asyncio.run(main(database))
"""


def test_two_processes_of_which_one_is_killed(tmp_path: Path) -> None:
    """Both write at the same time. What was told to be kept is kept, and nothing is damaged."""
    run(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    told = [process.stdout.readline().strip()]
    mine = [f"{ID[:-2]}{number}" for number in range(10, 60)]
    run(tmp_path, *(work for id in mine for work in (begin(id), save(id, "q"))))
    told += [process.stdout.readline().strip() for _ in range(20)]
    process.kill()
    process.wait()
    process.stdout.close()
    *found, check = run(
        tmp_path,
        *(partial(store.find, tenant=b"", id=id) for id in (*told, *mine)),
        lambda c: c.execute("PRAGMA integrity_check").fetchone()[0],
    )
    assert (len(found), check) == (71, "ok")


def test_two_servers_share_their_conversations(tmp_path: Path) -> None:
    with (
        closing(Database.open(tmp_path)) as one,
        closing(Database.open(tmp_path)) as two,
        live_server([FakeEngine()], database=one) as first,
        live_server([FakeEngine()], database=two) as second,
    ):
        id = Chats(first).begin("Shared", message("q"))
        chats = [Chats(first), Chats(second)]
        faults: list[Any] = []

        def write(place: int) -> None:
            for i in range(30):
                status, body = chats[place].save(id, message(f"m{place}-{i}"))
                if status != 200:
                    faults.append(body)

        threads = [threading.Thread(target=write, args=[place]) for place in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == []
        for each in chats:
            assert len(each.show(id)["messages"]) == 61


def test_clients_that_leave_harm_nobody(tmp_path: Path) -> None:
    """In the middle of a body, and of an answer."""
    with (
        closing(Database.open(tmp_path)) as database,
        live_server([FakeEngine()], database=database) as live,
    ):
        chats = Chats(live)
        id = chats.begin("Long", *(message(f"m{i}", text="x" * 2**20) for i in range(6)))
        heads = [
            f"GET /api/conversations/{id}/export HTTP/1.1",
            f"GET /api/conversations/{id} HTTP/1.1",
            "GET /api/conversations?search=x HTTP/1.1",
            "POST /api/attachments HTTP/1.1\r\nContent-Type: image/png\r\nContent-Length: 99999",
            f"POST /api/conversations/{id}/messages HTTP/1.1\r\nContent-Type: application/json\r\n"
            "Content-Length: 999",
        ]
        for head in heads * 4:
            with live.connect() as sock:
                sock.sendall(f"{head}\r\nHost: localhost\r\n\r\n".encode() + b'{"messages": [')
                with suppress(TimeoutError):
                    sock.settimeout(0.05)
                    sock.recv(1000)
        assert len(chats.show(id)["messages"]) == 6
        assert json.loads(chats.ask("GET", f"conversations/{id}/export")[2])["title"] == "Long"
