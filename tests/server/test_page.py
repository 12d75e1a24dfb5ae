"""The page: served whole, with nothing of other people and nothing that could run strange code."""

from __future__ import annotations

import re
from importlib.resources import files

from tests.server.live import Live


def test_the_page_and_its_parts(steady: Live) -> None:
    status, headers, body = steady.ask("GET", "/")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    links = re.findall(r'(?:src|href)="([^"]*)"', body.decode())
    assert sorted(links) == ["static/app.js", "static/icon.svg", "static/style.css"]
    for link in links:  # relative: the page works under a proxy's path
        status, headers, part = steady.ask("GET", f"/{link}")
        assert status == 200
        assert part
        assert headers["content-type"].split(";")[0] in (
            "text/javascript",
            "text/css",
            "image/svg+xml",
        )
    assert steady.ask("HEAD", "/")[2] == b""


def test_nothing_inline_and_nothing_foreign() -> None:
    folder = files("shuzhai.server") / "static"
    html = (folder / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script[^>]*>[^<]", html)
    assert not re.search(r"\son\w+=|style=|javascript:", html)
    script = (folder / "app.js").read_text(encoding="utf-8")
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function"
    assert not re.search(forbidden, script)
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text
    assert sum(len(f.read_text(encoding="utf-8").splitlines()) for f in folder.iterdir()) < 320
