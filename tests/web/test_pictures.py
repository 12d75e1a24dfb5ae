"""Pictures: by button, paste and drop; several; looked at; asked of a model that has no eyes."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect

from tests.web.chat import Chat
from tests.web.conftest import SEES, SEES_TOO

WHAT = ("What is this?", "这是什么？")


def test_a_drawing_is_named(chat: Chat) -> None:
    chat.choose(SEES)
    chat.add("animal.webp")
    chat.pictures_are(1)
    answer = chat.ask(chat.say(*WHAT))
    expect(chat.body(answer)).to_have_text(chat.say("penguin", "企鹅"))
    expect(chat.questions.last.get_by_role("img")).to_have_count(1)
    expect(chat.waiting).to_be_hidden()


def test_several_ways_and_several_pictures(chat: Chat) -> None:
    chat.choose(SEES_TOO)
    chat.add("animal.webp", "number.webp")
    chat.pictures_are(2)
    chat.composer.focus()
    chat.paste("word.webp")
    chat.pictures_are(3)
    chat.drop("compare-1.webp", "compare-2.webp")
    chat.pictures_are(5)
    for _ in range(3):
        chat.button("chat:remove", chat.waiting).first.click()
    chat.pictures_are(2)
    chat.ask(chat.say("What do the two pictures show?", "两张图分别是什么？"))
    expect(chat.questions.last.get_by_role("img")).to_have_count(2)


def test_enlarged(chat: Chat) -> None:
    chat.choose(SEES)
    chat.add("compare-1.webp", "compare-2.webp")
    chat.pictures_are(2)
    chat.ask(chat.say("What do the two pictures show?", "两张图分别是什么？"))
    small = chat.button("chat:enlarge", chat.questions.last).first
    small.click()
    picture = chat.dialog.get_by_role("img")
    expect(picture).to_be_visible()
    first = picture.get_attribute("alt")
    chat.page.keyboard.press("ArrowRight")
    expect(picture).not_to_have_attribute("alt", first or "")
    chat.close_dialog()
    expect(small).to_be_focused()


def test_an_example_shows_what_can_be_asked(chat: Chat) -> None:
    chat.choose(SEES)
    chat.page.get_by_role("button", name=re.compile(re.escape(chat.say(*WHAT)))).click()
    answer = chat.answered()
    expect(chat.body(answer)).to_have_text(chat.say("penguin", "企鹅"))


def test_a_model_that_cannot_see_says_so_before(chat: Chat) -> None:
    chat.choose("text-only")
    chat.add("animal.webp")
    chat.pictures_are(1)
    expect(chat.page.get_by_text(chat.text("chat:blind", model="text-only"))).to_be_visible()
    expect(chat.send).to_be_disabled()
    offer = chat.button("chat:useInstead").first
    offer.click()
    expect(chat.picker).to_have_accessible_name(re.compile("Tiny"))
    answer = chat.ask(chat.say(*WHAT))
    expect(chat.body(answer)).to_have_text(chat.say("penguin", "企鹅"))


def test_a_pdf_is_pages(chat: Chat, tmp_path: Path) -> None:
    chat.choose(SEES)
    file = tmp_path / "two.pdf"
    pages = [Image.new("RGB", (300, 400), colour) for colour in ("white", "red")]
    pages[0].save(file, save_all=True, append_images=pages[1:])
    chat.add(file)
    chat.pictures_are(2)


def test_what_is_no_picture_is_refused(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("no picture")
    chat.add(file)
    expect(chat.page.get_by_text(chat.text("chat:badKind", names="notes.txt"))).to_be_visible()
