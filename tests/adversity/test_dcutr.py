"""DCUtR with a peer that breaks it, over a real circuit: either role, each message."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from flare.config import PunchConfig, RelayLimits
from flare.errors import FlareError, PunchFailed
from flare.host import Host
from flare.protocols.dcutr import PROTOCOL
from flare.relay_server import RelayServer
from flare.transport.connection import Connection
from flare.transport.stream import Stream
from flare.wire.messages import HolePunch, HolePunchType
from flare.wire.multiaddr import Multiaddr
from tests.adversity.scene import LOOPBACK, PATIENCE, QUICK, SLACK, once, scene
from tests.support import bad_peers
from tests.support.aio import eventually

CONFIG = replace(
    QUICK,
    punch=replace(PunchConfig(), reversal=0.2),
    timeouts=replace(QUICK.timeouts, punch=0.2, dcutr_message=0.4),
)
NOWHERE = Multiaddr("/ip4/127.0.0.1/tcp/1")


async def sync_first(stream: Stream) -> None:
    await stream.write_frame(HolePunch(type=HolePunchType.SYNC).encode())


async def no_addresses(stream: Stream) -> None:
    await stream.write_frame(HolePunch(type=HolePunchType.CONNECT).encode())


async def no_sync(stream: Stream) -> None:
    await stream.write_frame(HolePunch(type=HolePunchType.CONNECT, obs_addrs=(NOWHERE,)).encode())


async def connect_twice(stream: Stream) -> None:
    for _ in range(2):
        await stream.write_frame(HolePunch(type=HolePunchType.CONNECT, obs_addrs=(NOWHERE,)).encode())


async def wrong_addresses(stream: Stream) -> None:
    message = HolePunch(type=HolePunchType.CONNECT, obs_addrs=(NOWHERE,) * 300)
    await stream.write_frame(message.encode())
    await sync_first(stream)


BAD = [*bad_peers.EVERY, sync_first, no_addresses, no_sync, connect_twice, wrong_addresses]


Join = Callable[[], Awaitable[Connection]]


@asynccontextmanager
async def pair(hostile_listens: bool) -> AsyncIterator[tuple[Host, Host, Join]]:
    """A victim that punches, a hostile peer that does not, and how to join them by a circuit."""
    async with (
        scene(lanes=0, config=CONFIG) as the_scene,
        RelayServer(the_scene.target, RelayLimits()) as server,
    ):
        at = the_scene.target.full_addrs
        here = {"config": CONFIG, "is_public": lambda addr: True}
        hostile = Host(listen=[], relays=at if hostile_listens else (), punch=False, config=CONFIG)
        victim = Host(listen=[LOOPBACK], relays=() if hostile_listens else at, **here)  # type: ignore[arg-type]
        async with hostile, victim:
            await eventually(lambda: server.reservations == 1)
            target = hostile if hostile_listens else victim
            dialler = victim if hostile_listens else hostile
            circuit = Multiaddr(f"{at[0]}/p2p-circuit/p2p/{target.peer_id}")
            yield victim, hostile, lambda: dialler.connect(circuit)


class TestResponder:
    @once
    @pytest.mark.parametrize("misbehave", BAD, ids=bad_peers.name)
    async def test_a_peer_that_begins_badly(self, misbehave: bad_peers.Misbehave) -> None:
        async with pair(hostile_listens=True) as (victim, hostile, join):
            connection = await join()
            (inbound,) = hostile.connections_to(victim.peer_id)
            began = time.monotonic()
            stream = await inbound.open_stream(PROTOCOL, allow_limited=True)
            acting = asyncio.ensure_future(misbehave(stream))
            with contextlib.suppress(FlareError):
                async with asyncio.timeout(2 * PATIENCE + SLACK):
                    while await stream.read():
                        pass
            assert time.monotonic() - began < 2 * PATIENCE + SLACK
            acting.cancel()
            await asyncio.gather(acting, return_exceptions=True)
            with pytest.raises(PunchFailed):
                await connection.direct(0.1)
            assert await connection.ping() > 0, "the relayed connection stays"


class TestInitiator:
    @once
    @pytest.mark.parametrize("misbehave", BAD, ids=bad_peers.name)
    async def test_a_peer_that_answers_badly(self, misbehave: bad_peers.Misbehave) -> None:
        async def hostile_handler(stream: Stream) -> None:
            await stream.read_frame(4096)
            await misbehave(stream)
            with contextlib.suppress(FlareError):
                await stream.read()

        async with pair(hostile_listens=False) as (victim, hostile, join):
            hostile.handle(PROTOCOL, hostile_handler, allow_limited=True)
            await join()
            await eventually(lambda: victim.connections_to(hostile.peer_id))
            (connection,) = victim.connections_to(hostile.peer_id)
            with pytest.raises(PunchFailed) as failed:
                await connection.direct(3 * (PATIENCE + 0.5) + SLACK)
            assert str(failed.value)
            assert not str(failed.value).startswith("no direct connection within"), "it gave up by itself"
            assert await connection.ping() > 0, "the relayed connection stays"
