"""The real server as a process of its own, which can die, and a proxy in front of it."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

START_SECONDS = 90.0
HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


class ServerProcess:
    """`shuzhai serve` with its data in a folder; the same address after each start."""

    def __init__(self, home: Path, arguments: Sequence[str], key: str | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._key = key
        self._log = home / "serve.log"
        self._command = [sys.executable, "-m", "shuzhai.cli.main", "serve", *arguments]
        self._command += ["--port", str(self.port)]
        self._environment = {
            **{name: value for name, value in os.environ.items() if name != "SHUZHAI_API_KEY"},
            "SHUZHAI_HOME": str(home),
            "OMP_NUM_THREADS": "1",  # the browser wants the other core
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log
            )

    def wait_ready(self) -> None:
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            with suppress(URLError, ConnectionError):
                models = self.ask("GET", "/api/status")["models"]
                if any(model["state"] == "loaded" for model in models):
                    return
            time.sleep(0.1)
        raise AssertionError("the server did not start:\n" + self._log.read_text("utf-8"))

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def kill(self) -> None:
        """As a machine that loses its power, or a kernel that is out of memory, ends it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def ask(self, method: str, path: str, body: Any = None, key: str | None = None) -> Any:
        headers = {"content-type": "application/json"}
        if used := key or self._key:
            headers["authorization"] = f"Bearer {used}"
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + path, data=data, headers=headers, method=method)
        with urlopen(request, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def forget_conversations(self, key: str | None = None) -> None:
        while listed := self.ask("GET", "/api/conversations?limit=50", key=key)["data"]:
            for conversation in listed:
                self.ask("DELETE", f"/api/conversations/{conversation['id']}", key=key)


class Relay:
    """A proxy as rented machines have: it shows the server under a path, which it takes away.

    Of streamed answers it passes on only so many events while there are `most_events`, and holds
    the rest. While it is `down` there is no connection at all.
    """

    def __init__(self, port: int, prefix: str = "") -> None:
        self.upstream_port = port
        self.prefix = prefix
        self.most_events: int | None = None
        self.down = False
        self._server = _RelayServer(("127.0.0.1", 0), _RelayHandler)
        self._server.relay = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}{prefix}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def holds(self, events: int) -> bool:
        most = self.most_events
        return most is not None and events >= most and not self.down

    def mend(self) -> None:
        self.most_events, self.down = None, False

    def close(self) -> None:
        self.down = True
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _RelayServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    relay: Relay

    def handle_error(self, request: object, client_address: object) -> None:
        """A side that went away: that is what some tests are about."""


class _RelayHandler(BaseHTTPRequestHandler):
    server: _RelayServer

    def relay_request(self) -> None:
        relay = self.server.relay
        if relay.down or not self.path.startswith(relay.prefix + "/"):
            return  # closes the connection without an answer
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        upstream = http.client.HTTPConnection("127.0.0.1", relay.upstream_port, timeout=60)
        try:
            path = self.path.removeprefix(relay.prefix)
            upstream.request(self.command, path, body, dict(self.headers.items()))
            self.pass_on(upstream.getresponse())
        finally:
            upstream.close()

    def pass_on(self, answer: http.client.HTTPResponse) -> None:
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP | {"date", "server"}:
                self.send_header(name, value)
        self.send_header("connection", "close")
        self.end_headers()
        is_stream = "text/event-stream" in (answer.getheader("content-type") or "")
        events = 0
        while part := answer.readline() if is_stream else answer.read1(65536):
            while self.server.relay.holds(events):
                time.sleep(0.02)
            if self.server.relay.down:
                return
            events += is_stream and part.startswith(b"data:")
            self.wfile.write(part)

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    do_GET = do_POST = do_DELETE = do_HEAD = relay_request
