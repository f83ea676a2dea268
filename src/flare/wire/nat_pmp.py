"""NAT-PMP's messages (RFC 6886): what is our outside address, and forward this port to me. No I/O."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final, Literal

from flare.errors import DecodeError

Transport = Literal["tcp", "udp"]

PORT: Final = 5351  # where the router listens; PCP shares it
VERSION: Final = 0
SUCCESS: Final = 0
UNSUPPORTED_VERSION: Final = 1

RESULTS: Final = {
    1: "unsupported version",
    2: "not authorized: port mapping is switched off there",
    3: "network failure: the router itself has no address outside",
    4: "out of resources",
    5: "unsupported opcode",
}

_ADDRESS: Final = 0
_OPCODES: Final[dict[Transport, int]] = {"udp": 1, "tcp": 2}
_ANSWER: Final = 0x80
_MAP: Final = struct.Struct("!BBHHHI")
_HEAD: Final = struct.Struct("!BBHI")


@dataclass(frozen=True, slots=True)
class AddressAnswer:
    """The router's outside address (3.2). `epoch` is its clock: seconds since it forgot its mappings."""

    result: int
    epoch: int
    external: ipaddress.IPv4Address


@dataclass(frozen=True, slots=True)
class MapAnswer:
    """A mapping (3.3). `lifetime` in seconds; 0 answers a request to take it back."""

    result: int
    epoch: int
    internal_port: int
    external_port: int
    lifetime: int


def encode_address_request() -> bytes:
    """Ask for the outside address (3.2)."""
    return bytes((VERSION, _ADDRESS))


def encode_map_request(
    transport: Transport, internal_port: int, *, external_port: int = 0, lifetime: int
) -> bytes:
    """Ask for a mapping, or with a `lifetime` of 0 take it back (3.3, 3.4). `external_port` is a wish."""
    wish = external_port if lifetime else 0
    return _MAP.pack(VERSION, _OPCODES[transport], 0, internal_port, wish, lifetime)


def decode_address_answer(data: bytes) -> AddressAnswer:
    """The answer to encode_address_request. An error may come without an address. DecodeError."""
    result, epoch = _head(data, _ADDRESS)
    if result != SUCCESS:
        return AddressAnswer(result, epoch, ipaddress.IPv4Address(0))
    if len(data) < 12:
        raise DecodeError(f"an address in {len(data)} bytes, 12 are needed", protocol="nat-pmp")
    return AddressAnswer(result, epoch, ipaddress.IPv4Address(data[8:12]))


def decode_map_answer(data: bytes, transport: Transport) -> MapAnswer:
    """The answer to encode_map_request. An error may come without ports. DecodeError."""
    result, epoch = _head(data, _OPCODES[transport])
    if result != SUCCESS and len(data) < 16:
        internal = int.from_bytes(data[8:10], "big") if len(data) >= 10 else 0
        return MapAnswer(result, epoch, internal, 0, 0)
    if len(data) < 16:
        raise DecodeError(f"a mapping in {len(data)} bytes, 16 are needed", protocol="nat-pmp")
    return MapAnswer(result, epoch, *struct.unpack_from("!HHI", data, 8))


def _head(data: bytes, opcode: int) -> tuple[int, int]:
    if len(data) < _HEAD.size:
        raise DecodeError(f"an answer of {len(data)} bytes", protocol="nat-pmp")
    version, answered, result, epoch = _HEAD.unpack_from(data)
    if version != VERSION:
        raise DecodeError(f"version {version}", protocol="nat-pmp")
    if answered != opcode | _ANSWER:
        raise DecodeError(f"opcode {answered} answers no request of ours ({opcode})", protocol="nat-pmp")
    return result, epoch
