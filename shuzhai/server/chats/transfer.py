"""Conversations as files: written piece by piece, and read back."""

from __future__ import annotations

import base64
import json
import re
import sqlite3
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import quote

from shuzhai.errors import InvalidRequestError
from shuzhai.frontend.images import read_data_url
from shuzhai.server.chats import pictures, store
from shuzhai.server.chats.database import Database
from shuzhai.server.chats.pictures import NewPicture, check_picture
from shuzhai.server.chats.schemas import (
    EXPORT_FORMAT,
    ConversationFile,
    Message,
    NewConversation,
)
from shuzhai.server.replies import Json

MAX_FILES = 1000
MAX_PICTURES = 2000  # of an import: nobody else's is written meanwhile
_MARKDOWN = re.compile(r"([\\`*_\[\]<>#])")


async def whole(database: Database, number: int, head: Json) -> AsyncGenerator[bytes, None]:
    """A conversation as the page gets it."""
    yield _open(head)
    async for piece in _messages(database, number):
        yield piece
    yield b"]}"


async def as_json(database: Database, number: int, head: Json) -> AsyncGenerator[bytes, None]:
    """A ConversationFile, its pictures at the end."""
    known = {key: value for key, value in head.items() if key != "id"}
    yield _open({"format": EXPORT_FORMAT, "version": 1, **known})
    async for piece in _messages(database, number):
        yield piece
    yield b'],"pictures":{'
    used = await database.read(partial(pictures.used_by, conversation=number))
    for place, picture in enumerate(used):
        comma = "," if place else ""
        yield f'{comma}"{picture.id}":"data:{picture.media_type};base64,'.encode()
        async for part in pictures.parts(database, picture):
            yield base64.b64encode(part)
        yield b'"'
    yield b"}}"


async def as_markdown(database: Database, number: int, head: Json) -> AsyncGenerator[bytes, None]:
    """The branch that is shown, for people."""
    yield f"# {_plain(head['title'])}\n".encode()
    ids = await database.read(partial(store.branch, conversation=number, leaf=head["leaf"]))
    for each in ids:
        data = await database.read(partial(store.one_message, conversation=number, id=each))
        if data is not None:
            yield _section(json.loads(data)).encode()


def _open(head: Json) -> bytes:
    return json.dumps(head, ensure_ascii=False).encode()[:-1] + b', "messages":['


async def _messages(database: Database, number: int) -> AsyncGenerator[bytes, None]:
    after = 0
    while True:
        read = partial(store.some_messages, conversation=number, after=after)
        found, last = await database.read(read)
        if not found:
            return
        yield (("," if after else "") + ",".join(found)).encode()
        after = last


def _section(message: Json) -> str:
    who = "User" if message["role"] == "user" else message["model"] or "Assistant"
    shown = [f"*[{_plain(picture['name'])}]*\n\n" for picture in message["pictures"]]
    return f"\n## {_plain(who)}\n\n{''.join(shown)}{message['text']}\n"


def _plain(text: str) -> str:
    """A text of one line that Markdown leaves as it is."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def disposition(title: str, suffix: str) -> str:
    """The header that names the file."""
    name = " ".join(re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', " ", title).split())
    name = name[:80].strip(" .") or "conversation"
    return f"attachment; filename=\"conversation{suffix}\"; filename*=UTF-8''{quote(name + suffix)}"


@dataclass(frozen=True, slots=True)
class Imported:
    """A file that was checked: its messages have new ids."""

    file: ConversationFile
    messages: list[Message]
    leaf: str | None
    pictures: list[NewPicture]


def read_files(data: object) -> list[Imported]:
    """One export or a list of some; InvalidRequestError. Takes long for large ones."""
    files = data if isinstance(data, list) else [data]
    if not 1 <= len(files) <= MAX_FILES:
        raise InvalidRequestError(f"one to {MAX_FILES} conversations can be imported at a time")
    parsed = [_parse_file(file) for file in files]
    _check_pictures(parsed)
    return [_read_file(file, f"[{i}]." if len(parsed) > 1 else "") for i, file in enumerate(parsed)]


def _parse_file(data: object) -> ConversationFile:
    if not isinstance(data, dict) or data.get("format") != EXPORT_FORMAT:
        raise InvalidRequestError(
            f'this is no conversation that was exported: format is not "{EXPORT_FORMAT}"', "format"
        )
    file = ConversationFile.parse(data)
    file.settings.check()
    return file


def _check_pictures(files: Sequence[ConversationFile]) -> None:
    """Before they are looked at, which takes longer than anything else."""
    if sum(len(file.pictures) for file in files) > MAX_PICTURES:
        raise InvalidRequestError(
            f"up to {MAX_PICTURES} pictures can be imported at a time; import fewer conversations",
            "pictures",
        )
    named = {picture.id for file in files for m in file.messages for picture in m.pictures}
    for id in (id for file in files for id in file.pictures if id not in named):
        raise InvalidRequestError(f"no message has the picture {id}; leave it out", "pictures")


def _read_file(file: ConversationFile, where: str) -> Imported:
    new_ids = {message.id: uuid.uuid4().hex for message in file.messages}
    found = {
        id: check_picture(read_data_url(url, f"{where}pictures.{id[:8]}"), f"{where}pictures")
        for id, url in file.pictures.items()
    }
    messages = []
    for message in file.messages:
        known = [(picture, found.get(picture.id)) for picture in message.pictures]
        shown = [
            picture.model_copy(update={"id": new.id, "media_type": new.media_type} if new else {})
            for picture, new in known
        ]
        ids = {"id": new_ids[message.id], "parent": new_ids.get(message.parent or "")}
        if message.parent is not None and ids["parent"] is None:
            raise InvalidRequestError(
                f"the parent {message.parent} of message {message.id} is not there", "messages"
            )
        messages.append(message.model_copy(update={**ids, "pictures": shown}))
    if file.leaf is not None and file.leaf not in new_ids:
        raise InvalidRequestError(f"the leaf {file.leaf} is no message of the conversation", "leaf")
    leaf = new_ids.get(file.leaf or "")
    return Imported(file, messages, leaf, list(found.values()))


def write_files(
    connection: sqlite3.Connection, tenant: bytes, files: Sequence[Imported]
) -> list[Json]:
    """All of them, or none. Work for Database.write."""
    pictures.keep(connection, tenant, (picture for file in files for picture in file.pictures))
    return [_write_file(connection, tenant, file) for file in files]


def _write_file(connection: sqlite3.Connection, tenant: bytes, imported: Imported) -> Json:
    file, now = imported.file, time.time()
    new = NewConversation(id=str(uuid.uuid4()), title=file.title, settings=file.settings)
    created, updated = min(file.created, now), min(file.updated, now)
    store.insert(connection, tenant, new, created=created, updated=updated)
    return store.save(connection, tenant, new.id, imported.messages, imported.leaf, updated=updated)
