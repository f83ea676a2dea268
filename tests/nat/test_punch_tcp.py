"""The simultaneous open with the real core and the real transport, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import select
import time
from collections.abc import AsyncIterator
from typing import Any

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

    def __init__(self, identity: Identity, *, connects: bool = True) -> None:
        self.identity = identity
        self.accepted: list[Connection] = []
        self.engine = LoopEngine.get()
        self.tcp = TcpTransport(self.engine, identity, CONFIG, on_connection=self.accepted.append)
        self.punch = TcpPunch(self.tcp, core=None if connects else never_connects, timeouts=CONFIG.timeouts)
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


def never_connects(local: Any, targets: Any, deadline_ns: int, **told: Any) -> Any:
    """A core punch whose SYNs are all lost."""
    select.select([told["cancel_fd"]], [], [], told["timeout_ns"] / 1e9)
    raise PunchFailed("nobody answered")


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


@pytest.mark.parametrize("named", [True, False], ids=["as told", "from other ports"])
@aio
async def test_two_behind_one_ip_at_once_and_a_stranger_in_the_midst(named: bool) -> None:
    """All of it comes to Alice's listener. From one NAT's IP come Bob and Carol, for whom she is the client,
    Dave, for whom she is the server, and Eve, who just dials."""
    dave_is, eve_is = Identity.generate(), Identity.generate()
    async with (
        Peer(ALICE, connects=False) as alice,
        Peer(BOB) as bob,
        Peer(CAROL) as carol,
        Peer(dave_is) as dave,
        Peer(eve_is) as eve,
    ):
        at = time.monotonic_ns() + 50_000_000

        def told(peer: Peer) -> list[Multiaddr]:
            return [peer.addr if named else Multiaddr("/ip4/127.0.0.1/tcp/9")]

        async def from_alice(peer: Peer, role: str) -> Connection:
            return await alice.punch(peer.identity.peer_id, told(peer), at, role=role, rtt_ns=1_000_000)

        dialled = asyncio.create_task(eve.tcp.dial(alice.addr, expected_peer=ALICE.peer_id))
        made = await asyncio.gather(
            from_alice(bob, CLIENT),
            from_alice(carol, CLIENT),
            from_alice(dave, SERVER),
            bob.meet(alice, SERVER, at),
            carol.meet(alice, SERVER, at),
            dave.meet(alice, CLIENT, at),
        )
        met = [connection.remote_peer for connection in made]
        assert met == [p.peer_id for p in (BOB, CAROL, dave_is)] + [ALICE.peer_id] * 3
        assert [connection.initiator for connection in made] == [True, True, False, False, False, True]
        await dialled
        await eventually(lambda: alice.accepted)
        assert [connection.remote_peer for connection in alice.accepted] == [eve_is.peer_id]
        await asyncio.sleep(0.3)
        assert not any(connection.closed for connection in (*made, dialled.result()))


@aio
async def test_a_peer_that_claims_a_strangers_address_costs_the_stranger_nothing() -> None:
    async with Peer(ALICE) as alice, Peer(BOB) as victim:
        punching = asyncio.create_task(
            alice.punch(CAROL.peer_id, [victim.addr], time.monotonic_ns() + 10**10, role=CLIENT, rtt_ns=0)
        )
        await eventually(lambda: alice.tcp.expected)
        dialled = await victim.tcp.dial(alice.addr, expected_peer=ALICE.peer_id)
        assert dialled.local_addr == victim.addr, "from the very address that was claimed"
        await eventually(lambda: alice.accepted)
        assert await dialled.ping() > 0
        punching.cancel()
        await asyncio.wait([punching])
        assert not dialled.closed


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
