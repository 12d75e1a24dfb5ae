"""Pictures that the server keeps: named by the SHA-256 of their bytes, for each tenant by itself.

The functions with a connection are work for Database.read or Database.write. What no message uses
is removed once it is a day old: a question may still be being written.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from shuzhai.errors import InvalidRequestError
from shuzhai.frontend.images import MAX_FILE_BYTES, media_type_of, refuse
from shuzhai.server.chats.database import Database
from shuzhai.server.chats.layout import PART_BYTES
from shuzhai.server.errors import RefusedError, refusal
from shuzhai.server.held import HeldBytes
from shuzhai.server.pictures import LinkedPicture
from shuzhai.server.settings import ATTACHMENTS_PATH

MAX_TENANT_BYTES = 2 * 2**30
MAX_TENANT_PICTURES = 20_000
MAX_REQUEST_BYTES = 64 * 2**20
KEEP_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class KeptPicture:
    """number: in the database"""

    number: int
    id: str
    media_type: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class NewPicture:
    """A picture that was looked at and may be kept."""

    id: str
    media_type: str
    content: bytes


def check_picture(content: bytes, where: str) -> NewPicture:
    """InvalidRequestError says why these bytes are no picture that a model could read.

    What kind they are is told by themselves. Takes long for large ones.
    """
    if len(content) > MAX_FILE_BYTES:
        raise refuse(where, f"the file is larger than {MAX_FILE_BYTES >> 20} MiB; scale it down")
    kind = media_type_of(content, where)
    return NewPicture(hashlib.sha256(content).hexdigest(), kind, content)


def keep(connection: sqlite3.Connection, tenant: bytes, new: Iterable[NewPicture]) -> None:
    """RefusedError where the tenant's pictures would be too many, or too many bytes."""
    now = time.time()
    remove_unused(connection, now)
    # Counted once for all of them: the one thread that writes is everybody's.
    count, num_bytes = connection.execute(
        "SELECT count(*), total(num_bytes) FROM pictures WHERE tenant = ?", [tenant]
    ).fetchone()
    for picture in new:
        known = connection.execute(
            "UPDATE pictures SET touched = ? WHERE tenant = ? AND id = ?", [now, tenant, picture.id]
        )
        if known.rowcount:
            continue
        count, num_bytes = count + 1, num_bytes + len(picture.content)
        if count > MAX_TENANT_PICTURES:
            raise _full(f"There would be more than {MAX_TENANT_PICTURES} pictures")
        if num_bytes > MAX_TENANT_BYTES:
            raise _full(f"All pictures together would be larger than {MAX_TENANT_BYTES >> 20} MiB")
        _insert(connection, tenant, picture, now)


def _insert(connection: sqlite3.Connection, tenant: bytes, picture: NewPicture, now: float) -> None:
    row = connection.execute(
        "INSERT INTO pictures (tenant, id, media_type, num_bytes, touched) VALUES (?, ?, ?, ?, ?)",
        [tenant, picture.id, picture.media_type, len(picture.content), now],
    )
    view = memoryview(picture.content)
    connection.executemany(
        "INSERT INTO picture_parts VALUES (?, ?, ?)",
        (
            (row.lastrowid, place, view[start : start + PART_BYTES])
            for place, start in enumerate(range(0, len(view), PART_BYTES))
        ),
    )


def _full(message: str) -> RefusedError:
    return refusal(
        413,
        "storage_full",
        f"{message}; delete conversations that have some. Pictures that were never sent go after "
        "a day.",
    )


def remove_unused(connection: sqlite3.Connection, now: float) -> None:
    """Of all tenants: what no message has, and nobody has sent for a day."""
    connection.execute(
        "DELETE FROM pictures WHERE touched < ? AND NOT EXISTS "
        "(SELECT 1 FROM picture_uses WHERE picture = pictures.number)",
        [now - KEEP_SECONDS],
    )


def look_up(connection: sqlite3.Connection, tenant: bytes, id: str) -> KeptPicture | None:
    row = connection.execute(
        "SELECT number, id, media_type, num_bytes FROM pictures WHERE tenant = ? AND id = ?",
        [tenant, id],
    ).fetchone()
    return KeptPicture(*row) if row else None


class Attachments:
    """The kept pictures of chat requests, found before a model is loaded and read after.

    database None: nothing is kept here
    """

    def __init__(self, database: Database | None) -> None:
        self._database = database

    async def find(self, tenant: bytes, linked: Sequence[LinkedPicture]) -> dict[str, KeptPicture]:
        """By URL. InvalidRequestError names the part at fault."""
        found: dict[str, KeptPicture] = {}
        for picture in linked:
            if picture.url not in found:
                found[picture.url] = await self._find(tenant, picture)
        if sum(picture.num_bytes for picture in found.values()) > MAX_REQUEST_BYTES:
            raise InvalidRequestError(
                f"the kept pictures of a request may have {MAX_REQUEST_BYTES >> 20} MiB together; "
                "send fewer, or smaller ones",
                "messages",
            )
        return found

    async def _find(self, tenant: bytes, picture: LinkedPicture) -> KeptPicture:
        work = partial(look_up, tenant=tenant, id=picture.kept_id or "")
        found = None if self._database is None else await self._database.read(work)
        if found is not None:
            return found
        raise InvalidRequestError(
            f"{picture.where}: this picture is not kept here; send it to {ATTACHMENTS_PATH} again",
            "messages",
            "picture_not_found",
        )

    async def read(self, found: Mapping[str, KeptPicture], held: HeldBytes) -> dict[str, bytes]:
        """Their bytes, by URL."""
        if self._database is None or not found:
            return {}
        held.add(sum(picture.num_bytes for picture in found.values()))
        contents = await self._database.read(partial(whole, pictures=list(found.values())))
        return dict(zip(found, contents, strict=True))


def used_by(connection: sqlite3.Connection, conversation: int) -> list[KeptPicture]:
    """The pictures of a conversation's messages."""
    rows = connection.execute(
        "SELECT DISTINCT p.number, p.id, p.media_type, p.num_bytes FROM messages m "
        "JOIN picture_uses u ON u.message = m.number JOIN pictures p ON p.number = u.picture "
        "WHERE m.conversation = ? ORDER BY p.number",
        [conversation],
    )
    return [KeptPicture(*row) for row in rows]


def whole(connection: sqlite3.Connection, pictures: Iterable[KeptPicture]) -> list[bytes]:
    query = "SELECT data FROM picture_parts WHERE picture = ? ORDER BY place"
    return [
        b"".join(row[0] for row in connection.execute(query, [picture.number]))
        for picture in pictures
    ]


async def parts(database: Database, picture: KeptPicture) -> AsyncGenerator[bytes, None]:
    """The bytes of a picture, a part at a time. Fewer, if it is removed meanwhile."""
    for place in range(-(-picture.num_bytes // PART_BYTES)):
        part = await database.read(partial(_part, number=picture.number, place=place))
        if part is None:
            return
        yield part


def _part(connection: sqlite3.Connection, number: int, place: int) -> bytes | None:
    row = connection.execute(
        "SELECT data FROM picture_parts WHERE picture = ? AND place = ?", [number, place]
    ).fetchone()
    return row[0] if row else None
