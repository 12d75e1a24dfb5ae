"""Bring one file over HTTP: resumed where an earlier run stopped, and checked before it counts.

Knows nothing of hubs. huggingface_hub 2 begins a file anew after an interrupted run and does not
compare its hash, and modelscope-hub draws its own bars, so all bytes come through here.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

import httpx

from shuzhai.errors import DownloadError
from shuzhai.hub.progress import Progress, format_bytes

MAX_RETRIES = 5  # in a row without a single new byte
BACKOFF_SECONDS = 0.5
CHUNK_BYTES = 1 << 18

_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_REASONS: Mapping[int, str] = MappingProxyType(
    {
        401: "it asks for a login: the file is private there, or its licence must be accepted",
        403: "it refuses access: the file is private there, or its licence must be accepted",
        404: "it has no such file",
    }
)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that a hub or an index offers.

    size    in bytes, exact
    digest  64 hex digits: sha256. 40: git's sha1 of the blob. None: nobody told
    """

    name: str
    url: str
    size: int
    digest: str | None


class _LineBroken(Exception):
    """The transfer stopped early, and may go on."""


def new_client() -> httpx.Client:
    """For fetch: honours the proxies of the environment; the caller closes it.

    DownloadError when those, or the certificates that the environment names, cannot be used.
    """
    timeout, headers = httpx.Timeout(60.0, connect=15.0), {"User-Agent": "shuzhai"}
    try:
        return httpx.Client(follow_redirects=True, timeout=timeout, headers=headers)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise DownloadError(
            "the proxy that ALL_PROXY, HTTPS_PROXY or HTTP_PROXY names cannot be used; "
            "it looks like http://HOST:PORT or socks5://HOST:PORT"
        ) from error
    except OSError as error:
        raise DownloadError(
            "the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read"
        ) from error


def fetch(
    client: httpx.Client, file: RemoteFile, target: Path, parts: Path, progress: Progress
) -> None:
    """Make `target` the file. Advances `progress` by the file's size in all.

    What has come so far is kept in `parts`, named by the digest, and used by a later call.
    DownloadError when the source fails for good or what came is not what was promised; then
    `target` does not exist.
    """
    if target.is_file():
        if target.stat().st_size == file.size and _digest_of(target, file) == file.digest:
            progress.advance(file.size)
            return
        target.unlink()
    part = parts / f"{file.name}.{(file.digest or 'plain')[:16]}"
    _receive_all(client, file, part, progress)
    if _digest_of(part, file) != file.digest:
        part.unlink()
        progress.advance(-file.size)
        raise DownloadError(
            f"{file.name} from {_host(file.url)} is not the file that was announced: its "
            f"checksum differs. It was thrown away; try again, or use another source."
        )
    os.replace(part, target)


def _receive_all(client: httpx.Client, file: RemoteFile, part: Path, progress: Progress) -> None:
    """Receive until `part` has the size of the file, over as many requests as it takes."""
    num_retries = 0
    have = part.stat().st_size if part.exists() else 0
    progress.advance(have)
    while have != file.size or not part.exists():
        try:
            _receive(client, file, part, progress)
            reason = "the connection was closed early"
        except (httpx.TransportError, _LineBroken) as error:
            reason = str(error) or type(error).__name__
        except (httpx.InvalidURL, httpx.TooManyRedirects, httpx.DecodingError) as error:
            raise DownloadError(f"{file.name} cannot be fetched: {error}") from error
        before, have = have, part.stat().st_size if part.exists() else 0
        if have == file.size:
            return
        num_retries = 0 if have > before else num_retries + 1
        if num_retries > MAX_RETRIES:
            raise DownloadError(
                f"{file.name} stopped at {format_bytes(have)} of {format_bytes(file.size)} "
                f"({_host(file.url)}: {reason}). Run the same command again: it goes on from there."
            )
        progress.advance(0)  # it may end the work, which nobody wants any more
        time.sleep(min(BACKOFF_SECONDS * 2**num_retries, 8.0))


def _receive(client: httpx.Client, file: RemoteFile, part: Path, progress: Progress) -> None:
    """One request for what is missing, written as it comes."""
    start = part.stat().st_size if part.exists() else 0
    # Compressed bytes could be neither counted nor resumed.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with client.stream("GET", file.url, headers=headers) as response:
        status = response.status_code
        resumed = start > 0 and status == 206
        fits = not resumed or response.headers.get("Content-Range", "").startswith(
            f"bytes {start}-"
        )
        if status == 416 or start > file.size or not fits:
            part.unlink(missing_ok=True)
            progress.advance(-start)
            raise _LineBroken("the server would not go on from where it stopped")
        if status in _TRANSIENT:
            raise _LineBroken(f"HTTP {status}")
        if status not in (200, 206):
            reason = _REASONS.get(status, "it could not be fetched")
            raise DownloadError(f"{_host(file.url)} answered {status} for {file.name}: {reason}.")
        if not resumed:
            progress.advance(-start)
            start = 0
        hang_up = partial(_hang_up, response)
        with part.open("ab" if resumed else "wb") as out, progress.ended_by(hang_up):
            for chunk in response.iter_bytes(CHUNK_BYTES):
                start += len(chunk)
                if start > file.size:
                    break
                out.write(chunk)
                progress.advance(len(chunk))
    if start > file.size:
        progress.advance(-part.stat().st_size)
        part.unlink()
        raise DownloadError(
            f"{_host(file.url)} sent more for {file.name} than the {file.size} bytes it announced."
        )


def _hang_up(response: httpx.Response) -> None:
    """End a read that waits in another thread, which closing the connection would not."""
    sock = response.extensions["network_stream"].get_extra_info("socket")
    with suppress(OSError):  # it has ended itself
        # Not the method of a TLS socket: that would wait for the other side.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _digest_of(path: Path, file: RemoteFile) -> str | None:
    """The digest of a file on disk, of the kind that `file` promises."""
    if file.digest is None:
        return None
    with path.open("rb") as stream:
        if len(file.digest) == 64:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _host(url: str) -> str:
    """The host alone: addresses of mirrors may hold passwords."""
    return urlsplit(url).hostname or "the source"
