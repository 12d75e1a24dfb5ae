"""Pictures in a chat: paths as people type or drop them; files, read once and checked at once."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import url2pathname

from shuzhai.frontend.images import MAX_FILE_BYTES, open_image, read_file


@dataclass(frozen=True, slots=True)
class Picture:
    """A file as it is, and the size of what it shows."""

    name: str
    width: int
    height: int
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"{self.name} ({self.width} × {self.height})"


def find_files(text: str) -> list[Path]:
    """The file that was typed, or the files that were dropped together; none if one is not there.

    A path may hold bare spaces; or it is written as for a shell, with quotes or backslashes; or it
    is a file:// URL. ~ is the user's own folder.
    """
    whole = _path(text)
    if os.path.isfile(whole):
        return [Path(whole)]
    try:
        paths = [_path(word) for word in shlex.split(text)]
    except ValueError:  # a quote that is never closed
        return []
    return [Path(path) for path in paths] if all(map(os.path.isfile, paths)) else []


def read_picture(path: Path) -> Picture:
    """Read a file, and see that it is a picture; InvalidRequestError says why it is none."""
    data = read_file(path, MAX_FILE_BYTES, path.name)
    image = open_image(data, path.name)
    return Picture(path.name, image.width, image.height, data)


def _path(word: str) -> str:
    if word.startswith("file://"):
        word = url2pathname(word.removeprefix("file://").removeprefix("localhost"))
    return os.path.expanduser(word)
