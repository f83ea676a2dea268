"""Dialling others back for AutoNAT: as nobody whom they know, from ports that nobody has heard of."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, Final

from flare.transport.connection import Connection, StreamHandlers
from flare.transport.quic import QuicTransport
from flare.transport.tcp import TcpTransport
from flare.wire.keys import Identity

if TYPE_CHECKING:
    from flare.config import Config
    from flare.transport.loop_engine import LoopEngine
    from flare.wire.multiaddr import Multiaddr
    from flare.wire.peer_id import PeerId

_FORMS: Final = (["tcp"], ["udp", "quic-v1"])
_NOTHING: Final = StreamHandlers()


class BackDialler:
    """Dials over TCP and QUIC with an identity of its own, each time from a fresh port.

    With the host's own identity the client would take a dial-back for a connection to this host; from the
    port that the host listens on it would be a hole punch (autonat-v2.md, "Implementation Suggestions").
    """

    def __init__(self, engine: LoopEngine, config: Config) -> None:
        identity = Identity.generate()
        self._tcp = TcpTransport(engine, identity, config, on_connection=_turn_away)
        self._quic = QuicTransport(identity, config, on_connection=_turn_away)

    async def dial(self, addr: Multiaddr, peer: PeerId) -> Connection:
        """A connection on which nothing is served. Raises what the transports' `dial` raises."""
        transport = self._quic if addr.transport == "quic-v1" else self._tcp
        connection = await transport.dial(addr, expected_peer=peer, reuse=False)
        connection.serve(_NOTHING)
        return connection

    async def close(self) -> None:
        """End what is under way."""
        await self._tcp.close()
        await self._quic.close()


def can_dial(addr: Multiaddr) -> bool:
    """Plain TCP or QUIC to an IP for which this machine has a route."""
    if [part.name for part in addr.without_peer()][1:] not in _FORMS or addr.ip is None:
        return False
    ip = ipaddress.ip_address(addr.ip)
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as route:
            route.connect((str(ip), addr.port or 9))  # sends nothing
    except OSError:
        return False
    return True


def _turn_away(connection: Connection) -> None:
    connection.abort("nobody listens here")
