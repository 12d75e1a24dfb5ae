"""Pictures that the server keeps: looked at, counted, found again, and removed in time."""

from __future__ import annotations

import asyncio
import hashlib
import io
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shuzhai.server.chats import pictures
from shuzhai.server.chats.database import FILE_NAME, Database
from shuzhai.server.settings import ServerConfig
from tests.server.fakes import EYES, FakeEngine
from tests.server.live import Live, live_server
from tests.server.talk import Chats, error, message, png

CHAT = "/v1/chat/completions"


@pytest.fixture
def seeing() -> FakeEngine:
    engine = FakeEngine()
    engine.processor.image_spec = EYES
    return engine


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.open(tmp_path)
    yield database
    database.close()


@pytest.fixture
def keyed(seeing: FakeEngine, database: Database) -> Iterator[Live]:
    config = ServerConfig(api_keys=("a", "b"))
    with live_server([seeing], config, database=database) as live:
        yield live


@pytest.fixture
def chats(keyed: Live) -> Chats:
    return Chats(keyed, "a")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_picture_is_kept(chats: Chats, kind: str) -> None:
    packed = io.BytesIO()
    Image.effect_noise((700, 500), 90).convert("RGB").save(packed, kind)
    content = packed.getvalue()
    status, picture = chats.upload(content, name="Ferien 假期.png")
    assert status == 200  # what it says to be does not count
    assert picture == {
        "id": hashlib.sha256(content).hexdigest(),
        "media_type": f"image/{kind.lower()}",
        "name": "Ferien 假期.png",
    }
    status, headers, body = chats.ask("GET", f"attachments/{picture['id']}")
    assert (status, body) == (200, content)
    assert headers["content-type"] == picture["media_type"]
    assert headers["content-length"] == str(len(content))
    assert headers["content-disposition"] == "inline"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"].startswith("private, ")
    assert "default-src 'none'" in headers["content-security-policy"]
    status, headers, body = chats.ask("HEAD", f"attachments/{picture['id']}")
    assert (status, headers["content-length"], body) == (200, str(len(content)), b"")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"<!doctype html><script>alert(1)</script>",
        b"GIF89a<script>",
        b"BM<html>",
        b"\x89PNG\r\n\x1a\n",
        png()[:40],
        png(size=(1, 1)),
        b"\xff\xd8\xff\xe0" + bytes(100),
        b"RIFF\x10\0\0\0WEBPVP8 ",
        b"%PDF-1.7",
    ],
    ids=lambda content: repr(content[:12]),
)
def test_what_is_no_picture_is_refused(chats: Chats, content: bytes) -> None:
    status, body = chats.upload(content)
    assert (status, body["error"]["code"]) == (400, "invalid_value")


@pytest.mark.parametrize("kind", ["application/json", "text/html", "image/svg+xml", ""])
def test_only_pictures_are_taken(chats: Chats, kind: str) -> None:
    assert error(chats.upload(png(), kind))[:2] == (415, "unsupported_media_type")


def test_sizes(chats: Chats) -> None:
    large = b"\xff\xd8\xff" + bytes(32 * 2**20)
    assert error(chats.upload(large, "image/jpeg"))[:2] == (413, "body_too_large")
    assert error(chats.upload(png(), name="x" * 256)) == (400, "invalid_value", "name")
    assert chats.ask("POST", "attachments?x=1", png(), content_type="image/png")[0] == 400


def test_a_key_sees_its_own_alone(chats: Chats, keyed: Live) -> None:
    picture = chats.picture(png())
    other = Chats(keyed, "b")
    path = f"attachments/{picture['id']}"
    assert error(other.get(path))[:2] == (404, "picture_not_found")
    shown = message("q", pictures=[picture])
    id = other.begin()
    assert error(other.save(id, shown)) == (400, "picture_not_found", "messages")
    assert other.picture(png())["id"] == picture["id"]
    assert other.save(id, shown)[0] == 200
    assert keyed.ask("GET", f"/api/{path}")[0] == 401


