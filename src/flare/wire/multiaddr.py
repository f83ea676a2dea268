"""Multiaddrs: addresses that say how to reach a peer, layer by layer (addressing/README.md)."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from functools import total_ordering
from typing import Any, NamedTuple

from flare._core.wire import encode_uvarint, split_components
from flare.errors import DecodeError, InvalidMultiaddr
from flare.wire.addr_protocols import BINARY, BY_NAME, VARIABLE, Protocol
from flare.wire.address_space import (
    IpAddress,
    ip_is_private,
    ip_is_public,
    name_is_loopback,
    name_is_public,
    unmapped,
)
from flare.wire.peer_id import PeerId

_DNS = ("dns", "dns4", "dns6", "dnsaddr")
_IP4, _TCP = BY_NAME["ip4"], BY_NAME["tcp"]


class Component(NamedTuple):
    """One layer of an address: its protocol's `name`, and its `value` as text or None."""

    name: str
    value: str | None

    @property
    def code(self) -> int:
        return BY_NAME[self.name].code


@total_ordering
class Multiaddr:
    """An address such as /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo... Immutable, hashable, ordered by its bytes.

    Made of text or of bytes and kept in the canonical form; iterating gives Components. Raises
    InvalidMultiaddr. Only taking the last part away gives an empty one, which is false.
    """

    __slots__ = ("_bytes", "_parts", "_text")

    def __init__(self, value: str | bytes | Multiaddr) -> None:
        self._text: str | None = None
        self._parts: tuple[tuple[Protocol, bytes], ...]
        self._bytes: bytes
        if isinstance(value, bytes | bytearray | memoryview):
            self._bytes = bytes(value)
            self._parts = _parse_bytes(self._bytes)
        elif isinstance(value, str):
            self._parts = _parse_text(value)
            self._bytes = _join(self._parts)
        elif isinstance(value, Multiaddr):
            self._parts, self._bytes, self._text = value._parts, value._bytes, value._text
        else:
            raise InvalidMultiaddr(f"a multiaddr is made of text or bytes, not {type(value).__name__}")

    @classmethod
    def _of(cls, parts: tuple[tuple[Protocol, bytes], ...]) -> Multiaddr:
        made = cls.__new__(cls)
        made._text, made._parts, made._bytes = None, parts, _join(parts)
        return made

    @classmethod
    def from_socket(cls, address: tuple[Any, ...], transport: str = "tcp") -> Multiaddr:
        """The address of an IP socket, as getsockname() and getpeername() give it.

        `transport` is tcp or udp, or what runs over them: quic-v1, ws and the like. IPv4-mapped addresses
        become IPv4.
        """
        if transport == "tcp":
            try:  # the usual one, without a detour through text
                packed = socket.inet_pton(socket.AF_INET, address[0])
                return cls._of(((_IP4, packed), (_TCP, address[1].to_bytes(2, "big"))))
            except (OSError, OverflowError):
                pass
        host, _, zone = address[0].partition("%")
        try:
            ip = unmapped(ipaddress.ip_address(host))
        except ValueError as error:
            raise InvalidMultiaddr(str(error)) from None
        base = "udp" if transport in ("udp", "quic", "quic-v1", "webtransport", "webrtc-direct") else "tcp"
        text = f"/ip{ip.version}/{ip}/{base}/{address[1]}"
        if zone:
            text = f"/ip6zone/{zone}{text}"
        if transport == "webtransport":
            text += "/quic-v1"
        return cls(text if transport == base else f"{text}/{transport}")

    # What it is made of

    def __iter__(self) -> Iterator[Component]:
        for protocol, data in self._parts:
            yield Component(protocol.name, protocol.to_text(data) if protocol.size else None)

    def __len__(self) -> int:
        return len(self._parts)

    def has(self, name: str) -> bool:
        """Whether a protocol of that name is part of it."""
        return self._find(name) >= 0

    def value(self, name: str) -> str | None:
        """The value of the first protocol of that name; None without one, "" where it has no value."""
        index = self._find(name)
        if index < 0:
            return None
        protocol, data = self._parts[index]
        return protocol.to_text(data)

    @property
    def ip(self) -> IpAddress | None:
        """The first IP address, with its zone; of a circuit's address it is the relay's."""
        zone = None
        for protocol, data in self._parts:
            if protocol.name == "ip4":
                return ipaddress.IPv4Address(data)
            if protocol.name == "ip6":
                ip = ipaddress.IPv6Address(data)
                return ipaddress.IPv6Address(f"{ip}%{zone}") if zone else ip
            if protocol.name == "ip6zone":
                zone = protocol.to_text(data)
        return None

    @property
    def host(self) -> str | None:
        """What to connect to: the first IP address or DNS name as text."""
        ip = self.ip
        if ip is not None:
            return str(ip)
        for protocol, data in self._parts:
            if protocol.name in _DNS:
                return protocol.to_text(data)
        return None

    @property
    def port(self) -> int | None:
        """The first TCP or UDP port."""
        for protocol, data in self._parts:
            if protocol.name in ("tcp", "udp"):
                return int.from_bytes(data, "big")
        return None

    @property
    def endpoint(self) -> tuple[str, str, int] | None:
        """Its IP as text, its transport, and its port; None when it lacks any of them."""
        parts = self._parts
        if len(parts) == 2 and parts[0][0] is _IP4 and parts[1][0] is _TCP:
            return ".".join(map(str, parts[0][1])), "tcp", int.from_bytes(parts[1][1], "big")
        ip, transport, port = self.ip, self.transport, self.port
        return None if ip is None or transport is None or port is None else (str(ip), transport, port)

    @property
    def transport(self) -> str | None:
        """What carries the connection: p2p-circuit, webrtc, webrtc-direct, webtransport, quic-v1, quic, wss,
        ws, unix, memory, tcp or udp; None when it does not say."""
        names = {protocol.name for protocol, _ in self._parts}
        if "tls" in names and "ws" in names:
            return "wss"
        return next((name for name in _TRANSPORTS if name in names), None)

    # Peers and circuits

    @property
    def peer_id(self) -> PeerId | None:
        """The peer it leads to: the last /p2p, but behind a /p2p-circuit only what follows that."""
        for protocol, data in reversed(self._parts):
            if protocol.name == "p2p":
                return PeerId(data)
            if protocol.name == "p2p-circuit":
                return None
        return None

    def with_peer(self, peer: PeerId) -> Multiaddr:
        """Ending in /p2p/`peer`, in place of the peer it ended in."""
        return self._of((*self.without_peer()._parts, (BY_NAME["p2p"], bytes(peer))))

    def without_peer(self) -> Multiaddr:
        """Without the /p2p that it ends in; empty when it is nothing else."""
        if self._parts and self._parts[-1][0].name == "p2p":
            return self._of(self._parts[:-1])
        return self

    @property
    def is_circuit(self) -> bool:
        """Whether it leads through a relay."""
        return self.has("p2p-circuit")

    @property
    def relay(self) -> Multiaddr | None:
        """The relay's address: what precedes the last /p2p-circuit, None if nothing does."""
        index = self._find_last("p2p-circuit")
        return self._of(self._parts[:index]) if index > 0 else None

    @property
    def target_after_circuit(self) -> Multiaddr | None:
        """What follows the last /p2p-circuit, None if nothing does."""
        index = self._find_last("p2p-circuit")
        return self._of(self._parts[index + 1 :]) if 0 <= index < len(self._parts) - 1 else None

    # Putting together and taking apart

    def encapsulate(self, other: Multiaddr | str) -> Multiaddr:
        """This address followed by `other`."""
        other = Multiaddr(other)
        if self._parts and self._parts[-1][0].path:
            raise InvalidMultiaddr(f"nothing can follow the path in {self}")
        return self._of(self._parts + other._parts)

    def __truediv__(self, other: Multiaddr | str) -> Multiaddr:
        """As encapsulate; text may come without its first slash."""
        if isinstance(other, str) and not other.startswith("/"):
            other = "/" + other
        return self.encapsulate(other)

    def decapsulate(self, name: str) -> Multiaddr:
        """Without the last protocol of that name and all that follows it; as it is when it has none."""
        index = self._find_last(name)
        return self if index < 0 else self._of(self._parts[:index])

    # Where it lies

    @property
    def is_public(self) -> bool:
        """Whether everybody can reach its first host: see `is_public` below."""
        return is_public(self)

    @property
    def is_private(self) -> bool:
        """Whether its first host is of some local network: RFC 1918, carrier-grade NAT, link local, unique
        local, loopback."""
        ip = self.ip
        return ip_is_private(ip) if ip is not None else self.is_loopback

    @property
    def is_loopback(self) -> bool:
        """Whether its first host is this machine."""
        ip = self.ip
        if ip is not None:
            return unmapped(ip).is_loopback
        host = self.host
        return host is not None and name_is_loopback(host)

    def __bytes__(self) -> bytes:
        return self._bytes

    def __str__(self) -> str:
        if self._text is None:
            self._text = "".join(_texts(self._parts))
        return self._text

    def __repr__(self) -> str:
        return f"Multiaddr('{self}')"

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __eq__(self, other: object) -> bool:
        return self._bytes == other._bytes if isinstance(other, Multiaddr) else NotImplemented

    def __lt__(self, other: Multiaddr) -> bool:
        return self._bytes < other._bytes if isinstance(other, Multiaddr) else NotImplemented

    def _find(self, name: str) -> int:
        wanted = _protocol(name)
        return next((i for i, (protocol, _) in enumerate(self._parts) if protocol is wanted), -1)

    def _find_last(self, name: str) -> int:
        wanted = _protocol(name)
        return next((i for i in reversed(range(len(self._parts))) if self._parts[i][0] is wanted), -1)


