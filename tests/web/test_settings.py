"""Settings: of one conversation, of those to come, and of the page."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Request, expect

from tests.web.chat import Chat
from tests.web.conftest import SEES
from tests.web.servers import ServerProcess

NOTHING = {
    "model": None,
    "system": None,
    "sampling": dict.fromkeys(
        ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed")
    ),
}


def tab(chat: Chat, key: str) -> Locator:
    chat.tool("shell:settings")
    chat.page.get_by_role("tab", name=chat.text(key)).click()
    return chat.page.get_by_role("tabpanel")


def field(chat: Chat, panel: Locator, key: str) -> Locator:
    return panel.get_by_role("textbox", name=chat.text(key))


def sent(chat: Chat, question: str) -> dict[str, object]:
    """What the page sends with a question."""

    def is_chat(request: Request) -> bool:
        return request.url.endswith("/v1/chat/completions")

    with chat.page.expect_request(is_chat) as request:
        chat.ask(question)
    return request.value.post_data_json


def test_of_this_conversation(chat: Chat) -> None:
    chat.choose(SEES)
    panel = tab(chat, "settings:thisConversation")
    panel.get_by_role("radio", name=chat.text("settings:systemCustom")).check()
    field(chat, panel, "settings:system").fill("Be brief. 简短。")
    field(chat, panel, "settings:temperature").fill("0")
    field(chat, panel, "settings:max_tokens").fill("3")
    expect(panel).to_contain_text(chat.text("settings:saved"))
    chat.close_dialog()
    body = sent(chat, "Who are you?")
    assert body["messages"][0] == {"role": "system", "content": "Be brief. 简短。"}
    assert (body["temperature"], body["max_tokens"]) == (0, 3)
    assert "top_p" not in body
    answer = chat.answers.last
    expect(answer).to_contain_text(chat.text("chat:reachedLimit"))
    expect(answer).to_contain_text(chat.text("chat:tokens", count=3))
    chat.page.reload()
    panel = tab(chat, "settings:thisConversation")
    expect(field(chat, panel, "settings:max_tokens")).to_have_value("3")
    chat.close_dialog()
    chat.new_chat()
    assert "max_tokens" not in sent(chat, "Hello")


def test_of_new_conversations(chat: Chat, server: ServerProcess) -> None:
    chat.choose(SEES)
    panel = tab(chat, "settings:newConversations")
    field(chat, panel, "settings:max_tokens").fill("2")
    expect(panel).to_contain_text(chat.text("settings:saved"))
    assert server.ask("GET", "/api/settings")["sampling"]["max_tokens"] == 2
    try:
        chat.close_dialog()
        chat.page.reload()
        assert sent(chat, "Hello")["max_tokens"] == 2
    finally:
        server.ask("POST", "/api/settings", NOTHING)


def test_a_wrong_number_is_said(chat: Chat) -> None:
    panel = tab(chat, "settings:thisConversation")
    top_p = field(chat, panel, "settings:top_p")
    top_p.fill("7")
    expect(panel).to_contain_text(chat.text("ui:tooLarge", max=1))
    expect(top_p).to_have_attribute("aria-invalid", "true")
    top_p.fill("x")
    expect(panel).to_contain_text(chat.text("ui:notNumber"))


def test_the_models_own_numbers_are_shown(chat: Chat) -> None:
    chat.choose(SEES)
    chat.ask("Hello")  # loads it: its defaults are known from then on
    panel = tab(chat, "settings:thisConversation")
    expect(field(chat, panel, "settings:temperature")).to_have_attribute(
        "placeholder", re.compile(r"^\d")
    )


def test_the_language(chat: Chat) -> None:
    other = "English" if chat.language == "zh" else "中文"
    panel = tab(chat, "settings:appearance")
    panel.get_by_role("radio", name=other).check()
    expect(chat.page.locator("html")).to_have_attribute(
        "lang", "en" if chat.language == "zh" else "zh-CN"
    )
    chat.page.keyboard.press("Escape")
    expected = "Ask something" if chat.language == "zh" else "问点什么"
    expect(chat.page.get_by_role("textbox", name=expected)).to_be_visible()
    chat.page.reload()
    expect(chat.page.get_by_role("textbox", name=expected)).to_be_visible()


def test_themes(chat: Chat) -> None:
    html = chat.page.locator("html")
    background = "() => getComputedStyle(document.body).backgroundColor"
    chat.choose_theme("shell:themeLight")
    expect(html).to_have_attribute("data-theme", "light")
    light = chat.page.evaluate(background)
    chat.choose_theme("shell:themeDark")
    expect(html).to_have_attribute("data-theme", "dark")
    assert chat.page.evaluate(background) != light
    chat.page.reload()
    expect(html).to_have_attribute("data-theme", "dark")
    chat.choose_theme("shell:themeSystem")
    for scheme in ("light", "dark"):
        chat.page.emulate_media(color_scheme=scheme)
        expect(html).to_have_attribute("data-theme", scheme)
