"""The page as a person uses it: what is seen, and what is done, by roles and names."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from tests.web.texts import Texts

PAGE = Path(__file__).resolve().parents[2] / "shuzhai" / "server" / "page"
EXAMPLES = PAGE / "examples"
# As the page names them.
TITLES = {"tiny-internvl2": "Tiny InternVL2", "tiny-xcomposer2": "Tiny InternLM-XComposer2"}
FILES = """(names) => {
    const transfer = new DataTransfer();
    for (const [name, type, content] of names) {
        const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
        transfer.items.add(new File([bytes], name, {type}));
    }
    return transfer;
}"""


class Chat:
    """A page that is open at a chat."""

    def __init__(self, page: Page, language: str, *, phone: bool) -> None:
        self.page = page
        self.text = Texts(page, language)
        self.language = language
        self.phone = phone
        t = self.text
        self.composer = page.get_by_role("textbox", name=t("chat:ask"))
        self.send = page.get_by_role("button", name=t("chat:send"))
        self.stop = page.get_by_role("button", name=t("chat:stop"), exact=True)
        self.questions = page.get_by_role("article", name=t("chat:question"), exact=True)
        self.answers = page.get_by_role("article", name=t("chat:answer"), exact=True)
        self.picker = page.get_by_role("button", name=t("models:choose"))
        self.waiting = page.locator("form").get_by_role("list", name=t("chat:pictures"))
        self.dialog = page.get_by_role("dialog")

    def button(self, key: str, within: Locator | None = None) -> Locator:
        name = self.text.pattern(key)
        return (within or self.page).get_by_role("button", name=name)

    def say(self, english: str, chinese: str) -> str:
        return chinese if self.language == "zh" else english

    # Asking

    def ask(self, text: str) -> Locator:
        """Ask, and wait for the end of the answer."""
        self.begin(text)
        return self.answered()

    def begin(self, text: str) -> None:
        self.composer.fill(text)
        expect(self.send).to_be_enabled()
        self.send.click()

    def answered(self) -> Locator:
        """The last answer, once it has ended."""
        answer = self.answers.last
        expect(self.button("chat:regenerate", answer)).to_be_visible()
        expect(self.stop).to_be_hidden()
        return answer

    def body(self, answer: Locator) -> Locator:
        return answer.locator(".markdown")

    def choose(self, model: str) -> None:
        self.picker.click()
        self.page.get_by_role("menuitemradio", name=title_of(model)).click()
        self.chosen_is(model)

    def chosen_is(self, model: str) -> None:
        expect(self.picker).to_have_accessible_name(re.compile(re.escape(title_of(model))))

    # Pictures

    def add(self, *files: str | Path) -> None:
        """By the button, as from a file chooser; names are those of example pictures."""
        with self.page.expect_file_chooser() as chooser:
            self.button("chat:addPictures").click()
            if self.phone:  # where there is a camera, too
                self.page.get_by_role("menuitem", name=self.text("chat:choosePictures")).click()
        chooser.value.set_files([EXAMPLES / file for file in files])

    def paste(self, *names: str) -> None:
        self.page.evaluate(
            f"""(names) => document.activeElement.dispatchEvent(new ClipboardEvent("paste",
                {{clipboardData: ({FILES})(names), bubbles: true, cancelable: true}}))""",
            contents(names),
        )

    def drop(self, *names: str) -> None:
        self.page.evaluate(
            f"""(names) => {{
                const dataTransfer = ({FILES})(names);
                for (const kind of ["dragenter", "dragover", "drop"])
                    document.querySelector("main").dispatchEvent(new DragEvent(kind,
                        {{dataTransfer, bubbles: true, cancelable: true}}));
            }}""",
            contents(names),
        )

    def pictures_are(self, count: int) -> None:
        """So many wait to be sent, and the server has them."""
        expect(self.waiting.get_by_role("img")).to_have_count(count)
        expect(self.waiting.locator(".thumbnail-busy")).to_have_count(0)

    # The list of conversations

    def show_list(self) -> Locator:
        """The navigation, which is a drawer on a phone."""
        opener = self.button("shell:openSidebar")
        if opener.is_visible():
            opener.click()
        return self.list()

    def list(self) -> Locator:
        name = self.text("shell:conversations")
        return self.page.get_by_role("dialog" if self.phone else "navigation", name=name)

    def row(self, title: str | re.Pattern[str]) -> Locator:
        return self.list().get_by_role("listitem").filter(has_text=title)

    def new_chat(self) -> None:
        """By the header's button on a phone, by the list's elsewhere."""
        name = self.text("shell:newChat")
        role = "button" if self.phone else "link"
        self.page.get_by_role(role, name=name, exact=True).click()
        expect(self.answers).to_have_count(0)

    def act(self, title: str, key: str) -> None:
        """Something from the menu of a conversation."""
        self.row(title).get_by_role("button", name=self.text("shell:actions", title=title)).click()
        self.page.get_by_role("menuitem", name=self.text(key)).click()

    # What stands in the header, or in the header's menu on a phone

    def tool(self, key: str) -> None:
        if self.phone:
            self.button("shell:moreActions").click()
            self.page.get_by_role("menuitem", name=self.text(key)).click()
        else:
            self.button(key).click()

    def choose_theme(self, key: str) -> None:
        self.button("shell:moreActions" if self.phone else "shell:theme").click()
        self.page.get_by_role("menuitemradio", name=self.text(key)).click()

    def close_dialog(self) -> None:
        self.page.keyboard.press("Escape")
        expect(self.dialog).to_have_count(0)


def title_of(model: str) -> str:
    return TITLES.get(model, model)


def contents(names: Sequence[str]) -> list[tuple[str, str, str]]:
    return [
        (name, "image/webp", base64.b64encode((EXAMPLES / name).read_bytes()).decode())
        for name in names
    ]
