"""The protocols of multiaddrs: code, name, and a value's text and binary forms (addressing/README.md)."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import NamedTuple

from flare._core.wire import decode_uvarint, encode_uvarint
from flare.errors import DecodeError
from flare.wire.multibase import multibase_decode, multibase_encode
from flare.wire.peer_id import PeerId, check_multihash

VARIABLE = -1  # the size of values that travel behind their length


class Protocol(NamedTuple):
    """One protocol. `size` is its value's in bytes, 0 for none, VARIABLE for a length prefix.

    `to_bytes` and `check` raise ValueError for what is no value of it, in text and in binary; `to_text`
    trusts what it gets. A `path` takes the rest of the text.
    """

    code: int
    name: str
    size: int
    to_bytes: Callable[[str], bytes]
    to_text: Callable[[bytes], str]
    check: Callable[[bytes], object]
    path: bool
    prefix: bytes  # the code as a varint

    def __repr__(self) -> str:
        return f"<protocol {self.name}>"


def _ip4_bytes(text: str) -> bytes:
    return ipaddress.IPv4Address(text).packed


def _ip4_text(data: bytes) -> str:
    return ".".join(map(str, data))


def _ip6_bytes(text: str) -> bytes:
    if "%" in text:
        raise ValueError("a zone goes in front, as /ip6zone/ZONE")
    return ipaddress.IPv6Address(text).packed


def _ip6_text(data: bytes) -> str:
    if data[:12] == bytes(10) + b"\xff\xff":  # Python's versions differ here
        return "::ffff:" + _ip4_text(data[12:])
    return str(ipaddress.IPv6Address(data))


def _port_bytes(text: str) -> bytes:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 0xFFFF):
        raise ValueError("a port is a number from 0 to 65535")
    return int(text).to_bytes(2, "big")


def _port_text(data: bytes) -> str:
    return str(int.from_bytes(data, "big"))


def _memory_bytes(text: str) -> bytes:
    if not (text.isascii() and text.isdecimal() and len(text) <= 20 and int(text) < 1 << 64):
        raise ValueError("not a number of 64 bits")
    return int(text).to_bytes(8, "big")


def _check_name(data: bytes) -> None:
    text = data.decode()
    if not text or "/" in text or not text.isprintable():
        raise ValueError("a name is printable text without slashes")


def _check_path(data: bytes) -> None:
    text = data.decode()
    if len(text) < 2 or text[0] != "/" or text[-1] == "/" or not text.isprintable():
        raise ValueError("a path is printable text that begins, and does not end, with a slash")


def _peer_bytes(text: str) -> bytes:
    return bytes(PeerId(text))


def _peer_text(data: bytes) -> str:
    return str(PeerId(data))


def _hash_text(data: bytes) -> str:
    return multibase_encode("u", data)


def _check_hash(data: bytes) -> None:
    try:
        _, offset = decode_uvarint(data)
        length, offset = decode_uvarint(data, offset)
    except DecodeError as error:
        raise ValueError(f"not a multihash: {error}") from None
    if length != len(data) - offset:
        raise ValueError("not a multihash: its length is wrong")


_Coder = tuple[int, Callable[[str], bytes], Callable[[bytes], str], Callable[[bytes], object]]


def _fixed(size: int, to_bytes: Callable[[str], bytes], to_text: Callable[[bytes], str]) -> _Coder:
    return size, to_bytes, to_text, len  # any bytes of that size are a value


_NONE: _Coder = _fixed(0, str.encode, bytes.decode)
_PORT: _Coder = _fixed(2, _port_bytes, _port_text)
_NAME: _Coder = (VARIABLE, str.encode, bytes.decode, _check_name)

_TABLE: tuple[tuple[int, str, _Coder], ...] = (
    (0x04, "ip4", _fixed(4, _ip4_bytes, _ip4_text)),
    (0x06, "tcp", _PORT),
    (0x29, "ip6", _fixed(16, _ip6_bytes, _ip6_text)),
    (0x2A, "ip6zone", _NAME),
    (0x35, "dns", _NAME),
    (0x36, "dns4", _NAME),
    (0x37, "dns6", _NAME),
    (0x38, "dnsaddr", _NAME),
    (0x0111, "udp", _PORT),
    (0x0118, "webrtc-direct", _NONE),
    (0x0119, "webrtc", _NONE),
    (0x0122, "p2p-circuit", _NONE),
    (0x0190, "unix", (VARIABLE, str.encode, bytes.decode, _check_path)),
    (0x01A5, "p2p", (VARIABLE, _peer_bytes, _peer_text, check_multihash)),
    (0x01BB, "https", _NONE),
    (0x01C0, "tls", _NONE),
    (0x01C1, "sni", _NAME),
    (0x01C6, "noise", _NONE),
    (0x01CC, "quic", _NONE),
    (0x01CD, "quic-v1", _NONE),
    (0x01D1, "webtransport", _NONE),
    (0x01D2, "certhash", (VARIABLE, multibase_decode, _hash_text, _check_hash)),
    (0x01DD, "ws", _NONE),
    (0x01DE, "wss", _NONE),
    (0x01E0, "http", _NONE),
    (0x0309, "memory", _fixed(8, _memory_bytes, _port_text)),
)

PROTOCOLS: tuple[Protocol, ...] = tuple(
    Protocol(code, name, *coder, name == "unix", encode_uvarint(code)) for code, name, coder in _TABLE
)
BY_CODE: dict[int, Protocol] = {protocol.code: protocol for protocol in PROTOCOLS}
BINARY = {protocol.code: (protocol, protocol.size, protocol.path, protocol.check) for protocol in PROTOCOLS}
BY_NAME: dict[str, Protocol] = {protocol.name: protocol for protocol in PROTOCOLS}
BY_NAME["ipfs"] = BY_NAME["p2p"]  # what it was called until 2019
