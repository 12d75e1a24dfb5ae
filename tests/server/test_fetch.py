"""Pictures of other servers: what is fetched, from where, and what never is."""

from __future__ import annotations

import asyncio
import gzip
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from shuzhai.errors import InvalidRequestError
from shuzhai.server.errors import RefusedError
from shuzhai.server.held import FREE_BYTES, ByteBudget, HeldBytes
from shuzhai.server.pictures import FetchLimits, PictureFetcher, linked_pictures
from tests.server.web import PICTURE, PUBLIC, Body, ToLocal, Web, tcp_server

A = "https://a.example/x.png"


def image(url: object, **options: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **options}}


def chat(*parts: object) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "s"}, {"role": "user", "content": list(parts)}]


def fetch_parts(
    fetcher: PictureFetcher, *parts: object, budget: ByteBudget | None = None
) -> list[Any]:
    """The parts as the frontend will get them."""
    messages = chat(*parts)

    async def run() -> list[dict[str, Any]]:
        held = HeldBytes(budget or ByteBudget(2**30))
        return await fetcher.fetch(messages, linked_pictures(messages), held)

    return asyncio.run(run())[1]["content"]


def fetch(fetcher: PictureFetcher, url: object = A) -> bytes:
    return fetch_parts(fetcher, image(url))[0]["image"]


def refused(fetcher: PictureFetcher, url: object = A) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        fetch(fetcher, url)
    assert caught.value.param == "messages"
    message = str(caught.value)
    assert message.startswith("messages[1].content[0]")
    assert not any(secret in message for secret in ("127.0", "10.0", "169.254", "::", "0x", " at "))
    return message


def moved(location: str, status: int = 302) -> httpx.Response:
    return httpx.Response(status, headers={"location": location})


def test_bytes_come_in_the_place_of_urls() -> None:
    web = Web()
    text, data = {"type": "text", "text": "t"}, image("DATA:image/png;base64,AAAA", detail="low")
    video = {"type": "video_url", "video_url": {"url": "http://A.Example/v"}, "num_frames": 4}
    parts = [text, image(A, detail="high"), data, video, image(A), image(A, what=1)]
    assert fetch_parts(web.fetcher(), *parts) == [
        text,
        {"type": "image", "image": PICTURE, "detail": "high"},
        data,
        {"type": "video", "video": PICTURE, "num_frames": 4},
        {"type": "image", "image": PICTURE},
        {"type": "image", "image": PICTURE, "what": 1},  # the frontend refuses what it knows not
    ]
    # Each URL once, to the address, in the name of the host.
    assert web.asked == [
        (PUBLIC, None, "a.example", "a.example"),
        (PUBLIC, None, "a.example", "a.example"),
    ]
    assert [r.url.scheme for r in web.requests] == ["https", "http"]
    assert web.resolved == [("a.example", 443), ("a.example", 80)]


def test_what_is_asked() -> None:
    web = Web()
    fetch(web.fetcher("a.example:8443"), "https://a.example.:8443/x/%2e%2e/y?z=1&z=2#frag")
    request = web.requests[0]
    assert request.method == "GET"
    assert str(request.url) == f"https://{PUBLIC}:8443/x/%2e%2e/y?z=1&z=2"
    assert request.headers["host"] == "a.example:8443"
    assert request.headers["accept-encoding"] == "identity"
    assert not {"cookie", "authorization", "referer"} & set(request.headers)


@pytest.mark.parametrize(
    "url",
    [
        "https://b.example/x.png",
        "https://x.a.example/",
        "https://a.example.b.example/",
        "https://xa.example/",
        "https://a.example:8080/",
        "https://a.example:22/",
        "http://a.example@127.0.0.1/",
        "http://127.0.0.1\\@a.example/",
        "http://127.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost/",
        "file:///etc/passwd",
        "file://a.example/etc/passwd",
        "gopher://a.example:80/_GET",
        "ftp://a.example/x",
        "blob:https://a.example/x",
        "/etc/passwd",
        "../x.png",
        "",
        None,
        3,
        ["https://a.example/"],
    ],
)
def test_where_nothing_is_fetched_from(url: object) -> None:
    """Another picture of the request, a good one, is not fetched either."""
    web = Web()
    refused(web.fetcher(), url)
    with pytest.raises(InvalidRequestError):
        fetch_parts(web.fetcher(), image(A), image(url))
    assert (web.asked, web.resolved) == ([], [])


def test_nothing_is_fetched_unless_the_operator_says_so() -> None:
    message = refused(PictureFetcher())
    assert "data: URL" in message
    assert "--allowed-image-host" in message


@pytest.mark.parametrize("part", [{"type": "image", "image": "/etc/passwd"}, {"type": "video"}])
def test_a_client_names_no_file(part: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=r"messages\[1\]\.content\[0\].*_url"):
        linked_pictures(chat(part))


