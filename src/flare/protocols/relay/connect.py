"""A client asks a relay for a circuit to a peer (circuit-v2.md, "Connection Initiation")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flare.protocols.exchange import TIMEOUTS, within
from flare.protocols.relay import HOP_PROTOCOL
from flare.protocols.relay.ask import ask
from flare.wire.messages import HopMessage, HopType, Limit, RelayPeer

if TYPE_CHECKING:
    from flare.transport.connection import Connection
    from flare.transport.stream import Stream
    from flare.wire.peer_id import PeerId


async def connect(
    connection: Connection, target: PeerId, *, timeout: float = TIMEOUTS.relay_connect
) -> tuple[Stream, Limit | None]:
    """Open a circuit to `target` through the relay at the other end of `connection`.

    Every byte that follows on the stream belongs to the circuit. A limit, even one of zeros, makes it a
    limited connection. Raises RelayRefused by status, ProtocolViolation, TimedOut, NetworkError.
    """
    stream = await connection.open_stream(HOP_PROTOCOL)
    try:
        async with within(timeout, f"connecting through relay {connection.remote_peer}"):
            request = HopMessage(type=HopType.CONNECT, peer=RelayPeer(id=target))
            answer = await ask(stream, request, f"connecting to {target}")
    except BaseException:
        stream.reset()
        raise
    return stream, answer.limit
