"""What the HTTP side of a server can be told. Engine options are in `shuzhai.config`."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from shuzhai.errors import ConfigError
from shuzhai.frontend.images import MAX_FILE_BYTES
from shuzhai.server.addresses import listed_places

CHAT_PATH = "/v1/chat/completions"
ATTACHMENTS_PATH = "/api/attachments"
IMPORT_PATH = "/api/conversations/import"
_TEXT_BODY_BYTES = 8 * 2**20
_IMPORT_BODY_BYTES = 64 * 2**20


def is_loopback(host: str) -> bool:
    """Whether a host name or address (no port, no brackets) means this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How a server meets the world.

    host             the address it is bound to; a loopback one brings the check of the Host header
    api_keys         a client must send one of these; none: everybody may ask
    allowed_hosts    further names in the Host header (a proxy's); on other than loopback addresses
                     the header is checked only where names are given
    allowed_origins  web pages of other origins that may use the API
    allowed_image_hosts  NAME or NAME:PORT of hosts that pictures are fetched from; without a port,
                     those of http and https are meant
    root_path        the path under which a proxy shows this server
    max_body_bytes   of one request; where no picture can be sent, 8 MiB at most
    max_held_bytes   of all requests together that are being received, or not yet prompts
    body_idle_seconds, body_bytes_per_second   a body may pause so long, and be so slow on average
    body_seconds     and take so long in all
    """

    host: str = "127.0.0.1"
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    allowed_image_hosts: tuple[str, ...] = ()
    root_path: str = ""
    max_body_bytes: int = 48 * 2**20
    max_held_bytes: int = 256 * 2**20
    body_idle_seconds: float = 15.0
    body_bytes_per_second: int = 32 * 2**10
    body_seconds: float = 300.0

    def __post_init__(self) -> None:
        for key in self.api_keys:
            if not re.fullmatch(r"[\x21-\x7e]+", key):
                raise ConfigError("an API key must be one or more ASCII characters without spaces")
        for origin in self.allowed_origins:
            parts = urlsplit(origin)
            is_bare = f"{parts.scheme}://{parts.netloc}" == origin
            if parts.scheme not in ("http", "https") or not is_bare:
                raise ConfigError(
                    f"an allowed origin looks like https://example.org, not {origin!r}"
                )
        for entry in self.allowed_image_hosts:
            if listed_places(entry) is None:
                raise ConfigError(
                    "an allowed image host is a name, not an address or a URL: pictures.example "
                    f"or pictures.example:8080, not {entry!r}"
                )
        if self.root_path and not re.fullmatch(r"(/[\w.~-]+)+", self.root_path):
            raise ConfigError(f"the root path looks like /studio/shuzhai, not {self.root_path!r}")

    def body_limit(self, path: str) -> int:
        """The most bytes that a request to this path may send."""
        if path == IMPORT_PATH:
            return _IMPORT_BODY_BYTES
        if path == ATTACHMENTS_PATH:
            return MAX_FILE_BYTES
        limit = self.max_body_bytes
        return limit if path == CHAT_PATH else min(limit, _TEXT_BODY_BYTES)
