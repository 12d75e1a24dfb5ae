"""Conversations as files: what is exported comes back whole, and a bad file brings nothing."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from shuzhai.server.chats import transfer
from shuzhai.server.chats.database import Database
from shuzhai.server.settings import ServerConfig
from tests.server.fakes import FakeEngine
from tests.server.live import Live, live_server
from tests.server.talk import SETTINGS, Chats, message, png

IMPORT = "conversations/import"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    database = Database.open(tmp_path_factory.mktemp("home"))
    config = ServerConfig(api_keys=("a", "b"))
    with live_server([FakeEngine()], config, database=database) as live:
        yield live
    database.close()


@pytest.fixture
def chats(keyed: Live) -> Chats:
    return Chats(keyed, "a")


def export(chats: Chats, id: str) -> dict[str, Any]:
    status, _, body = chats.ask("GET", f"conversations/{id}/export")
    assert status == 200
    return json.loads(body)


def test_there_and_back(chats: Chats, keyed: Live) -> None:
    """To another key: with its pictures, branches and settings, and with new ids."""
    large = png(size=(500, 500)) + bytes(700_000)  # several parts
    kept = [chats.picture(content) for content in (large, png("blue"))]
    id = chats.begin(
        "往返 / there & back",
        message("q", pictures=kept, text="Look:\n```py\n1 < 2\n```"),
        message("a", "q", text="一"),
        message("b", "q", text="二", status="length"),
        system="",
        model="tiny",
    )
    assert chats.post(f"conversations/{id}", {"leaf": "b"})[0] == 200
    status, headers, body = chats.ask("GET", f"conversations/{id}/export?format=json")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert headers["content-disposition"].startswith('attachment; filename="conversation.json"; ')
    assert unquote(headers["content-disposition"]).endswith("往返 there & back.json")
    file = json.loads(body)
    assert (file["format"], file["version"]) == ("shuzhai-conversation", 1)
    urls = [file["pictures"][picture["id"]] for picture in kept]
    assert [base64.b64decode(url.partition(",")[2]) for url in urls] == [large, png("blue")]

    other = Chats(keyed, "b")
    status, answer = other.post(IMPORT, file)
    assert status == 200
    [summary] = answer["data"]
    old, new = chats.show(id), other.show(summary["id"])
    assert {key: new[key] for key in summary} == summary
    for key in ("title", "created", "updated", "settings"):
        assert new[key] == old[key]
    pairs = zip(new["messages"], old["messages"], strict=True)
    ids = {each["id"]: before["id"] for each, before in pairs}
    assert len({*ids, *ids.values(), id, new["id"]}) == 8
    ids |= {None: None}
    back = [{**m, "id": ids[m["id"]], "parent": ids[m["parent"]]} for m in new["messages"]]
    assert back == old["messages"]
    assert ids[new["leaf"]] == "b"
    assert other.ask("GET", f"attachments/{kept[0]['id']}")[2] == large
    assert other.titles(search="二") == ["往返 / there & back"]


def test_several_at_a_time(chats: Chats) -> None:
    files = [export(chats, chats.begin(title, message("q"))) for title in ("one", "two")]
    status, answer = chats.post(IMPORT, [*files, files[0]])
    assert status == 200
    assert [each["title"] for each in answer["data"]] == ["one", "two", "one"]
    assert len({each["id"] for each in answer["data"]}) == 3


def test_a_picture_that_is_kept_need_not_come_again(chats: Chats, keyed: Live) -> None:
    picture = chats.picture(png("green"))
    file = export(chats, chats.begin("Light", message("q", pictures=[picture])))
    file["pictures"] = {}
    assert chats.post(IMPORT, file)[0] == 200
    status, answer = Chats(keyed, "b").post(IMPORT, file)
    assert (status, answer["error"]["code"]) == (400, "picture_not_found")


def good() -> dict[str, Any]:
    return {
        "format": "shuzhai-conversation",
        "version": 1,
        "title": "Imported",
        "created": 1,
        "updated": 2.5,
        "settings": SETTINGS,
        "leaf": "a",
        "messages": [message("q"), message("a", "q")],
        "pictures": {},
    }


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


WITH_PICTURE = {
    "leaf": "q",
    "messages": [message("q", pictures=[{"id": "0" * 64, "media_type": "image/png", "name": ""}])],
}


@pytest.mark.parametrize(
    "change",
    [
        {"format": "chatgpt"},
        {"format": None},
        {"version": 2},
        {"title": "x" * 1000},
        {"created": "yesterday"},
        {"leaf": "x"},
        {"leaf": ""},
        {"messages": [message("a", "q"), message("q")]},
        {"messages": [message("a", "a")]},
        {"messages": [message("q"), message("q", "q")]},
        {"messages": {}},
        {"messages": [[]]},
        {"settings": {"sampling": {"temperature": 1000}}},
        {"pictures": {"x": "data:image/png;base64,"}},
        {"pictures": {"0" * 64: "data:image/png;base64,AAAA"}, **WITH_PICTURE},
        {"pictures": {"0" * 64: "http://evil.example/x.png"}, **WITH_PICTURE},
        {"pictures": {"0" * 64: "attachment:" + "0" * 64}, **WITH_PICTURE},
        {"pictures": {"0" * 64: 3}, **WITH_PICTURE},
        {"pictures": {"0" * 64: data_url(png())}},  # which no message has
        WITH_PICTURE,
        {"more": 1},
        {"id": "x"},
    ],
    ids=lambda change: str(change)[:40],
)  # fmt: skip
def test_a_bad_file_brings_nothing(chats: Chats, change: dict[str, Any]) -> None:
    before = chats.titles()
    for body in ({**good(), **change}, [good(), {**good(), **change}]):
        status, answer = chats.post(IMPORT, body)
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error"), answer
    assert chats.titles() == before


@pytest.mark.parametrize("body", [[], [[]], [1], 3, None, "x", [good()] * 1001, [None]])
def test_what_is_no_file(chats: Chats, body: object) -> None:
    assert chats.post(IMPORT, body)[0] == 400


def test_a_good_one(chats: Chats) -> None:
    assert chats.post(IMPORT, {**good(), "updated": 1e11})[0] == 200  # not later than now
    assert chats.begin("Newest")
    assert chats.titles(limit=1) == ["Newest"]


def test_the_same_id_twice_is_the_later_message(chats: Chats) -> None:
    file = {**good(), "messages": [message("a", text="one"), message("a", text="two")]}
    status, answer = chats.post(IMPORT, file)
    assert status == 200
    assert [m["text"] for m in chats.show(answer["data"][0]["id"])["messages"]] == ["two"]


def test_a_large_file_full_of_commas(chats: Chats) -> None:
    """More text than a request of any other kind may have."""
    messages = [message(f"m{i}", text="1,2,3,[4]," * 10_000) for i in range(60)]
    assert chats.post(IMPORT, {**good(), "leaf": None, "messages": messages})[0] == 200
    status, answer = chats.post(IMPORT, {**good(), "title": [[]] * 1_100_000})
    assert (status, answer["error"]["code"]) == (400, "invalid_json")


def test_pictures_of_an_import_are_bounded(chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    file = {**good(), **WITH_PICTURE, "pictures": {"0" * 64: data_url(png("navy"))}}
    assert chats.post(IMPORT, file)[0] == 200
    monkeypatch.setattr(transfer, "MAX_PICTURES", 1)
    before = chats.titles()
    status, answer = chats.post(IMPORT, [file, file])
    assert (status, answer["error"]["param"]) == (400, "pictures")
    assert "up to 1 pictures" in answer["error"]["message"]
    assert chats.titles() == before


def test_many_pictures_take_as_long_as_each_of_them(tmp_path: Path) -> None:
    """Not as all that are there, again for each: the one thread that writes is everybody's."""

    def work(count: int) -> int:
        """In thousands of SQLite's steps."""
        contents = [png() + i.to_bytes(2, "big") for i in range(count)]
        urls = {hashlib.sha256(content).hexdigest(): data_url(content) for content in contents}
        shown = [{"id": id, "media_type": "image/png", "name": ""} for id in urls]
        messages = [message(f"m{i}", pictures=shown[i : i + 64]) for i in range(0, len(shown), 64)]
        file = {**good(), "leaf": None, "messages": messages, "pictures": urls}
        files, steps = transfer.read_files(file), []

        def write(connection: sqlite3.Connection) -> None:
            connection.set_progress_handler(lambda: steps.append(1), 1000)
            transfer.write_files(connection, b"", files)

        with closing(Database.open(tmp_path / str(count))) as database:
            asyncio.run(database.write(write))
        return len(steps)

    assert work(2000) < 8 * work(400)


