"""The simultaneous open with the real core and the real transport, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from flare.config import Config, Timeouts
from flare.errors import PermissionDenied, PunchFailed
from flare.nat.simultaneous import TcpPunch
from flare.protocols import ping
from flare.protocols.dcutr import CLIENT, SERVER
from flare.protocols.relay import stop
from flare.transport.connection import Connection, StreamHandlers
from flare.transport.loop_engine import LoopEngine
from flare.transport.stream import Stream
from flare.transport.tcp import TcpTransport
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr
from tests.support.aio import aio, eventually
from tests.support.linked import ALICE, BOB, CAROL

CONFIG = Config(timeouts=Timeouts(punch=1.0))


class Peer:
    """A transport that listens, and its punch."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.accepted: list[Connection] = []
        self.engine = LoopEngine.get()
        self.tcp = TcpTransport(self.engine, identity, CONFIG, on_connection=self.accepted.append)
        self.punch = TcpPunch(self.tcp, timeouts=CONFIG.timeouts)
        self.addr: Multiaddr

    async def __aenter__(self) -> Peer:
        self.addr = (await self.tcp.listen(Multiaddr("/ip4/127.0.0.1/tcp/0"))).addr
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.punch.close()
        await self.tcp.close()
        self.engine.release()

    async def meet(self, other: Peer, role: str, deadline_ns: int) -> Connection:
        return await self.punch(
            other.identity.peer_id, [other.addr], deadline_ns, role=role, rtt_ns=1_000_000
        )


@contextlib.asynccontextmanager
async def two() -> AsyncIterator[tuple[Peer, Peer]]:
    async with Peer(ALICE) as alice, Peer(BOB) as bob:
        yield alice, bob


@pytest.mark.parametrize("skew_ms", [-50, 0, 50])
@aio
async def test_both_connect_and_end_with_one_connection_in_their_roles(skew_ms: int) -> None:
    async with two() as (alice, bob):
        at = time.monotonic_ns() + 100_000_000
        a, b = await asyncio.gather(
            alice.meet(bob, CLIENT, at + skew_ms * 1_000_000), bob.meet(alice, SERVER, at)
        )
        assert (a.remote_peer, b.remote_peer) == (BOB.peer_id, ALICE.peer_id)
        assert (a.initiator, b.initiator) == (True, False)
        assert not a.is_relayed
        handlers = StreamHandlers()
        handlers.add(ping.PROTOCOL, ping.serve)
        b.serve(handlers)
        assert await ping.ping(a) > 0
        await asyncio.sleep(0.3)
        assert not a.closed, "the one that A keeps is the one that B kept"
        assert not b.closed
        await a.close()


@aio
async def test_nobody_there_is_told_with_what_was_seen() -> None:
    async with Peer(ALICE) as alice, Peer(BOB) as gone:
        for listener in list(gone.tcp.listeners):
            listener.close()
        with pytest.raises(PunchFailed, match=str(gone.addr.port)):
            await alice.meet(gone, CLIENT, time.monotonic_ns())


@aio
async def test_somebody_else_there_is_told() -> None:
    async with two() as (alice, bob):
        with pytest.raises(PunchFailed, match="expected peer"):
            await alice.punch(CAROL.peer_id, [bob.addr], time.monotonic_ns(), role=CLIENT, rtt_ns=1_000_000)


@aio
async def test_a_refusal_reaches_the_relay_although_the_handler_fails_with_it() -> None:
    """The stream was closed with an answer: what the handler raises after that must not reset it."""

    async def refuse(stream: Stream) -> None:
        await stop.accept(stream, allow=lambda peer, limit: False)

    async with two() as (alice, bob):
        relay = await alice.tcp.dial(bob.addr, expected_peer=BOB.peer_id)
        await eventually(lambda: bob.accepted)
        handlers = StreamHandlers()
        handlers.add(stop.PROTOCOL, refuse)
        bob.accepted[0].serve(handlers)
        for _ in range(20):
            with pytest.raises(PermissionDenied):
                await stop.open_stop(relay, CAROL.peer_id, None)
        await relay.close()
