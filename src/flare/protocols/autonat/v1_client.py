"""The client of AutoNAT v1: asks a server to dial us, wherever it sees us (autonat-v1.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flare.errors import ProtocolViolation
from flare.protocols.autonat import V1_PROTOCOL
from flare.protocols.exchange import MESSAGE_LIMIT, TIMEOUTS, within
from flare.wire.autonat_messages import DialStatusV1, DialV1, MessageTypeV1, MessageV1, PeerInfoV1

if TYPE_CHECKING:
    from flare.config import Timeouts
    from flare.transport.connection import Connection
    from flare.wire.multiaddr import Multiaddr


@dataclass(frozen=True, slots=True)
class NodeVerdict:
    """What one server found out about this node. `reachable` None: nothing, and `reason` says why."""

    reachable: bool | None
    reason: str
    addr: Multiaddr | None = None


async def ask(
    connection: Connection, addrs: Sequence[Multiaddr], *, timeouts: Timeouts = TIMEOUTS
) -> NodeVerdict:
    """Ask the peer on `connection` to dial us.

    Raises ProtocolNotSupported, ProtocolViolation, TimedOut, NetworkError.
    """
    who = PeerInfoV1(bytes(connection.local_peer), tuple(addrs))
    async with (
        within(timeouts.autonat, f"a dial-back by peer {connection.remote_peer}"),
        connection.open_stream(V1_PROTOCOL) as stream,
    ):
        await stream.write_frame(MessageV1(MessageTypeV1.DIAL, DialV1(who)).encode())
        message = MessageV1.decode(await stream.read_frame(MESSAGE_LIMIT))
    answer = message.response
    if message.type is not MessageTypeV1.DIAL_RESPONSE or answer is None:
        raise ProtocolViolation("answered with something other than DIAL_RESPONSE", protocol=V1_PROTOCOL)
    text = (answer.text or "")[:200]
    if answer.status == DialStatusV1.OK:
        if answer.addr is None:
            return NodeVerdict(None, "the server says that it dialled, but not where")
        return NodeVerdict(True, "the server connected", answer.addr)
    if answer.status == DialStatusV1.DIAL_ERROR:
        return NodeVerdict(False, text or "the server could not connect")
    return NodeVerdict(None, f"the server refused with status {answer.status}: {text}")
