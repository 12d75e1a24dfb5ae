"""The page: served whole, with nothing of other people and nothing that could run strange code."""

from __future__ import annotations

import io
import json
import re
from importlib.resources import files
from typing import Any

from PIL import Image

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
    texts = [f.read_text(encoding="utf-8") for f in folder.iterdir() if f.is_file()]
    assert all("://" not in t.replace("http://www.w3.org/2000/svg", "") for t in texts)
    # It was 500 for one model. The choice of models, the examples and the progress of loads came in
    # since. It ends here: a page that does more is built from parts and served as a bundle.
    assert sum(len(text.splitlines()) for text in texts) < 650


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
    used |= set(re.findall(r'(?:return |note\(|say\(|=> )"(\w+)"', read("app.js")))
    assert used <= set(names)


def test_everything_is_asked_for_relative_to_the_page() -> None:
    asked = set(re.findall(r"fetch\((.*?)[,)]", read("app.js")))
    shown = set(re.findall(r"url: (`static.*?)[ ,]", read("app.js")))
    example = "`static/examples/${file}`"
    assert asked == {'"v1/chat/completions"', '"v1/models"', '"static/examples.json"', example}
    assert shown == {example}


def test_models_are_called_by_the_states_that_the_server_tells() -> None:
    english = re.findall(r'(loaded|loading|unloaded|failed): "', read("app.js"))
    assert sorted(english) == sorted(["loaded", "loading", "unloaded", "failed"] * 2)


def test_what_the_server_says_of_a_load_is_known_in_chinese() -> None:
    folders = (files("shuzhai") / "hub", files("shuzhai") / "server")
    sources = [f.read_text("utf-8") for d in folders for f in d.iterdir() if f.name.endswith(".py")]
    said = re.findall(r'(?:\.begin\(f?|\.status(?:, \S+)* = )"(\w+)', "\n".join(sources))
    assert {"Starting", "Loading", "Downloading", "Waiting", "Reading"} <= set(said)
    assert set(said) == set(re.findall(r"\[/\^(\w+)", read("app.js")))


def test_examples_are_whole_and_in_both_languages() -> None:
    listed = examples()
    assert 6 <= len(listed) <= 8
    assert len({example["id"] for example in listed}) == len(listed)
    for example in listed:
        assert set(example) == {"id", "pictures", "question", "alt"}
        for said in (example["question"], example["alt"]):
            assert set(said) == {"en", "zh"}
            assert said["en"].isascii()
            assert not said["zh"].isascii()
    folder = files("shuzhai.server") / "static" / "examples"
    named = [name for example in listed for name in example["pictures"]]
    assert sorted(named) == sorted(file.name for file in folder.iterdir())
    contents = [(folder / name).read_bytes() for name in named]
    assert sum(map(len, contents)) < 150_000
    for content in contents:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            assert picture.format == "WEBP"
            assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_examples_are_served(steady: Live) -> None:
    status, headers, body = steady.ask("GET", "/static/examples.json")
    assert (status, headers["content-type"].split(";")[0]) == (200, "application/json")
    assert json.loads(body) == examples()
    for name in (name for example in examples() for name in example["pictures"]):
        status, headers, body = steady.ask("GET", f"/static/examples/{name}")
        assert (status, headers["content-type"]) == (200, "image/webp")
        assert body.startswith(b"RIFF")


def examples() -> list[dict[str, Any]]:
    return json.loads(read("examples.json"))


def read(name: str) -> str:
    return (files("shuzhai.server") / "static" / name).read_text(encoding="utf-8")
