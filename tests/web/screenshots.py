"""Take the pictures of docs/page.md anew: `python -m tests.web.screenshots`."""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from tests.web.chat import Chat
from tests.web.conftest import CHROMIUM, PAGE, ROOT, SEES, SEES_TOO, SMALL, Look, running
from tests.web.servers import ServerProcess
from tests.web.test_accessibility import SETTLED
from tests.web.test_compare import half
from tests.web.test_hostile import answer_with
from tests.web.test_models import show_models

FOLDER = ROOT / "docs" / "images" / "page"
QUALITY = 80
WRITTEN = {
    "en": """The sum of the first $n$ numbers is

$$\\sum_{k=1}^{n} k = \\frac{n(n+1)}{2}$$

Pair the first with the last, the second with the last but one: each pair has the sum $n+1$.

```python
def total(n: int) -> int:
    return n * (n + 1) // 2  # no loop
```

| n | sum |
|--:|----:|
| 10 | 55 |
| 100 | 5050 |
""",
    "zh": """前 $n$ 个自然数的和是

$$\\sum_{k=1}^{n} k = \\frac{n(n+1)}{2}$$

把第一个和最后一个配对，第二个和倒数第二个配对：每一对的和都是 $n+1$。

```python
def total(n: int) -> int:
    return n * (n + 1) // 2  # 不用循环
```

| n | 和 |
|--:|----:|
| 10 | 55 |
| 100 | 5050 |
""",
}


@dataclass(frozen=True)
class Style:
    look: Look
    theme: str

    @property
    def name(self) -> str:
        return f"{self.look.language}-{self.theme}-{self.look.device}"


STYLES = [
    Style(Look("en", "desktop"), "light"),
    Style(Look("zh", "desktop"), "dark"),
    Style(Look("en", "phone"), "dark"),
    Style(Look("zh", "phone"), "light"),
]


def first_visit(chat: Chat) -> None:
    chat.choose(SEES)
    expect(chat.page.get_by_role("heading").first).to_be_visible()
    chat.composer.focus()


def pictures(chat: Chat) -> None:
    chat.choose(SEES)
    ask_about(chat, "animal.webp", chat.say("What is this?", "这是什么？"))
    row = chat.say("What is in the picture, from left to right?", "从左到右，图里有什么？")
    ask_about(chat, "row.webp", row)


def ask_about(chat: Chat, picture: str, question: str) -> None:
    chat.add(picture)
    chat.pictures_are(1)
    chat.ask(question)


def writing(chat: Chat) -> None:
    chat.choose(SEES)
    answer_with(chat.page, WRITTEN[chat.language])
    chat.ask(chat.say("What is 1 + 2 + … + n, and why?", "1 + 2 + … + n 等于多少？为什么？"))
    chat.page.unroute("**/v1/chat/completions")


def models(chat: Chat) -> None:
    show_models(chat)


def settings(chat: Chat) -> None:
    chat.tool("shell:settings")
    expect(chat.dialog).to_be_visible()


def compare(chat: Chat) -> None:
    chat.tool("shell:compare")
    for side, model in (("left", SEES), ("right", SEES_TOO)):
        half(chat, side).get_by_role("combobox").select_option(model)
    chat.add("number.webp")
    chat.pictures_are(1)
    question = chat.say("Which number is this?", "这是什么数字？")
    chat.page.get_by_role("textbox", name=chat.text("compare:ask")).fill(question)
    chat.send.click()
    for side in ("left", "right"):
        answer = half(chat, side).get_by_role("article", name=chat.text("chat:answer"))
        expect(chat.button("chat:regenerate", answer)).to_be_visible()


STATES: dict[str, Callable[[Chat], None]] = {
    "first": first_visit,
    "pictures": pictures,
    "writing": writing,
    "models": models,
    "settings": settings,
    "compare": compare,
}


def save(page: Page, file: Path) -> int:
    page.evaluate(SETTLED)
    page.wait_for_function("() => document.fonts.status === 'loaded'")
    shot = Image.open(io.BytesIO(page.screenshot(animations="disabled", caret="hide")))
    shot.convert("RGB").save(file, quality=QUALITY, method=6)
    return file.stat().st_size


def take(server: ServerProcess, style: Style) -> int:
    total = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for state, prepare in STATES.items():
            context = browser.new_context(
                **style.look.options(),
                color_scheme=style.theme,
                reduced_motion="reduce",
                device_scale_factor=2 if style.look.is_phone else 1,
            )
            page = context.new_page()
            page.goto(server.url + "/")
            prepare(Chat(page, style.look.language, phone=style.look.is_phone))
            total += save(page, FOLDER / f"{state}-{style.name}.webp")
            context.close()
        browser.close()
    return total


def main() -> int:
    if CHROMIUM is None or not (PAGE / "index.html").exists():
        print("Chromium and a built page are needed: see web/README.md", file=sys.stderr)
        return 1
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as home:
        for style in STYLES:
            data = Path(home) / style.name
            data.mkdir()
            with running(ServerProcess(data, [SEES, SEES_TOO, *SMALL])) as server:
                print(f"{style.name}: {take(server, style):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
