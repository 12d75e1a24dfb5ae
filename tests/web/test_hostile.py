"""Answers that mean harm: what a model writes is shown, and does nothing."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Page, Request, Route, expect

from tests.web.chat import Chat
from tests.web.conftest import in_english

HOSTILE = r"""
<script>window.harmed = "script"</script>
<img src="x" onerror="window.harmed = 'onerror'">
<svg onload="window.harmed = 'onload'"><style>body {display: none}</style></svg>
<iframe src="https://evil.example/frame"></iframe>
<a href="javascript:window.harmed = 'html link'">html link</a>

[js link](javascript:window.harmed='link') [data link](data:text/html,<script>1</script>)
[vb link](vbscript:harm) [odd link](JaVaScRiPt&#58;window.harmed='odd') [file link](file:///etc/passwd)
[good link](https://good.example/page) <javascript:window.harmed='auto'>

![remote picture](https://evil.example/tracker.png) ![data](data:image/svg+xml,<svg/>)
![js picture](javascript:window.harmed='picture')

$\href{javascript:window.harmed='katex'}{x}$ $\includegraphics{https://evil.example/k.png}$
$\htmlStyle{position:fixed;top:0}{y}$ $\def\a{\a\a}\a$ $\frac{1$ and $$\undefinedcommand{2}$$

```html
<script>window.harmed = "code"</script>
```

The end.
"""


def events(text: str) -> str:
    """The whole stream of an answer."""
    lines = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]
    return "".join(f"data: {json.dumps(line)}\n\n" for line in lines) + "data: [DONE]\n\n"


def answer_with(page: Page, text: str) -> None:
    def answer(route: Route) -> None:
        route.fulfill(content_type="text/event-stream", body=events(text))

    page.route("**/v1/chat/completions", answer)


def test_a_hostile_answer_is_inert(chat: Chat) -> None:
    asked: list[Request] = []
    chat.page.on("request", lambda request: asked.append(request))
    answer_with(chat.page, HOSTILE)
    answer = chat.ask("?")
    body = chat.body(answer)
    expect(body).to_contain_text("The end.")
    assert chat.page.evaluate("() => window.harmed") is None
    for tag in ("script", "iframe", "img", "style", "object", "form"):
        expect(body.locator(tag)).to_have_count(0)
    links = body.locator("a").evaluate_all("(all) => all.map((each) => each.getAttribute('href'))")
    assert links
    assert {link.split(":")[0] for link in links} <= {"https", "http", "mailto"}
    good = body.get_by_role("link", name="good link")
    expect(good).to_have_attribute("target", "_blank")
    expect(good).to_have_attribute("rel", "noopener noreferrer nofollow")
    expect(body.get_by_role("link", name="remote picture")).to_be_visible()
    strange = [
        each.url for each in asked if "127.0.0.1" not in each.url and each.url[:5] != "blob:"
    ]
    assert strange == []
    # The same from the server's memory, at once.
    chat.page.reload()
    expect(chat.body(chat.answers.last)).to_contain_text("The end.")
    assert chat.page.evaluate("() => window.harmed") is None


def test_formulas_that_are_wrong_show_their_source(chat: Chat) -> None:
    answer_with(chat.page, "$\\frac{1$ then $$\\nonsense{2}$$ but $x^2$ is right.")
    body = chat.body(chat.ask("?"))
    expect(body).to_contain_text("\\frac{1")
    expect(body).to_contain_text("\\nonsense")
    expect(body).to_contain_text("is right.")
    expect(body.locator(".katex").first).to_be_attached()


def test_titles_and_names_are_text(chat: Chat) -> None:
    answer_with(chat.page, "fine")
    title = '<img src=x onerror="window.harmed=1"><b>bold</b>'
    chat.ask(title)
    chat.show_list()
    expect(chat.row(title)).to_have_count(1)
    assert chat.page.evaluate("() => window.harmed") is None
    assert chat.list().locator("b, img").count() == 0


@in_english
@pytest.mark.parametrize(
    ("markdown", "selector"),
    [
        ("| a | b |\n|---|---|\n| 1 | 2 |", "table td"),
        ("- [x] done", "li input[type=checkbox]"),
        ("```python\nprint(1)\n```", "pre code .hljs-built_in, pre code .hljs-number"),
        ("$$\\int_0^1 x\\,dx$$", ".katex-display"),
        ("~~gone~~ **bold**", "del"),
    ],
    ids=["table", "tasks", "code", "formula", "marks"],
)
def test_what_markdown_can_do(chat: Chat, markdown: str, selector: str) -> None:
    answer_with(chat.page, markdown)
    expect(chat.body(chat.ask("?")).locator(selector).first).to_be_attached()


def test_code_is_copied(chat: Chat) -> None:
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    answer_with(chat.page, "```python\nprint(1)\n```")
    answer = chat.ask("?")
    expect(answer).to_contain_text("python")
    answer.get_by_role("button", name=chat.text("chat:copyCode")).click()
    assert chat.page.evaluate("() => navigator.clipboard.readText()").strip() == "print(1)"
