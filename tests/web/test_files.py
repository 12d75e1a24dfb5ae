"""The built files: small at first, whole, and of nobody else; installable."""

from __future__ import annotations

import gzip
import json
import re

from playwright.sync_api import Request, expect

from tests.web.chat import PAGE, Chat
from tests.web.conftest import Look, Opener, in_english
from tests.web.servers import Relay

FIRST_LOAD_BYTES = 500_000


def first_files() -> list[str]:
    html = (PAGE / "index.html").read_text("utf-8")
    return re.findall(r'(?:src|href)="\./([^"]+\.(?:js|css))"', html)


@in_english
def test_the_first_load_is_small(opener: Opener, relay: Relay) -> None:
    names = first_files()
    assert names
    contents = [(PAGE / name).read_bytes() for name in ["index.html", *names]]
    total = sum(len(gzip.compress(content, 9)) for content in contents)
    assert total < FIRST_LOAD_BYTES
    # And in truth: all that a first visit fetches, less what comes compressed already.
    asked: list[Request] = []
    page = opener.page("about:blank")
    page.on("requestfinished", lambda request: asked.append(request))
    page.goto(relay.url + "/")
    page.get_by_role("textbox").wait_for()
    sizes = {
        each.url.removeprefix(relay.url + "/"): each.sizes()["responseBodySize"]
        for each in asked
        if each.url.endswith((".js", ".css", "/"))
    }
    assert sum(sizes.values()) < FIRST_LOAD_BYTES, sizes


def test_nothing_is_inline_and_nothing_is_foreign() -> None:
    html = (PAGE / "index.html").read_text("utf-8")
    assert not re.search(r"<script[^>]*>[^<]", html)
    assert not re.search(r"<style|\son\w+=|\sstyle=|javascript:", html)
    links = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert links
    assert all(not link.startswith(("/", "http:", "https:", "//", "data:")) for link in links)
    styles = [path.read_text("utf-8") for path in PAGE.rglob("*.css")]
    assert all(not re.search(r"url\((?!['\"]?\.)|@import", style) for style in styles)
    licences = (PAGE / "licenses.md").read_text("utf-8")
    for name in ("react-dom", "katex", "react-markdown", "lucide-react"):
        assert name in licences


def test_the_manifest_is_whole() -> None:
    manifest = json.loads((PAGE / "manifest.webmanifest").read_text("utf-8"))
    assert manifest["name"]
    assert manifest["display"] == "standalone"
    assert not manifest["start_url"].startswith("/")
    sizes = {icon["sizes"] for icon in manifest["icons"]}
    assert "any" in sizes or {"192x192", "512x512"} <= sizes
    for icon in manifest["icons"]:
        assert (PAGE / icon["src"]).is_file()


def test_it_is_installed_and_opens_without_the_server(
    opener: Opener, relay: Relay, look: Look
) -> None:
    context = opener.context(service_workers="allow")
    page = opener.page(relay.url + "/", context)
    expect(page.locator("link[rel=manifest]")).to_have_count(1)
    page.evaluate("() => navigator.serviceWorker.ready.then(() => true)")
    chat = Chat(page, look.language, phone=look.is_phone)
    expect(chat.composer).to_be_visible()
    page.reload()
    page.wait_for_function("() => navigator.serviceWorker.controller !== null")
    expect(chat.picker).to_have_accessible_name(re.compile("Tiny|text-only"))
    relay.down = True
    try:
        page.reload()
        expect(chat.composer).to_be_visible()
        expect(page.get_by_text(chat.text("shell:offline"))).to_be_visible()
    finally:
        relay.down = False
    expect(page.get_by_text(chat.text("shell:offline"))).to_be_hidden()


@in_english
def test_nothing_is_asked_of_other_hosts(opener: Opener, relay: Relay, look: Look) -> None:
    asked: list[Request] = []
    page = opener.page("about:blank")
    page.on("request", lambda request: asked.append(request))
    page.goto(relay.url + "/")
    page.get_by_role("textbox").wait_for()
    assert asked
    assert all(each.url.startswith((relay.url, "blob:")) for each in asked)
