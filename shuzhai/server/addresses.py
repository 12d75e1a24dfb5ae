"""Where a client's URL may lead: names that the operator listed, at public addresses.

Pure: nothing is resolved or fetched here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

import httpx

MAX_URL_CHARS = 8192

_DEFAULT_PORTS = {"http": 80, "https": 443}
# Narrower than the standard: no user, no backslash, no address in brackets, nothing invisible.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[^\s/?#@\\:\[\]]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[^\s\\?#]*)?(?P<query>\?[^\s\\#]*)?(?:#[^\s\\]*)?",
    re.IGNORECASE | re.ASCII,
)
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a last label like this makes an IPv4 address of it
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))

# Global unicast is all that a public server has. In it, tunnels carry IPv4 addresses unseen.
_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Older Pythons take some of these for global; the last is a cloud's service for its own machines.
_NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24 192.88.99.0/24 2001::/23 2002::/16 3fff::/20 168.63.129.16/32".split()
    )
)


@dataclass(frozen=True, slots=True)
class RemoteUrl:
    """An http(s) URL in parts; `host` is lower case, in ASCII and without a dot at its end."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def host_header(self) -> str:
        is_default = self.port == _DEFAULT_PORTS[self.scheme]
        return self.host if is_default else f"{self.host}:{self.port}"


def host_name(text: str) -> str | None:
    """A host's name, normalised; None for addresses in any notation and for what is no name."""
    try:
        # httpx knows IDNA 2008.
        name = httpx.URL(scheme="http", host=text).raw_host.decode("ascii").removesuffix(".")
    except (httpx.InvalidURL, UnicodeError):
        return None
    labels = name.split(".")
    if len(name) > 253 or _NUMBER.fullmatch(labels[-1]) or not all(map(_LABEL.fullmatch, labels)):
        return None
    return name


def parse_url(url: str) -> RemoteUrl | None:
    """The parts of an http(s) URL; None if it is not one, or not a plain one."""
    match = _URL.fullmatch(url) if len(url) <= MAX_URL_CHARS and url.isprintable() else None
    host = host_name(match["host"]) if match else None
    if match is None or host is None:
        return None
    scheme = match["scheme"].lower()
    target = quote((match["path"] or "/") + (match["query"] or ""), safe=_PRINTABLE)
    return RemoteUrl(scheme, host, int(match["port"] or _DEFAULT_PORTS[scheme]), target)


def listed_places(entry: str) -> frozenset[tuple[str, int]] | None:
    """The (host, port) pairs that NAME or NAME:PORT stands for; None if it is neither.

    A name without a port means those of http and https.
    """
    text, colon, port = entry.partition(":")
    name = host_name(text)
    if name is None or (colon and not re.fullmatch(r"[0-9]{1,5}", port)):
        return None
    ports: Iterable[int] = [int(port)] if colon else _DEFAULT_PORTS.values()
    return frozenset((name, each) for each in ports if 0 < each < 65536) or None


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet, and of a single machine there."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:  # how a network without IPv4 reaches IPv4
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip not in _GLOBAL_IPV6 or ip.scope_id is not None:
            return False
    is_refused = any(ip in network for network in _NEVER)
    return ip.is_global and not ip.is_multicast and not is_refused
