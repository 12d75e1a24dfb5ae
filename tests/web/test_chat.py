"""A conversation: asked, streamed, stopped, continued, asked again in other words."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.web.chat import Chat
from tests.web.conftest import SEES
from tests.web.servers import Relay

HELD = 8  # events, of the forty of the answer
WHO = ("Who are you?", "你是谁？")


def test_an_answer_is_streamed(chat: Chat, relay: Relay) -> None:
    chat.choose(SEES)
    relay.most_events = HELD
    chat.begin("Who are you?")
    answer = chat.answers.last
    expect(chat.stop).to_be_visible()
    expect(chat.body(answer)).to_contain_text("I am")
    assert "photographs" not in chat.body(answer).inner_text()
    relay.mend()
    expect(chat.body(answer)).to_contain_text("I do not know photographs.")
    chat.answered()
    # What it took stands below it.
    for key in ("chat:speed", "chat:firstToken"):
        value = chat.text(key, value="VALUE").split("VALUE")[1]
        expect(answer).to_contain_text(re.compile(r"\d" + re.escape(value)))
    used = answer.get_by_role("meter", name=chat.text.pattern("chat:context"))
    expect(used).to_have_count(1)
    expect(chat.composer).to_be_focused()


def test_stop_and_continue(chat: Chat, relay: Relay) -> None:
    chat.choose(SEES)
    relay.most_events = HELD
    chat.begin("Who are you?")
    expect(chat.body(chat.answers.last)).to_contain_text("I am")
    chat.stop.click()
    answer = chat.answered()
    expect(answer).to_contain_text(chat.text("chat:stopped"))
    begun = chat.body(answer).inner_text()
    assert "photographs" not in begun
    relay.mend()
    chat.button("chat:continue", answer).first.click()
    expect(chat.body(answer)).to_contain_text("I do not know photographs.")
    assert chat.body(answer).inner_text().startswith(begun)
    expect(chat.answers).to_have_count(1)
    chat.answered()
    expect(chat.button("chat:continue", answer)).to_have_count(0)


def test_versions_of_an_answer(chat: Chat) -> None:
    chat.choose(SEES)
    answer = chat.ask(chat.say(*WHO))
    chat.button("chat:regenerate", answer).click()
    expect(answer).to_contain_text(re.compile(r"2\s*/\s*2"))
    chat.answered()
    chat.button("chat:previousVersion", answer).click()
    expect(answer).to_contain_text(re.compile(r"1\s*/\s*2"))
    expect(chat.button("chat:previousVersion", answer)).to_be_disabled()
    chat.button("chat:nextVersion", answer).click()
    expect(answer).to_contain_text(re.compile(r"2\s*/\s*2"))


def test_an_edited_question_is_a_branch(chat: Chat) -> None:
    chat.choose(SEES)
    first = chat.ask(chat.say(*WHO))
    said = chat.body(first).inner_text()
    chat.ask(chat.say("Hello", "你好"))
    question = chat.questions.first
    question.hover()
    chat.button("chat:edit", question).click()
    field = chat.page.get_by_role("textbox", name=chat.text("chat:editing"))
    expect(field).to_have_value(chat.say(*WHO))
    field.fill(chat.say("Hello", "你好"))
    chat.page.get_by_role("article", name=chat.text("chat:editing")).get_by_role(
        "button", name=chat.text("chat:saveEdit"), exact=True
    ).click()
    expect(chat.answers).to_have_count(1)
    answer = chat.answered()
    expect(chat.body(answer)).not_to_have_text(said)
    expect(question).to_contain_text(re.compile(r"2\s*/\s*2"))
    chat.button("chat:previousVersion", question).click()
    expect(chat.answers).to_have_count(2)
    expect(chat.body(chat.answers.first)).to_have_text(said)


def test_a_draft_survives_a_reload(chat: Chat) -> None:
    chat.composer.fill("half a thought, 半个想法")
    chat.page.reload()
    expect(chat.composer).to_have_value("half a thought, 半个想法")


def test_an_input_method_keeps_its_enter(chat: Chat) -> None:
    chat.choose(SEES)
    chat.composer.fill("你好")
    chat.composer.dispatch_event("keydown", {"key": "Enter", "keyCode": 229, "isComposing": True})
    chat.composer.press("Shift+Enter")
    chat.composer.press("End")
    expect(chat.composer).to_have_value("你好\n")
    expect(chat.questions).to_have_count(0)


def test_copy(chat: Chat) -> None:
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.choose(SEES)
    answer = chat.ask(chat.say(*WHO))
    chat.button("chat:copy", answer).click()
    copied = chat.page.evaluate("() => navigator.clipboard.readText()")
    assert copied.strip() == chat.body(answer).inner_text().strip()
