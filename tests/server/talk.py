"""Conversations as the page makes them, and a client that speaks for one tenant."""

from __future__ import annotations

import io
import json
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from PIL import Image

from tests.server.live import Live

NO_SAMPLING = dict.fromkeys(
    "temperature top_p top_k min_p repetition_penalty max_tokens seed".split()
)
SETTINGS = {"model": None, "system": None, "sampling": NO_SAMPLING}


def message(id: str, parent: str | None = None, **values: Any) -> dict[str, Any]:
    return {
        "id": id,
        "parent": parent,
        "role": "user" if parent is None else "assistant",
        "text": f"text of {id}",
        "pictures": [],
        "created": 1.5,
        "model": None if parent is None else "tiny",
        "status": "done",
        "error": None,
        "stats": None,
        **values,
    }


def png(colour: str = "red", size: tuple[int, int] = (8, 8)) -> bytes:
    packed = io.BytesIO()
    Image.new("RGB", size, colour).save(packed, "PNG")
    return packed.getvalue()


@dataclass(frozen=True)
class Chats:
    """A page with a key."""

    live: Live
    key: str = ""

    def ask(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        return self.live.ask(method, f"/api/{path}", body, **headers)

    def get(self, path: str, **query: object) -> tuple[int, Any]:
        status, _, body = self.ask("GET", f"{path}?{urlencode(query)}" if query else path)
        return status, json.loads(body)

    def post(self, path: str, body: object) -> tuple[int, Any]:
        status, _, content = self.ask("POST", path, body)
        return status, json.loads(content)

    def begin(self, title: str = "A chat", *messages: dict[str, Any], **settings: Any) -> str:
        id = str(uuid.uuid4())
        body = {"id": id, "title": title, "settings": SETTINGS | settings}
        assert self.post("conversations", body)[0] == 201
        if messages:
            assert self.save(id, *messages)[0] == 200
        return id

    def save(self, id: str, *messages: dict[str, Any], **leaf: Any) -> tuple[int, Any]:
        return self.post(f"conversations/{id}/messages", {"messages": messages, **leaf})

    def show(self, id: str) -> Any:
        status, body = self.get(f"conversations/{id}")
        assert status == 200
        return body

    def titles(self, **query: object) -> list[str]:
        status, body = self.get("conversations", **query)
        assert status == 200, body
        return [each["title"] for each in body["data"]]

    def upload(self, content: bytes, kind: str = "image/png", name: str = "") -> tuple[int, Any]:
        path = f"attachments?{urlencode({'name': name})}"
        status, _, body = self.ask("POST", path, content, content_type=kind)
        return status, json.loads(body)

    def picture(self, content: bytes) -> dict[str, Any]:
        status, body = self.upload(content, name="a.png")
        assert status == 200, body
        return body


def error(answer: tuple[int, Any]) -> tuple[int, str, str | None]:
    """Status, code and param."""
    status, body = answer
    return status, body["error"]["code"], body["error"]["param"]
