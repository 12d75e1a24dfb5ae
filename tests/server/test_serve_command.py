"""`shuzhai serve`: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from shuzhai.cli import serve
from shuzhai.cli.main import main
from shuzhai.cli.options import Parser
from shuzhai.config import Environment
from shuzhai.errors import (
    ConfigError,
    ModelNotFoundError,
)
from shuzhai.server.run import bind, listen
from shuzhai.server.settings import ServerConfig
from tests.server.live import Live
from tests.server.talk import Chats, message
from tests.support.tiny import TinyShape, write_checkpoint

MAIN = """
import sys
from shuzhai.cli import serve
from shuzhai.cli.options import Parser
parser = Parser()
serve.add_parser(parser.add_subparsers())
args = parser.parse_args(sys.argv[1:])
sys.exit(args.run(args))
"""


def environment(**variables: str) -> Environment:
    return Environment.read({"SHUZHAI_HOME": "home", **variables})


def printed(config: ServerConfig, port: int = 6006, **variables: str) -> str:
    lines = serve.announcement(config, port, ["tiny"], environment(**variables), 2**30)
    return "\n".join(line.plain for line in lines)


def test_what_is_printed() -> None:
    text = printed(ServerConfig())
    assert "tiny at http://127.0.0.1:6006" in text
    assert "http://127.0.0.1:6006/v1" in text
    assert "ssh" not in text
    assert "Warning" not in text


def test_what_is_printed_of_several_models() -> None:
    names = ["a", "b", "c"]
    lines = serve.announcement(ServerConfig(), 6006, names, environment(), 3 * 2**30)
    text = "\n".join(line.plain for line in lines)
    assert "Ready: a, b, c at http" in text
    assert "loaded when they are asked for, all within 3.00 GiB" in text
    assert "shuzhai ps" in text


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
    assert (args.host, args.port, args.models) == ("127.0.0.1", 6006, [])
    args = parser.parse_args(["serve", "m", "--api-key", "a", "--api-key", "b", "--port", "0"])
    assert (args.api_key, args.port, args.run) == (["a", "b"], 0, serve.run)
    hosts = ["--allowed-image-host", "a.example", "--allowed-image-host", "b.example:8080"]
    args = parser.parse_args(["serve", *hosts, "--max-tiles", "6"])
    assert (args.allowed_image_host, args.max_tiles) == (["a.example", "b.example:8080"], 6)
    for port in ("70000", "-1", "abc", "99999999999", ""):
        with pytest.raises(SystemExit):
            parser.parse_args(["serve", "--port", port])
        assert "a port is a number from 0 to 65535" in capsys.readouterr().err


def parsed(*words: str) -> argparse.Namespace:
    parser = Parser()
    serve.add_parser(parser.add_subparsers())
    return parser.parse_args(["serve", *words])


def test_several_models_on_the_command_line() -> None:
    assert parsed("a", "b", "--port", "1", "c").models == ["a", "b", "c"]
    assert parsed("--port", "1", "a", "--memory", "1GiB").models == ["a"]
    with pytest.raises(SystemExit):
        parsed("a", "--port", "1", "b", "--nix")
    for models in ([], ["a", "b"]):
        for option in ("--served-model-name", "--chat-template"):
            with pytest.raises(ConfigError, match=f"{option} is for one model"):
                serve.run(parsed(*models, option, "chatml"))
    with pytest.raises(ModelNotFoundError, match="no model is named 'nix'"):
        serve.run(parsed("smollm2-135m", "nix"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("30s", 30), ("5m", 300), ("1.5h", 5400), ("2d", 172800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parsed("--keep-alive", text).keep_alive == seconds


def test_what_is_no_duration(capsys: pytest.CaptureFixture[str]) -> None:
    assert parsed().keep_alive is None
    assert parsed("--keep-alive", "forever").keep_alive is None
    for text in ("", "-1", "5 m", "m", "1e9", "inf", "nan", "1h30m"):
        with pytest.raises(SystemExit):
            parsed("--keep-alive", text)
        assert "a duration is" in capsys.readouterr().err


@contextmanager
def served(
    folder: Path | None, *options: str, variables: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], Live]]:
    """The command in a process of its own, once it says that it is ready."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as home:
        yield from _served(folder, options, {"SHUZHAI_HOME": home, **(variables or {})})