def test_as_markdown(chats: Chats) -> None:
    picture = {**chats.picture(png()), "name": "a_b](x).png"}
    id = chats.begin(
        "# *Title*\nof two lines",
        message("q", text="What?", pictures=[picture]),
        message("a", "q", text="not this"),
        message("b", "q", text="**This**\n\n```c\n#include <x>\n```"),
        message("c", "b", role="user", model=None, text="Thanks"),
    )
    assert chats.post(f"conversations/{id}", {"leaf": "c"})[0] == 200
    status, headers, body = chats.ask("GET", f"conversations/{id}/export?format=markdown")
    assert (status, headers["content-type"]) == (200, "text/markdown; charset=utf-8")
    assert 'filename="conversation.md"' in headers["content-disposition"]
    assert body.decode() == (
        "# \\# \\*Title\\* of two lines\n\n## User\n\n*[a\\_b\\](x).png]*\n\nWhat?\n\n## tiny\n\n"
        "**This**\n\n```c\n#include <x>\n```\n\n## User\n\nThanks\n"
    )
    assert chats.get(f"conversations/{id}/export", format="pdf")[0] == 400
    assert chats.get(f"conversations/{id}/export", form="json")[0] == 400


@pytest.mark.parametrize("title", ["", "...", '"; filename="x', "a/b\\c:*?<>|\r\nSet-Cookie: x=1"])
def test_names_of_files(chats: Chats, title: str) -> None:
    _, headers, _ = chats.ask("GET", f"conversations/{chats.begin(title)}/export")
    assert "set-cookie" not in headers
    name = headers["content-disposition"].rpartition("''")[2]
    assert set(unquote(name)).isdisjoint('/\\:*?"<>|\r\n')
    assert unquote(name) not in (".json", "....json")


def test_an_export_can_be_as_large_as_its_pictures(keyed: Live, tmp_path: Path) -> None:
    """It is written a part at a time."""
    chats = Chats(keyed, "b")
    content = png(size=(300, 300)) + bytes(6 * 2**20)
    picture = chats.picture(content)
    file = export(chats, chats.begin("Large", message("q", pictures=[picture])))
    assert base64.b64decode(file["pictures"][picture["id"]].partition(",")[2]) == content