_TRANSPORTS = (
    "p2p-circuit",
    "webrtc",
    "webrtc-direct",
    "webtransport",
    "quic-v1",
    "quic",
    "wss",
    "ws",
    "unix",
    "memory",
    "tcp",
    "udp",
)


def is_public(addr: Multiaddr) -> bool:
    """Whether the first host of `addr` means the same everywhere: a globally routed IP address, or a DNS name
    outside of the zones for local use. Private, local, documentation, multicast and unspecified ones do
    not."""
    ip = addr.ip
    if ip is not None:
        return ip_is_public(ip)
    host = addr.host
    return host is not None and name_is_public(host)


def _protocol(name: str) -> Protocol:
    try:
        return BY_NAME[name]
    except KeyError:
        raise InvalidMultiaddr(f"unknown protocol {name!r}") from None


def _parse_text(text: str) -> tuple[tuple[Protocol, bytes], ...]:
    words = text.rstrip("/").split("/")
    if words[0] or len(words) < 2:
        raise InvalidMultiaddr(f"{text[:200]!r} is no multiaddr: it must begin with a slash and a protocol")
    parts = []
    rest = iter(words[1:])
    for name in rest:
        if name not in BY_NAME:
            raise InvalidMultiaddr(f"{text[:200]!r} is no multiaddr: unknown protocol {name[:40]!r}")
        protocol = BY_NAME[name]
        data = b""
        if protocol.size:
            value = "/" + "/".join(rest) if protocol.path else next(rest, "")
            try:
                data = protocol.to_bytes(value)
                protocol.check(data)
            except ValueError as error:
                raise InvalidMultiaddr(f"{text[:200]!r} is no multiaddr: {name}: {error}") from None
        parts.append((protocol, data))
    return tuple(parts)


def _parse_bytes(data: bytes) -> tuple[tuple[Protocol, bytes], ...]:
    if not data:
        raise InvalidMultiaddr("an empty multiaddr")
    try:
        return split_components(data, BINARY)
    except (DecodeError, ValueError) as error:
        raise InvalidMultiaddr(f"binary multiaddr: {error}") from None


def _join(parts: tuple[tuple[Protocol, bytes], ...]) -> bytes:
    return b"".join(
        protocol.prefix + (encode_uvarint(len(data)) if protocol.size == VARIABLE else b"") + data
        for protocol, data in parts
    )


def _texts(parts: tuple[tuple[Protocol, bytes], ...]) -> Iterator[str]:
    for protocol, data in parts:
        yield "/" + protocol.name
        if protocol.size:
            text = protocol.to_text(data)
            yield text if protocol.path else "/" + text
