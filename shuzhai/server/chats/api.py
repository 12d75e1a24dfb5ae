"""The page's endpoints: conversations, their pictures and settings. All belong to the API key."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shuzhai.errors import InvalidRequestError
from shuzhai.server.body import parse_json
from shuzhai.server.chats import pictures, store, transfer
from shuzhai.server.chats.database import Database
from shuzhai.server.chats.schemas import (
    MAX_NAME_CHARS,
    ChatSettings,
    ConversationChange,
    NewConversation,
    SavedMessages,
)
from shuzhai.server.errors import refusal
from shuzhai.server.reading import BodyReader, Endpoint, read_query
from shuzhai.server.replies import Json
from shuzhai.server.settings import ATTACHMENTS_PATH, IMPORT_PATH
from shuzhai.server.stream import PieceStream, unless_gone

_Writer = Callable[[Database, int, Json], AsyncGenerator[bytes, None]]

_MAX_LIST = 200
_USUAL_LIST = "50"
_MAX_SEARCH_CHARS = 200
_MAX_SEARCH_WORDS = 8
_EXPORTS: Mapping[str, tuple[_Writer, str, str]] = {
    "json": (transfer.as_json, ".json", "application/json"),
    "markdown": (transfer.as_markdown, ".md", "text/markdown; charset=utf-8"),
}
# An import has the texts of many requests.
_IMPORT_SCALE = 4
# The id of a picture never means other bytes, and no proxy may keep them.
_PICTURE_CACHE = "private, max-age=31536000, immutable"


class ChatsApi:
    """Endpoints over one database."""

    def __init__(self, database: Database, reader: BodyReader) -> None:
        self._database = database
        self._reader = reader
        # A search reads all that a tenant has. One at a time: chats can be opened meanwhile.
        self._searching = asyncio.Lock()

    def routes(self) -> Mapping[str, Mapping[str, Endpoint]]:
        """Endpoints by path and method."""
        one = "/api/conversations/{id}"
        return {
            "/api/conversations": {"GET": self._list, "POST": self._create},
            IMPORT_PATH: {"POST": self._import},
            one: {"GET": self._show, "POST": self._change, "DELETE": self._delete},
            f"{one}/messages": {"POST": self._save_messages},
            f"{one}/export": {"GET": self._export},
            ATTACHMENTS_PATH: {"POST": self._keep_picture},
            f"{ATTACHMENTS_PATH}/{{id}}": {"GET": self._show_picture},
            "/api/settings": {"GET": self._show_settings, "POST": self._save_settings},
        }

    async def _list(self, request: Request) -> Response:
        query = read_query(request, ("search", "limit", "before"))
        search = query.get("search", "").strip()
        if len(search) > _MAX_SEARCH_CHARS or len(search.split()) > _MAX_SEARCH_WORDS:
            raise InvalidRequestError(
                f"a search has at most {_MAX_SEARCH_CHARS} characters and {_MAX_SEARCH_WORDS} "
                "words",
                "search",
            )
        work = partial(
            store.list_conversations,
            tenant=request.state.tenant,
            search=search,
            limit=_limit(query.get("limit", _USUAL_LIST)),
            before=query.get("before"),
        )
        if not search:
            return JSONResponse(await self._database.read(work))
        return JSONResponse(await unless_gone(request.receive, self._search(work)))

    async def _search(self, work: Callable[..., Json]) -> Json:
        async with self._searching:
            return await self._database.read(work)

    async def _create(self, request: Request) -> Response:
        new = await self._reader.object(request, NewConversation.parse)
        work = partial(store.create, tenant=request.state.tenant, new=new)
        is_new = await self._database.write(work)
        return await self._whole(request, new.id, 201 if is_new else 200)

    async def _show(self, request: Request) -> Response:
        return await self._whole(request, request.path_params["id"], 200)

    async def _whole(self, request: Request, id: str, status: int) -> Response:
        number, head = await self._head(request, id)
        return PieceStream(
            transfer.whole(self._database, number, head),
            {"content-type": "application/json"},
            status,
        )

    async def _head(self, request: Request, id: str) -> tuple[int, Json]:
        return await self._database.read(partial(store.head, tenant=request.state.tenant, id=id))

    async def _change(self, request: Request) -> Response:
        wanted = await self._reader.object(request, ConversationChange.parse)
        return await self._write(request, store.change, wanted=wanted)

    async def _save_messages(self, request: Request) -> Response:
        saved = await self._reader.object(request, SavedMessages.parse)
        return await self._write(request, store.save, messages=saved.messages, leaf=saved.leaf)

    async def _write(self, request: Request, work: Callable[..., Json], **what: Any) -> Response:
        """The answer of work on the conversation that the path names."""
        id, tenant = request.path_params["id"], request.state.tenant
        return JSONResponse(await self._database.write(partial(work, tenant=tenant, id=id, **what)))

    async def _delete(self, request: Request) -> Response:
        id, tenant = request.path_params["id"], request.state.tenant
        await self._database.write(partial(store.delete, tenant=tenant, id=id))
        return Response(status_code=204)

    async def _export(self, request: Request) -> Response:
        name = read_query(request, ("format",)).get("format", "json")
        if name not in _EXPORTS:
            raise InvalidRequestError(f"format is one of {', '.join(_EXPORTS)}", "format")
        write, suffix, media_type = _EXPORTS[name]
        number, head = await self._head(request, request.path_params["id"])
        return PieceStream(
            write(self._database, number, head),
            {
                "content-type": media_type,
                "content-disposition": transfer.disposition(head["title"], suffix),
            },
        )

    async def _import(self, request: Request) -> Response:
        files = await self._reader.parsed(request, _read_files)
        work = partial(transfer.write_files, tenant=request.state.tenant, files=files)
        return JSONResponse({"data": await self._database.write(work)})

    async def _keep_picture(self, request: Request) -> Response:
        name = read_query(request, ("name",)).get("name", "")
        if len(name) > MAX_NAME_CHARS:
            raise InvalidRequestError(f"a name has at most {MAX_NAME_CHARS} characters", "name")
        content = await self._reader.bytes(request)
        picture = await asyncio.to_thread(pictures.check_picture, content, "the picture")
        work = partial(pictures.keep, tenant=request.state.tenant, new=[picture])
        await self._database.write(work)
        return JSONResponse({"id": picture.id, "media_type": picture.media_type, "name": name})

    async def _show_picture(self, request: Request) -> Response:
        look_up = partial(
            pictures.look_up, tenant=request.state.tenant, id=request.path_params["id"]
        )
        picture = await self._database.read(look_up)
        if picture is None:
            raise refusal(404, "picture_not_found", "There is no such picture here (any more).")
        return PieceStream(
            pictures.parts(self._database, picture),
            {
                "content-type": picture.media_type,
                "content-length": str(picture.num_bytes),
                "content-disposition": "inline",
                "cache-control": _PICTURE_CACHE,
            },
        )

    async def _show_settings(self, request: Request) -> Response:
        work = partial(store.read_settings, tenant=request.state.tenant)
        return JSONResponse(await self._database.read(work))

    async def _save_settings(self, request: Request) -> Response:
        settings = await self._reader.object(request, ChatSettings.parse)
        work = partial(store.save_settings, tenant=request.state.tenant, settings=settings)
        return JSONResponse(await self._database.write(work))


def _limit(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= _MAX_LIST:
        raise InvalidRequestError(f"limit is a number from 1 to {_MAX_LIST}", "limit")
    return int(text)


def _read_files(body: bytes) -> Sequence[transfer.Imported]:
    return transfer.read_files(parse_json(body, scale=_IMPORT_SCALE))
