"""SSDP: how a UPnP router is looked for (UPnP Device Architecture 2.0, 1.3). No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from flare.errors import DecodeError

GROUP: Final = "239.255.255.250"
PORT: Final = 1900
TARGETS: Final = (
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "upnp:rootdevice",  # some routers answer to nothing else
)
MAX_ANSWER: Final = 4096  # bytes of a datagram: defends CPU
_OK: Final = re.compile(r"HTTP/1\.[01] 200(?: .*)?")


@dataclass(frozen=True, slots=True)
class Found:
    """A device that answered: what it is, and where its description lies."""

    target: str
    location: str


def encode_search(target: str, *, host: str = GROUP, wait: int = 1) -> bytes:
    """Ask who is a `target` (1.3.2). Answers come within `wait` seconds."""
    lines = (
        "M-SEARCH * HTTP/1.1",
        f"HOST: {host}:{PORT}",
        'MAN: "ssdp:discover"',
        f"MX: {wait}",
        f"ST: {target}",
    )
    return "\r\n".join((*lines, "", "")).encode("ascii")


def decode_answer(data: bytes) -> Found:
    """The answer to a search (1.3.3). DecodeError for anything else, notifications too."""
    if len(data) > MAX_ANSWER:
        raise DecodeError(f"an answer of {len(data)} bytes, at most {MAX_ANSWER} allowed", protocol="ssdp")
    first, *lines = data.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    if not _OK.fullmatch(first):
        raise DecodeError(f"{first[:80]!r} is no answer", protocol="ssdp")
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    location = fields.get("location", "")
    if not location or not location.isascii() or not location.isprintable():
        raise DecodeError(f"no location in it: {location[:80]!r}", protocol="ssdp")
    return Found(fields.get("st", ""), location)
