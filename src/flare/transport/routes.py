"""Which way packets go: the router that they leave through, asked of the kernel (rtnetlink(7)).

Nothing is sent. Where there is no netlink, nothing is known.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Final

from flare.errors import DecodeError
from flare.transport.sockets import IpAddress

# Any address that lies far away will do: the root name servers' a.
FAR: Final = {4: ipaddress.ip_address("198.41.0.4"), 6: ipaddress.ip_address("2001:503:ba3e::2:30")}
ANSWER_SECONDS: Final = 1.0  # the kernel answers at once
MAX_ATTRIBUTES: Final = 64  # of one route

_GET_ROUTE, _NEW_ROUTE, _ERROR, _REQUEST = 26, 24, 2, 1
_DST, _OIF, _GATEWAY, _PREFSRC, _VIA = 1, 4, 5, 7, 18
_HEADER: Final = struct.Struct("=IHHII")
_ROUTE: Final = struct.Struct("=8BI")
_UNICAST: Final = 1


@dataclass(frozen=True, slots=True)
class Route:
    """The way to an address: the router, if one is on it, our address on that way, and the interface."""

    gateway: IpAddress | None
    source: IpAddress | None
    interface: int


def default_route(version: int) -> Route | None:
    """The way out to the internet, by IP `version` 4 or 6; None without one."""
    return route_to(FAR[version])


def route_to(destination: IpAddress) -> Route | None:
    """The way that the kernel would send a packet to `destination`; None when it knows none."""
    if sys.platform != "linux":
        return None
    try:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        ) as kernel:
            kernel.settimeout(ANSWER_SECONDS)
            kernel.send(encode_question(destination))
            return decode_answer(kernel.recv(65536))
    except (OSError, DecodeError):
        return None


def encode_question(destination: IpAddress) -> bytes:
    """RTM_GETROUTE for one destination."""
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    packed = destination.packed
    body = _ROUTE.pack(family, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0)
    body += struct.pack("=HH", 4 + len(packed), _DST) + packed
    return _HEADER.pack(_HEADER.size + len(body), _GET_ROUTE, _REQUEST, 1, 0) + body


def decode_answer(data: bytes) -> Route:
    """RTM_NEWROUTE. OSError for the kernel's error, DecodeError for anything else."""
    if len(data) < _HEADER.size:
        raise DecodeError("shorter than a header", protocol="netlink")
    size, kind, _, _, _ = _HEADER.unpack_from(data)
    if not _HEADER.size <= size <= len(data):
        raise DecodeError("cut short", protocol="netlink")
    body = data[_HEADER.size : size]
    if kind == _ERROR and len(body) >= 4:
        code = -int.from_bytes(body[:4], sys.byteorder, signed=True)
        raise OSError(code, os.strerror(code) if 0 < code < 4096 else "netlink")
    if kind != _NEW_ROUTE or len(body) < _ROUTE.size:
        raise DecodeError(f"message {kind} is no route", protocol="netlink")
    if body[7] != _UNICAST:
        raise DecodeError(f"a route of type {body[7]}", protocol="netlink")
    found = _attributes(body[_ROUTE.size :])
    gateway = found.get(_GATEWAY)
    if gateway is None and len(via := found.get(_VIA, b"")) > 2:
        gateway = via[2:]  # after its family, which may be IPv6 on a route for IPv4 (RFC 5549)
    interface = found.get(_OIF, b"")
    return Route(
        _ip(gateway),
        _ip(found.get(_PREFSRC)),
        int.from_bytes(interface, sys.byteorder) if len(interface) == 4 else 0,
    )


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data) and len(found) < MAX_ATTRIBUTES:
        size, kind = struct.unpack_from("=HH", data, at)
        if not 4 <= size <= len(data) - at:
            raise DecodeError("an attribute is cut short", protocol="netlink")
        found[kind & 0x3FFF] = data[at + 4 : at + size]
        at += size + -size % 4
    return found


def _ip(packed: bytes | None) -> IpAddress | None:
    if packed is None:
        return None
    if len(packed) not in (4, 16):
        raise DecodeError(f"an address of {len(packed)} bytes", protocol="netlink")
    return ipaddress.ip_address(packed)
