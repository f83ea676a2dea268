"""Vantage points: servers that see us from outside, and where they listen."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from flare.wire.multiaddr import Multiaddr

if TYPE_CHECKING:
    from flare.nat.behaviour import Endpoint
    from flare.transport.connection import Connection
    from flare.wire.peer_id import PeerId

PORTS: Final = 2  # of one server that are dialled: two tell address- from port-dependent mapping
_FORMS: Final = {
    "tcp": ["ip4", "tcp"],
    "udp": ["ip4", "udp", "quic-v1"],
    "tcp6": ["ip6", "tcp"],
    "udp6": ["ip6", "udp", "quic-v1"],
}


@dataclass(frozen=True, slots=True)
class Vantage:
    """A server that sees us. `addrs` are its addresses of one transport, all of one IP.

    `connection` is open to it and takes dial-back requests. `trusted`: it is of our own configuration.
    """

    peer: PeerId
    addrs: tuple[Multiaddr, ...]
    connection: Connection
    trusted: bool = False

    @property
    def ip(self) -> str:
        return str(self.addrs[0].ip)

    def any_port(self) -> Multiaddr:
        """Where to listen on a port of our own that the server is dialled from: the address of ours that it
        knows, so that it need not be paid for dialling that back (autonat-v2.md)."""
        kind = "tcp" if self.addrs[0].transport == "tcp" else "quic-v1"
        ours, theirs = self.connection.local_addr, self.addrs[0].ip
        if (
            ours is not None
            and ours.ip is not None
            and theirs is not None
            and ours.ip.version == theirs.version
        ):
            return Multiaddr.from_socket((str(ours.ip), 0), kind)
        return Multiaddr.from_socket(("::" if ":" in self.ip else "0.0.0.0", 0), kind)


def vantages(
    servers: Sequence[tuple[Connection, Iterable[Multiaddr], bool]],
    transport: str,
    is_public: Callable[[Multiaddr], bool],
) -> tuple[Vantage, ...]:
    """Those of `servers` (a connection, where its peer says that it listens, whether it is trusted) that can
    be dialled over `transport` ("tcp", "udp", "tcp6", "udp6"), one for each IP.

    A stranger is dialled only at the IP where it is connected: it could name anybody else's. Who is not on
    the internet (`is_public`) sees nothing of what stands before it.
    """
    found: dict[str, Vantage] = {}
    for connection, told, trusted in servers:
        here = connection.remote_addr.without_peer()
        listed = [here] if connection.initiator else []
        listed += [addr.without_peer() for addr in told if addr.ip == here.ip or trusted]
        fitting = [
            addr
            for addr in dict.fromkeys(listed)
            if [part.name for part in addr] == _FORMS[transport] and is_public(addr)
        ]
        same = tuple(addr for addr in fitting if addr.ip == fitting[0].ip)[:PORTS]
        if same:
            vantage = Vantage(connection.remote_peer, same, connection, trusted)
            found.setdefault(vantage.ip, vantage)
    return tuple(found.values())


def endpoint(addr: Multiaddr | None) -> Endpoint | None:
    """Its IP and port; None when it has none."""
    if addr is None or addr.ip is None or addr.port is None:
        return None
    return str(ipaddress.ip_address(addr.ip)), addr.port
