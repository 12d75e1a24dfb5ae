"""The page is served as it was built: whole, packed, and with nothing else of its folder."""

from __future__ import annotations

import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shuzhai.server.page_files import read_page
from shuzhai.server.settings import ServerConfig
from tests.server.conftest import PAGE
from tests.server.fakes import FakeEngine
from tests.server.live import Live, live_server

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "web" / "public" / "examples"


@pytest.mark.parametrize(
    ("path", "name", "kind"),
    [
        ("/", "index.html", "text/html; charset=utf-8"),
        ("/index.html", "index.html", "text/html; charset=utf-8"),
        ("/assets/a.js", "assets/a.js", "text/javascript; charset=utf-8"),
        ("/assets/a.woff2", "assets/a.woff2", "font/woff2"),
        ("/sw.js", "sw.js", "text/javascript; charset=utf-8"),
        ("/manifest.webmanifest", "manifest.webmanifest", "application/manifest+json"),
        ("/examples/examples.json", "examples/examples.json", "application/json"),
    ],
)
def test_a_file_of_the_page(steady: Live, path: str, name: str, kind: str) -> None:
    status, headers, body = steady.ask("GET", path)
    assert (status, headers["content-type"]) == (200, kind)
    assert body.decode() == PAGE[name]
    is_hashed = name.startswith("assets/")
    assert ("immutable" in headers["cache-control"]) == is_hashed
    assert is_hashed or headers["cache-control"] == "no-cache"
    status, headers, body = steady.ask("HEAD", path)
    assert (status, body) == (200, b"")
    assert steady.ask("GET", path, if_none_match=headers["etag"])[::2] == (304, b"")
    assert steady.ask("GET", path, if_none_match='"other"')[0] == 200


@pytest.mark.parametrize(
    ("accepted", "is_packed"),
    [
        ("gzip", True),
        ("br, gzip;q=0.5", True),
        ("deflate, GZIP", True),
        ("", False),
        ("br", False),
        ("gzip;q=0", False),
        ("gzip;q=0.000", False),
        ("x-gzip2", False),
    ],
)
def test_what_is_large_is_packed(steady: Live, accepted: str, is_packed: bool) -> None:
    _, headers, body = steady.ask("GET", "/assets/a.js", accept_encoding=accepted)
    assert headers["vary"] == "Accept-Encoding"
    assert (headers.get("content-encoding") == "gzip") == is_packed
    assert (gzip.decompress(body) if is_packed else body).decode() == PAGE["assets/a.js"]
    _, headers, _ = steady.ask("GET", "/assets/a.woff2", accept_encoding=accepted)
    assert "content-encoding" not in headers


@pytest.mark.parametrize(
    "path", ["/notes.exe", "/with%20space.js", "/static/app.js", "/assets", "/api/status.json"]
)
def test_what_is_not_of_the_page(steady: Live, path: str) -> None:
    assert steady.ask("GET", path)[0] == 404


def test_the_page_never_hides_the_api(steady: Live) -> None:
    assert json.loads(steady.ask("GET", "/v1/models")[2])["object"] == "list"


def test_nothing_foreign_may_run(steady: Live) -> None:
    _, headers, _ = steady.ask("GET", "/")
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["img-src"] == "'self' data: blob:"
    for name in ("script-src", "style-src", "font-src", "connect-src", "worker-src"):
        assert policy[name] == "'self'"


def test_without_a_page_it_is_said_how_to_get_one(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with live_server([FakeEngine()], page=read_page(folder)) as live:
            status, headers, body = live.ask("GET", "/")
            assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
            text = body.decode()
            for word in ("pip install .", "Node.js", "接口", 'lang="zh"'):
                assert word in text
            assert live.ask("GET", "/index.html")[0] == 404


def test_under_a_path_the_page_is_at_its_slash(parts: dict[str, Any]) -> None:
    """Its addresses are relative."""
    with live_server([FakeEngine()], ServerConfig(root_path="/a/b"), **parts) as live:
        status, headers, _ = live.ask("GET", "/a/b")
        assert (status, headers["location"]) == (308, "/a/b/")
        assert live.ask("GET", "/a/b/")[0] == 200
        assert live.ask("GET", "/a/b/assets/a.js")[0] == 200
        assert live.ask("GET", "/a/bc")[0] == 404


def test_what_the_server_says_of_a_load_is_known_in_chinese() -> None:
    folders = (ROOT / "shuzhai" / "hub", ROOT / "shuzhai" / "server")
    sources = [file.read_text("utf-8") for folder in folders for file in folder.glob("*.py")]
    said = re.findall(r'(?:\.begin\(f?|\.status(?:, \S+)* = )"(\w+)', "\n".join(sources))
    assert {"Starting", "Loading", "Downloading", "Waiting", "Reading"} <= set(said)
    known = (ROOT / "web" / "src" / "i18n" / "server.ts").read_text("utf-8")
    assert set(said) == set(re.findall(r"\[/\^(\w+)", known))


def test_examples_are_whole_and_in_both_languages() -> None:
    listed = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))
    assert 6 <= len(listed) <= 8
    assert len({example["id"] for example in listed}) == len(listed)
    for example in listed:
        assert set(example) == {"id", "pictures", "question", "alt"}
        for said in (example["question"], example["alt"]):
            assert set(said) == {"en", "zh"}
            assert said["en"].isascii()
            assert not said["zh"].isascii()
    named = [name for example in listed for name in example["pictures"]]
    assert sorted(named) == sorted(file.name for file in EXAMPLES.glob("*.webp"))
    contents = [(EXAMPLES / name).read_bytes() for name in named]
    assert sum(map(len, contents)) < 150_000
    for content in contents:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            assert picture.format == "WEBP"
            assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
