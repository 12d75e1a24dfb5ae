"""Conversations in the database: each function is work for Database.read or Database.write.

What belongs to another tenant is not there. Sizes are bounded for each tenant, so that one cannot
fill the disk of all.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing

from shuzhai.errors import InvalidRequestError
from shuzhai.server.chats.pictures import remove_unused
from shuzhai.server.chats.schemas import (
    MAX_MESSAGES,
    ChatSettings,
    ConversationChange,
    Message,
    NewConversation,
)
from shuzhai.server.errors import RefusedError, refusal
from shuzhai.server.replies import Json

MAX_CONVERSATIONS = 20_000
MAX_CONVERSATION_BYTES = 64 * 2**20
MAX_TENANT_BYTES = 512 * 2**20
# Of messages that are read at a time.
_BATCH_BYTES = 2**20


def list_conversations(
    connection: sqlite3.Connection, tenant: bytes, search: str, limit: int, before: str | None
) -> Json:
    """Summaries, newest update first, of those that hold every word of `search`."""
    conditions, values = ["c.tenant = ?"], [tenant]
    if before is not None:
        conditions.append("(c.updated, c.id) < (?, ?)")
        values += _parse_cursor(before)
    for word in search.casefold().split():
        conditions.append(
            "(instr(c.folded, ?) OR EXISTS (SELECT 1 FROM messages m "
            "WHERE m.conversation = c.number AND instr(m.folded, ?)))"
        )
        values += [word, word]
    rows = connection.execute(
        "SELECT c.id, c.title, c.created, c.updated FROM conversations c "
        f"WHERE {' AND '.join(conditions)} ORDER BY c.updated DESC, c.id DESC LIMIT ?",
        [*values, limit + 1],
    ).fetchall()
    found = [_summary(*row) for row in rows[:limit]]
    last = found[-1] if len(rows) > limit else None
    return {"data": found, "next": f"{last['updated']!r}_{last['id']}" if last else None}


def create(connection: sqlite3.Connection, tenant: bytes, new: NewConversation) -> bool:
    """Whether it is new; the same tenant may ask twice."""
    known = connection.execute("SELECT tenant FROM conversations WHERE id = ?", [new.id]).fetchone()
    if known is not None and known[0] != tenant:
        raise refusal(409, "id_is_taken", "This id is taken; choose another.")
    if known is None:
        now = _now()
        insert(connection, tenant, new, created=now, updated=now)
    return known is None


def insert(
    connection: sqlite3.Connection,
    tenant: bytes,
    new: NewConversation,
    *,
    created: float,
    updated: float,
) -> None:
    new.settings.check()
    query = "SELECT count(*) FROM conversations WHERE tenant = ?"
    if connection.execute(query, [tenant]).fetchone()[0] >= MAX_CONVERSATIONS:
        raise _full(f"There are {MAX_CONVERSATIONS} conversations, which is the most")
    connection.execute(
        "INSERT INTO conversations (id, tenant, title, folded, created, updated, settings) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        [new.id, tenant, new.title, new.title.casefold(), created, updated,
         new.settings.model_dump_json()],
    )  # fmt: skip


def change(
    connection: sqlite3.Connection, tenant: bytes, id: str, wanted: ConversationChange
) -> Json:
    number = find(connection, tenant, id)
    if wanted.title is not None:
        connection.execute(
            "UPDATE conversations SET title = ?, folded = ? WHERE number = ?",
            [wanted.title, wanted.title.casefold(), number],
        )
    if wanted.settings is not None:
        wanted.settings.check()
        connection.execute(
            "UPDATE conversations SET settings = ? WHERE number = ?",
            [wanted.settings.model_dump_json(), number],
        )
    if "leaf" in wanted.model_fields_set:
        _set_leaf(connection, number, wanted.leaf)
    return summary(connection, number)


def delete(connection: sqlite3.Connection, tenant: bytes, id: str) -> None:
    number = find(connection, tenant, id)
    connection.execute("DELETE FROM conversations WHERE number = ?", [number])
    remove_unused(connection, time.time())


def save(
    connection: sqlite3.Connection,
    tenant: bytes,
    id: str,
    messages: Sequence[Message],
    leaf: str | None,
    updated: float | None = None,
) -> Json:
    """Insert or replace messages by their ids. leaf None: it stays; updated None: now."""
    number = find(connection, tenant, id)
    for message in messages:
        _save_one(connection, tenant, number, message)
    count, num_bytes = connection.execute(
        "SELECT count(*), total(num_bytes) FROM messages WHERE conversation = ?", [number]
    ).fetchone()
    if count > MAX_MESSAGES:
        raise _full(f"The conversation would have {count} messages, and {MAX_MESSAGES} is the most")
    if num_bytes > MAX_CONVERSATION_BYTES:
        raise _full(f"The conversation would be larger than {MAX_CONVERSATION_BYTES >> 20} MiB")
    connection.execute(
        "UPDATE conversations SET updated = max(updated, ?), num_bytes = ? WHERE number = ?",
        [_now() if updated is None else updated, int(num_bytes), number],
    )
    query = "SELECT total(num_bytes) FROM conversations WHERE tenant = ?"
    if connection.execute(query, [tenant]).fetchone()[0] > MAX_TENANT_BYTES:
        raise _full(f"All conversations together would be larger than {MAX_TENANT_BYTES >> 20} MiB")
    if leaf is not None:
        _set_leaf(connection, number, leaf)
    return summary(connection, number)


def _save_one(
    connection: sqlite3.Connection, tenant: bytes, conversation: int, message: Message
) -> None:
    """A message never changes its place, so that there are no cycles."""
    known = _find_message(connection, conversation, message.id)
    if known is None and message.parent is not None:
        if _find_message(connection, conversation, message.parent) is None:
            raise _bad(f"the parent {message.parent} of message {message.id} is not there")
    elif known is not None and known[1] != message.parent:
        raise _bad(f"message {message.id} has another parent, and keeps it")
    data = message.model_dump_json()
    connection.execute(
        "INSERT INTO messages (conversation, id, parent, num_bytes, data, folded) "
        "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (conversation, id) DO UPDATE SET "
        "num_bytes = excluded.num_bytes, data = excluded.data, folded = excluded.folded",
        [conversation, message.id, message.parent, len(data.encode()), data,
         message.text.casefold()],
    )  # fmt: skip
    number, _ = _find_message(connection, conversation, message.id) or (0, None)
    connection.execute("DELETE FROM picture_uses WHERE message = ?", [number])
    for picture in message.pictures:
        row = connection.execute(
            "SELECT number FROM pictures WHERE tenant = ? AND id = ? AND media_type = ?",
            [tenant, picture.id, picture.media_type],
        ).fetchone()
        if row is None:
            raise InvalidRequestError(
                f"message {message.id}: the picture {picture.id} is not kept here as a "
                f"{picture.media_type}; send it to /api/attachments first",
                "messages",
                "picture_not_found",
            )
        connection.execute("INSERT OR IGNORE INTO picture_uses VALUES (?, ?)", [number, row[0]])


def head(connection: sqlite3.Connection, tenant: bytes, id: str) -> tuple[int, Json]:
    """The number of a conversation, and all of it but the messages."""
    number = find(connection, tenant, id)
    settings, leaf = connection.execute(
        "SELECT settings, leaf FROM conversations WHERE number = ?", [number]
    ).fetchone()
    known = summary(connection, number)
    return number, {**known, "settings": json.loads(settings), "leaf": leaf}


def some_messages(
    connection: sqlite3.Connection, conversation: int, after: int
) -> tuple[list[str], int]:
    """The JSON of the next messages after the one of that number, and the number of the last."""
    found, num_bytes = [], 0
    query = "SELECT number, num_bytes, data FROM messages WHERE conversation = ? AND number > ? "
    with closing(connection.execute(query + "ORDER BY number", [conversation, after])) as rows:
        for number, size, data in rows:
            found.append(data)
            after, num_bytes = number, num_bytes + size
            if num_bytes >= _BATCH_BYTES:
                break
    return found, after


def branch(connection: sqlite3.Connection, conversation: int, leaf: str | None) -> list[str]:
    """The ids of the messages from the beginning to a leaf."""
    ids = connection.execute(
        "WITH RECURSIVE path (id, parent, place) AS ("
        "SELECT id, parent, 0 FROM messages WHERE conversation = ?1 AND id = ?2 UNION ALL "
        "SELECT m.id, m.parent, path.place + 1 FROM path JOIN messages m "
        "ON m.conversation = ?1 AND m.id = path.parent) "
        "SELECT id FROM path ORDER BY place DESC",
        [conversation, leaf],
    )
    return [row[0] for row in ids]


def one_message(connection: sqlite3.Connection, conversation: int, id: str) -> str | None:
    """The JSON of a message; None if it was deleted meanwhile."""
    row = connection.execute(
        "SELECT data FROM messages WHERE conversation = ? AND id = ?", [conversation, id]
    ).fetchone()
    return row[0] if row else None


def read_settings(connection: sqlite3.Connection, tenant: bytes) -> Json:
    row = connection.execute("SELECT data FROM settings WHERE tenant = ?", [tenant]).fetchone()
    return json.loads(row[0]) if row else ChatSettings().model_dump()


def save_settings(connection: sqlite3.Connection, tenant: bytes, settings: ChatSettings) -> Json:
    settings.check()
    connection.execute(
        "INSERT OR REPLACE INTO settings VALUES (?, ?)", [tenant, settings.model_dump_json()]
    )
    return settings.model_dump()


def find(connection: sqlite3.Connection, tenant: bytes, id: str) -> int:
    """The number of a conversation."""
    row = connection.execute(
        "SELECT number FROM conversations WHERE id = ? AND tenant = ?", [id, tenant]
    ).fetchone()
    if row is None:
        raise refusal(404, "conversation_not_found", "There is no such conversation.")
    return row[0]


def summary(connection: sqlite3.Connection, number: int) -> Json:
    row = connection.execute(
        "SELECT id, title, created, updated FROM conversations WHERE number = ?", [number]
    ).fetchone()
    return _summary(*row)


def _summary(id: str, title: str, created: float, updated: float) -> Json:
    return {"id": id, "title": title, "created": created, "updated": updated}


def _find_message(
    connection: sqlite3.Connection, conversation: int, id: str
) -> tuple[int, str | None] | None:
    """The number of a message, and its parent."""
    return connection.execute(
        "SELECT number, parent FROM messages WHERE conversation = ? AND id = ?", [conversation, id]
    ).fetchone()


def _set_leaf(connection: sqlite3.Connection, conversation: int, leaf: str | None) -> None:
    if leaf is not None and _find_message(connection, conversation, leaf) is None:
        raise InvalidRequestError(f"the leaf {leaf} is no message of the conversation", "leaf")
    connection.execute("UPDATE conversations SET leaf = ? WHERE number = ?", [leaf, conversation])


def _parse_cursor(before: str) -> tuple[float, str]:
    updated, _, id = before.partition("_")
    try:
        return float(updated), id
    except ValueError:
        raise InvalidRequestError("before is not what a list's `next` was", "before") from None


def _now() -> float:
    return round(time.time(), 3)


def _bad(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, "messages")


def _full(message: str) -> RefusedError:
    return refusal(413, "storage_full", f"{message}; delete what you do not need any more.")