def test_a_message_names_pictures_that_are_there(chats: Chats) -> None:
    id, picture = chats.begin(), chats.picture(png())
    assert chats.save(id, message("q", pictures=[picture, picture]))[0] == 200
    for wrong in ({"id": "0" * 64}, {"media_type": "image/jpeg"}):
        assert chats.save(id, message("p", pictures=[{**picture, **wrong}]))[0] == 400
    for wrong in ({"id": "x"}, {"media_type": "text/html"}, {"name": "x" * 256}, {"url": "x"}):
        assert chats.save(id, message("p", pictures=[{**picture, **wrong}]))[0] == 400
    assert chats.save(id, message("p", pictures=[picture] * 65))[0] == 400
    assert len(chats.show(id)["messages"]) == 1


def pass_time(database: Database, seconds: float) -> None:
    """For the pictures that are there."""
    asyncio.run(
        database.write(
            lambda c: c.execute("UPDATE pictures SET touched = touched - ?", [seconds]).rowcount
        )
    )


def test_what_nothing_uses_goes_after_a_day(chats: Chats, database: Database) -> None:
    used, unused = chats.picture(png("red")), chats.picture(png("green"))
    first = chats.begin("One", message("q", pictures=[used]), message("a", "q"))
    second = chats.begin("Two", message("q", pictures=[used]))

    def are_there() -> list[bool]:
        chats.picture(png("blue"))  # an upload looks for what may go
        found = [chats.ask("GET", f"attachments/{p['id']}")[0] for p in (used, unused)]
        return [status == 200 for status in found]

    assert are_there() == [True, True]
    pass_time(database, pictures.KEEP_SECONDS - 60)
    assert are_there() == [True, True]
    pass_time(database, 120)
    assert are_there() == [True, False]
    assert chats.ask("DELETE", f"conversations/{first}")[0] == 204
    assert are_there() == [True, False]
    assert chats.save(second, message("q"))[0] == 200  # without its picture
    pass_time(database, pictures.KEEP_SECONDS + 1)
    assert chats.ask("DELETE", f"conversations/{second}")[0] == 204
    assert are_there() == [False, False]


def test_one_that_is_sent_again_stays(chats: Chats, database: Database) -> None:
    picture = chats.picture(png())
    pass_time(database, pictures.KEEP_SECONDS * 2)
    chats.picture(png())
    chats.picture(png("blue"))
    assert chats.ask("GET", f"attachments/{picture['id']}")[0] == 200


