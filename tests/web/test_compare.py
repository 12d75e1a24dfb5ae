"""One question to two models, side by side; one at a time where there is no room for both."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, expect

from tests.web.chat import Chat
from tests.web.conftest import SEES, SEES_TOO

SIDES = ("left", "right")


def half(chat: Chat, side: str) -> Locator:
    """The half of that side, which is shown."""
    if chat.phone:
        choice = chat.page.get_by_role("group", name=chat.text("compare:show"))
        choice.get_by_role("radio").nth(SIDES.index(side)).check()
    return chat.page.locator(f"section[data-side={side}]")


def test_two_models_answer_the_same_question(chat: Chat) -> None:
    chat.tool("shell:compare")
    welcome = chat.page.get_by_role("heading", name=chat.text("compare:welcome"))
    expect(welcome.first).to_be_visible()
    models = dict(zip(SIDES, (SEES, SEES_TOO), strict=True))
    for side, model in models.items():
        half(chat, side).get_by_role("combobox").select_option(model)
    chat.add("animal.webp")
    chat.pictures_are(1)
    question = chat.say("What is this?", "这是什么？")
    chat.page.get_by_role("textbox", name=chat.text("compare:ask")).fill(question)
    chat.send.click()
    for side, model in models.items():
        answer = half(chat, side).get_by_role("article", name=chat.text("chat:answer"))
        expect(answer).to_contain_text(chat.say("penguin", "企鹅"))
        expect(answer).to_contain_text(model)
    chat.button("compare:openLeft", half(chat, "left")).click()
    expect(chat.page).to_have_url(re.compile("#/c/"))
    expect(chat.answers).to_have_count(1)
    chat.chosen_is(SEES)
