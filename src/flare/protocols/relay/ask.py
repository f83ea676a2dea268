"""The shape of all requests about circuits: a message there, a STATUS back (circuit-v2.md, "Interaction")."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from flare.errors import ProtocolViolation, relay_refused
from flare.protocols.exchange import MESSAGE_LIMIT
from flare.protocols.relay import HOP_PROTOCOL, STOP_PROTOCOL
from flare.wire.messages import HopMessage, Status, StopMessage

if TYPE_CHECKING:
    from flare.transport.stream import Stream

M = TypeVar("M", HopMessage, StopMessage)


async def ask(stream: Stream, request: M, doing: str) -> M:
    """Send `request` and return the answer when its status is OK; the caller has the time and the stream.

    Reads no byte past the answer. Raises RelayRefused by status, ProtocolViolation, NetworkError.
    """
    await stream.write_frame(request.encode())
    answer = type(request).decode(await stream.read_frame(MESSAGE_LIMIT))
    if answer.type.name != "STATUS":
        raise ProtocolViolation(
            f"answered {request.type.name} with something other than STATUS",
            protocol=HOP_PROTOCOL if isinstance(request, HopMessage) else STOP_PROTOCOL,
        )
    if answer.status != Status.OK:
        raise relay_refused(answer.status or 0, doing)
    return answer
