"""The second hop: a relay offers a circuit to the peer that reserved (circuit-v2.md, "Stop Protocol")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from flare.errors import DecodeError, PermissionDenied, ProtocolViolation, StreamClosed
from flare.protocols.exchange import MESSAGE_LIMIT, TIMEOUTS, within
from flare.protocols.relay import STOP_PROTOCOL
from flare.protocols.relay.ask import ask
from flare.wire.messages import Limit, RelayPeer, Status, StopMessage, StopType
from flare.wire.peer_id import PeerId

if TYPE_CHECKING:
    from flare.transport.connection import Connection
    from flare.transport.stream import Stream

PROTOCOL: Final = STOP_PROTOCOL


async def open_stop(
    connection: Connection, source: PeerId, limit: Limit | None, *, timeout: float = TIMEOUTS.relay_message
) -> Stream:
    """The relay's side: offer the peer at the other end a circuit from `source`; the stream once it agreed.

    Every byte that follows on the stream belongs to the circuit. Raises RelayRefused by the target's status,
    ProtocolViolation, TimedOut, NetworkError.
    """
    target = connection.remote_peer
    async with within(timeout, f"offering a circuit to {target}"):
        stream = await connection.open_stream(STOP_PROTOCOL)
        try:
            offer = StopMessage(type=StopType.CONNECT, peer=RelayPeer(id=source), limit=limit)
            await ask(stream, offer, f"offering a circuit to {target}")
        except BaseException:
            stream.reset()
            raise
    return stream


@dataclass(frozen=True, slots=True)
class IncomingCircuit:
    """A circuit that we agreed to: `peer` says who it is, which the handshake inside it has yet to prove."""

    peer: PeerId
    limit: Limit | None
    stream: Stream
    relay: PeerId


async def accept(
    stream: Stream,
    *,
    allow: Callable[[PeerId, Limit | None], bool] = lambda peer, limit: True,
    timeout: float = TIMEOUTS.relay_message,
) -> IncomingCircuit:
    """The target's side: read the offer and agree; what is not agreed to is answered by status, then raised.

    Raises ProtocolViolation, PermissionDenied when `allow` refuses, TimedOut, NetworkError.
    """
    relay = stream.connection.remote_peer
    try:
        async with within(timeout, f"a circuit through relay {relay}"):
            try:
                offer = StopMessage.decode(await stream.read_frame(MESSAGE_LIMIT))
            except (DecodeError, StreamClosed):
                await _answer(stream, Status.MALFORMED_MESSAGE)
                raise
            if offer.type is StopType.STATUS:
                await _answer(stream, Status.UNEXPECTED_MESSAGE)
                raise ProtocolViolation("opened with STATUS", protocol=STOP_PROTOCOL)
            if offer.peer is None:
                await _answer(stream, Status.MALFORMED_MESSAGE)
                raise ProtocolViolation("a CONNECT without a peer", protocol=STOP_PROTOCOL)
            if not allow(offer.peer.id, offer.limit):
                await _answer(stream, Status.PERMISSION_DENIED)
                raise PermissionDenied(
                    f"a circuit from {offer.peer.id} through relay {relay} was refused here"
                )
            await stream.write_frame(StopMessage(type=StopType.STATUS, status=Status.OK).encode())
    except BaseException:
        if not stream.closed:
            stream.reset()
        raise
    return IncomingCircuit(offer.peer.id, offer.limit, stream, relay)


async def refuse(stream: Stream, *, timeout: float = TIMEOUTS.relay_message) -> None:
    """Turn away a relay that we asked for nothing, whatever it wants."""
    async with within(timeout, f"refusing a circuit of relay {stream.connection.remote_peer}"):
        await _answer(stream, Status.PERMISSION_DENIED)


async def _answer(stream: Stream, status: Status) -> None:
    await stream.write_frame(StopMessage(type=StopType.STATUS, status=status).encode())
    await stream.close()
