"""Conversations as the page keeps them: saved, found again, and nobody else's."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from shuzhai.server.chats import schemas, store
from shuzhai.server.settings import ServerConfig
from tests.server.fakes import FakeEngine
from tests.server.live import Live, live_server
from tests.server.talk import NO_SAMPLING, SETTINGS, Chats, error, message


@pytest.fixture(scope="module")
def keyed(parts: dict[str, Any]) -> Iterator[Live]:
    config = ServerConfig(api_keys=tuple("abcdefgh"))
    with live_server([FakeEngine()], config, **parts) as live:
        yield live


@pytest.fixture
def chats(keyed: Live, request: pytest.FixtureRequest) -> Chats:
    """Each test has a key to itself, as long as there are."""
    return Chats(keyed, "a")


def test_a_conversation_is_kept(chats: Chats) -> None:
    sampling = {**NO_SAMPLING, "temperature": 0.5, "top_k": 3}
    id = chats.begin("你好", system="Be kind.", sampling=sampling, model="tiny")
    stats = {
        "prompt_tokens": 10, "cached_tokens": 2, "completion_tokens": 5,
        "first_token_seconds": 0.25, "total_seconds": 2,
    }  # fmt: skip
    question = message("q", text="Where\0is\n \U0001f600?\u2028")
    answer = message("a-1", "q", text="", status="streaming", stats=stats)
    status, summary = chats.save(id, question, answer, leaf="a-1")
    assert (status, summary["title"]) == (200, "你好")
    shown = chats.show(id)
    assert shown["settings"] == {"model": "tiny", "system": "Be kind.", "sampling": sampling}
    assert (shown["messages"], shown["leaf"]) == ([question, answer], "a-1")
    assert {key: shown[key] for key in summary} == summary
    assert abs(shown["created"] - time.time()) < 60
    done = message("a-1", "q", text="There.", status="stopped")
    other = message("a-2", "q", error="it broke", status="error")
    assert chats.save(id, done, other)[0] == 200
    shown = chats.show(id)
    assert (shown["messages"], shown["leaf"]) == ([question, done, other], "a-1")


def test_the_same_id_again(chats: Chats, keyed: Live) -> None:
    id = chats.begin("First", message("q"))
    body = {"id": id, "title": "Second", "settings": SETTINGS}
    status, shown = chats.post("conversations", body)
    assert (status, shown["title"], len(shown["messages"])) == (200, "First", 1)
    assert error(Chats(keyed, "b").post("conversations", body))[:2] == (409, "id_is_taken")


def test_changes(chats: Chats) -> None:
    id = chats.begin("Before", message("q"), message("a", "q"))
    path = f"conversations/{id}"
    before = chats.show(id)
    status, summary = chats.post(path, {"title": "After"})
    assert (status, summary) == (200, {**{k: before[k] for k in summary}, "title": "After"})
    assert chats.post(path, {"leaf": "a"})[0] == 200
    settings = {**SETTINGS, "model": "other"}
    assert chats.post(path, {"settings": settings})[0] == 200
    shown = chats.show(id)
    assert (shown["title"], shown["leaf"], shown["settings"]) == ("After", "a", settings)
    assert chats.post(path, {"leaf": None})[0] == 200
    assert chats.post(path, {})[0] == 200
    assert chats.show(id)["leaf"] is None
    assert chats.show(id)["title"] == "After"
    assert error(chats.post(path, {"leaf": "nix"})) == (400, "invalid_value", "leaf")
    wrong = {**SETTINGS, "sampling": {"temperature": -1}}
    assert error(chats.post(path, {"settings": wrong})) == (400, "invalid_value", "temperature")


def test_deleted_is_gone(chats: Chats) -> None:
    id = chats.begin("Doomed", message("q", text="doomed"))
    path = f"conversations/{id}"
    assert chats.ask("DELETE", path)[::2] == (204, b"")
    for answer in (
        chats.get(path),
        chats.post(path, {}),
        chats.save(id),
        chats.get(f"{path}/export"),
    ):
        assert error(answer)[:2] == (404, "conversation_not_found")
    assert chats.ask("DELETE", path)[0] == 404
    assert chats.titles(search="doomed") == []


def test_a_key_sees_its_own_alone(keyed: Live) -> None:
    mine, other = Chats(keyed, "c"), Chats(keyed, "d")
    id = mine.begin("Mine", message("q", text="secret"))
    path = f"conversations/{id}"
    for answer in (
        other.get(path),
        other.post(path, {"title": "Yours"}),
        other.save(id, message("x")),
        other.get(f"{path}/export", format="markdown"),
    ):
        assert error(answer)[:2] == (404, "conversation_not_found")
    assert other.ask("DELETE", path)[0] == 404
    assert other.titles() == other.titles(search="secret") == []
    assert mine.post("settings", {**SETTINGS, "model": "mine"})[0] == 200
    assert other.get("settings") == (200, SETTINGS)
    assert mine.get("settings")[1]["model"] == "mine"
    assert len(mine.show(id)["messages"]) == 1


def test_the_list(keyed: Live) -> None:
    chats = Chats(keyed, "e")
    ids = [chats.begin(f"{i}") for i in range(7)]
    assert chats.titles() == list("6543210")
    chats.save(ids[2], message("q"))
    assert chats.titles() == list("2654310")
    chats.post(f"conversations/{ids[0]}", {"title": "zero"})  # which is no news
    _, first = chats.get("conversations", limit=3)
    assert [each["title"] for each in first["data"]] == list("265")
    _, then = chats.get("conversations", limit=3, before=first["next"])
    assert [each["title"] for each in then["data"]] == list("431")
    _, last = chats.get("conversations", limit=3, before=then["next"])
    assert ([each["title"] for each in last["data"]], last["next"]) == (["zero"], None)
    assert chats.get("conversations", limit=7)[1]["next"] is None


@pytest.mark.parametrize(
    ("search", "titles"),
    [
        ("法国", ["Geography"]),
        ("法国的", ["Geography"]),
        ("国", ["Geography", "中国菜"]),
        ("CAPITAL", ["Geography"]),
        ("straße", ["Street"]),
        ("STRASSE", ["Street"]),
        ("street", ["Street"]),
        ("paris geo", ["Geography"]),
        ("paris street", []),
        ("%", ["Street"]),
        ("_", []),
        ("' OR 1=1 --", []),
        ('"', []),
        ("  ", ["Geography", "中国菜", "Street"]),
    ],
)
def test_search(searched: Chats, search: str, titles: list[str]) -> None:
    assert searched.titles(search=search) == titles


@pytest.fixture(scope="module")
def searched(keyed: Live) -> Chats:
    chats = Chats(keyed, "f")
    chats.begin("Street", message("q", text="Wie heißt die Straße? 100%"))
    chats.begin("中国菜", message("q", text="宫保鸡丁怎么做"))
    chats.begin(
        "Geography", message("q", text="法国的首都 (Capital)?"), message("a", "q", text="Paris")
    )
    return chats


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 201}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"limit": "٣"}, "limit"),
        ({"before": "x"}, "before"),
        ({"search": "x" * 201}, "search"),
        ({"search": "x " * 9}, "search"),
        ({"offset": 1}, "offset"),
    ],
)
def test_a_bad_query(chats: Chats, query: dict[str, object], param: str) -> None:
    answer = chats.get("conversations", **query)
    assert (answer[0], answer[1]["error"]["param"]) == (400, param)


def test_a_query_that_says_two_things(chats: Chats) -> None:
    assert chats.ask("GET", "conversations?limit=1&limit=2")[0] == 400
    assert chats.get("conversations", before="nan_x")[1]["data"] == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"id": "../x"}, "messages.0.id"),
        ({"id": ""}, "messages.0.id"),
        ({"id": "x" * 65}, "messages.0.id"),
        ({"id": "x\n"}, "messages.0.id"),
        ({"id": 3}, "messages.0.id"),
        ({"parent": "nix"}, "messages"),
        ({"parent": "q"}, "messages"),
        ({"role": "system"}, "messages.0.role"),
        ({"text": None}, "messages.0.text"),
        ({"text": "x" * (2**20 + 1)}, "messages.0.text"),
        ({"pictures": [{"id": "x"}]}, "messages.0.pictures.0.id"),
        ({"created": -1}, "messages.0.created"),
        ({"created": "1"}, "messages.0.created"),
        ({"created": 10**400}, "messages.0.created"),
        ({"status": "odd"}, "messages.0.status"),
        ({"stats": {}}, "messages.0.stats.prompt_tokens"),
        ({"extra": [[[]]]}, "messages.0.extra"),
        ({"error": "x" * 4001}, "messages.0.error"),
    ],
)
def test_a_bad_message_changes_nothing(chats: Chats, change: dict[str, Any], param: str) -> None:
    id = chats.begin()
    answer = chats.save(id, {**message("q"), **change}, message("good"))
    assert (answer[0], answer[1]["error"]["param"]) == (400, param)
    assert chats.show(id)["messages"] == []


def test_messages_keep_their_places(chats: Chats) -> None:
    """So that there is no cycle, and no branch that hangs in the air."""
    id = chats.begin("Tree", message("q"), message("a", "q"), message("b", "a"))
    for moved in (message("q", "b"), message("b", None), message("b", "q")):
        assert error(chats.save(id, moved)) == (400, "invalid_value", "messages")
    assert error(chats.save(id, message("d", "c"), message("c", "b")))[0] == 400
    assert chats.save(id, message("c", "b"), message("d", "c"))[0] == 200
    assert error(chats.save(id, leaf="x")) == (400, "invalid_value", "leaf")
    assert [each["id"] for each in chats.show(id)["messages"]] == list("qabcd")


def test_long_texts_and_many_messages(chats: Chats) -> None:
    """Several pieces of an answer; none is lost, and the order is kept."""
    id = chats.begin("Long")
    for part in range(4):
        batch = [message(f"m-{part}-{i}", text=f"{i}" * 700) for i in range(500)]
        assert chats.save(id, *batch)[0] == 200
    assert chats.save(id, message("last", text="书" * 2**20))[0] == 200
    shown = chats.show(id)["messages"]
    assert len(shown) == 2001
    assert [each["id"] for each in shown[:3]] == ["m-0-0", "m-0-1", "m-0-2"]
    assert shown[-1]["text"] == "书" * 2**20


def test_what_a_tenant_may_keep_is_bounded(keyed: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    chats = Chats(keyed, "g")
    id = chats.begin("Bounded", message("q", text="x" * 1000))
    for name, value in (("MAX_CONVERSATION_BYTES", 3000), ("MAX_TENANT_BYTES", 3000)):
        with monkeypatch.context() as patch:
            patch.setattr(store, name, value)
            assert error(chats.save(id, message("b", text="x" * 3000)))[:2] == (413, "storage_full")
            assert chats.save(id, message("q", text="shorter"))[0] == 200
    monkeypatch.setattr(store, "MAX_MESSAGES", 1)
    assert error(chats.save(id, message("b")))[:2] == (413, "storage_full")
    monkeypatch.setattr(store, "MAX_CONVERSATIONS", 1)
    body = {"id": str(uuid.uuid4()), "title": "", "settings": SETTINGS}
    assert error(chats.post("conversations", body))[:2] == (413, "storage_full")
    assert [each["id"] for each in chats.show(id)["messages"]] == ["q"]


@pytest.mark.parametrize(
    "change",
    [
        {"id": "1"},
        {"id": "A" * 8 + "-0000-0000-0000-000000000000"},
        {"id": f"{uuid.uuid4()}\n"},
        {"title": "x" * (schemas.MAX_TITLE_CHARS + 1)},
        {"title": None},
        {"settings": None},
        {"settings": {"temperature": 1}},
        {"settings": {"sampling": {"top_p": 7}}},
        {"settings": {"sampling": {"seed": 10**30}}},
        {"settings": {"system": "x" * (2**18 + 1)}},
        {"messages": []},
    ],
)
def test_a_bad_conversation(chats: Chats, change: dict[str, Any]) -> None:
    body = {"id": str(uuid.uuid4()), "title": "x", "settings": SETTINGS, **change}
    assert chats.post("conversations", body)[0] == 400


def test_settings(chats: Chats) -> None:
    assert chats.get("settings") == (200, SETTINGS)
    wanted = {"model": "tiny", "system": "", "sampling": {**NO_SAMPLING, "max_tokens": 7}}
    assert chats.post("settings", wanted) == (200, wanted)
    assert chats.get("settings") == (200, wanted)
    assert chats.post("settings", {"system": "short"})[1] == {**SETTINGS, "system": "short"}
    assert chats.post("settings", {"x": 1})[0] == 400
    assert chats.post("settings", {"sampling": {"min_p": 2}})[0] == 400


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "conversations/x", {"GET", "HEAD", "POST", "DELETE"}),
        ("DELETE", "conversations", {"GET", "HEAD", "POST"}),
        ("GET", "conversations/x/messages", {"POST"}),
        ("GET", "models/pull", {"POST"}),
        ("DELETE", "attachments/x", {"GET", "HEAD"}),
    ],
)
def test_methods(chats: Chats, method: str, path: str, allowed: set[str]) -> None:
    status, headers, _ = chats.ask(method, path)
    assert status == 405
    assert set(headers["allow"].split(", ")) == allowed


def test_a_delete_has_no_body(chats: Chats) -> None:
    status, _, _ = chats.ask("DELETE", f"conversations/{chats.begin()}", b"{}")
    assert status == 400


def test_other_origins_may_change_nothing(chats: Chats) -> None:
    path = f"conversations/{chats.begin('Safe')}"
    for method in ("POST", "DELETE"):
        assert chats.ask(method, path, origin="http://evil.example")[0] == 403
    assert chats.get(path)[1]["title"] == "Safe"
