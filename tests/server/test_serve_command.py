"""`shuzhai serve`: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import argparse
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shuzhai.cli import serve
from shuzhai.config import Environment
from shuzhai.errors import ConfigError
from shuzhai.server.run import bind, listen
from shuzhai.server.settings import ServerConfig
from tests.server.live import Live

MAIN = """
import argparse, sys
from shuzhai.cli import serve
parser = argparse.ArgumentParser()
serve.add_parser(parser.add_subparsers())
args = parser.parse_args(sys.argv[1:])
sys.exit(args.run(args))
"""


def environment(**variables: str) -> Environment:
    return Environment.read({"SHUZHAI_HOME": "home", **variables})


def printed(config: ServerConfig, port: int = 6006, **variables: str) -> str:
    lines = serve.announcement(config, port, "tiny", environment(**variables), "1 GiB of all")
    return "\n".join(line.plain for line in lines)


def test_what_is_printed() -> None:
    text = printed(ServerConfig())
    assert "tiny at http://127.0.0.1:6006" in text
    assert "http://127.0.0.1:6006/v1" in text
    assert "1 GiB of all" in text
    assert "ssh" not in text
    assert "Warning" not in text


def test_the_tunnel_line() -> None:
    ssh = {"SSH_CONNECTION": "10.0.0.9 50123 10.0.0.5 22", "USER": "ada"}
    assert "\n  ssh -CN -L 6006:127.0.0.1:6006 ada@10.0.0.5\n" in printed(ServerConfig(), **ssh)
    ssh["SSH_CONNECTION"] = "fe80::1 50123 fe80::2 2222"
    text = printed(ServerConfig(), 7000, **ssh)
    assert "\n  ssh -CN -L 7000:127.0.0.1:7000 -p 2222 ada@fe80::2\n" in text
    text = printed(ServerConfig(host="0.0.0.0"), SSH_CONNECTION="?")
    assert "\n  ssh -CN -L 6006:127.0.0.1:6006 USER@HOST\n" in text


def test_the_warning_of_an_open_server() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5"):
        assert "Warning" in printed(ServerConfig(host=host))
        assert "Warning" not in printed(ServerConfig(host=host, api_keys=("k",)))
    assert "http://[::1]:6006" in printed(ServerConfig(host="::"))


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is in use"):
            bind("127.0.0.1", port)
    with bind("127.0.0.1", 0) as first:
        listen(first)
        with pytest.raises(ConfigError, match="in use"):
            listen_again(*first.getsockname())


def listen_again(host: str, port: int) -> None:
    """Some systems find the clash when binding, some when listening."""
    with bind(host, port) as sock:
        listen(sock)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "300.1.1.1", "203.0.113.7", "a" * 70])
def test_a_host_that_is_not_ours(host: str) -> None:
    with pytest.raises(ConfigError):
        bind(host, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"api_keys": ("",)},
        {"api_keys": ("with space",)},
        {"api_keys": ("schlüssel",)},
        {"allowed_origins": ("*",)},
        {"allowed_origins": ("app.example",)},
        {"allowed_origins": ("https://app.example/",)},
        {"allowed_image_hosts": ("https://pictures.example",)},
        {"allowed_image_hosts": ("10.0.0.1",)},
        {"root_path": "studio"},
        {"root_path": "/../x y"},
    ],
)
def test_bad_options(options: dict[str, tuple[str, ...] | str]) -> None:
    with pytest.raises(ConfigError):
        ServerConfig(**options)


def test_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    serve.add_parser(parser.add_subparsers())
    args = parser.parse_args(["serve"])
    assert (args.host, args.port, args.model) == ("127.0.0.1", 6006, None)
    args = parser.parse_args(["serve", "m", "--api-key", "a", "--api-key", "b", "--port", "0"])
    assert (args.api_key, args.port, args.run) == (["a", "b"], 0, serve.run)
    hosts = ["--allowed-image-host", "a.example", "--allowed-image-host", "b.example:8080"]
    args = parser.parse_args(["serve", *hosts, "--max-tiles", "6"])
    assert (args.allowed_image_host, args.max_tiles) == (["a.example", "b.example:8080"], 6)
    for port in ("70000", "-1", "abc", "99999999999", ""):
        with pytest.raises(SystemExit):
            parser.parse_args(["serve", "--port", port])
        assert "a port is a number from 0 to 65535" in capsys.readouterr().err


@contextmanager
def served(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], Live]]:
    """The command in a process of its own, once it says that it is ready."""
    command = [sys.executable, "-W", "error", "-c", MAIN, "serve", str(folder), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--dtype", "float32", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        seen = ""
        while "Ctrl+C" not in seen:
            line = process.stdout.readline()
            assert line, seen
            seen += line
        port = re.search(r"at http://127.0.0.1:(\d+)", seen)
        assert port
        yield process, Live(int(port[1]))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def start_stream(live: Live, max_tokens: int) -> tuple[threading.Thread, list[bytes]]:
    answers: list[bytes] = []
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "max_tokens": max_tokens,
        "ignore_eos": True,
    }
    content = json.dumps(body).encode()
    sock = live.connect()
    sock.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content) + content
    )
    answers.append(sock.recv(4096))

    def read() -> None:
        while part := sock.recv(65536):
            answers.append(part)
        sock.close()

    thread = threading.Thread(target=read)
    thread.start()
    return thread, answers


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_sigterm_lets_a_stream_finish(tiny_folder: Path) -> None:
    with served(tiny_folder) as (process, live):
        thread, answers = start_stream(live, 150)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
        thread.join()
        assert process.returncode == 0
        assert output.strip().endswith("Stopped.")
        assert "Traceback" not in output
        whole = b"".join(answers)
        assert b'"finish_reason":"length"' in whole
        assert b"data: [DONE]" in whole
        assert b'"error"' not in whole


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_second_signal_ends_at_once(tiny_folder: Path) -> None:
    with served(tiny_folder, "--api-key", "k", "--served-model-name", "other") as (process, live):
        assert live.ask("GET", "/v1/models")[0] == 401
        models = json.loads(live.ask("GET", "/v1/models", authorization="Bearer k")[2])
        assert models["data"][0]["id"] == "other"
        blocked = live.connect()  # a body that does not come keeps the server waiting
        blocked.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer k\r\n"
            b"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
        assert time.monotonic() - start < 1
        assert process.returncode == 1
        assert "Traceback" not in output
        blocked.close()
