"""Messages as clients send them: checked, and their pictures found, but not opened yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from shuzhai.errors import InvalidRequestError
from shuzhai.frontend.images import MAX_FILE_BYTES, ImageSource, read_data_url
from shuzhai.frontend.video import MAX_FRAMES, MAX_VIDEO_BYTES

ROLES = ("system", "user", "assistant")
MAX_PICTURES = 64
_DEFAULT_FRAMES = 8

Kind = Literal["image", "video"]


@dataclass(frozen=True, slots=True)
class MediaPart:
    """A picture or a video of a message.

    where       how errors name it; detail   "low" for a single tile
    num_frames  how many pictures it becomes
    """

    kind: Kind
    source: ImageSource | str
    where: str
    detail: str = "auto"
    num_frames: int = 1

    def read(self) -> ImageSource:
        """The picture, the path or the bytes; a data URL is decoded only here."""
        if isinstance(self.source, str):
            limit = MAX_FILE_BYTES if self.kind == "image" else MAX_VIDEO_BYTES
            return read_data_url(self.source, self.where, limit)
        return self.source


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: texts and pictures in their order."""

    role: str
    parts: tuple[str | MediaPart, ...]


def read_messages(messages: Any, *, allow_files: bool = False) -> list[Message]:
    """Check OpenAI-style messages; InvalidRequestError says which one is wrong and how.

    allow_files: pictures may be named by their path, which a client of a server must not.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise _bad("messages must be a list of at least one message")
    read = [_read_message(i, message, allow_files) for i, message in enumerate(messages)]
    count = sum(p.num_frames for m in read for p in m.parts if isinstance(p, MediaPart))
    if count > MAX_PICTURES:
        raise _bad(f"the messages hold {count} pictures and {MAX_PICTURES} are the most")
    return read


def check_goes_on(messages: Sequence[Message]) -> None:
    """InvalidRequestError unless the last message is the text of an answer."""
    last = messages[-1]
    if last.role != "assistant" or any(isinstance(part, MediaPart) for part in last.parts):
        raise InvalidRequestError(
            "only a last message of the role assistant, with text alone, can be gone on with",
            "continue_final_message",
        )


def hold_pictures(messages: Any) -> bool:
    """Whether messages, checked or not, have anything but text in them."""
    contents = [m.get("content") for m in _items(messages) if isinstance(m, Mapping)]
    parts = (part for content in contents for part in _items(content))
    return any(isinstance(part, Mapping) and part.get("type") != "text" for part in parts)


def _items(value: Any) -> Sequence[Any]:
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    return value if is_list else ()


def _read_message(index: int, message: Any, allow_files: bool) -> Message:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise _bad(f"{where} must be an object with role and content")
    if unknown := set(message) - {"role", "content"}:
        raise _bad(f"{where}: {sorted(map(str, unknown))[0]!r} is not supported")
    role = "system" if message.get("role") == "developer" else message.get("role")
    if role not in ROLES:
        raise _bad(f"{where}.role must be one of {', '.join(ROLES)}, not {role!r}")
    content = message.get("content")
    if isinstance(content, str):
        return Message(role, (content,))
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise _bad(f"{where}.content must be text or a list of parts")
    parts = (_read_part(f"{where}.content[{i}]", p, allow_files) for i, p in enumerate(content))
    return Message(role, tuple(parts))


def _read_part(where: str, part: Any, allow_files: bool) -> str | MediaPart:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        _check_keys(where, part, {"type", "text"})
        if not isinstance(part.get("text"), str):
            raise _bad(f'{where} must be {{"type": "text", "text": ...}}')
        return part["text"]
    if kind in ("image_url", "video_url"):
        link = part.get(kind)
        if not isinstance(link, Mapping) or not isinstance(link.get("url"), str):
            raise _bad(f'{where} must be {{"type": "{kind}", "{kind}": {{"url": "data:..."}}}}')
        if kind == "video_url":
            _check_keys(where, link, {"url"})
            return _video(where, link["url"], part, {"type", kind})
        _check_keys(where, part, {"type", kind})
        return _image(where, link["url"], link, {"url"})
    if kind in ("image", "video"):
        source = part.get(kind)
        is_data = isinstance(source, str) and source[:5].lower() == "data:"
        if isinstance(source, (str, Path)) and not is_data:
            if not allow_files:
                raise _bad(
                    f'{where}: files cannot be named here; send an "{kind}_url" with the data'
                )
            source = Path(source)
        elif not is_data and not isinstance(
            source, (bytes, Image.Image) if kind == "image" else bytes
        ):
            raise _bad(
                f"{where}.{kind} must be a path or bytes" + ", or a PIL image" * (kind == "image")
            )
        return (_image if kind == "image" else _video)(where, source, part, {"type", kind})
    raise _bad(f'{where}.type must be "text", "image_url" or "video_url", not {kind!r}')


def _image(
    where: str, source: ImageSource | str, options: Mapping[str, Any], known: set[str]
) -> MediaPart:
    """options: what may stand beside the `known` keys."""
    _check_keys(where, options, {*known, "detail"})
    detail = options.get("detail")
    if detail not in (None, "auto", "low", "high"):
        raise _bad(f"{where}: detail must be auto, low or high, not {str(detail)[:40]!r}")
    return MediaPart("image", source, where, detail or "auto")


def _video(
    where: str, source: ImageSource | str, options: Mapping[str, Any], known: set[str]
) -> MediaPart:
    _check_keys(where, options, {*known, "num_frames"})
    frames = options.get("num_frames")
    frames = _DEFAULT_FRAMES if frames is None else frames
    if type(frames) is not int or not 1 <= frames <= MAX_FRAMES:
        raise _bad(f"{where}: num_frames must be from 1 to {MAX_FRAMES}")
    return MediaPart("video", source, where, "low", frames)


def _check_keys(where: str, part: Mapping[str, Any], known: set[str]) -> None:
    if unknown := set(part) - known:
        raise _bad(f"{where}: {sorted(map(str, unknown))[0][:64]!r} is not supported")


def _bad(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param="messages")