def _served(
    folder: Path | None, options: Sequence[str], variables: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[str], Live]]:
    command = [sys.executable, "-W", "error", "-c", MAIN, "serve", "--port", "0"]
    command += [] if folder is None else [str(folder)]
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--dtype", "float32", *options],
        env={**os.environ, **variables},
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


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_signal_while_a_model_is_fetched(
    tiny_folder: Path, tmp_path: Path, is_first: bool, number: signal.Signals
) -> None:
    """From an index that takes the connection and says nothing. pip ends with the server."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        variables = {"SHUZHAI_HOME": str(tmp_path), "PIP_INDEX_URL": index, "PIP_RETRIES": "0"}
        variables |= {"PIP_TIMEOUT": "99", "PIP_CONFIG_FILE": os.devnull, "no_proxy": "127.0.0.1"}
        if is_first:
            command = [sys.executable, "-c", MAIN, "serve", "smollm2-135m", "--port", "0"]
            process = subprocess.Popen(
                command, env={**os.environ, **variables}, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            with silent.accept()[0]:
                pips = psutil.Process(process.pid).children(recursive=True)
                process.send_signal(number)
                began = time.monotonic()
                output, errors = process.communicate(timeout=30)
            assert "Exception" not in errors
            is_polite = number == signal.SIGTERM
            assert (process.returncode == 0) == is_polite
            assert output.strip().endswith("Stopped.") == is_polite
        else:
            with served(tiny_folder, "smollm2-135m", variables=variables) as (process, live):
                asking = start_load(live, "smollm2-135m")
                with silent.accept()[0]:
                    pips = psutil.Process(process.pid).children(recursive=True)
                    process.send_signal(number)
                    began = time.monotonic()
                    output, _ = process.communicate(timeout=30)
                asking.join()
                assert process.returncode == 0
                assert output.strip().endswith("Stopped.")
                assert "Traceback" not in output
        assert time.monotonic() - began < 6
        assert pips
        assert psutil.wait_procs(pips, timeout=2)[1] == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_terminal_that_goes_away(tiny_folder: Path, tmp_path: Path) -> None:
    """As in `shuzhai serve | head`: the server goes on, and ends well."""
    other = write_checkpoint(tmp_path / "other")
    with served(tiny_folder, str(other)) as (process, live):
        assert process.stdout is not None
        process.stdout.close()
        for call in ("load", "unload", "load"):
            assert live.post(f"/v1/models/{call}", {"model": "other"})[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def start_load(live: Live, name: str) -> threading.Thread:
    def ask() -> None:
        status, body = live.post("/v1/models/load", {"model": name})
        assert (status, body["error"]["code"]) == (503, "shutting_down")

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_without_a_name_and_without_a_network(tmp_path: Path) -> None:
    """The text demo says why it is not there; the others are."""
    variables = {
        "SHUZHAI_HOME": str(tmp_path),
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
        "PIP_CONFIG_FILE": os.devnull,
    }
    with served(None, variables=variables) as (_, live):
        status, _, body = live.ask("GET", "/v1/models")
        text, *seeing = json.loads(body)["data"]
        assert (text["id"], text["state"]) == ("smollm2-135m", "failed")
        assert "could not be loaded: pip could not fetch" in text["status"]
        assert [model["state"] for model in seeing] == ["loaded", "unloaded"]
        status, answer = live.post("/v1/models/load", {"model": "smollm2-135m"})
        assert (status, answer["error"]["code"]) == (503, "model_not_available")
        assert live.ask("GET", "/health")[0] == 200
        status, model = live.post("/v1/models/load", {"model": seeing[1]["id"]})
        assert (status, model["state"]) == (200, "loaded")


@pytest.mark.skipif(sys.platform != "linux", reason="how memory is counted")
def test_unloaded_models_give_their_memory_back(tiny_folder: Path, tmp_path: Path) -> None:
    big = write_checkpoint(tmp_path / "big", TinyShape(hidden_size=1024, intermediate_size=4096))
    weight_bytes = (big / "model.safetensors").stat().st_size
    with served(tiny_folder, str(big), "--memory", "1GiB") as (process, live):
        memory, kept = psutil.Process(process.pid).memory_info, list[int]()
        for _ in range(8):
            ask = {"model": "big", "messages": [{"role": "user", "content": "hi"}]}
            assert live.post("/v1/chat/completions", {**ask, "max_tokens": 4})[0] == 200
            loaded = memory().rss
            assert live.post("/v1/models/unload", {"model": "big"})[0] == 200
            kept.append(memory().rss)
            assert loaded > kept[0] + weight_bytes * 0.9
        # The first use of anything takes memory for good.
        assert max(kept[1:]) < kept[0] + weight_bytes / 4, (kept, weight_bytes)


def test_conversations_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said before any model is loaded, and nothing is overwritten."""
    monkeypatch.setenv("SHUZHAI_HOME", str(tmp_path))
    file = tmp_path / "conversations.sqlite3"
    file.write_bytes(b"no database" * 1000)
    assert main(["serve", "tiny-internvl2", "--port", "0", "--device", "cpu"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"the conversations in {file} cannot be read" in said
    assert file.read_bytes() == b"no database" * 1000


def test_conversations_and_models_while_it_runs(tiny_folder: Path, tmp_path: Path) -> None:
    """What the page keeps is there after a start anew; --no-pull is heard."""
    variables = {"SHUZHAI_HOME": str(tmp_path)}
    with served(tiny_folder, variables=variables) as (_, live):
        id = Chats(live).begin("Kept", message("q"))
        code, shown = live.post("/api/models/pull", {"model": "tiny-xcomposer2"})
        assert (code, shown["state"], shown["installed"]) == (200, "unloaded", True)
        assert live.ask("GET", "/")[0] == 200
    with served(tiny_folder, "--no-pull", variables=variables) as (_, live):
        assert Chats(live).show(id)["title"] == "Kept"
        assert live.post("/api/models/pull", {"model": "tiny-xcomposer2"})[0] == 403
        assert json.loads(live.ask("GET", "/api/status")[2])["can_pull"] is False
