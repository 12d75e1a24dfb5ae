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
    assert sum(len(f.read_text(encoding="utf-8").splitlines()) for f in folder.iterdir()) < 500


def test_pictures_are_shown_from_data_urls_alone(steady: Live) -> None:
    _, headers, _ = steady.ask("GET", "/")
    policy = headers["content-security-policy"].split("; ")
    assert "img-src 'self' data:" in policy
    assert "blob:" not in headers["content-security-policy"]
    assert "readAsDataURL" in read("app.js")
    assert "createObjectURL" not in read("app.js")


def test_the_page_takes_the_kinds_of_pictures_that_the_server_takes() -> None:
    kinds = {"image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"}
    accepted = re.search(r'type="file" accept="([^"]*)" multiple', read("index.html"))
    assert accepted
    assert set(accepted[1].split(",")) == kinds
    assert set(re.findall(r'"(image/\w+)": /', read("app.js"))) == kinds


def test_all_is_said_in_both_languages() -> None:
    english, chinese = re.findall(r"^  (?:en|zh): \{$(.*?)^  \},$", read("app.js"), re.M | re.S)
    names = re.findall(r'(\w+): "', english)
    assert names == re.findall(r'(\w+): "', chinese)
    used = set(re.findall(r'data-(?:text|label)="(\w+)"', read("index.html")))
    used |= set(re.findall(r"(?:texts|TEXTS\[language\])\.(\w+)", read("app.js")))
    used |= set(re.findall(r'(?:return |note\(|=> )"(\w+)"', read("app.js")))
    assert used <= set(names)


def test_everything_is_asked_for_relative_to_the_page() -> None:
    asked = re.findall(r"fetch\((.*?)[,)]", read("app.js"))
    assert sorted(asked) == ['"health"', '"v1/chat/completions"', '"v1/models"']


def read(name: str) -> str:
    return (files("shuzhai.server") / "static" / name).read_text(encoding="utf-8")
