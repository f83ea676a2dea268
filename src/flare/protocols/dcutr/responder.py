"""Peer A, which dialled the relayed connection and answers B's exchange (DCUtR.md, "The Protocol").

    B -> A  CONNECT      A -> B  CONNECT      B -> A  SYNC: connect at once

B may come up to three times, each time on a stream of its own; every stream is one call of `respond`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flare.errors import ProtocolViolation
from flare.protocols.dcutr import PROTOCOL
from flare.protocols.dcutr.addresses import Targets, connect_message
from flare.protocols.exchange import MESSAGE_LIMIT, TIMEOUTS, within
from flare.wire.messages import HolePunch, HolePunchType, PunchHint

if TYPE_CHECKING:
    from flare.transport.stream import Stream
    from flare.wire.multiaddr import Multiaddr


@dataclass(frozen=True, slots=True)
class Agreed:
    """Where to connect to, at once. `rtt_ns` is from our CONNECT to SYNC."""

    targets: Targets
    deadline_ns: int
    rtt_ns: int


async def respond(
    stream: Stream,
    *,
    addrs: Callable[[], Sequence[Multiaddr]],
    choose: Callable[[Sequence[Multiaddr]], Targets],
    prepare: Callable[[Targets], None] = lambda targets: None,
    hint: Callable[[PunchHint], PunchHint | None] = lambda theirs: None,
    timeout: float = TIMEOUTS.dcutr_message,
    clock_ns: Callable[[], int] = time.monotonic_ns,
) -> Agreed:
    """Answer one exchange; the caller connects as the client, now, and then closes the stream.

    `prepare` is called before our CONNECT leaves: from then on the peer may already connect to us. `hint`
    answers what another flare tells in its own.
    ProtocolViolation (also for a stream on a connection that is not relayed, or that we did not dial),
    TimedOut, NetworkError. An empty list of ours is sent as it is: the peer may still reach us by what it
    sees.
    """
    connection = stream.connection
    if not connection.is_relayed:
        raise ProtocolViolation("opened on a direct connection", protocol=PROTOCOL)
    if not connection.initiator:
        raise ProtocolViolation("opened by the side that dialled the relayed connection", protocol=PROTOCOL)
    async with within(timeout, "the peer's CONNECT"):
        theirs = HolePunch.decode(await stream.read_frame(MESSAGE_LIMIT))
        if theirs.type is not HolePunchType.CONNECT:
            raise ProtocolViolation("opened with something other than CONNECT", protocol=PROTOCOL)
        if not theirs.obs_addrs:
            raise ProtocolViolation("a CONNECT without addresses", protocol=PROTOCOL)
        targets = choose(theirs.obs_addrs)
        prepare(targets)
        told = hint(theirs.hint) if theirs.hint is not None else None
        await stream.write_frame(connect_message(addrs(), told).encode())
    sent = clock_ns()
    async with within(timeout, "the peer's SYNC"):
        sync = HolePunch.decode(await stream.read_frame(MESSAGE_LIMIT))
    now = clock_ns()
    if sync.type is not HolePunchType.SYNC:
        raise ProtocolViolation("answered CONNECT with something other than SYNC", protocol=PROTOCOL)
    return Agreed(targets, now, now - sent)
