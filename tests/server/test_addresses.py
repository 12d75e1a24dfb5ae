"""Which URLs are understood, which listings, and which addresses are of the internet."""

from __future__ import annotations

import pytest

from shuzhai.errors import ConfigError
from shuzhai.server.addresses import RemoteUrl, host_name, is_public, listed_places, parse_url
from shuzhai.server.settings import ServerConfig


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://a.example", RemoteUrl("http", "a.example", 80, "/")),
        ("https://a.example/x.png", RemoteUrl("https", "a.example", 443, "/x.png")),
        ("HTTPS://A.Example./x?y=/z#q", RemoteUrl("https", "a.example", 443, "/x?y=/z")),
        ("http://a.example:8080?y", RemoteUrl("http", "a.example", 8080, "/?y")),
        ("http://a_b.example/%2e/图", RemoteUrl("http", "a_b.example", 80, "/%2e/%E5%9B%BE")),
        ("https://书斋.example/", RemoteUrl("https", "xn--1jq177c.example", 443, "/")),
    ],
)
def test_plain_urls(text: str, url: RemoteUrl) -> None:
    assert parse_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.example/x.png",
        "//a.example/x.png",
        "/etc/passwd",
        "C:\\x.png",
        "file:///etc/passwd",
        "file://a.example/x",
        "ftp://a.example/x",
        "gopher://a.example:70/x",
        "blob:https://a.example/x",
        "javascript:alert(1)",
        "http:a.example",
        "http:/a.example",
        "http:///a.example",
        "http://",
        "http://:80/",
        "http://.",
        "http://a..example/",
        "http://a.example../",
        "http://user@a.example/",
        "http://user:secret@a.example/",
        "http://a.example@127.0.0.1/",
        "http://a.example:80@127.0.0.1/",
        "http://a.example\\@127.0.0.1/",
        "http://127.0.0.1\\.a.example/",
        "http://a.example/\\..\\x",
        "http://a.example/x y",
        " http://a.example/",
        "http://a.example/ ",
        "http://a.example/\r\nHost: b.example",
        "http://a.example\t/",
        "http://a.exam\nple/",
        "http://a.example/\x00",
        "http://a.example/\u200b",
        "http://a\u00ad.example/",
        "http://a.example/\ud800",
        "http://a\ud800.example/",
        "http://a%2eexample/",
        "http://a.example:/",
        "http://a.example:123456/",
        "http://a.example:８０/",
        "httpſ://a.example/",
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.0.0.1/",
        "http://017700000001/",
        "http://0177.0.0.01/",
        "http://127.0.0.0x1/",
        "http://1.1.1.1./",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:8.8.8.8]/",
        "http://::1/",
        "http://①②⑦.⓪.⓪.①/",
        "http://ａ.example/",
        "http://" + "a" * 64 + ".example/",
        "http://" + "a." * 200 + "example/",
        "http://a.example/" + "x" * 9000,
    ],
)
def test_urls_that_are_not_understood(text: str) -> None:
    assert parse_url(text) is None


def test_names() -> None:
    assert host_name("A.Example.") == "a.example"
    assert host_name("1.example") == "1.example"
    assert host_name("example.1") is None
    assert host_name("a.example:80") is None


@pytest.mark.parametrize(
    ("entry", "places"),
    [
        ("a.example", {("a.example", 80), ("a.example", 443)}),
        ("A.EXAMPLE.", {("a.example", 80), ("a.example", 443)}),
        ("a.example:8080", {("a.example", 8080)}),
        ("书斋.example", {("xn--1jq177c.example", 80), ("xn--1jq177c.example", 443)}),
        ("", None),
        ("*", None),
        ("*.a.example", None),
        (".a.example", None),
        ("https://a.example", None),
        ("a.example/x", None),
        ("a.example:", None),
        ("a.example:0", None),
        ("a.example:99999", None),
        ("127.0.0.1", None),
        ("[::1]", None),
        ("::1", None),
        ("2130706433", None),
    ],
)
def test_what_an_operator_may_list(entry: str, places: set[tuple[str, int]] | None) -> None:
    assert listed_places(entry) == places
    if places is None:
        with pytest.raises(ConfigError, match="an allowed image host is a name"):
            ServerConfig(allowed_image_hosts=(entry,))
    else:
        assert ServerConfig(allowed_image_hosts=("b.example", entry))


@pytest.mark.parametrize(
    "address",
    ["93.184.215.14", "1.1.1.1", "2606:4700::1111", "2001:4860:4860::8888", "64:ff9b::5db8:d70e"],
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    """0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 127.9.9.9 168.63.129.16
    169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1
    192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1
    255.255.255.255 :: ::1 ::127.0.0.1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:8.8.8.8
    ::ffff:0:10.0.0.1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::a00:1 100::1
    2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:20::1 2001:db8::1 2002:7f00:1::
    2002:5db8:d70e:: 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fe80::1%eth0 fec0::1 ff02::1
    ff0e::1 2606:4700::1111%eth0 localhost 2130706433 0x7f000001 127.1""".split(),
)
def test_addresses_that_are_not(address: str) -> None:
    assert not is_public(address)