@pytest.mark.parametrize(
    "part", ["x", None, {}, {"type": None}, {"type": []}, {"type": "text"}, {"type": "audio_url"}]
)
def test_other_parts_are_the_frontends(part: object) -> None:
    assert linked_pictures(chat(part)) == []
    assert linked_pictures([{"role": "user", "content": part}, {}]) == []


@pytest.mark.parametrize("part", [{"type": "image_url"}, {"type": "video_url", "video_url": "x"}])
def test_parts_without_a_url(part: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="must be"):
        linked_pictures(chat(part))


def test_pictures_are_counted_before_all_else() -> None:
    web = Web()
    parts = [image(f"https://a.example/{i}") for i in range(65)]
    with pytest.raises(InvalidRequestError, match="65 pictures, and 64 is the most"):
        fetch_parts(web.fetcher(), *parts)
    with pytest.raises(InvalidRequestError, match="1000 pictures"):
        linked_pictures([{"role": "user", "content": [image("data:,")]}] * 1000)
    assert web.asked == []
    assert len(fetch_parts(web.fetcher(), *parts[:64])) == 64


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["169.254.169.254"],
        ["10.1.2.3"],
        ["::1"],
        ["::ffff:10.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["2002:7f00:1::"],
        ["fe80::1%eth0"],
        [PUBLIC, "192.168.0.1"],
        [],
    ],
)
def test_a_listed_name_with_an_address_inside(addresses: list[str]) -> None:
    web = Web(addresses=[addresses])
    assert "no public address" in refused(web.fetcher())
    assert web.asked == []


def test_a_name_that_moves_inside_is_not_followed() -> None:
    """The connection goes to the address that was checked; the next step is checked anew."""
    web = Web({"/x.png": lambda: moved("/y.png")}, addresses=[[PUBLIC], ["127.0.0.1"]])
    assert "no public address" in refused(web.fetcher())
    assert [address for address, *_ in web.asked] == [PUBLIC]
    web = Web(addresses=[[PUBLIC], ["127.0.0.1"]])
    assert fetch(web.fetcher()) == PICTURE
    assert len(web.resolved) == 1


def test_the_real_resolver_and_what_it_does_not_find() -> None:
    assert "no public address" in refused(PictureFetcher(["localhost"]), "http://localhost/x")
    assert "no public address" in refused(
        PictureFetcher(["nowhere.invalid"]), "http://nowhere.invalid/x"
    )


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location", ["/y", "y", "https://a.example/y", "//A.EXAMPLE./y", "https://a.example:443/y#z"]
)
def test_redirects_on_the_same_host(location: str, status: int) -> None:
    web = Web(
        {
            "/x.png": lambda: moved(location, status),
            "/y": lambda: httpx.Response(200, stream=Body([])),
        }
    )
    assert fetch(web.fetcher()) == b""
    assert [name for *_, name in web.asked] == ["a.example"] * 2


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1/",
        "http://169.254.169.254/latest/",
        "https://[::1]/",
        "https://b.example/",
        "https://also.example/",
        "https://a.example:8080/",
        "https://a.example@127.0.0.1/",
        "https://a.example\\@127.0.0.1/",
        "//127.0.0.1/",
        "file:///etc/passwd",
        "gopher://a.example/",
        "data:image/png;base64,AAAA",
        "http://a.example/",
        "https://[",
        "",
    ],
)
def test_redirects_elsewhere(location: str) -> None:
    web = Web({"/x.png": lambda: moved(location)})
    refused(web.fetcher("a.example", "also.example"))
    assert len(web.asked) <= (4 if not location else 1)


def test_redirects_in_a_circle() -> None:
    web = Web({"/x.png": lambda: moved("/y.png"), "/y.png": lambda: moved("/x.png")})
    assert "more than 3 times" in refused(web.fetcher())
    assert len(web.asked) == 4


@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 404, 500])
def test_other_statuses(status: int) -> None:
    web = Web({"/x.png": lambda: httpx.Response(status)})
    assert f"status {status}" in refused(web.fetcher())


def test_what_is_compressed_is_not_read() -> None:
    bomb = gzip.compress(bytes(10**7))
    headers = {"content-encoding": "gzip", "content-length": str(len(bomb))}
    web = Web({"/x.png": lambda: httpx.Response(200, headers=headers, stream=Body([bomb]))})
    assert "compresses" in refused(web.fetcher())


@pytest.mark.parametrize("promise", [{}, {"content-length": "3000"}, {"content-length": "9" * 30}])
def test_too_many_bytes(promise: dict[str, str]) -> None:
    def answer() -> httpx.Response:
        return httpx.Response(200, headers=promise, stream=Body([b"x" * 500] * 6))

    limits = FetchLimits(picture_bytes=1000)
    assert "larger than 1000 bytes" in refused(Web({"/x.png": answer}).fetcher(limits=limits))


