"""Conversations: kept by the server, found, renamed, deleted, taken away and brought back."""

from __future__ import annotations

import json
import re
from pathlib import Path

from playwright.sync_api import expect

from tests.web.chat import Chat
from tests.web.conftest import SEES


def begin(chat: Chat, question: str) -> None:
    chat.choose(SEES)
    chat.ask(question)


def test_they_survive_a_reload(chat: Chat) -> None:
    begin(chat, "Hello")
    chat.add("animal.webp")
    chat.pictures_are(1)
    answer = chat.ask(chat.say("What is this?", "这是什么？"))
    said = chat.body(answer).inner_text()
    chat.page.reload()
    expect(chat.answers).to_have_count(2)
    expect(chat.body(chat.answers.last)).to_have_text(said)
    picture = chat.questions.last.get_by_role("img")
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("(image) => image.naturalWidth") > 0
    chat.show_list()
    expect(chat.row("Hello")).to_have_count(1)


def test_search(chat: Chat) -> None:
    begin(chat, "Who are you?")
    chat.new_chat()
    chat.ask("你好")
    chat.show_list()
    box = chat.list().get_by_role("searchbox")
    rows = chat.list().get_by_role("listitem")
    expect(rows).to_have_count(2)
    box.fill("发一张图")  # of an answer
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("你好")
    box.fill("WHO are")
    expect(rows).to_contain_text("Who are you?")
    box.fill("nothing like it")
    expect(rows).to_have_count(0)
    expect(chat.list()).to_contain_text(chat.text("shell:nothingFound", search="nothing like it"))
    chat.button("shell:clearSearch", chat.list()).click()
    expect(rows).to_have_count(2)
    rows.filter(has_text="Who are you?").get_by_role("link").click()
    expect(chat.questions.last).to_contain_text("Who are you?")


def test_rename(chat: Chat) -> None:
    begin(chat, "Hello")
    chat.show_list()
    chat.act("Hello", "shell:rename")
    chat.page.get_by_role("textbox", name=chat.text("shell:title")).fill("企鹅 & penguins")
    chat.page.get_by_role("button", name=chat.text("shell:save")).click()
    expect(chat.row("企鹅 & penguins")).to_have_count(1)
    chat.page.reload()
    chat.show_list()
    expect(chat.row("企鹅 & penguins")).to_have_count(1)


def test_delete(chat: Chat) -> None:
    begin(chat, "Hello")
    address = chat.page.url
    chat.show_list()
    chat.act("Hello", "shell:delete")
    question = chat.page.get_by_role("dialog", name=chat.text("shell:deleteTitle"))
    chat.button("shell:delete", question).click()
    expect(chat.page.get_by_text(chat.text("shell:deleted"))).to_be_visible()
    expect(chat.row("Hello")).to_have_count(0)
    expect(chat.answers).to_have_count(0)
    chat.page.goto(address)
    chat.page.reload()
    expect(chat.page.get_by_text(chat.text("chat:missing"))).to_be_visible()


def test_export_and_import(chat: Chat, tmp_path: Path) -> None:
    chat.choose(SEES)
    chat.add("animal.webp")
    chat.pictures_are(1)
    chat.ask(chat.say("What is this?", "这是什么？"))
    title = chat.say("What is this?", "这是什么？")
    chat.show_list()
    with chat.page.expect_download() as markdown:
        chat.act(title, "shell:exportMarkdown")
    written = markdown.value.path().read_text("utf-8")
    assert chat.say("penguin", "企鹅") in written
    with chat.page.expect_download() as taken:
        chat.act(title, "shell:exportJson")
    file = tmp_path / "chat.json"
    taken.value.save_as(file)
    assert "data:image/webp;base64," in json.dumps(json.loads(file.read_text("utf-8")))
    with chat.page.expect_file_chooser() as chooser:
        chat.button("shell:import", chat.list()).click()
    chooser.value.set_files(file)
    expect(chat.page.get_by_text(chat.text("shell:imported", count=1))).to_be_visible()
    expect(chat.body(chat.answers.last)).to_have_text(chat.say("penguin", "企鹅"))
    expect(chat.questions.last.get_by_role("img")).to_be_visible()
    chat.show_list()
    expect(chat.row(title)).to_have_count(2)
    with chat.page.expect_file_chooser() as chooser:
        chat.button("shell:import", chat.list()).click()
    chooser.value.set_files(
        {"name": "chat.md", "mimeType": "text/markdown", "buffer": written.encode()}
    )
    expect(chat.questions.last.get_by_role("img")).to_have_count(0)
    expect(chat.body(chat.answers.last)).to_have_text(chat.say("penguin", "企鹅"))
    chat.show_list()
    expect(chat.row(title)).to_have_count(3)


def test_what_is_no_export_is_refused(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text("[1, 2")
    chat.show_list()
    with chat.page.expect_file_chooser() as chooser:
        chat.button("shell:import", chat.list()).click()
    chooser.value.set_files(file)
    expect(chat.page.get_by_text(chat.text("shell:notConversations"))).to_be_visible()


def test_the_title_is_the_first_line(chat: Chat) -> None:
    chat.choose(SEES)
    chat.ask("Hello\nand more lines")
    expect(chat.page).to_have_title(re.compile("^Hello"))
