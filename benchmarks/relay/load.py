"""Sets up one circuit through a relay, and hands both ends to the load in C (load.c).

The circuit carries bare bytes, with no connection inside it: the relay's work is the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.relay.compiled import compiled
from benchmarks.relay.session import FIRST_WINDOW, End, Session, YamuxStream
from flare.protocols.relay import HOP_PROTOCOL, STOP_PROTOCOL
from flare.wire.keys import Identity
from flare.wire.messages import HopMessage, HopType, RelayPeer, Status, StopMessage, StopType
from flare.wire.multiaddr import Multiaddr

LIMIT = 4096  # bytes of a relay's message
SETUP_TIMEOUT = 20.0
MAX_MESSAGE = 65535 - 16 - 12  # what one record holds


@dataclass(frozen=True, slots=True)
class Measured:
    """What the load saw in `seconds`: bytes that arrived, CPU seconds of the relay and of itself."""

    bytes: int
    seconds: float
    cpu_seconds: float
    user: float
    system: float
    load_seconds: float


async def circuit(relay: Multiaddr) -> tuple[End, End]:
    """Reserve, connect, accept: the two ends of a circuit, source first."""
    target, source = Identity.generate(), Identity.generate()
    held = await Session.dial(relay, target)
    asking = await held.open(HOP_PROTOCOL)
    await _ask(asking, HopMessage(type=HopType.RESERVE))
    through = await Session.dial(relay, source)
    sending = await through.open(HOP_PROTOCOL)
    connect = HopMessage(type=HopType.CONNECT, peer=RelayPeer(id=target.peer_id))
    receiving, _ = await asyncio.gather(_accept(held), _ask(sending, connect))
    return through.hand_over(sending), held.hand_over(receiving)


async def _ask(stream: YamuxStream, request: HopMessage) -> None:
    encoded = request.encode()
    await stream.write(bytes((len(encoded),)) + encoded)
    answer = HopMessage.decode(await stream.read_frame(LIMIT))
    if answer.status != Status.OK:
        raise ConnectionError(f"the relay answered {request.type.name} with status {answer.status}")


async def _accept(session: Session) -> YamuxStream:
    stream = await session.accept(STOP_PROTOCOL)
    StopMessage.decode(await stream.read_frame(LIMIT))
    encoded = StopMessage(type=StopType.STATUS, status=Status.OK).encode()
    await stream.write(bytes((len(encoded),)) + encoded)
    return stream


def bare(port: int, keys: Sequence[bytes]) -> tuple[End, End]:
    """The two ends of the C limit: no handshake, one stream id that both agree on."""
    ends = []
    for index in range(2):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sends, receives = keys[2 * index : 2 * index + 2]
        ends.append(End(sock.detach(), sends, receives, 0, 0, 1, FIRST_WINDOW, b""))
    return ends[0], ends[1]


def run(
    ends: tuple[End, End], pid: int, message: int, warmup: float, seconds: float, prefix: Sequence[str]
) -> Measured:
    """Drive a circuit for `seconds` and close it."""
    command = [*prefix, str(compiled("load")), str(pid), str(message), str(warmup), str(seconds)]
    fds = [end.fd for end in ends]
    try:
        done = subprocess.run(
            command,
            input=f"{ends[0]}\n{ends[1]}\n",
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=fds,
            check=True,
            timeout=warmup + seconds + SETUP_TIMEOUT,
        )
    finally:
        for fd in fds:
            os.close(fd)
    return Measured(**json.loads(done.stdout))