def test_pictures_of_a_request_are_bounded_together() -> None:
    web = Web({"/b": lambda: httpx.Response(200, stream=Body([b"x" * 10]))})
    limits = FetchLimits(picture_bytes=100, request_bytes=45)
    urls = [f"https://a.example/{i}" for i in range(3)]
    assert len(fetch_parts(web.fetcher(limits=limits), *map(image, urls))) == 3
    with pytest.raises(InvalidRequestError, match=r"content\[3\].* 45 bytes together"):
        fetch_parts(web.fetcher(limits=limits), *map(image, [*urls, A]))


def test_fetched_bytes_are_held() -> None:
    big = FREE_BYTES + 1000
    web = Web({"/x.png": lambda: httpx.Response(200, stream=Body([bytes(big)]))})
    budget = ByteBudget(2000)
    assert fetch_parts(web.fetcher(), image(A), budget=budget)
    assert budget.num_free == 1000
    with pytest.raises(RefusedError) as caught:
        fetch_parts(web.fetcher(), image(A), image(A + "?"), budget=ByteBudget(500))
    assert caught.value.problem.status == 503


def test_slow_servers() -> None:
    limits = FetchLimits(picture_seconds=0.2)
    pieces = [b"x"] * 100
    web = Web({"/x.png": lambda: httpx.Response(200, stream=Body(pieces, 0.05))})
    assert "longer than 0.2 s" in refused(web.fetcher(limits=limits))
    assert "longer than 0.2 s" in refused(Web(pause=5).fetcher(limits=limits))
    # Each is fast enough, all together are not.
    limits = FetchLimits(picture_seconds=1, request_seconds=0.3)
    with pytest.raises(InvalidRequestError, match=r"longer than 0\.3 s"):
        fetch_parts(
            Web(pause=0.1).fetcher(limits=limits),
            *(image(f"https://a.example/{i}") for i in range(9)),
        )


def test_few_fetches_at_a_time() -> None:
    web = Web(pause=0.02)
    fetcher = web.fetcher()

    async def run() -> None:
        messages = chat(image(A))
        calls = [
            fetcher.fetch(messages, linked_pictures(messages), HeldBytes(ByteBudget(0)))
            for _ in range(20)
        ]
        await asyncio.gather(*calls)

    asyncio.run(run())
    assert (len(web.asked), web.most_running) == (20, 4)


def test_another_address_is_tried_where_one_is_closed() -> None:
    other = "2606:4700::1111"

    def answer() -> httpx.Response:
        if web.asked[-1][0] == PUBLIC:
            raise httpx.ConnectError("refused by 10.0.0.1")
        return httpx.Response(200, stream=Body([PICTURE]))

    web = Web({"/x.png": answer}, addresses=[[PUBLIC, other]])
    assert fetch(web.fetcher()) == PICTURE
    assert [address for address, *_ in web.asked] == [PUBLIC, other]
    web = Web({"/x.png": answer}, addresses=[[PUBLIC]])
    assert "cannot be reached" in refused(web.fetcher())
    assert len(web.asked) == 1


def local(port: int, **options: Any) -> tuple[PictureFetcher, ToLocal]:
    web, transport = Web(), ToLocal(port, **options)
    limits = FetchLimits(picture_seconds=1.0, picture_bytes=10**6)
    fetcher = PictureFetcher(
        ["a.example", "b.example"], limits, resolve=web.resolve, transport=lambda: transport
    )
    return fetcher, transport


def test_over_real_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    def good(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 3\r\n\r\nabc")

    with tcp_server(good) as port:
        fetcher, transport = local(port)
        assert fetch(fetcher, "http://a.example/x") == b"abc"
        assert transport.addresses == [PUBLIC]


def endless_body(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        sock.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")


def dripping_body(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        sock.sendall(b"x")
        time.sleep(0.05)


def endless_head(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        sock.sendall(b"X: " + b"y" * 1000 + b"\r\n")


def silence(sock: socket.socket) -> None:
    sock.recv(1)


def cut(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nxyz")


def nonsense(sock: socket.socket) -> None:
    sock.sendall(b"220 smtp.example ESMTP\r\n")


@pytest.mark.parametrize(
    "talk", [endless_body, dripping_body, endless_head, silence, cut, nonsense]
)
def test_hostile_servers(talk: Any) -> None:
    start = time.monotonic()
    with tcp_server(talk) as port:
        refused(local(port)[0], "http://a.example/x")
    assert time.monotonic() - start < 4


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_certificates_are_checked_by_name(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
        f"-subj /CN=a -addext subjectAltName=DNS:a.example -keyout {key} -out {certificate}",
        shell=True,
        check=True,
        capture_output=True,
    )
    names = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.sni_callback = lambda _, name, __: names.append(name)

    def good(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")

    with tcp_server(good, context) as port:
        trusting = ssl.create_default_context(cafile=certificate)
        assert fetch(local(port, verify=trusting)[0], "https://a.example/x") == b"abc"
        assert "cannot be reached" in refused(
            local(port, verify=trusting)[0], "https://b.example/x"
        )
        assert "cannot be reached" in refused(local(port)[0], "https://a.example/x")
    assert names == ["a.example", "b.example", "a.example"]
