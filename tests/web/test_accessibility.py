"""For everybody: axe finds nothing in the main states, and the keyboard alone is enough."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.web.chat import Chat
from tests.web.conftest import SEES, in_all_looks, in_english
from tests.web.test_hostile import answer_with
from tests.web.test_models import show_models

AXE = Path(__file__).resolve().parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
# Colours on their way from one theme to the other belong to neither.
SETTLED = """() => new Promise(requestAnimationFrame)
    .then(() => Promise.allSettled(document.getAnimations().map((each) => each.finished)))"""
RICH = """# A heading

Text with `code`, a [link](https://example.org) and $x^2$.

```python
def add(a, b):  # a comment
    return a + "text"
```

| a | b |
|---|---|
| 1 | 2 |
"""
LANDMARKS = ("banner", "main")


def check(page: Page) -> None:
    """Both themes."""
    if not AXE.exists():
        pytest.skip("axe is not installed: npm ci in web/")
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(AXE.read_text("utf-8"))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        expect(page.locator("html")).to_have_attribute("data-theme", scheme)
        page.evaluate(SETTLED)
        found = page.evaluate("(tags) => axe.run({runOnly: tags})", RULES)
        assert [described(each) for each in found["violations"]] == []


def described(violation: dict[str, Any]) -> str:
    nodes = "; ".join(
        f"{node['html'][:150]} {node['failureSummary']}" for node in violation["nodes"]
    )
    return f"{violation['id']}: {violation['help']}: {nodes}"


@in_all_looks
def test_the_first_visit(chat: Chat) -> None:
    expect(chat.page.get_by_role("heading").first).to_be_visible()
    check(chat.page)


@in_all_looks
def test_a_conversation(chat: Chat) -> None:
    chat.choose(SEES)
    chat.add("animal.webp")
    chat.pictures_are(1)
    check(chat.page)
    answer_with(chat.page, RICH)
    chat.ask("?")
    chat.button("chat:regenerate").click()
    chat.answered()
    check(chat.page)


def test_what_lies_over_the_page(chat: Chat) -> None:
    chat.choose(SEES)
    chat.ask("Hello")
    chat.show_list()
    check(chat.page)
    if chat.phone:
        chat.close_dialog()
    chat.tool("shell:settings")
    for tab in ("thisConversation", "newConversations", "appearance"):
        chat.page.get_by_role("tab", name=chat.text(f"settings:{tab}")).click()
        check(chat.page)
    chat.close_dialog()
    chat.picker.click()
    check(chat.page)
    chat.page.keyboard.press("Escape")
    show_models(chat)
    check(chat.page)
    chat.close_dialog()
    chat.tool("shell:compare")
    expect(chat.page.get_by_role("heading", name=chat.text("compare:welcome"))).to_be_visible()
    check(chat.page)


@in_english
def test_the_keyboard_is_enough(chat: Chat) -> None:
    page, keys = chat.page, chat.page.keyboard
    chat.choose(SEES)
    page.reload()
    expect(chat.composer).to_be_focused()
    keys.type("Hello")
    keys.press("Enter")
    chat.answered()
    expect(chat.composer).to_be_focused()
    keys.type("one line")
    keys.press("Shift+Enter")
    expect(chat.composer).to_have_value("one line\n")
    keys.press("Control+a")
    keys.press("Delete")
    tab_to(page, chat.text("chat:regenerate"), backwards=True)
    keys.press("Enter")
    expect(chat.answers.last).to_contain_text(re.compile(r"2\s*/\s*2"))
    chat.answered()
    keys.press("Control+k")
    expect(chat.list().get_by_role("searchbox")).to_be_focused()
    keys.type("Hello")
    tab_to(page, chat.text("shell:actions", title="Hello"))
    keys.press("Enter")
    keys.press("ArrowDown")
    keys.press("Escape")
    expect(page.get_by_role("menu")).to_have_count(0)
    expect(
        page.get_by_role("button", name=chat.text("shell:actions", title="Hello"))
    ).to_be_focused()
    keys.press("Control+Shift+o")
    expect(chat.answers).to_have_count(0)
    keys.press("Control+/")
    expect(chat.dialog).to_be_visible()
    keys.press("Escape")
    expect(chat.dialog).to_have_count(0)


def tab_to(page: Page, name: str, *, backwards: bool = False) -> None:
    for _ in range(40):
        page.keyboard.press("Shift+Tab" if backwards else "Tab")
        active = "() => document.activeElement.getAttribute('aria-label')"
        if page.evaluate(active) == name:
            return
    raise AssertionError(f"no way to {name} by Tab")


def test_landmarks_and_the_live_region(chat: Chat) -> None:
    for role in LANDMARKS:
        expect(chat.page.get_by_role(role)).to_have_count(1)
    chat.choose(SEES)
    answer = chat.ask("Hello")
    said = chat.body(answer).inner_text()
    told = chat.page.get_by_role("status").filter(has_text=chat.text("chat:answered", text=said))
    expect(told).to_have_count(1)


@in_all_looks
def test_targets_are_large_enough_and_nothing_overflows(chat: Chat) -> None:
    chat.choose(SEES)
    chat.ask("Hello")
    small = chat.page.evaluate(
        """() => [...document.querySelectorAll("button, a[href], input, select, textarea")]
            .filter((each) => each.checkVisibility() && !each.closest("p, .markdown, [inert]"))
            .map((each) => [each, each.getBoundingClientRect()])
            .filter(([each, box]) => box.width > 1 && (box.width < 24 || box.height < 24))
            .map(([each]) => each.outerHTML.slice(0, 120))"""
    )
    assert small == []
    fits(chat)
    for open_dialog in (lambda: chat.tool("shell:settings"), lambda: show_models(chat)):
        open_dialog()
        expect(chat.dialog).to_be_visible()
        fits(chat)
        chat.close_dialog()
    if chat.phone:  # the smallest that is still in use
        chat.page.set_viewport_size({"width": 320, "height": 560})
        fits(chat)


def fits(chat: Chat) -> None:
    """Nothing but what is made for it is to be scrolled sideways."""
    over = """() => [document.documentElement, ...document.querySelectorAll("dialog[open]")]
        .map((each) => each.scrollWidth - each.clientWidth).filter((over) => over > 0)"""
    assert chat.page.evaluate(over) == []
