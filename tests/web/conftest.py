"""A browser (Debian's Chromium), the page as it is built, and the real server with tiny models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.support.tiny import TinyShape, write_checkpoint
from tests.web.chat import Chat
from tests.web.servers import Relay, ServerProcess

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "shuzhai" / "server" / "page"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
SEES, SEES_TOO = "tiny-internvl2", "tiny-xcomposer2"
TIMEOUT_MS = 15_000
KEYS = ("key-of-ada", "key-of-bo")
SMALL = ["--memory", "2GiB", "--max-model-len", "2048"]  # room for all models at once


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = None
    if CHROMIUM is None:
        reason = "there is no Chromium: apt-get install chromium"
    elif not (PAGE / "index.html").exists():
        reason = "the page is not built: npm ci && npm run build in web/"
    for item in items if reason else ():
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@dataclass(frozen=True)
class Look:
    """In what language and on what device the page is used."""

    language: str
    device: str

    @property
    def is_phone(self) -> bool:
        return self.device == "phone"

    def options(self) -> dict[str, object]:
        locale = "zh-CN" if self.language == "zh" else "en-GB"
        if self.is_phone:
            size = {"width": 390, "height": 780}
            return {"locale": locale, "viewport": size, "has_touch": True, "is_mobile": True}
        return {"locale": locale, "viewport": {"width": 1280, "height": 800}}


ENGLISH, CHINESE = Look("en", "desktop"), Look("zh", "phone")
ALL_LOOKS = [ENGLISH, CHINESE, Look("en", "phone"), Look("zh", "desktop")]


def name_of(look: Look) -> str:
    return f"{look.language}-{look.device}"


# For what differs by language and by width, and for what differs by neither.
in_all_looks = pytest.mark.parametrize("look", ALL_LOOKS, ids=name_of)
in_english = pytest.mark.parametrize("look", [ENGLISH], ids=name_of)


@pytest.fixture(params=[ENGLISH, CHINESE], ids=name_of)
def look(request: pytest.FixtureRequest) -> Look:
    """Each test runs in both languages and both widths."""
    return request.param


# Of the package, not of the session: while Playwright runs, its event loop belongs to this thread.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        expect.set_options(timeout=TIMEOUT_MS)
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def text_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads text alone, and writes noise, at length."""
    shape = TinyShape(max_position_embeddings=4096)
    return write_checkpoint(tmp_path_factory.mktemp("models") / "text-only", shape)


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory, text_only: Path) -> Iterator[ServerProcess]:
    """Open to all, with three models."""
    home = tmp_path_factory.mktemp("home")
    with running(ServerProcess(home, [SEES, SEES_TOO, str(text_only), *SMALL])) as it:
        yield it


@pytest.fixture(scope="package")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """With two keys, under a path, with one model."""
    home = tmp_path_factory.mktemp("guarded")
    options = [option for key in KEYS for option in ("--api-key", key)]
    options += ["--root-path", "/box/7", *SMALL]
    with running(ServerProcess(home, [SEES, *options], KEYS[0])) as it:
        yield it


@contextmanager
def running(server: ServerProcess) -> Iterator[ServerProcess]:
    server.start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="package")
def relay(server: ServerProcess) -> Iterator[Relay]:
    relay = Relay(server.port)
    yield relay
    relay.close()


@pytest.fixture(scope="package")
def guarded_relay(guarded: ServerProcess) -> Iterator[Relay]:
    relay = Relay(guarded.port, "/box/7")
    yield relay
    relay.close()


class Opener:
    """Pages of a look; what goes wrong in them fails the test at its end."""

    def __init__(self, browser: Browser, look: Look) -> None:
        self._browser = browser
        self._look = look
        self._contexts: list[BrowserContext] = []
        self._pages: list[Page] = []
        self.faults: list[str] = []

    def context(self, **options: object) -> BrowserContext:
        """A browser that knows nothing yet."""
        # A service worker would answer in place of the routes that tests make.
        options = {"service_workers": "block", "reduced_motion": "reduce"} | options
        context = self._browser.new_context(**self._look.options(), **options)
        context.set_default_timeout(TIMEOUT_MS)
        self._contexts.append(context)
        return context

    def page(self, url: str, context: BrowserContext | None = None) -> Page:
        page = (context or self.context()).new_page()
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("console", lambda message: self._listen(message.text))
        page.goto(url)
        self._pages.append(page)
        return page

    def again(self, url: str) -> Page:
        """A page where others were before, of which nothing stays."""
        if not self._contexts:
            self.context()
        page = self.page("about:blank", self._contexts[0])
        session = page.context.new_cdp_session(page)
        session.send("Storage.clearDataForOrigin", {"origin": url, "storageTypes": "local_storage"})
        session.detach()
        page.goto(url)
        return page

    def _listen(self, text: str) -> None:
        if "Content Security Policy" in text or 'unique "key"' in text:
            self.faults.append(text)

    def end(self) -> None:
        """Of a test."""
        for page in self._pages:
            page.close()
        faults, self._pages, self.faults = self.faults, [], []
        assert not faults

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def opener(browser: Browser, look: Look) -> Iterator[Opener]:
    opener = Opener(browser, look)
    yield opener
    opener.end()
    opener.close()


@pytest.fixture(scope="package")
def openers(browser: Browser) -> Iterator[dict[Look, Opener]]:
    """One for each look: a page opens much sooner in a browser that has shown it before."""
    openers = {look: Opener(browser, look) for look in ALL_LOOKS}
    yield openers
    for opener in openers.values():
        opener.close()


@pytest.fixture
def chat(
    openers: dict[Look, Opener], look: Look, server: ServerProcess, relay: Relay
) -> Iterator[Chat]:
    """The page of the open server, through the relay, with no conversations yet."""
    server.forget_conversations()
    relay.mend()
    page = openers[look].again(relay.url + "/")
    yield Chat(page, look.language, phone=look.is_phone)
    openers[look].end()
