"""The tables of the conversations, as a list of changes that only grows.

A tenant stands for an API key (its digest, empty where the server has no keys). A message's `data`
is the JSON that is sent, so that a long conversation is read without parsing it; `folded` is its
text as it is searched. Pictures lie in parts, so that a large one is never in memory as a whole.
"""

from __future__ import annotations

APPLICATION_ID = 0x5348555A  # "SHUZ"
# Whole groups of 3 bytes: parts in base64 follow each other without padding.
PART_BYTES = 3 * 2**16

_FIRST = (
    """
    CREATE TABLE conversations (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        tenant BLOB NOT NULL,
        title TEXT NOT NULL,
        folded TEXT NOT NULL,
        created REAL NOT NULL,
        updated REAL NOT NULL,
        settings TEXT NOT NULL,
        leaf TEXT,
        num_bytes INTEGER NOT NULL DEFAULT 0
    )
    """,
    """
    CREATE INDEX conversations_by_update ON conversations (tenant, updated, id, num_bytes)
    """,
    """
    CREATE TABLE messages (
        number INTEGER PRIMARY KEY,
        conversation INTEGER NOT NULL REFERENCES conversations (number) ON DELETE CASCADE,
        id TEXT NOT NULL,
        parent TEXT,
        num_bytes INTEGER NOT NULL,
        data TEXT NOT NULL,
        folded TEXT NOT NULL,
        UNIQUE (conversation, id)
    )
    """,
    """
    CREATE INDEX messages_in_order ON messages (conversation, number, num_bytes)
    """,
    """
    CREATE TABLE pictures (
        number INTEGER PRIMARY KEY,
        tenant BLOB NOT NULL,
        id TEXT NOT NULL,
        media_type TEXT NOT NULL,
        num_bytes INTEGER NOT NULL,
        touched REAL NOT NULL,
        UNIQUE (tenant, id)
    )
    """,
    """
    CREATE INDEX pictures_by_touch ON pictures (touched)
    """,
    """
    CREATE INDEX pictures_by_size ON pictures (tenant, num_bytes)
    """,
    """
    CREATE TABLE picture_parts (
        picture INTEGER NOT NULL REFERENCES pictures (number) ON DELETE CASCADE,
        place INTEGER NOT NULL,
        data BLOB NOT NULL,
        PRIMARY KEY (picture, place)
    )
    """,
    """
    CREATE TABLE picture_uses (
        message INTEGER NOT NULL REFERENCES messages (number) ON DELETE CASCADE,
        picture INTEGER NOT NULL REFERENCES pictures (number),
        PRIMARY KEY (message, picture)
    ) WITHOUT ROWID
    """,
    """
    CREATE INDEX picture_uses_by_picture ON picture_uses (picture)
    """,
    """
    CREATE TABLE settings (tenant BLOB PRIMARY KEY, data TEXT NOT NULL)
    """,
)

# The number of these is the file's user_version.
MIGRATIONS = (_FIRST,)
