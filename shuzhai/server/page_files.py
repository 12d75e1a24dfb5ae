"""The page as it was built (web/), read whole at the start: no path that a request names meets the
disk. Without it, `/` says how to get it."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath

from starlette.requests import Request
from starlette.responses import Response

_INDEX = "index.html"
# The build names these after their content: they never change.
_HASHED = "assets/"
# What is the API's, and locked, stays so whatever the page's folder holds.
_RESERVED = re.compile(r"(?:api|v1)(?:/|$)|health$")
_PLAIN_NAME = re.compile(r"[\w./@+~-]+", re.ASCII)
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".txt": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webp": "image/webp",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".woff": "font/woff",
    ".ttf": "font/ttf",
    ".pfb": "application/octet-stream",
    ".bcmap": "application/octet-stream",
    ".icc": "application/octet-stream",
}
# Packing these would cost time at the start and save next to nothing.
_DENSE = (".webp", ".png", ".jpg", ".woff2", ".woff", ".pfb", ".bcmap", ".icc")
_LEAST_PACKED_BYTES = 1024

_NO_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Shuzhai 书斋</title>
<h1>Shuzhai 书斋</h1>
<p>The server runs, and its API is at <code>v1/</code>. Its page was not built when this copy was
installed. To get it, install <a href="https://nodejs.org/" rel="noopener">Node.js</a> 20 or newer
with npm, then run <code>pip install .</code> once more in Shuzhai's source folder, with a network
that reaches the npm registry, and start the server again.</p>
<p lang="zh">服务正在运行，接口在 <code>v1/</code>。安装这份程序时没有构建网页。要得到网页，
请先安装 <a href="https://nodejs.org/" rel="noopener">Node.js</a> 20 或更新版本（包含 npm），
并确保网络能够访问 npm 软件源，然后在书斋的源代码目录中重新执行 <code>pip install .</code>，
再启动服务。</p>
</html>
"""


@dataclass(frozen=True, slots=True)
class PageFile:
    """packed: in gzip, where that is smaller"""

    content: bytes
    packed: bytes | None
    media_type: str
    cache: str
    etag: str

    async def serve(self, request: Request) -> Response:
        headers = {"cache-control": self.cache, "etag": self.etag}
        if self.packed is not None:
            headers["vary"] = "Accept-Encoding"
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        content = self.content
        if self.packed is not None and _takes_gzip(request.headers.get("accept-encoding", "")):
            content, headers["content-encoding"] = self.packed, "gzip"
        return Response(content, media_type=self.media_type, headers=headers)


def read_page(folder: Traversable) -> Mapping[str, PageFile]:
    """Every file by its path on the server; `/` is there in any case."""
    if not (folder / _INDEX).is_file():
        return {"/": _page_file(_INDEX, _NO_PAGE.encode())}
    page = {f"/{name}": _page_file(name, content) for name, content in _files(folder)}
    return {"/": page[f"/{_INDEX}"], **page}


def _files(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    for file in folder.iterdir():
        name = prefix + file.name
        if not _PLAIN_NAME.fullmatch(name) or _RESERVED.match(name):
            continue
        if file.is_dir():
            yield from _files(file, f"{name}/")
        elif PurePosixPath(name).suffix in _TYPES:
            yield name, file.read_bytes()


def _page_file(name: str, content: bytes) -> PageFile:
    suffix = PurePosixPath(name).suffix
    packed = None
    if suffix not in _DENSE and len(content) >= _LEAST_PACKED_BYTES:
        packed = gzip.compress(content, mtime=0)
    is_hashed = name.startswith(_HASHED)
    return PageFile(
        content=content,
        packed=packed if packed is not None and len(packed) < len(content) else None,
        media_type=_TYPES[suffix],
        cache="public, max-age=31536000, immutable" if is_hashed else "no-cache",
        etag=f'"{hashlib.sha256(content).hexdigest()[:32]}"',
    )


def _takes_gzip(accepted: str) -> bool:
    """Whether an Accept-Encoding names gzip, and not to refuse it."""
    for part in accepted.lower().split(","):
        name, _, options = part.partition(";")
        if name.strip() == "gzip":
            return not re.fullmatch(r"\s*q=0(\.0*)?\s*", options)
    return False
