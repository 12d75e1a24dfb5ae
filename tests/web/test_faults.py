"""When things break: the page says so, keeps what was written, and goes on by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Response, Route, expect

from tests.web.chat import Chat
from tests.web.conftest import SEES, in_english
from tests.web.servers import Relay, ServerProcess
from tests.web.test_chat import HELD


@pytest.fixture
def mended(server: ServerProcess, relay: Relay) -> Iterator[ServerProcess]:
    """Whatever the test broke is whole again for the next one."""
    yield server
    relay.mend()
    if not server.is_running:
        server.start()
        server.wait_ready()


@in_english
def test_a_question_comes_before_the_server_was_heard_of(chat: Chat) -> None:
    """On a slow line the page is there for a while before it knows the models."""
    held: list[Route] = []
    chat.page.route("**/api/status", lambda route: held.append(route), times=1)
    chat.page.reload()
    chat.begin("Who are you?")
    expect(chat.body(chat.answered())).to_contain_text("I am")
    held[0].continue_()


def test_the_server_dies_in_the_middle_of_an_answer(
    chat: Chat, relay: Relay, mended: ServerProcess
) -> None:
    chat.choose(SEES)
    relay.most_events = HELD
    chat.begin("Who are you?")
    expect(chat.body(chat.answers.last)).to_contain_text("I am")
    relay.down = True  # with what it holds: the server itself wrote all of it long ago
    mended.kill()
    answer = chat.answered()
    begun = chat.body(answer).inner_text()
    assert begun.startswith("I am")
    expect(answer).to_contain_text(chat.text("chat:errorCut"))
    expect(chat.page.get_by_text(chat.text("shell:offline"))).to_be_visible()
    # What is written now is kept, and said to be.
    chat.composer.fill("Are you there?")
    chat.send.click()
    expect(chat.page.get_by_text(chat.text("chat:offline"))).to_be_visible()
    expect(chat.composer).to_have_value("Are you there?")
    mended.start()
    mended.wait_ready()
    relay.mend()
    expect(chat.page.get_by_text(chat.text("shell:recovered"))).to_be_visible()
    expect(chat.page.get_by_text(chat.text("shell:offline"))).to_be_hidden()
    chat.button("chat:continue", answer).first.click()
    expect(chat.body(answer)).to_contain_text("I do not know photographs.")
    chat.answered()
    chat.send.click()
    expect(chat.answers).to_have_count(2)
    chat.answered()
    chat.page.reload()
    expect(chat.answers).to_have_count(2)
    expect(chat.body(chat.answers.first)).to_contain_text("I do not know photographs.")


def has_saved(response: Response) -> bool:
    """A part of the answer."""
    return response.url.endswith("/messages") and "I am" in (response.request.post_data or "")


def test_a_page_that_is_closed_in_an_answer_keeps_what_came(
    chat: Chat, relay: Relay, mended: ServerProcess
) -> None:
    chat.choose(SEES)
    relay.most_events = HELD
    with chat.page.expect_response(has_saved):
        chat.begin("Who are you?")
    chat.page.reload()
    relay.mend()
    answer = chat.answered()
    expect(chat.body(answer)).to_contain_text("I am")
    expect(answer).to_contain_text(chat.text("chat:stopped"))
    chat.button("chat:continue", answer).first.click()
    expect(chat.body(answer)).to_contain_text("I do not know photographs.")


def test_the_connection_drops_in_an_answer(chat: Chat, relay: Relay, mended: ServerProcess) -> None:
    chat.choose(SEES)
    relay.most_events = HELD
    chat.begin("Who are you?")
    expect(chat.body(chat.answers.last)).to_contain_text("I am")
    relay.down = True
    answer = chat.answered()
    expect(answer).to_contain_text(chat.text("chat:errorCut"))
    relay.mend()
    chat.button("chat:continue", answer).first.click()
    expect(chat.body(answer)).to_contain_text("I do not know photographs.")


def test_an_error_of_the_server_is_shown(chat: Chat) -> None:
    error = {
        "message": "The prompt has 9,000 tokens; the model reads 2,048.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }
    chat.page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(status=400, json={"error": error})
    )
    chat.choose(SEES)
    chat.begin("Hello")
    answer = chat.answered()
    expect(answer).to_contain_text(chat.text("chat:error"))
    expect(answer).to_contain_text(error["message"])
    chat.page.unroute("**/v1/chat/completions")
    chat.button("chat:tryAgain", answer).click()
    expect(chat.body(chat.answered())).to_contain_text(re.compile(r"\w"))


def test_a_model_that_is_loading_is_waited_for(chat: Chat) -> None:
    error = {
        "message": "The model is being downloaded.",
        "type": "server_error",
        "param": None,
        "code": "model_loading",
    }
    refused = []

    def refuse_once(route: object) -> None:
        if refused:
            route.continue_()
        else:
            refused.append(route)
            route.fulfill(status=503, json={"error": error})

    chat.page.route("**/v1/chat/completions", refuse_once)
    chat.choose(SEES)
    expect(chat.body(chat.ask("Who are you?"))).to_contain_text("I do not know photographs.")
    assert len(refused) == 1