def test_all_of_a_tenant_are_bounded(
    chats: Chats, keyed: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats.picture(png("red"))
    monkeypatch.setattr(pictures, "MAX_TENANT_BYTES", len(png("red")) + 10)
    status, body = chats.upload(png("blue"))
    assert (status, body["error"]["code"]) == (413, "storage_full")
    assert "delete conversations" in body["error"]["message"]
    chats.picture(png("red"))  # is there already
    Chats(keyed, "b").picture(png("blue"))


def test_a_tenant_has_so_many(chats: Chats, keyed: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_TENANT_PICTURES", 1)
    chats.picture(png("red"))
    status, body = chats.upload(png("blue"))
    assert (status, body["error"]["code"]) == (413, "storage_full")
    assert "more than 1 pictures" in body["error"]["message"]
    chats.picture(png("red"))
    Chats(keyed, "b").picture(png("blue"))


def test_the_disk_gets_room_back(database: Database, tmp_path: Path) -> None:
    async def scenario() -> None:
        content = bytes(8 * 2**20)
        for i in range(3):
            new = pictures.NewPicture(f"{i}", "image/png", content)
            await database.write(partial(pictures.keep, tenant=b"", new=[new]))
        later = time.time() + 2 * pictures.KEEP_SECONDS
        for _ in range(2):  # some at a time
            await database.write(partial(pictures.remove_unused, now=later))

    asyncio.run(scenario())
    database.close()
    assert (tmp_path / FILE_NAME).stat().st_size < 2**20


def ask_about(*pictures: dict[str, Any], **options: Any) -> dict[str, Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": f"attachment:{each['id']}"}} for each in pictures
    ]
    text = {"type": "text", "text": "What is it?"}
    return {"messages": [{"role": "user", "content": [*parts, text]}], **options}


def test_a_chat_may_name_them(chats: Chats, keyed: Live, seeing: FakeEngine) -> None:
    red, blue = chats.picture(png("red")), chats.picture(png("blue"))
    status, answer = keyed.post(CHAT, ask_about(red, blue, red), authorization="Bearer a")
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "Hello, world")
    parts = seeing.messages[-1][0]["content"]
    assert [part.get("image") for part in parts] == [png("red"), png("blue"), png("red"), None]
    body = ask_about(red)
    body["messages"][0]["content"][0]["image_url"]["detail"] = "low"
    assert keyed.post(CHAT, body, authorization="Bearer a")[0] == 200
    assert seeing.messages[-1][0]["content"][0] == {
        "type": "image", "image": png("red"), "detail": "low",
    }  # fmt: skip


def test_a_chat_sees_those_of_its_key_alone(chats: Chats, keyed: Live, seeing: FakeEngine) -> None:
    picture = chats.picture(png())
    for named, key in ((picture, "b"), ({"id": "0" * 64}, "a"), ({"id": "../../x"}, "a")):
        answer = keyed.post(CHAT, ask_about(named), authorization=f"Bearer {key}")
        assert error(answer) == (400, "picture_not_found", "messages")
    body = ask_about(picture)
    body["messages"][0]["content"][0] = {
        "type": "video_url", "video_url": {"url": f"attachment:{picture['id']}"},
    }  # fmt: skip
    assert error(keyed.post(CHAT, body, authorization="Bearer a"))[0] == 400
    assert seeing.num_started == 0


def test_a_chat_takes_so_many_bytes_of_them(
    chats: Chats, keyed: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    red, blue = chats.picture(png("red")), chats.picture(png("blue"))
    monkeypatch.setattr(pictures, "MAX_REQUEST_BYTES", len(png()) + 10)
    assert keyed.post(CHAT, ask_about(red, red), authorization="Bearer a")[0] == 200
    answer = keyed.post(CHAT, ask_about(red, blue), authorization="Bearer a")
    assert error(answer) == (400, "invalid_value", "messages")


def test_what_chats_hold_of_them_is_bounded(seeing: FakeEngine, database: Database) -> None:
    content = png(size=(600, 600)) + bytes(400 * 2**10)  # behind its end a PNG may have anything
    with live_server([seeing], ServerConfig(max_held_bytes=300 * 2**10), database=database) as live:
        chats = Chats(live)
        new = pictures.NewPicture("0" * 64, "image/png", content)
        asyncio.run(database.write(partial(pictures.keep, tenant=b"", new=[new])))
        answer = live.post(CHAT, ask_about({"id": "0" * 64}, {"id": "0" * 64}))
        assert answer[0] == 200
        new = pictures.NewPicture("1" * 64, "image/png", content)
        asyncio.run(database.write(partial(pictures.keep, tenant=b"", new=[new])))
        answer = live.post(CHAT, ask_about({"id": "0" * 64}, {"id": "1" * 64}))
        assert error(answer)[:2] == (503, "too_many_bytes")
        chats.picture(png())
        assert live.post(CHAT, ask_about({"id": "0" * 64}))[0] == 200


def test_a_server_that_keeps_nothing(seeing: FakeEngine) -> None:
    with live_server([seeing]) as live:
        assert error(live.post(CHAT, ask_about({"id": "0" * 64})))[1] == "picture_not_found"
        assert live.ask("GET", "/api/conversations")[0] == 404
