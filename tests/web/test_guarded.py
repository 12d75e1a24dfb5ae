"""A server with keys, under a path, as a rented machine shows it: private, and whole."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.web.chat import Chat
from tests.web.conftest import KEYS, SEES, SEES_TOO, Look, Opener
from tests.web.servers import Relay, ServerProcess


@pytest.fixture(autouse=True)
def emptied(guarded: ServerProcess, guarded_relay: Relay) -> None:
    for key in KEYS:
        guarded.forget_conversations(key)


def enter(page: Page, look: Look, key: str) -> Chat:
    chat = Chat(page, look.language, phone=look.is_phone)
    asks = page.get_by_role("dialog", name=chat.text("shell:keyTitle"))
    field = asks.get_by_label(chat.text("shell:keyLabel"), exact=True)
    field.fill(key)
    chat.button("shell:keyUse", asks).click()
    return chat


def test_a_key_is_asked_for_and_conversations_are_its_own(
    opener: Opener, look: Look, guarded_relay: Relay
) -> None:
    page = opener.page(guarded_relay.url + "/")
    chat = enter(page, look, "a wrong key")
    expect(page.get_by_text(chat.text("shell:keyRefused"))).to_be_visible()
    chat = enter(page, look, KEYS[0])
    expect(chat.dialog).to_have_count(0)
    chat.choose(SEES)
    chat.add("animal.webp")
    chat.pictures_are(1)
    answer = chat.ask(chat.say("What is this?", "这是什么？"))
    expect(chat.body(answer)).to_have_text(chat.say("penguin", "企鹅"))
    expect(chat.questions.last.get_by_role("img")).to_be_visible()
    address = page.url
    assert "/box/7/#/c/" in address

    other = opener.page(address, opener.context())
    bo = enter(other, look, KEYS[1])
    expect(other.get_by_text(bo.text("chat:missing"))).to_be_visible()
    bo.show_list()
    expect(bo.list()).to_contain_text(bo.text("shell:nothingYet"))


def test_a_model_of_the_catalog_is_pulled(
    opener: Opener, look: Look, guarded_relay: Relay, guarded: ServerProcess
) -> None:
    served = [m for m in guarded.ask("GET", "/api/status")["models"] if m["served"]]
    page = opener.page(guarded_relay.url + "/")
    chat = enter(page, look, KEYS[0])
    chat.picker.click()
    page.get_by_role("menuitem", name=chat.text("models:manage")).click()
    cards = chat.dialog.get_by_role("listitem")
    card = cards.filter(has=page.locator("code", has_text=SEES_TOO))
    if len(served) == 1:  # the first of the two looks
        chat.button("models:add", card).click()
    expect(card).to_contain_text(
        re.compile(
            "|".join(
                re.escape(chat.text(f"models:{key}")) for key in ("stateLoaded", "stateUnloaded")
            )
        )
    )
    chat.button("models:use", card).click()
    chat.chosen_is(SEES_TOO)
    expect(chat.answers).to_have_count(0)
    answer = chat.ask("Hello")
    expect(answer).to_contain_text(SEES_TOO)
