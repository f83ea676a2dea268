"""PCP's messages (RFC 6887): MAP, which forwards a port or opens a pinhole, and ANNOUNCE. No I/O."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final

from flare.errors import DecodeError
from flare.wire.address_space import IpAddress, unmapped
from flare.wire.nat_pmp import Transport

PORT: Final = 5351
VERSION: Final = 2
MAX_MESSAGE: Final = 1100  # bytes (7)
NONCE: Final = 12  # bytes

SUCCESS: Final = 0
UNSUPPORTED_VERSION: Final = 1
ADDRESS_MISMATCH: Final = 12

RESULTS: Final = {
    1: "unsupported version",
    2: "not authorized",
    3: "malformed request",
    4: "unsupported opcode",
    5: "unsupported option",
    6: "malformed option",
    7: "network failure: the router itself has no address outside",
    8: "no resources",
    9: "unsupported protocol",
    10: "our share of its mappings is used up",
    11: "it cannot provide the external port",
    12: "address mismatch: there is a NAT between us and the router",
    13: "too many remote peers",
}

_ANNOUNCE, _MAP = 0, 1
_ANSWER: Final = 0x80
_PROTOCOLS: Final[dict[Transport, int]] = {"tcp": 6, "udp": 17}
_REQUEST: Final = struct.Struct("!BBHI16s")
_HEAD: Final = struct.Struct("!BBBBII12x")
_MAPPING: Final = struct.Struct("!12sB3xHH16s")


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to ANNOUNCE (14.1), or one in another version. `lifetime` is how long an error lasts."""

    result: int
    lifetime: int
    epoch: int


@dataclass(frozen=True, slots=True)
class MapAnswer:
    """The answer to MAP (11.1). `lifetime` is the mapping's, in seconds, or says how long an error lasts."""

    result: int
    lifetime: int
    epoch: int
    nonce: bytes
    transport: Transport
    internal_port: int
    external_port: int
    external: IpAddress


def encode_announce(client: IpAddress) -> bytes:
    """Ask whether somebody speaks PCP, and for its clock (14.1). `client` is our address as we see it."""
    return _REQUEST.pack(VERSION, _ANNOUNCE, 0, 0, _packed(client))


def encode_map(
    client: IpAddress,
    transport: Transport,
    internal_port: int,
    *,
    nonce: bytes,
    lifetime: int,
    external_port: int = 0,
    external: IpAddress | None = None,
) -> bytes:
    """Ask for a mapping, or with a `lifetime` of 0 take it back (11.1, 15.1).

    `nonce` is the mapping's, the same whenever it is renewed or taken back; `external` and `external_port`
    are wishes.
    """
    if external is None:
        external = ipaddress.ip_address("0.0.0.0" if client.version == 4 else "::")
    body = _MAPPING.pack(nonce, _PROTOCOLS[transport], internal_port, external_port, _packed(external))
    return _REQUEST.pack(VERSION, _MAP, 0, lifetime, _packed(client)) + body


def decode_announce_answer(data: bytes) -> Answer:
    """The answer to encode_announce. DecodeError."""
    return Answer(*_head(data, _ANNOUNCE))


def decode_map_answer(data: bytes) -> MapAnswer | Answer:
    """The answer to encode_map; who asked compares the nonce. DecodeError.

    An Answer is the word of a router that speaks another version: UNSUPPORTED_VERSION.
    """
    result, lifetime, epoch = _head(data, _MAP)
    if result == UNSUPPORTED_VERSION:
        return Answer(result, lifetime, epoch)
    if len(data) < _HEAD.size + _MAPPING.size:
        raise DecodeError(f"a mapping in {len(data)} bytes", protocol="pcp")
    nonce, protocol, internal_port, external_port, packed = _MAPPING.unpack_from(data, _HEAD.size)
    transport: Transport | None = next((name for name, n in _PROTOCOLS.items() if n == protocol), None)
    if transport is None:
        raise DecodeError(f"a mapping of protocol {protocol}, which nobody asked for", protocol="pcp")
    _check_options(data, _HEAD.size + _MAPPING.size)
    external = unmapped(ipaddress.IPv6Address(packed))
    return MapAnswer(result, lifetime, epoch, nonce, transport, internal_port, external_port, external)


def _head(data: bytes, opcode: int) -> tuple[int, int, int]:
    """Result, lifetime and epoch. A router that knows NAT-PMP alone answers with its version, and 1."""
    if len(data) >= 8 and data[0] == 0 and data[1] & _ANSWER:
        return UNSUPPORTED_VERSION, 0, 0  # RFC 6886, 3.5
    if len(data) < _HEAD.size or len(data) % 4 or len(data) > MAX_MESSAGE:
        raise DecodeError(f"an answer of {len(data)} bytes", protocol="pcp")
    version, answered, _, result, lifetime, epoch = _HEAD.unpack_from(data)
    if not answered & _ANSWER:
        raise DecodeError("a request, not an answer", protocol="pcp")
    if result == UNSUPPORTED_VERSION:
        return result, lifetime, epoch  # whatever version it speaks (9)
    if version != VERSION:
        raise DecodeError(f"version {version}", protocol="pcp")
    if answered != opcode | _ANSWER:
        raise DecodeError(f"opcode {answered} answers no request of ours ({opcode})", protocol="pcp")
    return result, lifetime, epoch


def _check_options(data: bytes, at: int) -> None:
    """That the options, none of which we asked for, are whole (7.3)."""
    while at < len(data):
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        at += 4 + size + -size % 4
        if at > len(data):
            raise DecodeError("an option is cut short", protocol="pcp")


def _packed(ip: IpAddress) -> bytes:
    """16 bytes: IPv4 as an IPv4-mapped IPv6 address (5)."""
    return ip.packed if ip.version == 6 else b"\0" * 10 + b"\xff\xff" + ip.packed
