"""Sets up circuits through a relay, as far as the load in C (load.c) can go on from.

A circuit carries bare bytes, with no connection inside it: the relay's work is the same. Every end is a peer
of its own with a connection of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.relay.keys import told
from benchmarks.relay.session import FIRST_WINDOW, End, Session, YamuxStream
from flare.config import Security
from flare.errors import FlareError
from flare.protocols.relay import HOP_PROTOCOL, STOP_PROTOCOL
from flare.wire.keys import Identity
from flare.wire.messages import HopMessage, HopType, RelayPeer, Status, StopMessage, StopType
from flare.wire.multiaddr import Multiaddr

LIMIT = 4096  # bytes of a relay's message
SETUP_TIMEOUT = 90.0
TRIES = 3  # a js-libp2p relay resets about one stream in a hundred when 32 circuits are set up at once
AT_ONCE = 32  # circuits that are being set up: less than any relay's backlog
KEY_BYTES = {"noise": 32, "tls-chacha20": 32 + 12, "tls-aes128": 16 + 12, "tls-aes256": 32 + 12}


@dataclass(frozen=True, slots=True)
class Circuit:
    """Two ends whose handshakes are done; whoever drives it closes it."""

    source: End
    sink: End
    records: str  # as records.h calls them

    def lines(self, kind: str) -> str:
        """What the load reads. Kind: bulk, or echo for a ping-pong."""
        return f"{kind} {self.records}\n{self.source}\n{self.sink}\n"

    def close(self) -> None:
        """Close both descriptors."""
        os.close(self.source.fd)
        os.close(self.sink.fd)


async def through(relay: Multiaddr, count: int, security: Security) -> list[Circuit]:
    """Set up `count` circuits, each in as many as TRIES attempts.

    Raises what the only one raised, or a ConnectionError that counts, after closing those that were made.
    """
    limit = asyncio.Semaphore(AT_ONCE)

    async def one() -> Circuit:
        for _ in range(TRIES - 1):
            async with limit:
                with contextlib.suppress(OSError, FlareError):
                    return await circuit(relay, security)
        async with limit:
            return await circuit(relay, security)

    async with asyncio.timeout(SETUP_TIMEOUT):
        with told():
            done = await asyncio.gather(*(one() for _ in range(count)), return_exceptions=True)
    failures = [outcome for outcome in done if isinstance(outcome, BaseException)]
    made = [outcome for outcome in done if isinstance(outcome, Circuit)]
    if failures:
        for each in made:
            each.close()
        if count == 1:
            raise failures[0]
        first = f"{type(failures[0]).__name__}: {failures[0]}"
        raise ConnectionError(f"{len(failures)} of {count} circuits failed, the first with {first}")
    return made


async def circuit(relay: Multiaddr, security: Security = "noise") -> Circuit:
    """Reserve, connect, accept."""
    target, source = Identity.generate(), Identity.generate()
    held = await Session.dial(relay, target, security)
    asking = await held.open(HOP_PROTOCOL)
    await _ask(asking, HopMessage(type=HopType.RESERVE))
    via = await Session.dial(relay, source, security)
    sending = await via.open(HOP_PROTOCOL)
    connect = HopMessage(type=HopType.CONNECT, peer=RelayPeer(id=target.peer_id))
    receiving, _ = await asyncio.gather(_accept(held), _ask(sending, connect))
    return Circuit(via.hand_over(sending), held.hand_over(receiving), held.format)


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


def keys(records: str) -> list[bytes]:
    """The C limit's: what it opens and seals with on the first side, and on the second."""
    return [os.urandom(KEY_BYTES[records]) for _ in range(4)]


def bare(port: int, count: int, records: str, keys: Sequence[bytes]) -> list[Circuit]:
    """Pairs of connections to the C limit: no handshake, one stream id that both agree on."""
    made = []
    for _ in range(count):
        ends = []
        for index in range(2):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sends, receives = keys[2 * index : 2 * index + 2]
            ends.append(End(sock.detach(), sends, receives, 0, 0, 1, FIRST_WINDOW, b""))
        made.append(Circuit(ends[0], ends[1], records))
    return made
