"""A model hub on 127.0.0.1: the endpoints of Hugging Face, ModelScope and the package index that
the real clients call, with faults on request."""

import hashlib
import io
import json
import threading
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What it serves, how it misbehaves, and what it was asked.

    cuts       file -> after how many bytes of the body to drop the connection, once for each
    stalls     file -> after how many bytes to stop sending until `release` is set
    tampered   files whose first byte is changed on the way
    statuses   file, or "list", -> the status to answer with
    requests   (method, path, Range header) of each request
    """

    files: dict[str, bytes] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    stalls: dict[str, int] = field(default_factory=dict)
    tampered: set[str] = field(default_factory=set)
    statuses: dict[str, int] = field(default_factory=dict)
    listed_sizes: dict[str, int] = field(default_factory=dict)
    ranges: bool = True
    html_index: bool = False
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)

    def __enter__(self):
        hub = self

        class Handler(_Handler):
            fake = hub

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_):
        self.release.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(self, name, data, lfs=False):
        self.files[name] = data
        if lfs:
            self.lfs.add(name)

    def fetched(self, name):
        """Range headers of the requests for a file's content."""
        return [r for method, path, r in self.requests if method == "GET" and name in path]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that hangs up is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._note()
        self._reply(200, b"")

    def do_GET(self):
        self._note()
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        if path.startswith("/api/models/"):
            self._list(self._hugging_face_list())
        elif path.startswith("/api/v1/") and path.endswith("/repo/files"):
            self._list(self._modelscope_list())
        elif path.startswith("/api/v1/") and path.endswith("/repo"):
            self._file(query["FilePath"][0])
        elif path.startswith("/simple/"):
            self._simple_page()
        elif "/resolve/" in path or path.startswith("/files/"):
            self._file(path.rsplit("/", 1)[-1])
        else:
            self._reply(404, b"")

    def _note(self):
        self.fake.requests.append((self.command, self.path, self.headers.get("Range")))

    def _list(self, data):
        self._reply(self.fake.statuses.get("list", 200), json.dumps(data).encode())

    def _sizes(self):
        for name, data in self.fake.files.items():
            yield name, data, self.fake.listed_sizes.get(name, len(data))

    def _hugging_face_list(self):
        siblings = []
        for name, data, size in self._sizes():
            blob_id = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry = {"rfilename": name, "size": size, "blobId": blob_id}
            if name in self.fake.lfs:
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 130}
            siblings.append(entry)
        return {"id": "a/b", "modelId": "a/b", "sha": COMMIT, "tags": [], "siblings": siblings}

    def _modelscope_list(self):
        files = [
            {
                "Path": name,
                "Name": name,
                "Size": size,
                "Type": "blob",
                "Sha256": hashlib.sha256(data).hexdigest(),
            }
            for name, data, size in self._sizes()
        ]
        files.append({"Path": "assets", "Name": "assets", "Size": 0, "Type": "tree"})
        return {"Code": 200, "Success": True, "Message": "", "Data": {"Files": files}}

    def _simple_page(self):
        if self.fake.html_index:
            links = "".join(f'<a href="../../files/{n}#sha256=0">{n}</a>' for n in self.fake.files)
            self._reply(200, f"<html><body>{links}</body></html>".encode(), "text/html")
            return
        files = [
            {"filename": n, "url": f"/files/{n}", "hashes": {}, "yanked": False}
            for n in self.fake.files
        ]
        page = {"meta": {"api-version": "1.0"}, "name": "demo", "files": files}
        self._reply(200, json.dumps(page).encode(), "application/vnd.pypi.simple.v1+json")

    def _file(self, name):
        fake = self.fake
        if (status := fake.statuses.get(name)) is not None or name not in fake.files:
            self._reply(status or 404, b"{}")
            return
        data = fake.files[name]
        if name in fake.tampered:
            data = bytes([data[0] ^ 1]) + data[1:]
        start = 0
        if fake.ranges and (given := self.headers.get("Range")):
            start = int(given.removeprefix("bytes=").removesuffix("-"))
        body = data[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fake.cuts.get(name):
            self._send(body[: fake.cuts[name].pop(0)])
            self.close_connection = True
            self.connection.shutdown(2)
        elif name in fake.stalls:
            stop = fake.stalls.pop(name)
            self._send(body[:stop])
            fake.release.wait(20)
            self._send(body[stop:])
        else:
            self._send(body)

    def _send(self, data):
        try:
            self.wfile.write(data)
            self.wfile.flush()
        except OSError:
            self.close_connection = True

    def _reply(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self._send(body)


def make_wheel(members):
    """A wheel that pip accepts, with these extra members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        info = "demo_model-0.1.2.dist-info"
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: demo-model\nVersion: 0.1.2\n"
            "Requires-Dist: nothing-at-all\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/LICENSE", "do what you like")
        archive.writestr(f"{info}/RECORD", "")
    return out.getvalue()
