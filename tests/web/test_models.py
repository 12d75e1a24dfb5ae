"""Models: chosen, loaded, unloaded and pulled, with what they need of the memory."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, expect

from tests.web.chat import Chat, title_of
from tests.web.conftest import SEES, SEES_TOO
from tests.web.servers import ServerProcess


def card(chat: Chat, model: str) -> Locator:
    cards = chat.dialog.get_by_role("listitem")
    return cards.filter(has=chat.page.locator("code", has_text=model))


def show_models(chat: Chat) -> None:
    chat.picker.click()
    chat.page.get_by_role("menuitem", name=chat.text("models:manage")).click()
    expect(chat.dialog).to_be_visible()


def test_the_picker_tells_who_sees(chat: Chat) -> None:
    chat.picker.click()
    items = chat.page.get_by_role("menuitemradio")
    expect(items).to_have_count(3)
    expect(items.filter(has_text=title_of(SEES))).to_contain_text(chat.text("models:seesPictures"))
    expect(items.filter(has_text="text-only")).to_contain_text(chat.text("models:textOnly"))
    items.filter(has_text=title_of(SEES_TOO)).click()
    chat.chosen_is(SEES_TOO)
    answer = chat.ask("Hello")
    expect(answer).to_contain_text(SEES_TOO)


def test_a_model_is_loaded_and_unloaded_by_hand(chat: Chat, server: ServerProcess) -> None:
    server.ask("POST", "/v1/models/load", {"model": SEES_TOO})
    show_models(chat)
    it = card(chat, SEES_TOO)
    expect(it).to_contain_text(chat.text("models:stateLoaded"))
    expect(it).to_contain_text(re.compile(r"\d MiB|\d MB|\d GiB"))
    chat.button("models:unload", it).click()
    expect(it).to_contain_text(chat.text("models:stateUnloaded"))
    chat.button("models:load", it).click()
    expect(it).to_contain_text(chat.text("models:stateLoaded"))
    memory = chat.dialog.get_by_role("meter", name=chat.text("models:memory"))
    expect(memory).to_be_visible()


def test_the_catalog_with_its_memory(chat: Chat) -> None:
    show_models(chat)
    big = card(chat, "internlm2-chat-1.8b")
    expect(big).to_contain_text(chat.text("models:stateAbsent"))
    expect(big).to_contain_text("2.00 GiB" if "2.00" in big.inner_text() else "2")
    expect(chat.button("models:download", big)).to_be_visible()


def test_a_load_shows_its_progress(chat: Chat, server: ServerProcess) -> None:
    """The server's own words of a load, held still by a route: the real one is over in no time."""
    status = server.ask("GET", "/api/status")
    for model in status["models"]:
        if model["id"] == SEES:
            model |= {"state": "loading", "progress": 0.42, "status": "Loading"}
    chat.page.route("**/api/status", lambda route: route.fulfill(json=status))
    chat.page.reload()
    chat.choose(SEES)
    progress = chat.page.get_by_role("progressbar", name=chat.text.pattern("models:progress"))
    expect(progress.first).to_have_js_property("value", 0.42)
    show_models(chat)
    expect(card(chat, SEES)).to_contain_text("42%")
    expect(card(chat, SEES)).to_contain_text(chat.say("Loading", "正在加载"))
