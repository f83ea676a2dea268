"""Through the relay: circuits that cost it memory, places or time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

from flare._core.wire import frame
from flare.errors import FlareError
from flare.transport import multistream
from flare.wire.keys import Identity
from flare.wire.messages import HopMessage, HopType, RelayPeer, Status, StopMessage, StopType
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId
from tests.abuse.attacks.common import crowd, paced, source
from tests.support import hostile
from tests.support.hostile import ACK, SYN, WINDOW_SIZE, Client, data

HOP = "/libp2p/circuit/relay/0.2.0/hop"
STOP = "/libp2p/circuit/relay/0.2.0/stop"
PAIRS = 20
EACH = 50  # circuits of a pair
PIECE = 32 * 1024
ACCEPTED = multistream.proposal(STOP) + frame(StopMessage(type=StopType.STATUS, status=Status.OK).encode())


def _connect(target: PeerId) -> bytes:
    return frame(HopMessage(type=HopType.CONNECT, peer=RelayPeer(target)).encode())


async def _reserve(client: Client) -> None:
    stream = await client.open(HOP, frame(HopMessage(type=HopType.RESERVE).encode()))
    await client.answers(stream, len(multistream.proposal(HOP)) + 20)


async def _accept(client: Client, accepts: bool) -> None:
    """Take every circuit that the relay brings, and give nobody any credit."""
    while True:
        came = await client.frame()
        if came.flags & SYN and accepts and came.kind != hostile.PING:
            await client.send(data(came.stream, ACCEPTED, ACK))


async def _pairs(
    addr: Multiaddr,
    did: Counter[str],
    carry: bytes,
    *,
    pairs: int = PAIRS,
    each: int = EACH,
    accepts: bool = True,
    deaf: bool = False,
    drip: bool = False,
    twice: bool = False,
) -> None:
    """Pairs of a target and a source with circuits between them, and `carry` sent on each."""

    async def pair(number: int) -> None:
        identity = Identity.generate()
        async with (
            hostile.client(addr, identity, source(2 * number)) as target,
            hostile.client(addr, source=source(2 * number + 1)) as client,
            crowd() as start,
        ):
            await _reserve(target)
            accepting = asyncio.get_running_loop().create_task(_accept(target, accepts))
            start(_forget(client))
            streams = []
            try:
                for _ in range(each):
                    streams.append(await client.open(HOP, _connect(identity.peer_id)))
                    did["asked"] += 1
                    await asyncio.sleep(0.01)
                if accepts:
                    await asyncio.sleep(0.5)
                if deaf:
                    accepting.cancel()
                # a first window goes on to the target; of what follows half a window has credit, and waits
                for piece in (carry, carry[: WINDOW_SIZE // 2] if twice else b""):
                    for stream in streams if piece else ():
                        for at in range(0, len(piece), PIECE):
                            await client.send(data(stream, piece[at : at + PIECE]))
                        did["KiB"] += len(piece) // 1024
                        await asyncio.sleep(0)
                    await asyncio.sleep(0.5)
                async for turn in paced(1):
                    if drip:
                        await client.send(*(data(stream, b"x") for stream in streams))
                        did["seconds"] = max(did["seconds"], turn)
            finally:
                accepting.cancel()
                await asyncio.wait([accepting])

    async def again(number: int) -> None:
        while True:
            try:
                await pair(number)
            except (FlareError, OSError, TimeoutError) as error:
                did[type(error).__name__] += 1
            await asyncio.sleep(1)

    async with crowd() as start:
        for number in range(pairs):
            start(again(number))
        await asyncio.Event().wait()


async def _forget(client: Client) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while await loop.sock_recv(client.sock, 1 << 16):
            pass


ROOM = bytes(WINDOW_SIZE - 1024)


async def circuits_without_credit(addr: Multiaddr, did: Counter[str]) -> None:
    """1,000 circuits of 20 pairs, filled to both windows, whose receivers never give credit."""
    await _pairs(addr, did, ROOM, twice=True)


async def circuits_never_read(addr: Multiaddr, did: Counter[str]) -> None:
    """1,000 circuits of 20 pairs, each filled to its window, whose receivers do not read their sockets."""
    await _pairs(addr, did, ROOM, deaf=True)


async def circuits_of_a_byte_a_second(addr: Multiaddr, did: Counter[str]) -> None:
    """1,000 circuits of 20 pairs that carry one byte a second each."""
    await _pairs(addr, did, b"", drip=True)


async def targets_that_never_answer(addr: Multiaddr, did: Counter[str]) -> None:
    """1,000 CONNECTs to 20 peers that hold a reservation and never answer the relay's STOP."""
    await _pairs(addr, did, b"", accepts=False)


async def connects_to_nobody(addr: Multiaddr, did: Counter[str]) -> None:
    """20 connections that each ask 50 times a second for a circuit to a peer that is not there."""

    async def one(number: int) -> None:
        async with hostile.client(addr, source=source(number)) as client, crowd() as start:
            start(_forget(client))
            body = _connect(Identity.generate().peer_id)
            async for _ in paced(50):
                await client.open(HOP, body)
                did["asked"] += 1

    async def again(number: int) -> None:
        while True:
            try:
                await one(number)
            except (FlareError, OSError, TimeoutError) as error:
                did[type(error).__name__] += 1
            await asyncio.sleep(0.2)

    async with crowd() as start:
        for number in range(20):
            start(again(number))
        await asyncio.Event().wait()


ATTACKS = (
    circuits_without_credit,
    circuits_never_read,
    circuits_of_a_byte_a_second,
    targets_that_never_answer,
    connects_to_nobody,
)
